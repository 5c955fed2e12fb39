"""The pods of a cluster as values.

The controller keeps every pod of the cluster and few of them have tasks, so a pod is small: values that many pods
share are one object, and the rest is packed into a few fields.
"""

import json
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from pidone.plan.model import Container
from pidone.text import printable

FINISHED = {"Succeeded", "Failed"}
MAINTENANCE = "pidone.dev/maintenance"  # the annotation; "true" takes the pod's instances out of service
MAX_VALUE_WIDTH = 40  # characters of an annotation in a message
MAX_UID = 254  # bytes of a uid that is not a UUID
POOL_SIZE = 1 << 12  # values that a pool remembers; a full pool is emptied

_PACKED_UUID = 255  # in the place of the uid's length: 16 bytes of a UUID follow
_HEXADECIMAL = re.compile("(?:[0-9a-f]{2}){1,127}")

NamespacedName = tuple[str, str]  # namespace and name
T = TypeVar("T", bound=Hashable)


class FrozenLabels(dict[str, str]):
    """Labels or annotations. Never changed after they are built: pods share them, and caches use them as keys."""

    __slots__ = ("_hash",)
    _hash: int

    def __hash__(self) -> int:  # type: ignore[override]
        try:
            return self._hash
        except AttributeError:
            self._hash = hash(frozenset(self.items()))
            return self._hash


class Pool:
    """Shares one object among equal values. It may be small: in a list the pods of a Deployment follow each other."""

    def __init__(self) -> None:
        self._values: dict[Any, Any] = {}

    def share(self, value: T) -> T:
        """Return the first object that was equal to this one."""
        if len(self._values) >= POOL_SIZE:
            self._values.clear()
        shared: T = self._values.setdefault(value, value)
        return shared


@dataclass(frozen=True, slots=True)
class Template:
    """The fields that pods of one Deployment have in common. A pod with labels of its own has a template of its own."""

    namespace: str
    hostname: str  # empty if it equals the pod's name
    labels: FrozenLabels
    annotations: FrozenLabels
    host_network: bool
    spec: bytes  # canonical JSON of the fields of the spec that rendering reads
    containers: tuple[str, ...]  # ``name runtime`` of each container in the status


