"""Reads and checks TaskSets and TaskBindings of the API server.

The checker is that of ``pidone check``. An object has no lines, so a finding names a path instead of line and column.
Each object is checked alone, once for each generation. The sets that it extends or binds may change independently, and
are checked when a plan is derived.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pidone.errors import PidoneError
from pidone.language.binding import Key
from pidone.language.checking import Checked, Parsed, check_parsed
from pidone.language.extends import Sets
from pidone.language.findings import Finding, Source, Span
from pidone.language.model import TaskBinding, TaskSet
from pidone.language.reading import MAX_DEPTH, MAX_VALUES, Document, Node
from pidone.language.schemas import API_VERSION, validator
from pidone.language.selector import Selector
from pidone.plan.digest import digest
from pidone.text import printable

PIN = "pidone.dev/pin"
RESUME = "pidone.dev/resume"  # the time of the halt of the rollout that must begin again
CAUSE = "kubernetes.io/change-cause"  # kubectl's annotation; a revision copies that of its set
MAX_PATH = 200  # characters of a path in a finding
MAX_FINDINGS = 50  # of one object that are kept
CLUSTER_KINDS = {"ClusterTaskSet", "ClusterTaskBinding"}

_LINE = re.compile(r"\bon line (\d+)\b")
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


class ObjectError(PidoneError):
    """The value has no metadata.name."""


@dataclass(frozen=True, slots=True)
class Written:
    """One TaskSet, ClusterTaskSet, TaskBinding or ClusterTaskBinding, checked.

    ``value`` is None for a set with findings. For a binding with findings it holds the selector alone, if that can be
    read: the pods that it selects keep their plans.
    """

    kind: str
    namespace: str  # "" of the cluster's
    name: str
    uid: str
    generation: int
    created: str  # as the API server writes it
    annotations: Mapping[str, str]  # PIN, RESUME and CAUSE only
    spec: Mapping[str, Any]
    digest: str  # of a set: identifies its version
    value: TaskSet | TaskBinding | None
    findings: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    rollout: Mapping[str, Any] = field(default_factory=dict)  # status.rollout of a binding
    resource_version: str = field(default="", compare=False)

    @property
    def key(self) -> Key:
        return self.kind in CLUSTER_KINDS, self.namespace, self.name

    @property
    def task_set(self) -> TaskSet | None:
        return self.value if isinstance(self.value, TaskSet) else None

    @property
    def binding(self) -> TaskBinding | None:
        return self.value if isinstance(self.value, TaskBinding) else None

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}".replace(" /", " ")


def read(kind: str, value: Mapping[str, Any], before: Written | None = None) -> Written:
    """Read an object of a list or a watch. Raises ``ObjectError``.

    ``before`` is the same object as last read: with an equal generation its spec is not checked again.
    """
    metadata = value.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(name, str):
        raise ObjectError(f"a {kind} without metadata.name")
    annotations = metadata.get("annotations") or {}
    kept = {key: str(annotations[key]) for key in (PIN, RESUME, CAUSE) if key in annotations}
    status = value.get("status")
    rollout_value = status.get("rollout") if isinstance(status, dict) else None
    rollout = rollout_value if isinstance(rollout_value, dict) else {}
    version = str(metadata.get("resourceVersion", ""))
    generation, uid = metadata.get("generation", 0), str(metadata.get("uid", ""))
    if before is not None and (before.uid, before.generation) == (uid, generation) and uid:
        return replace(before, annotations=kept, rollout=rollout, resource_version=version)
    spec = value.get("spec")
    namespace = "" if kind in CLUSTER_KINDS else str(metadata.get("namespace", ""))
    checked, findings, warnings = check(kind, namespace, name, spec)
    return Written(
        kind=kind,
        namespace=namespace,
        name=name,
        uid=uid,
        generation=generation if isinstance(generation, int) else 0,
        created=str(metadata.get("creationTimestamp", "")),
        annotations=kept,
        spec=spec if isinstance(spec, dict) else {},
        digest=version_digest(kind, name, spec) if kind.endswith("TaskSet") else "",
        value=checked,
        findings=findings,
        warnings=warnings,
        rollout=rollout,
        resource_version=version,
    )


def version_digest(kind: str, name: str, spec: object) -> str:
    """Return the digest that identifies a version among all versions of all sets; pins and undo use it."""
    return digest({"kind": kind, "name": name, "spec": spec})


def check(
    kind: str, namespace: str, name: str, spec: object
) -> tuple[TaskSet | TaskBinding | None, tuple[str, ...], tuple[str, ...]]:
    """Return the value of an object, its findings and its warnings, each as ``<path>: <message>``."""
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    value = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
    try:
        paths, document = _document(value)
    except _Refused as error:
        return None, (str(error),), ()
    checked: Checked = check_parsed(Parsed((document,)), Sets())
    findings, warnings = (_texts(group, paths) for group in (checked.findings, checked.warnings))
    if not findings:
        return checked.objects[0], (), warnings
    return (_selecting(value) if kind.endswith("Binding") else None), findings, warnings


def _selecting(value: Mapping[str, Any]) -> TaskBinding | None:
    """Return a binding with findings reduced to its selector; None if that cannot be read."""
    spec = value["spec"]
    if not isinstance(spec, dict) or "podSelector" not in spec:
        return None
    alone = {**value, "spec": {"podSelector": spec["podSelector"], "taskSets": ["any"]}}
    if not validator(value["kind"]).is_valid(alone):
        return None
    metadata, cluster = value["metadata"], value["kind"] in CLUSTER_KINDS
    selector = Selector.of(spec["podSelector"])
    return TaskBinding(metadata["name"], metadata.get("namespace", ""), selector, cluster=cluster)


class _Refused(Exception):
    """The value is nested too deeply, or is too large; the text is the finding."""


def _document(value: Mapping[str, Any]) -> tuple[list[str], Document]:
    """Return the path of each line, and a document for the checker in which each value has a line of its own."""
    paths: list[str] = []

    def node(value: Any, path: str, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise _Refused(f"{path}: nested more than {MAX_DEPTH} deep")
        if len(paths) == MAX_VALUES:
            raise _Refused(f"{path}: more than {MAX_VALUES} values")
        if len(path) > MAX_PATH:  # the key of an object may have a megabyte, and a path repeats it
            path = f"{path[: MAX_PATH - 3]}..."
        paths.append(path)
        parsed = Node(Span(len(paths), 1), value)
        if isinstance(value, dict):
            for name, inner in value.items():
                plain = _PLAIN.fullmatch(name)
                below = f"{path}{'.' if path else ''}{name}" if plain else f"{path}['{name}']"
                parsed.members[name] = member = node(inner, below, depth + 1)
                parsed.keys[name] = member.span
        elif isinstance(value, list):
            parsed.items += [node(inner, f"{path}[{index}]", depth + 1) for index, inner in enumerate(value)]
        return parsed

    root = node(value, "", 0)
    return paths, Document(root, Source("", tuple(paths), ()))


def _texts(findings: Sequence[Finding], paths: list[str]) -> tuple[str, ...]:
    """Return the first findings as texts. Their number is bounded, since an object may have any number of them."""
    more = len(findings) - MAX_FINDINGS
    texts = (_text(finding, paths) for finding in findings[:MAX_FINDINGS])
    return (*texts, f"and {more} more") if more > 0 else tuple(texts)


def _text(finding: Finding, paths: list[str]) -> str:
    message = _LINE.sub(lambda match: f"at {paths[int(match.group(1)) - 1]}", finding.message)
    path = paths[finding.line - 1]
    return printable(f"{path}: {message}" if path else message)
