"""What people wrote, as the API server has it: read, checked, and kept as last heard.

An object has no lines, so a finding says the path of its place where ``pidone check`` says line and column; the
checker is the same. Each object is checked by itself, once for each generation. What it extends or binds is looked
at when a plan is derived, for that may change without it.

``Store`` is a reflector's sink: its ``project`` reads an object, and what nothing reads of it is not kept.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from pidone.errors import PidoneError
from pidone.language.binding import Key
from pidone.language.checking import Checked, Parsed, check_parsed
from pidone.language.extends import Sets
from pidone.language.findings import Finding, Source, Span, printable
from pidone.language.model import TaskBinding, TaskSet
from pidone.language.reading import MAX_DEPTH, Document, Node
from pidone.language.schemas import API_VERSION, validator
from pidone.language.selector import Selector
from pidone.plan.digest import digest

PIN = "pidone.dev/pin"
RESUME = "pidone.dev/resume"  # since when a rollout was halted that is to begin again
CAUSE = "kubernetes.io/change-cause"  # kubectl's; a revision has that of its set
CLUSTER_KINDS = {"ClusterTaskSet", "ClusterTaskBinding"}

_LINE = re.compile(r"\bon line (\d+)\b")
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


class ObjectError(PidoneError):
    """Something that is no object of ours at all."""


@dataclass(frozen=True, slots=True)
class Written:
    """One TaskSet or TaskBinding, or one of the cluster's, checked.

    ``value`` is None where a set has findings. Of a binding with findings it has the selector alone, as far as that
    is sound: the pods it chose are to keep what they have.
    """

    kind: str
    namespace: str  # "" of the cluster's
    name: str
    uid: str
    generation: int
    created: str  # as the API server writes it
    annotations: Mapping[str, str]  # those that are read here
    spec: Mapping[str, Any]
    digest: str  # of a set's version
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
    """An object as a list or a watch brings it. Raises ``ObjectError`` for what is none.

    ``before`` is what was read of it last: where its generation is the same, so is all that is made of its spec.
    """
    metadata = value.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(name, str):
        raise ObjectError(f"a {kind} without metadata.name")
    annotations = metadata.get("annotations") or {}
    mine = {key: str(annotations[key]) for key in (PIN, RESUME, CAUSE) if key in annotations}
    status = value.get("status")
    found = status.get("rollout") if isinstance(status, dict) else None
    rollout = found if isinstance(found, dict) else {}
    version = str(metadata.get("resourceVersion", ""))
    generation, uid = metadata.get("generation", 0), str(metadata.get("uid", ""))
    if before is not None and (before.uid, before.generation) == (uid, generation) and uid:
        return replace(before, annotations=mine, rollout=rollout, resource_version=version)
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
        annotations=mine,
        spec=spec if isinstance(spec, dict) else {},
        digest=version_digest(kind, name, spec) if kind.endswith("TaskSet") else "",
        value=checked,
        findings=findings,
        warnings=warnings,
        rollout=rollout,
        resource_version=version,
    )


def version_digest(kind: str, name: str, spec: object) -> str:
    """What tells a version of a set from all others, of this set and of others: what is pinned, and undone to."""
    return digest({"kind": kind, "name": name, "spec": spec})


def check(
    kind: str, namespace: str, name: str, spec: object
) -> tuple[TaskSet | TaskBinding | None, tuple[str, ...], tuple[str, ...]]:
    """The value of an object, its findings and its warnings, each as ``<path>: <what is wrong>``."""
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    value = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
    try:
        paths, document = _document(value)
    except _TooDeep as error:
        return None, (f"{error}: nested more than {MAX_DEPTH} deep",), ()
    checked: Checked = check_parsed(Parsed((document,)), Sets())
    findings = tuple(_text(one, paths) for one in checked.findings)
    warnings = tuple(_text(one, paths) for one in checked.warnings)
    if not findings:
        return checked.objects[0], (), warnings
    return (_selecting(value) if kind.endswith("Binding") else None), findings, warnings


def _selecting(value: Mapping[str, Any]) -> TaskBinding | None:
    """Of a binding with findings the pods that it chooses, where that can be read."""
    spec = value["spec"]
    if not isinstance(spec, dict) or "podSelector" not in spec:
        return None
    alone = {**value, "spec": {"podSelector": spec["podSelector"], "taskSets": ["any"]}}
    if not validator(value["kind"]).is_valid(alone):
        return None
    metadata, cluster = value["metadata"], value["kind"] in CLUSTER_KINDS
    selector = Selector.of(spec["podSelector"])
    return TaskBinding(metadata["name"], metadata.get("namespace", ""), selector, cluster=cluster)


class _TooDeep(Exception):
    """The text is the path."""


def _document(value: Mapping[str, Any]) -> tuple[list[str], Document]:
    """A document for the checker whose lines are the paths of its values, from the top to the bottom."""
    paths: list[str] = []

    def node(value: Any, path: str, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise _TooDeep(path[:200])
        paths.append(path)
        made = Node(Span(len(paths), 1), value)
        if isinstance(value, dict):
            for name, inner in value.items():
                plain = _PLAIN.fullmatch(name)
                below = f"{path}{'.' if path else ''}{name}" if plain else f"{path}['{name}']"
                made.members[name] = member = node(inner, below, depth + 1)
                made.keys[name] = member.span
        elif isinstance(value, list):
            made.items += [node(inner, f"{path}[{index}]", depth + 1) for index, inner in enumerate(value)]
        return made

    root = node(value, "", 0)
    return paths, Document(root, Source("", tuple(paths), ()))


def _text(finding: Finding, paths: list[str]) -> str:
    message = _LINE.sub(lambda found: f"at {paths[int(found.group(1)) - 1]}", finding.message)
    path = paths[finding.line - 1]
    return printable(f"{path}: {message}" if path else message)


T = TypeVar("T")


class Store(Generic[T]):
    """The objects of one kind as last heard, by namespace and name. A reflector's sink, and its ``project``.

    ``changed`` is called where something else is there than before, and not where only what nobody reads differs.
    """

    def __init__(
        self, reading: Callable[[Mapping[str, Any], T | None], T | None], changed: Callable[[], None]
    ) -> None:
        self._read = reading
        self._changed = changed
        self.items: dict[tuple[str, str], T] = {}

    def __iter__(self) -> Iterator[T]:
        """In the order of namespace and name, whatever the order in which they were heard of."""
        return iter([self.items[key] for key in sorted(self.items)])

    def project(self, value: Mapping[str, Any]) -> T | None:
        metadata = value.get("metadata") or {}
        before = self.items.get((metadata.get("namespace", ""), metadata.get("name", "")))
        return self._read(value, before)

    def replaced(self, items: Mapping[tuple[str, str], T]) -> None:
        before, self.items = self.items, dict(items)
        if before != self.items:
            self._changed()

    def changed(self, key: tuple[str, str], item: T) -> None:
        before = self.items.get(key)
        self.items[key] = item
        if before != item:
            self._changed()

    def removed(self, key: tuple[str, str]) -> None:
        if self.items.pop(key, None) is not None:
            self._changed()
