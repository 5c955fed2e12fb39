"""The HTTP API of Nacos as values: requests, and the meaning of answers. Without I/O.

Facts of the servers, observed on 2.3.2 and 3.1.0:

- 2.3.2 serves v1 and v2. 3.1.0 serves v3 and v1, and answers 410 for v2. Later ones answer 404 for v1.
- Parameters are a form or a query, never JSON.
- The name of the service in a beat of v1 and v2 is ``GROUP@@NAME``. Without the group v1 takes DEFAULT_GROUP, so the
  beat goes to another service, and v2 refuses it.
- A beat without the parameter ``beat`` is light. With it the server would create a missing instance from the beat, and
  what only the registration says would be lost.
- HTTP 200 does not mean success. A beat for an unknown instance has the code 20404 (v1, v2) or 21003 (v3).
- A list leaves out instances that are not enabled. It is up to half a second old. A beat is answered at once.
- The request for one instance is as old as a list, and 3.1.0 does not have it.
- Persistent instances are probed by the server. To it a beat for one is a beat for an unknown instance.
"""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple
from urllib.parse import urlencode

from pidone.http.message import Response
from pidone.http.urls import authority
from pidone.registries._servers import is_page, json_object

DEFAULT_GROUP, DEFAULT_CLUSTER, PUBLIC = "DEFAULT_GROUP", "DEFAULT", "public"
FORM = "application/x-www-form-urlencoded"
UNUSED_CLUSTER = "pidone-is-this-nacos"  # a cluster that no service has: its list is empty

OK = 0  # com.alibaba.nacos.api.model.v2.ErrorCode
BEAT_OK, BEAT_NOT_FOUND = 10200, 20404  # com.alibaba.nacos.api.naming.NamingResponseCode
INSTANCE_NOT_FOUND = 21003  # ErrorCode
SERVICE_NOT_FOUND = "service not found"  # a lasting answer to beats: alibaba/nacos #9959
# The beginnings of texts of v1, and of the check of parameters in all versions
TEXTS = ("caused: ", "errCode: ", "Param '", "Instance '")


class Api(StrEnum):
    """A version of the HTTP API."""

    V3 = "v3"
    V2 = "v2"
    V1 = "v1"

    @property
    def instance(self) -> str:
        """The path of instances."""
        return "v3/client/ns/instance" if self is Api.V3 else f"{self.value}/ns/instance"

    @property
    def login(self) -> str:
        return "v3/auth/user/login" if self is Api.V3 else "v1/auth/login"


class Call(NamedTuple):
    """One request. A POST has its parameters in the body, any other in the query."""

    method: str
    path: str
    parameters: Mapping[str, str]

    @property
    def query(self) -> str:
        return "" if self.method == "POST" else f"?{urlencode(self.parameters)}"

    @property
    def body(self) -> bytes:
        return urlencode(self.parameters).encode() if self.method == "POST" else b""


class Instance(NamedTuple):
    """Our instance. In 2.x an instance is one of a service by its address and port, whatever its cluster is."""

    service: str
    group: str
    namespace: str
    ip: str
    port: int
    cluster: str
    weight: float
    metadata: Mapping[str, str]

    @property
    def id(self) -> str:
        return f"{self.namespace}/{self._grouped}/{authority(self.ip, self.port)}"

    def registration(self, api: Api, *, enabled: bool) -> Call:
        more = {
            "weight": f"{self.weight:g}",
            "enabled": str(enabled).lower(),
            "healthy": "true",
            "ephemeral": "true",
            "metadata": json.dumps(dict(self.metadata), separators=(",", ":")),
        }
        return Call("POST", api.instance, self._parameters(api) | more)

    def beat(self, api: Api) -> Call:
        if api is Api.V3:
            # the server builds an instance of each request, so it gets what it checks there
            return Call(
                "POST", api.instance, self._parameters(api) | {"heartBeat": "true", "ephemeral": "true"}
            )
        grouped = self._parameters(api) | {"serviceName": self._grouped}
        return Call("PUT", f"{api.instance}/beat", grouped)

    def deregistration(self, api: Api) -> Call:
        return Call("DELETE", api.instance, self._parameters(api) | {"ephemeral": "true"})

    def listing(self, api: Api, cluster: str = "") -> Call:
        """Return the request for the enabled instances of our service, by default of our cluster."""
        clusters = "clusters" if api is Api.V1 else "clusterName"
        parameters = self._service(api) | {clusters: cluster or self.cluster, "healthyOnly": "false"}
        return Call("GET", f"{api.instance}/list", parameters)

    def is_ours(self, host: Mapping[str, Any]) -> bool:
        """True if an instance in an answer has our address and port."""
        return host.get("ip") == self.ip and host.get("port") == self.port

    def is_current(self, host: Mapping[str, Any]) -> bool:
        """True if an instance in an answer is what we have registered last."""
        return host.get("metadata") == dict(self.metadata) and host.get("weight") == self.weight

    @property
    def _grouped(self) -> str:
        return f"{self.group}@@{self.service}"

    def _service(self, api: Api) -> dict[str, str]:
        # v1 takes the group in the name alone in some calls, and both in all
        name = self._grouped if api is Api.V1 else self.service
        return {"serviceName": name, "groupName": self.group, "namespaceId": self.namespace}

    def _parameters(self, api: Api) -> dict[str, str]:
        address = {"ip": self.ip, "port": str(self.port), "clusterName": self.cluster}
        return self._service(api) | address | ({"cluster": self.cluster} if api is Api.V1 else {})


