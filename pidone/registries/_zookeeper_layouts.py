"""What stands in a node of ZooKeeper, for the clients that read it: Spring Cloud, plain Curator, and SmartStack.

Observed with Curator's own reader (org.apache.curator.x.discovery.details.JsonInstanceSerializer): a payload without
``@class``, or of a class that the reader does not have, fails the whole query of the service, so one bad writer blinds
all readers; without ``uriSpec`` a reader gets an empty URI.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pidone.plan.strict_json import check_names
from pidone.registries import Entry, Status
from pidone.registries._zookeeper_names import STATUS_KEY
from pidone.registries._zookeeper_wire import Flag
from pidone.text import printable

MAX_SHOWN = 120  # characters of a value that another program has written
SPRING_CLASS = "org.springframework.cloud.zookeeper.discovery.ZookeeperInstance"
MAP_CLASS = "java.util.LinkedHashMap"  # every Java has it


class Instance(NamedTuple):
    """One instance of one service, in one layout."""

    layout: str
    base: str  # the path of all services, without a slash at its end
    service: str
    id: str
    address: str
    port: int
    ssl_port: int | None
    uri_spec: str
    weight: int | None
    metadata: Mapping[str, str]

    @property
    def folder(self) -> str:
        """The path whose children are the instances of the service."""
        return f"{self.base}/{self.service}"

    @property
    def path(self) -> str:
        """The path of our node; in SmartStack's layout without the number that the server adds."""
        return f"{self.folder}/{self.id}" + ("_" if self.numbered else "")

    @property
    def numbered(self) -> bool:
        return self.layout == "smartstack"

    @property
    def flag(self) -> int:
        return Flag.EPHEMERAL_SEQUENTIAL if self.numbered else Flag.EPHEMERAL

    @property
    def has_status(self) -> bool:
        """True if a reader can tell an instance that is out of service. If not, there is no node then."""
        return not self.numbered

    def is_ours(self, child: str) -> bool:
        """True if a node of this name in ``folder`` is of our instance, by whatever session."""
        if not self.numbered:
            return child == self.id
        return re.fullmatch(f"{re.escape(self.id)}_-?[0-9]{{10,}}", child) is not None

    def document(self, status: Status, registered: int) -> bytes:
        """Return the data of the node. ``registered``: ms since the epoch."""
        document = self._smartstack() if self.numbered else self._curator(status, registered)
        return json.dumps(document, separators=(",", ":")).encode()

    def _smartstack(self) -> dict[str, Any]:
        weight = {"weight": self.weight} if self.weight is not None else {}
        labels = {"labels": dict(self.metadata)} if self.metadata else {}
        return {"host": self.address, "port": self.port, "name": self.id, **weight, **labels}

    def _curator(self, status: Status, registered: int) -> dict[str, Any]:
        payload: dict[str, Any] | None = None
        if self.layout == "spring":
            payload = {
                "@class": SPRING_CLASS,
                "id": self.id,
                "name": self.service,
                "metadata": {**self.metadata, STATUS_KEY: status.value},
            }
        elif self.metadata:
            payload = {"@class": MAP_CLASS, **self.metadata}
        return {
            "name": self.service,
            "id": self.id,
            "address": self.address,
            "port": self.port,
            "sslPort": self.ssl_port,
            "payload": payload,
            "registrationTimeUTC": registered,
            "serviceType": "DYNAMIC",
            "uriSpec": {"parts": uri_parts(self.uri_spec)},
            "enabled": status is Status.UP,
        }


def default_uri_spec(address: str, *, secure: bool) -> str:
    """Return the template of the URI. Curator puts an address of IPv6 into it without brackets (RFC 3986, 3.2.2)."""
    host = "[{address}]" if ":" in address else "{address}"
    return "{scheme}://" + host + (":{ssl-port}" if secure else ":{port}")


def uri_parts(spec: str) -> list[dict[str, Any]]:
    """Return the parts of a ``UriSpec``: variables in braces, and the text between them."""
    parts = re.findall(r"\{([^{}]*)\}|([^{}]+)", spec)
    return [
        {"value": variable or literal, "variable": bool(variable)}
        for variable, literal in parts
        if variable or literal
    ]


def entry(data: bytes) -> Entry:
    """Return the instance in a node, of any layout. Values of a wrong type or size are empty or cut."""
    try:
        check_names(data)
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return Entry("", "")
    payload = document.get("payload")
    metadata = payload.get("metadata") if isinstance(payload, dict) else None
    status = metadata.get(STATUS_KEY) if isinstance(metadata, dict) else None
    if document.get("enabled") is False:
        status = Status.OUT_OF_SERVICE.value
    if not isinstance(status, str):
        status = Status.UP.value
    address = document.get("address", document.get("host"))
    return Entry(printable(status, MAX_SHOWN), _text(address))


def _text(value: object) -> str:
    return printable(value, MAX_SHOWN) if isinstance(value, str) else ""
