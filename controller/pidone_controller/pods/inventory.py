"""Which pods live, and which of them is at the other end of a connection.

A sandbox holds no credential, so a pod is told apart by the address its packets come from. What the pod
says about itself only narrows or contradicts that; it never grants. kube2iam and kiam got each of these
wrong once: an address nobody has yet gets no default, only live pods are looked up, finished pods keep
their address in status and are left out, and two pods with one address are not guessed at.

Where the pods come from, a file or an API server, is not known here. All pods of a cluster are kept, few of
them have tasks, so a pod is small: what many have in common is one object, and the rest is packed.
"""

import ipaddress
import json
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any, TypeVar
from uuid import UUID

from pidone.errors import PidoneError
from pidone.plan.digest import canonical
from pidone.plan.model import Container

FINISHED = {"Succeeded", "Failed"}
# The kubelet names a static pod's cgroup by this hash, and the API server's mirror of it has another uid.
CONFIG_HASH = "kubernetes.io/config.hash"
# Annotations that hold the whole manifest once more, or that a network plugin writes about each pod: no
# param fits them, and what is not kept may change without anything being derived anew.
_NOISE = (
    "kubectl.kubernetes.io/last-applied-configuration",
    "cni.projectcalico.org/",
    "k8s.ovn.org/",
    "k8s.v1.cni.cncf.io/network",
)
_HEXADECIMAL = re.compile("(?:[0-9a-f]{2}){1,127}")
UUID_HERE = 255  # in place of a length: 16 bytes that are a UUID
POOL = 1 << 12  # objects that are remembered for being shared; more are forgotten all at once

Key = tuple[str, str]  # namespace and name
T = TypeVar("T", bound=Hashable)


class InventoryError(PidoneError):
    """Something that is not a pod, or a field of one that is not what Kubernetes has there."""


class Table(dict[str, str]):
    """Labels or annotations; never changed, so that pods share them and look-ups go by the object."""

    __slots__ = ("_hash",)
    _hash: int

    def __hash__(self) -> int:  # type: ignore[override]
        try:
            return self._hash
        except AttributeError:
            self._hash = hash(frozenset(self.items()))
            return self._hash


class Pool:
    """Makes equal values one object, as the pods of one Deployment follow each other in a list."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def one(self, value: T) -> T:
        if len(self._known) >= POOL:
            self._known.clear()
        shared: T = self._known.setdefault(value, value)
        return shared


@dataclass(frozen=True, slots=True)
class Template:
    """What the pods of one Deployment have in common. Where each has labels of its own, it has one of its own."""

    namespace: str
    hostname: str  # empty where it is the pod's name
    labels: Table
    annotations: Table
    host_network: bool
    spec: bytes  # canonical JSON of what rendering reads of it
    containers: tuple[str, ...]  # ``name runtime`` of those that the status has


@dataclass(frozen=True, slots=True)
class Host:
    """A node, and its addresses, normalised."""

    name: str
    ips: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pod:
    """One core/v1 Pod, projected to what identity, binding and rendering read.

    Equal pods have equal plans: what is dropped (conditions, managed fields, start times) may change as
    often as it likes and derives nothing anew.
    """

    name: str
    addresses: str  # status.podIPs, normalised, with commas between
    host: Host
    phase: str
    terminating: bool  # metadata.deletionTimestamp is set
    template: Template
    ids: bytes  # packed: a length, the uid, and those of the containers, see ``_statuses``

    @property
    def uid(self) -> str:
        """Empty where a hand-written inventory has none."""
        length = self.ids[0]
        return self.ids[1 : 1 + length].decode() if length < UUID_HERE else str(UUID(bytes=self.ids[1:17]))

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
        """What a pod is remembered by: a new pod of the same name is another one."""
        return self.uid or self.path

    @property
    def path(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def lives(self) -> bool:
        """Whether it is not done for ever."""
        return self.phase not in FINISHED

    @property
    def served(self) -> bool:
        """Whether it lives, and has an address of its own by now."""
        return bool(self.addresses) and not self.host_network and self.lives

    @property
    def labels(self) -> Table:
        return self.template.labels

    @property
    def annotations(self) -> Table:
        return self.template.annotations

    @property
    def host_network(self) -> bool:
        return self.template.host_network

    @property
    def node(self) -> str:
        return self.host.name

    @property
    def host_ips(self) -> tuple[str, ...]:
        return self.host.ips

    @property
    def restart_policy(self) -> str:
        policy: str = json.loads(self.template.spec)["restartPolicy"]
        return policy

    @property
    def containers(self) -> dict[str, Container]:
        """All of the spec, in its order, by name."""
        spec = json.loads(self.template.spec)
        names = (str(one.get("name")) for field in ("initContainers", "containers") for one in spec[field])
        start = 1 + (self.ids[0] if self.ids[0] < UUID_HERE else 16)
        known = _containers_of(self.template.containers, self.ids[start:])
        return {name: known.get(name, Container("", started=False)) for name in names}

    @property
    def manifest(self) -> dict[str, Any]:
        """The Pod as rendering reads it."""
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
            "spec": {"nodeName": self.node, **json.loads(self.template.spec)},
            "status": {
                "podIP": ips[0] if ips else "",
                "podIPs": [{"ip": ip} for ip in ips],
                "hostIP": self.host_ips[0] if self.host_ips else "",
            },
        }


@dataclass(frozen=True, slots=True)
class Claims:
    """What a client says about itself; None where it says nothing."""

    uid: str | None = None
    hostname: str | None = None
    namespace: str | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "Claims":
        """Read request headers (names in lower case)."""
        return cls(
            headers.get("pidone-pod-uid") or None,
            headers.get("pidone-hostname") or None,
            headers.get("pidone-namespace") or None,
        )


@dataclass(frozen=True, slots=True)
class Unknown:
    """No live pod has this, yet: ``the address 10.1.2.3``, or a token."""

    what: str


@dataclass(frozen=True, slots=True)
class Contradiction:
    """The claims do not fit the pod that has the address, or do not say which of several it is."""

    reason: str


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """A node's own address: a host-network pod, or address translation on the way."""

    address: str


