"""What a task may take from the containers of its pod: plain variables, numbers of named ports, their own probes.

All of it comes from the Pod object. Nothing is read out of a container, and nothing that a Secret or a
ConfigMap fills: everybody who may read plans would see it.
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


def containers(pod: Mapping[str, Any], named: str = "") -> list[Container]:
    """The containers that run as long as the pod: its own, and sidecars among the init containers.

    With a name that one only. Raises ``LanguageError`` where there is none of that name.
    """
    spec = pod.get("spec") or {}
    sidecars = [one for one in objects(spec.get("initContainers")) if one.get("restartPolicy") == "Always"]
    found = [*objects(spec.get("containers")), *sidecars]
    if not named:
        return found
    those = [one for one in found if one.get("name") == named]
    if not those:
        there = ", ".join(str(one.get("name")) for one in found) or "none"
        raise LanguageError(f'{shown_pod(pod)} has no container "{named}"; it has {there}')
    return those


def variable(pod: Mapping[str, Any], name: str, container: str = "") -> str | None:
    """The plain value of a variable in the env of a container; None where no container has it.

    Raises ``LanguageError`` where it is no plain value, or where containers differ and none is named.
    """
    entries = {}
    for one in containers(pod, container):
        for entry in objects(one.get("env")):
            if entry.get("name") == name:
                entries[str(one.get("name"))] = entry  # the last one counts, as in Kubernetes
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
    """The numbers of all ports that the containers declare, in ascending order."""
    ports = (port.get("containerPort") for one in containers(pod) for port in objects(one.get("ports")))
    return sorted({port for port in ports if isinstance(port, int)})


def port_number(pod: Mapping[str, Any], name: str, container: str = "") -> int:
    """The number of a named port. Raises ``LanguageError`` where there is none, or where containers differ."""
    found: dict[int, str] = {}
    names: dict[str, None] = {}
    for one in containers(pod, container):
        for port in objects(one.get("ports")):
            names.update(dict.fromkeys([str(port["name"])] if port.get("name") else ()))
            if port.get("name") == name and isinstance(port.get("containerPort"), int):
                found.setdefault(port["containerPort"], str(one.get("name")))
    if len(found) > 1:
        first, second = list(found.values())[:2]
        raise LanguageError(
            f'containers "{first}" and "{second}" of {shown_pod(pod)} both have a port "{name}", with different '
            "numbers; name one of them: container"
        )
    if not found:
        where = (
            f'container "{container}" of {shown_pod(pod)}'
            if container
            else f"no container of {shown_pod(pod)}"
        )
        there = f"; there is {', '.join(names)}" if names else ""
        raise LanguageError(
            f'{where} {"has no" if container else "has a"} port "{name}"{there}; name the port in the container\'s '
            "ports, or give its number"
        )
    return next(iter(found))


def probe_of(pod: Mapping[str, Any], kind: str, container: str = "") -> tuple[dict[str, Any], str]:
    """The pod's own probe (``readinessProbe``, ...) as our fields, and its container.

    Raises ``LanguageError`` where there is none, several, or one that cannot be asked from outside the container.
    """
    having = [one for one in containers(pod, container) if isinstance(one.get(kind), Mapping)]
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
        names = " and ".join(f'"{one.get("name")}"' for one in having[:2])
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
    """Return the probe with plain values for those that only authors of tasks are advised against.

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