@dataclass(frozen=True, slots=True)
class Node:
    """A node's name and its addresses, normalised."""

    name: str
    ips: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pod:
    """The fields of one core/v1 Pod that identity, bindings and rendering read.

    Equal pods have equal plans. Fields that are left out (conditions, managed fields, start times) may change
    without a new derivation.
    """

    name: str
    addresses: str  # status.podIPs, normalised, joined by commas
    node: Node
    phase: str
    terminating: bool  # metadata.deletionTimestamp is set
    template: Template
    ids: bytes  # the uid (``pack_uid``), then one ``pack_container`` for each of ``template.containers``

    @property
    def uid(self) -> str:
        """The uid; empty if a hand-written inventory has none."""
        length = self.ids[0]
        return self.ids[1 : 1 + length].decode() if length < _PACKED_UUID else str(UUID(bytes=self.ids[1:17]))

    @property
    def namespace(self) -> str:
        return self.template.namespace

    @property
    def hostname(self) -> str:
        return self.template.hostname or self.name

    @property
    def ips(self) -> tuple[str, ...]:
        return tuple(self.addresses.split(",")) if self.addresses else ()

    @property
    def key(self) -> str:
        """The uid, or namespace/name without one: a new pod of the same name has another key."""
        return self.uid or self.path

    @property
    def path(self) -> str:
        """The name for messages: ``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def finished(self) -> bool:
        """True if all containers have ended for good."""
        return self.phase in FINISHED

    @property
    def served(self) -> bool:
        """True if the repo serves it by its address: it is not finished and has an address of its own."""
        return bool(self.addresses) and not self.host_network and not self.finished

    @property
    def labels(self) -> FrozenLabels:
        return self.template.labels

    @property
    def annotations(self) -> FrozenLabels:
        return self.template.annotations

    @property
    def maintenance(self) -> bool:
        """True if people have taken its instances out of service by the annotation."""
        return self.annotations.get(MAINTENANCE) == "true"

    @property
    def maintenance_problem(self) -> str:
        """Why that annotation has no effect, with the remedy; empty if it is right or missing."""
        value = self.annotations.get(MAINTENANCE, "false")
        if value in {"true", "false"}:
            return ""
        return (
            f'the annotation {MAINTENANCE} is "{printable(value, MAX_VALUE_WIDTH)}", and has no effect: write "true" '
            f'for out of service, or "false", as in kubectl annotate --overwrite pod {self.name} {MAINTENANCE}=true'
        )

    @property
    def host_network(self) -> bool:
        return self.template.host_network

    @property
    def node_name(self) -> str:
        return self.node.name

    @property
    def host_ips(self) -> tuple[str, ...]:
        return self.node.ips

    @property
    def restart_policy(self) -> str:
        policy: str = json.loads(self.template.spec)["restartPolicy"]
        return policy

    @property
    def containers(self) -> dict[str, Container]:
        """All containers of the spec by name, in its order."""
        spec = json.loads(self.template.spec)
        names = (str(item.get("name")) for field in ("initContainers", "containers") for item in spec[field])
        start = 1 + (self.ids[0] if self.ids[0] < _PACKED_UUID else 16)
        in_status = dict(_unpack_containers(self.template.containers, self.ids[start:]))
        return {name: in_status.get(name, Container("", started=False)) for name in names}

    @property
    def manifest(self) -> dict[str, Any]:
        """The core/v1 Pod as rendering reads it."""
        ips = self.ips
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "uid": self.uid,
                "labels": self.labels,
                "annotations": self.annotations,
            },
            "spec": {
                "nodeName": self.node_name,
                **({"hostNetwork": True} if self.template.host_network else {}),
                **json.loads(self.template.spec),
            },
            "status": {
                "podIP": ips[0] if ips else "",
                "podIPs": [{"ip": ip} for ip in ips],
                "hostIP": self.host_ips[0] if self.host_ips else "",
                "hostIPs": [{"ip": ip} for ip in self.host_ips],
            },
        }


def pack_uid(uid: str) -> bytes:
    """Pack a uid: 17 bytes for a UUID, else its length and text. Raises ``ValueError`` above ``MAX_UID`` bytes."""
    try:
        packed = UUID(uid)
    except ValueError:
        packed = None
    if packed and str(packed) == uid:
        return bytes([_PACKED_UUID]) + packed.bytes
    text = uid.encode()
    if len(text) > MAX_UID:
        raise ValueError(f"at most {MAX_UID} bytes, not {len(text)}")
    return bytes([len(text)]) + text


def pack_container(container_id: str, *, started: bool) -> bytes:
    """Pack a container ID without its runtime, with two bytes before it. Present runtimes' IDs take 32 bytes.

    The first byte has a flag for "has ever run" and one for "packed hexadecimal". The second is the length.
    """
    hexadecimal = _HEXADECIMAL.fullmatch(container_id) is not None
    raw = bytes.fromhex(container_id) if hexadecimal else container_id.encode()[:255]
    return bytes([started + 2 * hexadecimal, len(raw)]) + raw


def _unpack_containers(names: tuple[str, ...], packed: bytes) -> Iterator[tuple[str, Container]]:
    """Yield the containers. ``names`` are ``name runtime``."""
    offset = 0
    for text in names:
        name, _, runtime = text.partition(" ")
        flags, length = packed[offset : offset + 2]
        raw = packed[offset + 2 : offset + 2 + length]
        offset += 2 + length
        container_id = raw.hex() if flags & 2 else raw.decode(errors="replace")
        yield (
            name,
            Container(f"{runtime}://{container_id}" if runtime else container_id, started=bool(flags & 1)),
        )
