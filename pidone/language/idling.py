"""Gives a task that freezes the application what it has to know of its pod, and refuses pods where it cannot work."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pidone.errors import LanguageError
from pidone.language.containers import Container, containers
from pidone.language.pods import objects, shown_pod

MAX_PORTS = 32  # ``pidone.actions._packets.MAX_PORTS``; a test holds them together
_PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def with_pod(idle: Mapping[str, Any], pod: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rendered fields of ``idle`` with ports and protocols, and with what is known of the pod's probes.

    Raises ``LanguageError`` with the remedy if the pod's processes cannot be frozen.
    """
    spec = pod.get("spec") or {}
    named = tuple(idle.get("containers", ()))
    frozen = [item for name in named for item in containers(pod, name)] or containers(pod)
    if idle.get("action") != "report":
        _check_processes(spec, pod)
        _check_users(spec, frozen, pod)
    if spec.get("hostNetwork") is True:
        raise LanguageError(
            f"{shown_pod(pod)} has the network of its node, whose packets are not the application's alone; "
            "remove hostNetwork, or use no idle task for it"
        )
    probes = [
        item[kind] for item in containers(pod) for kind in _PROBES if isinstance(item.get(kind), Mapping)
    ]
    return {
        **idle,
        "ports": _ports(idle.get("ports", ()), pod),
        "nodes": _node_addresses(pod.get("status") or {}),
        "probeTimeout": max((probe.get("timeoutSeconds") or 1 for probe in probes), default=1),
        "agents": sorted(set(_user_agents(probes))),
    }


def _check_processes(spec: Mapping[str, Any], pod: Mapping[str, Any]) -> None:
    if spec.get("hostPID") is True:
        raise LanguageError(
            f"idle freezes all processes that process 1 sees, and {shown_pod(pod)} sees those of its node; "
            "remove hostPID, and set shareProcessNamespace: true"
        )
    if spec.get("shareProcessNamespace") is not True:
        raise LanguageError(
            f"idle freezes the application, and process 1 of {shown_pod(pod)} does not see its processes; "
            "set shareProcessNamespace: true in the pod's template"
        )


def _check_users(spec: Mapping[str, Any], frozen: Iterable[Container], pod: Mapping[str, Any]) -> None:
    """Process 1 has the pod's user. Only as root it may stop the processes of another one."""
    own = (spec.get("securityContext") or {}).get("runAsUser")
    if not own:
        return
    for item in frozen:
        other = (item.get("securityContext") or {}).get("runAsUser", own)
        if other != own:
            raise LanguageError(
                f'container "{item.get("name")}" of {shown_pod(pod)} runs as user {other}, and process 1 as user '
                f"{own}, which may not freeze it; give pod and container the same runAsUser, or none to the pod"
            )


def _ports(given: Iterable[int], pod: Mapping[str, Any]) -> list[str]:
    """Return ``8080/TCP`` for each port: those given, else all that the containers declare."""
    declared = {
        (port["containerPort"], str(port.get("protocol") or "TCP"))
        for item in containers(pod)
        for port in objects(item.get("ports"))
        if isinstance(port.get("containerPort"), int)
    }
    wanted = set(given)
    ports = {(number, protocol) for number, protocol in declared if not wanted or number in wanted}
    ports |= {(number, "TCP") for number in wanted - {number for number, _ in ports}}
    seen = sorted((number, protocol) for number, protocol in ports if protocol in {"TCP", "UDP"})
    if not seen:
        raise LanguageError(
            f"no container of {shown_pod(pod)} declares a TCP or UDP port, so nothing would wake the application; "
            "declare its ports, or list them in the task: ports"
        )
    if len(seen) > MAX_PORTS:
        raise LanguageError(
            f"{shown_pod(pod)} has {len(seen)} ports, and at most {MAX_PORTS} can be watched; "
            "list those that count in the task: ports"
        )
    return [f"{number}/{protocol}" for number, protocol in seen]


def _node_addresses(status: Mapping[str, Any]) -> list[str]:
    """Return the addresses of the pod's node, from which the kubelet's probes come."""
    addresses = [item.get("ip") for item in objects(status.get("hostIPs"))] or [status.get("hostIP")]
    return [address for address in addresses if isinstance(address, str) and address]


def _user_agents(probes: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the user agents that HTTP probes set in place of the kubelet's."""
    for probe in probes:
        for header in objects((probe.get("httpGet") or {}).get("httpHeaders")):
            if str(header.get("name")).lower() == "user-agent" and header.get("value"):
                yield str(header["value"])
