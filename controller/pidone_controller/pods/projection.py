"""Converts a Pod object of the API server, or of ``kubectl get -o yaml``, to the ``Pod`` that the controller keeps."""

from collections.abc import Mapping
from sys import intern
from typing import Any

from pidone.errors import PidoneError
from pidone.plan.digest import canonical
from pidone_controller.pods.identity import normalise
from pidone_controller.pods.model import FrozenLabels, Node, Pod, Pool, Template, pack_container, pack_uid

# Annotations that repeat the whole manifest, or that a network plugin writes about each pod. No param fits them, and an
# annotation that is not kept may change without a new derivation.
_IGNORED_ANNOTATIONS = (
    "kubectl.kubernetes.io/last-applied-configuration",
    "cni.projectcalico.org/",
    "k8s.ovn.org/",
    "k8s.v1.cni.cncf.io/network",
)

# The fields of a container that a TaskSet may read: named ports, its own probes, its environment.
_CONTAINER_FIELDS = (
    "name",
    "ports",
    "env",
    "readinessProbe",
    "livenessProbe",
    "startupProbe",
    "restartPolicy",
)

# The fields of a pod by which a task may reach the application's processes.
_PROCESS_FIELDS = ("hostPID", "shareProcessNamespace")


class ProjectionError(PidoneError):
    """The object is not a Pod, or a field of it has another type than in core/v1; the text names the field."""


def project(value: object, pool: Pool | None = None) -> Pod:
    """Read one Pod object. Raises ``ProjectionError``.

    Pods that are read with the same ``pool`` share equal values.
    """
    pod = _mapping(value, "a pod")
    kind = pod.get("kind", "Pod")
    if kind != "Pod":
        raise ProjectionError(f"expected a Pod, not kind: {kind}")

    metadata = _mapping(pod.get("metadata"), "metadata")
    name = _text(metadata, "name", "metadata")
    if not name:
        raise ProjectionError("a Pod without metadata.name")

    namespace = _text(metadata, "namespace", "metadata") or "default"
    try:
        return _project(pod, metadata, namespace, name, pool or Pool())
    except ProjectionError as error:
        raise ProjectionError(f"pod {namespace}/{name}: {error}") from error


def _project(
    pod: Mapping[str, Any], metadata: Mapping[str, Any], namespace: str, name: str, pool: Pool
) -> Pod:
    spec = _mapping(pod.get("spec"), "spec")
    status = _mapping(pod.get("status"), "status")

    annotations = _labels(metadata, "annotations")
    for key in [key for key in annotations if key.startswith(_IGNORED_ANNOTATIONS)]:
        del annotations[key]

    hostname = _text(spec, "hostname", "spec")
    names, ids = _container_statuses(status)
    user = _user(spec, "spec")
    kept_spec = {
        "serviceAccountName": _text(spec, "serviceAccountName", "spec"),
        "restartPolicy": _text(spec, "restartPolicy", "spec") or "Always",
        "initContainers": _containers(spec, "initContainers"),
        "containers": _containers(spec, "containers"),
        **{field: True for field in _PROCESS_FIELDS if spec.get(field) is True},
        **({"securityContext": user} if user else {}),
    }
    template = Template(
        namespace=intern(namespace),
        hostname="" if hostname == name else hostname,
        labels=pool.share(_labels(metadata, "labels")),
        annotations=pool.share(annotations),
        host_network=spec.get("hostNetwork") is True,
        spec=pool.share(canonical(kept_spec)),
        containers=pool.share(names),
    )

    try:
        packed_uid = pack_uid(_text(metadata, "uid", "metadata"))
    except ValueError as error:
        raise ProjectionError(f"metadata.uid: {error}") from error

    node = Node(intern(_text(spec, "nodeName", "spec")), _addresses(status, "hostIP", "hostIPs"))
    return Pod(
        name=name,
        addresses=",".join(_addresses(status, "podIP", "podIPs")),
        node=pool.share(node),
        phase=intern(_text(status, "phase", "status")),
        terminating=metadata.get("deletionTimestamp") is not None,
        template=pool.share(template),
        ids=packed_uid + ids,
    )


def _containers(spec: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    items = spec.get(field) or []
    if not isinstance(items, list):
        raise ProjectionError(f"spec.{field}: expected a list")
    containers = (_mapping(item, f"spec.{field}[{index}]") for index, item in enumerate(items))
    kept = []
    for item in containers:
        user = _user(item, f"spec.{field}")
        fields = {key: item[key] for key in _CONTAINER_FIELDS if key in item}
        kept.append({**fields, "securityContext": user} if user else fields)
    return kept


def _user(value: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the user of a pod's or a container's security context; empty if it sets none."""
    context = _mapping(value.get("securityContext"), f"{place}.securityContext")
    return {"runAsUser": context["runAsUser"]} if context.get("runAsUser") is not None else {}


def _container_statuses(status: Mapping[str, Any]) -> tuple[tuple[str, ...], bytes]:
    """Return ``name runtime`` of each container in the status, and the packed IDs in the same order."""
    names, packed = [], bytearray()
    for field in ("initContainerStatuses", "containerStatuses"):
        items = status.get(field) or []
        if not isinstance(items, list):
            raise ProjectionError(f"status.{field}: expected a list")
        for item in items:
            container = _mapping(item, f"status.{field}")
            runtime, _, container_id = _text(container, "containerID", field).rpartition("://")
            state, last = (
                _mapping(container.get(name), f"{field}.{name}") for name in ("state", "lastState")
            )
            started = bool(state.keys() & {"running", "terminated"}) or "terminated" in last
            names.append(f"{_text(container, 'name', field)} {runtime}")
            packed += pack_container(container_id, started=started)
    return tuple(names), bytes(packed)


def _addresses(status: Mapping[str, Any], singular: str, plural: str) -> tuple[str, ...]:
    """Return the addresses in both fields: an old API server has the singular only, a dual-stack pod has both."""
    items = status.get(plural) or []
    if not isinstance(items, list):
        raise ProjectionError(f"status.{plural}: expected a list")
    values = [status.get(singular), *(_mapping(item, f"status.{plural}").get("ip") for item in items)]

    addresses: dict[str, None] = {}
    for address in values:
        if not address:
            continue
        try:
            addresses[normalise(str(address))] = None
        except ValueError:
            raise ProjectionError(f'status.{singular}: "{address}" is not an IP address') from None
    return tuple(addresses)


def _mapping(value: object, path: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ProjectionError(f"{path}: expected a mapping, not {value!r:.40}")
    return value


def _text(mapping: Mapping[str, Any], field: str, path: str) -> str:
    value = mapping.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        text = f"{path}.{field}: expected a string, not {_kind(field, value)}; write it in quotation marks"
        raise ProjectionError(text)
    return value


def _labels(metadata: Mapping[str, Any], field: str) -> FrozenLabels:
    """Return labels or annotations. YAML reads an unquoted 8080 as a number, which is refused, as in Kubernetes."""
    labels: Mapping[Any, Any] = _mapping(metadata.get(field), f"metadata.{field}")
    for key, value in labels.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ProjectionError(
                f"metadata.{field}.{key}: expected a string, not {_kind(key, value)}; write it in quotation marks"
            )
    return FrozenLabels((intern(key), value) for key, value in labels.items())


def _kind(key: object, value: object) -> str:
    """Return the kind of a value that is no string. Its text is not repeated: 1.10 was read as 1.1, and on as true."""
    if not isinstance(key, str):
        return "a key without quotation marks"
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case None:
            return "nothing"
        case _:
            return "a list" if isinstance(value, list) else "an object"
