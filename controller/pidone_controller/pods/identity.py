"""Identifies the pod of a client: by the address of its connection, narrowed by its claims.

A sandbox holds no credential, so a pod is identified by the source address of its connection. Claims (uid, hostname,
namespace) can narrow or contradict that and never grant anything. kube2iam and kiam each got one of these rules
wrong once: an address that no pod has gets no default; only live pods are looked up, since finished pods keep their
address in their status; and where two pods have one address, neither is assumed.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from pidone.protocol import HOSTNAME_HEADER, NAMESPACE_HEADER, POD_UID_HEADER
from pidone.text import printable
from pidone_controller.pods.model import Pod

# The kubelet names a static pod's cgroup by this hash; its mirror in the API server has another uid.
CONFIG_HASH = "kubernetes.io/config.hash"


@dataclass(frozen=True, slots=True)
class Claims:
    """The headers in which a client describes itself; None for a missing one."""

    uid: str | None = None
    hostname: str | None = None
    namespace: str | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "Claims":
        """Read request headers (names in lower case)."""
        return cls(
            headers.get(POD_UID_HEADER) or None,
            headers.get(HOSTNAME_HEADER) or None,
            headers.get(NAMESPACE_HEADER) or None,
        )


@dataclass(frozen=True, slots=True)
class Unknown:
    """No live pod has this address or token yet."""

    subject: str  # ``the address 10.1.2.3``, or a token


@dataclass(frozen=True, slots=True)
class Contradiction:
    """The claims do not fit the pod at the address, or fit more than one of several pods."""

    reason: str


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """The address of a node: the client is a host-network pod, or its address was translated on the way."""

    address: str


Identity = Pod | Unknown | Contradiction | NodeAddress


def narrow(subject: str, pods: tuple[Pod, ...], claims: Claims) -> Pod | Contradiction:
    """Return the only one of ``pods`` that fits the claims. ``pods`` have the address or token, and are not empty.

    A contradiction names what was claimed, and never the pods: a client with a false claim would learn their uids.
    """
    reused = "the address was reused, or is translated on the way"
    if claims.uid is not None and all(pod.uid for pod in pods):
        matches = [pod for pod in pods if _has_uid(pod, claims.uid)]
        if len(matches) == 1:
            return matches[0]
        return Contradiction(f"{subject} is not one of a pod with uid {_claimed(claims.uid)}: {reused}")

    if len(pods) > 1:
        return Contradiction(f"{subject} is one of several pods; the header Pidone-Pod-UID must say which")

    pod = pods[0]
    # Only both together can contradict: dnsPolicy or the runtime often sets one of them to something else.
    if claims.hostname and claims.namespace:
        hostname = claims.hostname.partition(".")[0]
        if (claims.namespace, hostname) != (pod.namespace, pod.hostname[:63]):
            claimed = _claimed(f"{claims.namespace}/{hostname}")
            return Contradiction(f"{subject} is not one of the pod {claimed}: {reused}")
    return pod


def _claimed(text: str) -> str:
    return printable(text, 2 * 63 + 1)  # a namespace and a hostname


def _has_uid(pod: Pod, uid: str) -> bool:
    claimed = uid.lower().replace("_", "-")  # systemd's cgroup names have underscores for the dashes
    return claimed in {pod.uid.lower(), pod.annotations.get(CONFIG_HASH, pod.uid).lower()}


def normalise(address: str) -> str:
    """Return the normal form of an address: without zone, IPv4-mapped IPv6 as IPv4. Raises ``ValueError``."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(parsed)


def is_loopback(address: str) -> bool:
    """True if a normalised address is a loopback address."""
    return ipaddress.ip_address(address).is_loopback