def login(api: Api, user: str, password: str) -> Call:
    return Call("POST", api.login, {"username": user, "password": password})


class Beat(NamedTuple):
    """The answer to a heartbeat."""

    known: bool  # the server has the instance
    broken: (
        bool  # the server has the instance, and not its service; a new registration alone does not mend it
    )
    interval: float | None  # seconds until the next beat, as the server wants it; None if it does not say


def is_done(api: Api, answer: Response) -> bool:
    """True if Nacos has carried out the registration or deregistration."""
    if answer.status != 200:
        return False
    if api is Api.V1:
        return answer.body.strip() == b"ok"
    value = json_object(answer)
    return value.get("code") == OK and value.get("data") == "ok"


def beat(api: Api, answer: Response) -> Beat | None:
    """Return the meaning of the answer to a beat; None if it is none."""
    value = json_object(answer)
    code = value.get("code")
    if answer.status == 500 and SERVICE_NOT_FOUND in answer.text and not is_page(answer):
        return Beat(known=True, broken=True, interval=None)
    if answer.status != 200 or type(code) is not int:
        return None
    if api is Api.V3:
        known = code == OK
        return Beat(known, broken=False, interval=None) if code in {OK, INSTANCE_NOT_FOUND} else None
    if code not in {BEAT_OK, BEAT_NOT_FOUND}:
        return None
    milliseconds = value.get("clientBeatInterval")
    bounded = type(milliseconds) is int and 0 < milliseconds < 86_400_000
    interval = milliseconds / 1000 if bounded else None  # type: ignore[operator]
    return Beat(code == BEAT_OK, broken=False, interval=interval)


def hosts(api: Api, answer: Response) -> list[Mapping[str, Any]] | None:
    """Return the instances in the answer to ``Instance.listing``; None if it is none."""
    value: Any = json_object(answer)
    if answer.status != 200:
        return None
    if api is not Api.V1:
        value = value.get("data") if value.get("code") == OK else None
    if api is not Api.V3:
        value = value.get("hosts") if isinstance(value, dict) else None
    return [host for host in value if isinstance(host, dict)] if isinstance(value, list) else None


def token(answer: Response) -> tuple[str, float] | None:
    """Return the token in the answer to ``login``, and the seconds that it is valid; None if it has none."""
    value = json_object(answer)
    value = value.get("data", value) if isinstance(value.get("data"), dict) else value
    text, seconds = value.get("accessToken"), value.get("tokenTtl")
    if answer.status != 200 or not isinstance(text, str) or not text.isascii() or not text.isprintable():
        return None
    bounded = type(seconds) is int and 0 < seconds < 1 << 31
    return text, float(seconds) if bounded else 18_000.0  # type: ignore[arg-type]


def is_answer(answer: Response) -> bool:
    """True if Nacos itself may have given this answer: its JSON, its texts, or an error page of Spring in JSON."""
    value = json_object(answer)
    if type(value.get("code")) is int and ("message" in value or "data" in value):
        return True
    if {"timestamp", "status", "error", "path"} <= value.keys():
        return True
    return answer.text.startswith(TEXTS)


def is_unknown_api(answer: Response) -> bool:
    """True if the answer may mean that the server does not have the version of the API."""
    return answer.status in {404, 405, 410, 501}


def words(answer: Response) -> str:
    """Return the registry's own words in an answer; empty if it has none."""
    value = json_object(answer)
    for name in ("data", "message", "error"):
        text = value.get(name)
        if isinstance(text, str) and text:
            return text
    return ""
