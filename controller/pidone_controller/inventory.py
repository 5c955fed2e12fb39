"""Which pods live, and which of them is at the other end of a connection.

A sandbox holds no credential, so a pod is told apart by the address its packets come from. What the pod
says about itself only narrows or contradicts that; it never grants. kube2iam and kiam got each of these
wrong once: an address nobody has yet gets no default, only live pods are looked up, finished pods keep
their address in status and are left out, and two pods with one address are not guessed at.

Plain values and functions. Where the pods come from, a file or an API server, is not known here.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pidone.errors import PidoneError

FINISHED = {"Succeeded", "Failed"}
# The kubelet names a static pod's cgroup by this hash, and the API server's mirror of it has another uid.
CONFIG_HASH = "kubernetes.io/config.hash"


class InventoryError(PidoneError):
    """Something that is not a pod, or a field of one that is not what Kubernetes has there."""


@dataclass(frozen=True, slots=True)
class Pod:
    """One core/v1 Pod, projected to what identity, binding and rendering read.

    Equal pods have equal plans: what is dropped (conditions, managed fields, start times) may change as
    often as it likes and derives nothing anew. ``ips`` and ``host_ips`` are normalised.
    """

    uid: str  # "" where a hand-written inventory has none
    namespace: str
    name: str
    hostname: str
    ips: tuple[str, ...]
    host_ips: tuple[str, ...]
    node: str
    host_network: bool
    phase: str
    terminating: bool  # metadata.deletionTimestamp is set
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    manifest: Mapping[str, Any]  # the Pod as rendering reads it

    @property
    def key(self) -> str:
        """What a pod is remembered by: a new pod of the same name is another one."""
        return self.uid or self.path

    @property
    def path(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def served(self) -> bool:
        """Whether it has an address of its own by now, and is not done for ever."""
        return bool(self.ips) and not self.host_network and self.phase not in FINISHED


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
    """No live pod has this address, yet."""

    address: str


@dataclass(frozen=True, slots=True)
class Contradiction:
    """The claims do not fit the pod that has the address, or do not say which of several it is."""

    reason: str


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """A node's own address: a host-network pod, or address translation on the way."""

    address: str


Identity = Pod | Unknown | Contradiction | NodeAddress


@dataclass(frozen=True, slots=True)
class Inventory:
    """All pods at one moment. A change makes a new one; nothing is ever seen half changed."""

    pods: Mapping[str, Pod]  # by key
    by_address: Mapping[str, tuple[Pod, ...]]  # live pods with an address of their own
    nodes: frozenset[str]  # addresses of nodes

    @classmethod
    def of(cls, pods: Iterable[Pod]) -> "Inventory":
        by_key = {pod.key: pod for pod in pods}
        by_address: dict[str, tuple[Pod, ...]] = {}
        for pod in sorted(by_key.values(), key=lambda pod: (pod.path, pod.uid)):
            if pod.served:
                for address in pod.ips:
                    by_address[address] = (*by_address.get(address, ()), pod)
        # host_ips of finished pods count: a node outlives them
        nodes = frozenset(address for pod in by_key.values() for address in pod.host_ips)
        return cls(by_key, by_address, nodes)

    def identify(self, address: str, claims: Claims) -> Identity:
        """Who is at ``address`` (normalised)? A node's address first: any process there could be speaking."""
        if address in self.nodes:
            return NodeAddress(address)
        found = self.by_address.get(address, ())
        if not found:
            return Unknown(address)
        return _narrow(address, found, claims)


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


def project(value: object) -> Pod:
    """One Pod as the API server or ``kubectl get -o yaml`` shows it. Raises ``InventoryError``."""
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
        return _project(pod, meta, namespace, name)
    except InventoryError as error:
        raise InventoryError(f"pod {namespace}/{name}: {error}") from error


def _project(pod: Mapping[str, Any], meta: Mapping[str, Any], namespace: str, name: str) -> Pod:
    spec = _mapping(pod.get("spec"), "spec")
    status = _mapping(pod.get("status"), "status")
    labels = _table(meta, "labels")
    annotations = _table(meta, "annotations")
    annotations.pop("kubectl.kubernetes.io/last-applied-configuration", None)  # the whole manifest once more
    uid = _text(meta, "uid", "metadata")
    node = _text(spec, "nodeName", "spec")
    ips = _addresses(status, "podIP", "podIPs")
    host_ips = _addresses(status, "hostIP", "hostIPs")
    return Pod(
        uid=uid,
        namespace=namespace,
        name=name,
        hostname=_text(spec, "hostname", "spec") or name,
        ips=ips,
        host_ips=host_ips,
        node=node,
        host_network=spec.get("hostNetwork") is True,
        phase=_text(status, "phase", "status"),
        terminating=meta.get("deletionTimestamp") is not None,
        labels=labels,
        annotations=annotations,
        manifest={
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": uid,
                "labels": labels,
                "annotations": annotations,
            },
            "spec": {
                "nodeName": node,
                "serviceAccountName": _text(spec, "serviceAccountName", "spec"),
                "initContainers": _containers(spec, "initContainers"),
                "containers": _containers(spec, "containers"),
            },
            "status": {
                "podIP": ips[0] if ips else "",
                "podIPs": [{"ip": ip} for ip in ips],
                "hostIP": host_ips[0] if host_ips else "",
            },
        },
    )


# What a TaskSet may ask a container for: named ports, its own probes, its environment.
_CONTAINER = ("name", "ports", "env", "readinessProbe", "livenessProbe", "startupProbe", "restartPolicy")


def _containers(spec: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    items = spec.get(field) or []
    if not isinstance(items, list):
        raise InventoryError(f"spec.{field}: expected a list")
    containers = (_mapping(item, f"spec.{field}[{index}]") for index, item in enumerate(items))
    return [{key: item[key] for key in _CONTAINER if key in item} for item in containers]


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


def _table(meta: Mapping[str, Any], field: str) -> dict[str, str]:
    """Labels and annotations. YAML reads a bare 8080 as a number, which Kubernetes refuses; so do we."""
    table: Mapping[Any, Any] = _mapping(meta.get(field), f"metadata.{field}")
    for key, value in table.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InventoryError(
                f'metadata.{field}.{key}: expected a string, not {value!r}; write {key}: "{value}"'
            )
    return dict(table)


def _is(pod: Pod, uid: str) -> bool:
    claimed = uid.lower().replace("_", "-")  # systemd's cgroup names have underscores for the dashes
    return claimed in {pod.uid.lower(), pod.annotations.get(CONFIG_HASH, pod.uid).lower()}


def _shown(pods: Iterable[Pod]) -> str:
    return " and ".join(f"{pod.path} (uid {pod.uid or 'unknown'})" for pod in pods)
