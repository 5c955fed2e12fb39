"""Reads containers of a Pod object for tasks: plain variables, numbers of named ports, probes.

Nothing is read from a running container, or from a Secret or ConfigMap, because all readers of plans would see it.
"""

from collections.abc import Mapping
from typing import Any

from pidone.errors import LanguageError
from pidone.language.findings import shown
from pidone.language.pods import objects, shown_pod
from pidone.language.schemas import mismatch_of

Container = Mapping[str, Any]
_HANDLERS = ("httpGet", "tcpSocket", "grpc")
_INT32 = 1 << 31
_OWN_VARIABLES = "PIDONE_"  # the beginning of the names of pidone's own settings


def containers(pod: Mapping[str, Any], named: str = "") -> list[Container]:
    """Return the containers that run as long as the pod: its own, and sidecars among the init containers.

    ``named``: only the container of this name. Raises ``LanguageError`` if it does not exist.
    """
    spec = pod.get("spec") or {}
    sidecars = [item for item in objects(spec.get("initContainers")) if item.get("restartPolicy") == "Always"]
    present = [*objects(spec.get("containers")), *sidecars]
    if not named:
        return present
    selected = [container for container in present if container.get("name") == named]
    if not selected:
        names = ", ".join(str(container.get("name")) for container in present) or "none"
        raise LanguageError(f'{shown_pod(pod)} has no container "{named}"; it has {names}')
    return selected


def variable(pod: Mapping[str, Any], name: str, container: str = "") -> str | None:
    """Return the plain value of a variable in the env of a container; None if no container has it.

    Raises ``LanguageError`` if it is no plain value, or if containers differ and none is named.
    """
    entries = {}
    for item in containers(pod, container):
        for entry in objects(item.get("env")):
            if entry.get("name") == name:
                entries[str(item.get("name"))] = entry  # the last one counts, as in Kubernetes
    if not entries:
        return None
    where, entry = next(iter(entries.items()))
    others = [other for other, its in entries.items() if its != entry]
    if others:
        raise LanguageError(
            f'containers "{where}" and "{others[0]}" of {shown_pod(pod)} have different values of {name}; '
            "name one of them: container"
        )
    if "valueFrom" in entry:
        source = next(iter(entry["valueFrom"] or ["?"]))
        raise LanguageError(
            f'container "{where}" of {shown_pod(pod)} takes {name} from a {source}; only a plain value can be '
            "read: write it as value, or as an annotation of the pod"
        )
    value = str(entry.get("value", ""))
    if "$(" in value:
        raise LanguageError(
            f'container "{where}" of {shown_pod(pod)} has {name}={shown(value)}, which refers to other variables; '
            "only a plain value can be read"
        )
    return value


def own_ports(pod: Mapping[str, Any]) -> list[int]:
    """Return the numbers of all ports that the containers declare, in ascending order."""
    ports = (port.get("containerPort") for item in containers(pod) for port in objects(item.get("ports")))
    return sorted({port for port in ports if isinstance(port, int)})


def container_at(pod: Mapping[str, Any], number: int) -> str | None:
    """Return the name of a container that declares this TCP port; None if there is none.

    A container with a variable ``PIDONE_...`` is pidone itself, as a sidecar or as its entry point: it may declare the
    port of its metrics.
    """
    for item in containers(pod):
        if any(str(entry.get("name")).startswith(_OWN_VARIABLES) for entry in objects(item.get("env"))):
            continue
        for port in objects(item.get("ports")):
            if port.get("containerPort") == number and port.get("protocol", "TCP") == "TCP":
                return str(item.get("name"))
    return None