Identity = Pod | Unknown | Contradiction | NodeAddress


class Inventory:
    """All pods of now, and who is where. A change costs the same whatever the number of pods."""

    def __init__(self, pods: Iterable[Pod] = ()) -> None:
        self._pods: dict[str, dict[str, Pod]] = {}  # by namespace and name: no tuple a pod for a key
        self._count = 0
        self._at: dict[str, Pod | tuple[Pod, ...]] = {}  # served pods by address; several are an exception
        self._nodes: dict[str, int] = {}  # addresses of nodes, and how many pods are on each
        for pod in pods:
            self.put(pod)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Pod]:
        for pods in self._pods.values():
            yield from pods.values()

    def find(self, namespace: str, name: str) -> Pod | None:
        """The pod of this name, in whatever phase."""
        return self._pods.get(namespace, {}).get(name)

    def at(self, address: str) -> tuple[Pod, ...]:
        """The served pods that have this address."""
        found = self._at.get(address, ())
        return found if isinstance(found, tuple) else (found,)

    def is_node(self, address: str) -> bool:
        return address in self._nodes

    def put(self, pod: Pod) -> set[str]:
        """A pod that is new or has changed. Returns the addresses where somebody else may be now, or no node.

        A pod of the same name and another uid takes the place of the one before, which is gone.
        """
        before = self.find(pod.namespace, pod.name)
        if before is None:
            self._count += 1
        elif before.template == pod.template:
            # The pool may have forgotten it. They are equal, so nobody can tell, and the pods go on sharing one.
            object.__setattr__(pod, "template", before.template)
        self._pods.setdefault(pod.namespace, {})[pod.name] = pod
        return self._moved(before, pod)

    def drop(self, namespace: str, name: str) -> set[str]:
        """A pod that is gone, or was never there. Returns as ``put``."""
        pods = self._pods.get(namespace, {})
        before = pods.pop(name, None)
        if before is None:
            return set()
        self._count -= 1
        if not pods:
            del self._pods[namespace]
        return self._moved(before, None)

    def identify(self, address: str, claims: Claims) -> Identity:
        """Who is at ``address`` (normalised)? A node's address first: any process there could be speaking."""
        if address in self._nodes:
            return NodeAddress(address)
        found = self.at(address)
        if not found:
            return Unknown(f"the address {address}")
        return _narrow(address, found, claims)

    def named(self, namespace: str, name: str, uid: str, claims: Claims) -> Identity:
        """Who holds a token that was made for this pod? On the host's network too, as the address says nothing."""
        pod = self.find(namespace, name)
        if pod is None or pod.uid != uid or not pod.lives:
            return Unknown(f"the token of {namespace}/{name} (uid {uid})")
        return _narrow("the token's owner", (pod,), claims)

    def _moved(self, before: Pod | None, after: Pod | None) -> set[str]:
        """Index ``after`` in the place of ``before``."""
        changed = set[str]()
        if before is None or after is None or before.host_ips != after.host_ips:
            for address in after.host_ips if after else ():
                self._nodes[address] = self._nodes.get(address, 0) + 1
                if self._nodes[address] == 1:
                    changed.add(address)
            # host_ips of finished pods count: a node outlives them
            for address in before.host_ips if before else ():
                self._nodes[address] -= 1
                if not self._nodes[address]:
                    del self._nodes[address]
                    changed ^= {address}
        old = before.ips if before and before.served else ()
        new = after.ips if after and after.served else ()
        for address in old:
            left = tuple(pod for pod in self.at(address) if pod is not before)
            self._index(address, left)
        for address in new:
            assert after is not None
            self._index(address, (*self.at(address), after))
        return changed | set(old) ^ set(new)

    def _index(self, address: str, pods: tuple[Pod, ...]) -> None:
        if not pods:
            self._at.pop(address, None)
        elif len(pods) == 1:
            self._at[address] = pods[0]
        else:
            self._at[address] = tuple(sorted(pods, key=lambda pod: (pod.path, pod.uid)))