def port_number(pod: Mapping[str, Any], name: str, container: str = "") -> int:
    """Return the number of a named port. Raises ``LanguageError`` if none has this name, or if containers differ."""
    numbers: dict[int, str] = {}
    names: dict[str, None] = {}
    for item in containers(pod, container):
        for port in objects(item.get("ports")):
            names.update(dict.fromkeys([str(port["name"])] if port.get("name") else ()))
            if port.get("name") == name and isinstance(port.get("containerPort"), int):
                numbers.setdefault(port["containerPort"], str(item.get("name")))
    if len(numbers) > 1:
        first, second = list(numbers.values())[:2]
        raise LanguageError(
            f'containers "{first}" and "{second}" of {shown_pod(pod)} both have a port "{name}", with different '
            "numbers; name one of them: container"
        )
    if not numbers:
        where = (
            f'container "{container}" of {shown_pod(pod)}'
            if container
            else f"no container of {shown_pod(pod)}"
        )
        others = f"; there is {', '.join(names)}" if names else ""
        raise LanguageError(
            f'{where} {"has no" if container else "has a"} port "{name}"{others}; name the port in the container\'s '
            "ports, or give its number"
        )
    return next(iter(numbers))


def probe_of(pod: Mapping[str, Any], kind: str, container: str = "") -> tuple[dict[str, Any], str]:
    """Return the pod's own probe (``readinessProbe``, ...) in the fields of the language, and its container.

    Raises ``LanguageError`` if there is none, several, or one that cannot be made from outside the container.
    """
    having = [item for item in containers(pod, container) if isinstance(item.get(kind), Mapping)]
    if not having:
        where = (
            f'container "{container}" of {shown_pod(pod)} has no'
            if container
            else f"no container of {shown_pod(pod)} has a"
        )
        raise LanguageError(
            f"{where} {kind}; give it one, or write the probe in the task instead of from: {kind}"
        )
    if len(having) > 1:
        names = " and ".join(f'"{item.get("name")}"' for item in having[:2])
        raise LanguageError(
            f"containers {names} of {shown_pod(pod)} both have a {kind}; name one of them: container"
        )
    name = str(having[0].get("name"))
    probe = dict(having[0][kind])
    whose = f'the {kind} of container "{name}" of {shown_pod(pod)}'
    if "exec" in probe:
        raise LanguageError(
            f"{whose} is an exec, which runs in the file system of that container; "
            "from takes httpGet, tcpSocket and grpc"
        )
    probe = _defaulted(probe)
    wrong = mismatch_of("probe", _checkable(probe))
    if wrong:
        raise LanguageError(f"{whose}: {wrong}")
    return probe, name


def without_zeros(probe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a probe without numbers that are 0 or null: the API server defaults them."""
    return {name: value for name, value in probe.items() if value is not None and value != 0}


def _defaulted(probe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the probe without the fields that are empty for the API server, which then have their defaults."""
    fields = without_zeros(probe)
    for handler in _HANDLERS:
        if isinstance(probe.get(handler), Mapping):
            fields[handler] = {key: value for key, value in probe[handler].items() if value not in ("", None)}
    headers = objects(fields.get("httpGet", {}).get("httpHeaders"))
    if headers:
        fields["httpGet"]["httpHeaders"] = [
            {**header, "value": header.get("value") or ""} for header in headers
        ]
    return fields


def _checkable(probe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the probe with plain values in place of those that are refused only in tasks.

    The API server takes any path, any value of a header and any number, and the kubelet sends them. So they are no
    reason to refuse the pod's plan.
    """
    fields: dict[str, Any] = {
        name: 1 if type(value) is int and 0 < value < _INT32 else value for name, value in probe.items()
    }
    for handler in _HANDLERS:
        if isinstance(probe.get(handler), Mapping):
            plain = {"path": "/", "host": "host", "service": "service"}
            fields[handler] = {
                key: plain.get(key, value) if isinstance(value, str) else value
                for key, value in probe[handler].items()
            }
    headers = objects(fields.get("httpGet", {}).get("httpHeaders"))
    if headers:
        fields["httpGet"]["httpHeaders"] = [
            {**header, "value": "value"} if isinstance(header.get("value"), str) else header
            for header in headers[:50]
        ]
    return fields