def _narrow(address: str, found: tuple[Pod, ...], claims: Claims) -> Pod | Contradiction:
    """What the claims leave of the pods at one address."""
    reused = "the address was reused, or is translated on the way"
    if claims.uid is not None and all(pod.uid for pod in found):
        named = [pod for pod in found if _is(pod, claims.uid)]
        if len(named) == 1:
            return named[0]
        return Contradiction(f"{address} is {_shown(found)}, not a pod with uid {claims.uid}: {reused}")
    if len(found) > 1:
        return Contradiction(
            f"{address} is the address of {_shown(found)}; the header Pidone-Pod-UID must say which"
        )
    pod = found[0]
    # Only together: each alone is set by dnsPolicy or the runtime too often to contradict anything.
    if claims.hostname and claims.namespace:
        host = claims.hostname.partition(".")[0]
        if (claims.namespace, host) != (pod.namespace, pod.hostname[:63]):
            return Contradiction(f"{address} is {_shown(found)}, not {claims.namespace}/{host}: {reused}")
    return pod


def normalise(address: str) -> str:
    """One spelling an address: no zone, IPv4-mapped IPv6 as IPv4. Raises ``ValueError``."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(parsed)


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def project(value: object, pool: Pool | None = None) -> Pod:
    """One Pod as the API server or ``kubectl get -o yaml`` shows it. Raises ``InventoryError``.

    What pods have in common is one object with the same ``pool``.
    """
    pod = _mapping(value, "a pod")
    kind = pod.get("kind", "Pod")
    if kind != "Pod":
        raise InventoryError(f"expected a Pod, not kind: {kind}")
    meta = _mapping(pod.get("metadata"), "metadata")
    name = _text(meta, "name", "metadata")
    if not name:
        raise InventoryError("a Pod without metadata.name")
    namespace = _text(meta, "namespace", "metadata") or "default"
    try:
        return _project(pod, meta, namespace, name, pool or Pool())
    except InventoryError as error:
        raise InventoryError(f"pod {namespace}/{name}: {error}") from error


def _project(pod: Mapping[str, Any], meta: Mapping[str, Any], namespace: str, name: str, pool: Pool) -> Pod:
    spec = _mapping(pod.get("spec"), "spec")
    status = _mapping(pod.get("status"), "status")
    annotations = _table(meta, "annotations")
    for key in [key for key in annotations if key.startswith(_NOISE)]:
        del annotations[key]
    hostname = _text(spec, "hostname", "spec")
    names, ids = _statuses(status)
    read = {
        "serviceAccountName": _text(spec, "serviceAccountName", "spec"),
        "restartPolicy": _text(spec, "restartPolicy", "spec") or "Always",
        "initContainers": _projected(spec, "initContainers"),
        "containers": _projected(spec, "containers"),
    }
    template = Template(
        namespace=intern(namespace),
        hostname="" if hostname == name else hostname,
        labels=pool.one(_table(meta, "labels")),
        annotations=pool.one(annotations),
        host_network=spec.get("hostNetwork") is True,
        spec=pool.one(canonical(read)),
        containers=pool.one(names),
    )
    return Pod(
        name=name,
        addresses=",".join(_addresses(status, "podIP", "podIPs")),
        host=pool.one(Host(intern(_text(spec, "nodeName", "spec")), _addresses(status, "hostIP", "hostIPs"))),
        phase=intern(_text(status, "phase", "status")),
        terminating=meta.get("deletionTimestamp") is not None,
        template=pool.one(template),
        ids=_packed_uid(_text(meta, "uid", "metadata")) + ids,
    )


def _packed_uid(uid: str) -> bytes:
    try:
        packed = UUID(uid)
    except ValueError:
        packed = None
    if packed and str(packed) == uid:
        return bytes([UUID_HERE]) + packed.bytes
    text = uid.encode()
    if len(text) >= UUID_HERE:
        raise InventoryError(f"metadata.uid: at most {UUID_HERE - 1} bytes, not {len(text)}")
    return bytes([len(text)]) + text


# What a TaskSet may ask a container for: named ports, its own probes, its environment.
_CONTAINER = ("name", "ports", "env", "readinessProbe", "livenessProbe", "startupProbe", "restartPolicy")


def _projected(spec: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    items = spec.get(field) or []
    if not isinstance(items, list):
        raise InventoryError(f"spec.{field}: expected a list")
    containers = (_mapping(item, f"spec.{field}[{index}]") for index, item in enumerate(items))
    return [{key: item[key] for key in _CONTAINER if key in item} for item in containers]


def _statuses(status: Mapping[str, Any]) -> tuple[tuple[str, ...], bytes]:
    """The containers that the status has: ``name runtime`` of each, and the IDs, in 34 bytes each as they are now.

    Of each: whether it has ever run and whether the ID is hexadecimal, the length, the ID.
    """
    names, packed = [], bytearray()
    for field in ("initContainerStatuses", "containerStatuses"):
        items = status.get(field) or []
        if not isinstance(items, list):
            raise InventoryError(f"status.{field}: expected a list")
        for item in items:
            one = _mapping(item, f"status.{field}")
            runtime, _, digits = _text(one, "containerID", field).rpartition("://")
            state, last = (_mapping(one.get(name), f"{field}.{name}") for name in ("state", "lastState"))
            ran = bool(state.keys() & {"running", "terminated"}) or "terminated" in last
            hexadecimal = _HEXADECIMAL.fullmatch(digits) is not None
            raw = bytes.fromhex(digits) if hexadecimal else digits.encode()[:255]
            names.append(f"{_text(one, 'name', field)} {runtime}")
            packed += bytes([ran + 2 * hexadecimal, len(raw)]) + raw
    return tuple(names), bytes(packed)


def _containers_of(names: tuple[str, ...], packed: bytes) -> dict[str, Container]:
    found, place = {}, 0
    for text in names:
        name, _, runtime = text.partition(" ")
        flags, length = packed[place : place + 2]
        raw = packed[place + 2 : place + 2 + length]
        place += 2 + length
        digits = raw.hex() if flags & 2 else raw.decode(errors="replace")
        found[name] = Container(f"{runtime}://{digits}" if runtime else digits, started=bool(flags & 1))
    return found


def _addresses(status: Mapping[str, Any], one: str, many: str) -> tuple[str, ...]:
    """Both spellings of the same: an old API server has only the first, a dual-stack pod both."""
    items = status.get(many) or []
    if not isinstance(items, list):
        raise InventoryError(f"status.{many}: expected a list")
    given = [status.get(one), *(_mapping(item, f"status.{many}").get("ip") for item in items)]
    found: dict[str, None] = {}
    for address in given:
        if not address:
            continue
        try:
            found[normalise(str(address))] = None
        except ValueError:
            raise InventoryError(f'status.{one}: "{address}" is not an IP address') from None
    return tuple(found)


def _mapping(value: object, path: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InventoryError(f"{path}: expected a mapping, not {value!r:.40}")
    return value


def _text(table: Mapping[str, Any], field: str, path: str) -> str:
    value = table.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InventoryError(f'{path}.{field}: expected a string, not {value!r}; write "{value}"')
    return value


def _table(meta: Mapping[str, Any], field: str) -> Table:
    """Labels and annotations. YAML reads a bare 8080 as a number, which Kubernetes refuses; so do we."""
    table: Mapping[Any, Any] = _mapping(meta.get(field), f"metadata.{field}")
    for key, value in table.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InventoryError(
                f'metadata.{field}.{key}: expected a string, not {value!r}; write {key}: "{value}"'
            )
    return Table((intern(key), value) for key, value in table.items())


def _is(pod: Pod, uid: str) -> bool:
    claimed = uid.lower().replace("_", "-")  # systemd's cgroup names have underscores for the dashes
    return claimed in {pod.uid.lower(), pod.annotations.get(CONFIG_HASH, pod.uid).lower()}


def _shown(pods: Iterable[Pod]) -> str:
    return " and ".join(f"{pod.path} (uid {pod.uid or 'unknown'})" for pod in pods)
