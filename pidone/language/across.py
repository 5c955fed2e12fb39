"""Checks objects of the same files against each other: bindings against their sets, and bindings against bindings.

Only objects without errors of their own are compared. What is not in the files may be in the cluster: a name that is
nearly the name of a set in the files is an error, anything else is a warning or is passed over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from pidone.language.extends import ANY, Flat, Sets, flat
from pidone.language.findings import Finding, Span, shown, suggestion
from pidone.language.lint import clashes, misfit
from pidone.language.model import Param, TaskBinding, TaskSet
from pidone.language.params import mismatch, source
from pidone.language.reading import Document
from pidone.language.schemas import MISSING, scalars, task_shape
from pidone.language.selector import Selector
from pidone.language.substitution import references

Name = tuple[bool, str, str]  # of a set: whether it is a ClusterTaskSet, its namespace, its name
PASSED_OVER = "passed-over"

_SETS = ("spec", "taskSets")
_NEAR = 0.8  # of difflib: from here on a name is a misspelt one
_MAX_COMPARED = 100  # names with one name, and bindings with each other for one name of a task


@dataclass(frozen=True, slots=True)
class Placed:
    """An object and its document. ``value`` is None if it has errors, so that only its name is known."""

    name: Name
    kind: str
    document: Document
    value: TaskSet | TaskBinding | None

    @property
    def file(self) -> str:
        return self.document.source.file

    def place(self, beside: Document) -> str:
        """Return its file and line, for a finding in another document."""
        line = self.document.span(("metadata", "name")).line
        return f"on line {line}" if self.file == beside.source.file else f"in {self.file}:{line}"


def check_across(objects: Sequence[Placed]) -> list[Finding]:
    """Add findings to the documents. Return the objects that were not checked, each with the reason."""
    _check_copies(objects)
    files = _Files(objects)
    bound = [_check_binding(placed, files) for placed in objects if placed.kind.endswith("Binding")]
    _check_pairs([one for one in bound if one is not None])
    _check_extends(files)
    return files.passed


def _check_copies(objects: Sequence[Placed]) -> None:
    """Warn of an object that is in two files; the checker of one file finds those that are in it twice."""
    first: dict[tuple[str, str, str], Placed] = {}
    for placed in objects:
        _, namespace, name = placed.name
        other = first.setdefault((placed.kind, namespace, name), placed)
        if other.file != placed.file:
            message = (
                f'{placed.kind} "{name}" is {other.place(placed.document)} too; '
                "in a cluster the one that is applied last counts, for a standalone repo the first by name of file"
            )
            placed.document.say(placed.document.span(("metadata", "name")), message, "object-twice")


class _Files:
    """The sets of all files, and which of them a binding means."""

    def __init__(self, objects: Sequence[Placed]) -> None:
        self.passed: list[Finding] = []
        self.names: dict[Name, Placed] = {}
        self.own: dict[str, dict[Name, TaskSet]] = {}
        values: dict[Name, TaskSet] = {}
        for placed in objects:
            if placed.kind.endswith("TaskSet"):
                self.names.setdefault(placed.name, placed)
                if isinstance(placed.value, TaskSet):
                    values.setdefault(placed.name, placed.value)
                    self.own.setdefault(placed.file, {}).setdefault(placed.name, placed.value)
        self.sets = Sets(values)
        self.placed = objects
        self._flat: dict[int, Flat] = {}
        self._near: dict[tuple[str, bool, str], tuple[str, list[str]]] = {}

    def of(self, file: str) -> Sets:
        """Return the sets by name for one file. If a set exists in several files, the copy in this file counts."""
        own = self.own.get(file, {})
        if all(self.sets.by_key[name] is value for name, value in own.items()):
            return self.sets
        return Sets({**self.sets.by_key, **own})

    def flat(self, task_set: TaskSet, sets: Sets) -> Flat:
        if id(task_set) not in self._flat:
            self._flat[id(task_set)] = flat(task_set, sets)
        return self._flat[id(task_set)]

    def near(self, name: str, binding: TaskBinding) -> tuple[str, list[str]]:
        """Return the existing name that is closest to an unknown one, and all names that the binding can use."""
        key = name, binding.cluster, binding.namespace
        if key not in self._near:
            there = sorted({one[2] for one in self.names if _gets(binding, one)})
            self._near[key] = _near(name, there), there
        return self._near[key]

    def task(self, task: Mapping[str, Any]) -> tuple[Document, Span] | None:
        """Return the position of a task; None for a task that is merged from several sets."""
        for placed in self.placed:
            for index, own in enumerate(placed.value.tasks if isinstance(placed.value, TaskSet) else ()):
                if own is task:
                    return placed.document, placed.document.span(("spec", "tasks", index))
        return None

    def pass_over(self, document: Document, span: Span, message: str) -> None:
        self.passed.append(document.source.finding(span, message, PASSED_OVER))


@dataclass(frozen=True)
class _Bound:
    """A binding whose sets are all in the files, each with what it extends."""

    placed: Placed
    binding: TaskBinding
    sets: Sequence[Flat]

    @cached_property
    def tasks(self) -> dict[str, Mapping[str, Any]]:
        return {task["name"]: task for one in self.sets for task in one.task_set.tasks}


def _check_binding(placed: Placed, files: _Files) -> _Bound | None:
    """Check a binding against its sets. None if not all of them are in the files."""
    binding, document = placed.value, placed.document
    if not isinstance(binding, TaskBinding):
        return None
    sets, found = files.of(placed.file), list[Flat]()
    for index, name in enumerate(binding.task_sets):
        task_set = sets.find(name, binding.namespace, cluster=binding.cluster)
        if task_set is None:
            _say_absent(placed, binding, index, files)
        else:
            found.append(files.flat(task_set, sets))
    complete = len(found) == len(binding.task_sets) and not any(one.missing or one.problems for one in found)
    _check_arguments(document, binding, found, complete=complete)
    if not complete:
        return None
    if not _say_tasks_of_two(document, found):
        _say_clashes(placed, found, files)
    return _Bound(placed, binding, found)


def _say_absent(placed: Placed, binding: TaskBinding, index: int, files: _Files) -> None:
    """Report a set that a binding names and these files do not have."""
    document, name = placed.document, binding.task_sets[index]
    span = document.span((*_SETS, index))
    same = [one for one in files.names.values() if one.name[2] == name]
    if any(_gets(binding, one.name) for one in same):
        return  # it is there, and has errors of its own
    where = f'"{name}" {same[0].place(document)}' if same else ""
    if same and binding.cluster:
        message = f"{where} is a TaskSet; a ClusterTaskBinding takes ClusterTaskSets, so make it one"
        document.say(span, message, "unknown-set")
    elif same and binding.namespace:
        message = (
            f'TaskSet {where} is in the namespace "{same[0].name[1]}", and this TaskBinding is in '
            f'"{binding.namespace}"; put both into one namespace, or make it a ClusterTaskSet'
        )
        document.say(span, message, "unknown-set")
    elif same:
        message = (
            f'TaskSet {where} is in the namespace "{same[0].name[1]}", and this TaskBinding names no namespace; '
            "write the same one in its metadata"
        )
        document.say(span, message, "absent-set")
    else:
        _say_unknown(placed, binding, index, files)


def _say_unknown(placed: Placed, binding: TaskBinding, index: int, files: _Files) -> None:
    document, name = placed.document, binding.task_sets[index]
    span = document.span((*_SETS, index))
    kind = "ClusterTaskSet" if binding.cluster else "TaskSet"
    near, there = files.near(name, binding)
    if near:
        document.say(span, f'there is no {kind} "{name}"; did you mean "{near}"?', "unknown-set")
    elif any(one.file == placed.file for key, one in files.names.items() if _gets(binding, key)):
        meant = suggestion(name, there)
        message = f'{kind} "{name}" is in none of these files{meant}'
        document.say(
            span, message if meant.endswith("?") else f"{message}; or is it elsewhere?", "absent-set"
        )
    else:
        files.pass_over(
            document, span, f'{kind} "{name}" is in none of these files; check it together with them'
        )


def _near(name: str, others: Sequence[str]) -> str:
    """Return the name that was misspelt as ``name``; empty if there is none. web-2 is not a misspelt web."""
    letters = sorted(name)
    swapped = next((other for other in others if len(other) == len(name) and sorted(other) == letters), "")
    near = [
        other
        for other in get_close_matches(name, others[:_MAX_COMPARED], n=1, cutoff=_NEAR)
        if not (name.startswith(other) or other.startswith(name))
    ]
    return next(iter(near), swapped)


def _gets(binding: TaskBinding, name: Name) -> bool:
    """True if a binding can name this set."""
    cluster, namespace, _ = name
    return cluster or (not binding.cluster and namespace in {ANY, binding.namespace})


def _check_arguments(
    document: Document, binding: TaskBinding, sets: Sequence[Flat], *, complete: bool
) -> None:
    """Check the params of a binding against the params that its sets declare."""
    declared: dict[str, list[tuple[TaskSet, Param]]] = {}
    for one in sets:
        for param in one.task_set.params:
            declared.setdefault(param.name, []).append((one.task_set, param))
    for name, value in binding.params.items():
        path = ("spec", "params", name)
        if name not in declared:
            if complete:
                names = " and ".join(f'"{one}"' for one in binding.task_sets[:3])
                message = f'{names} declare{"s" if len(sets) == 1 else ""} no param "{name}"'
                document.say(
                    document.key(path), message + suggestion(name, sorted(declared)), "unknown-param"
                )
            continue
        for task_set, param in declared[name]:
            if wrong := mismatch(param, value) or misfit(task_set.tasks, name, value):
                message = f'param "{name}" of "{task_set.name}": {shown(value)} {wrong}'
                document.say(document.span(path), message, "param-type")
                break
        _warn_of_clear_value(document, path, name, declared[name])
    given = document.key(("spec", "params")) if binding.params else document.key(_SETS)
    for name, owners in declared.items():
        task_set, param = owners[0]
        without = param.default is MISSING and not source(param)
        if without and name not in binding.params and name in _wanted(task_set):
            message = (
                f'param "{name}" of "{task_set.name}" has no value: it has no default and no valueFrom; '
                f"add it to the params of this binding"
            )
            document.say(given, message, "param-value")


def _warn_of_clear_value(
    document: Document, path: tuple[str, ...], name: str, owners: Sequence[tuple[TaskSet, Param]]
) -> None:
    """Warn of a value that is written in clear and belongs into a Secret, unless its name says so already."""
    span = document.span(path)
    said = any((one.line, one.column) == (span.line, span.column) for one in document.findings)
    task_set = next((task_set for task_set, param in owners if param.confidential), None)
    if task_set is not None and not said:
        message = (
            f'"{name}" of "{task_set.name}" comes from a Secret or a file, and everybody who may read this object '
            "can read the value here; remove it"
        )
        document.say(span, message, "secret")


def _wanted(task_set: TaskSet) -> set[str]:
    """Return the names of the params that tasks in every pod refer to."""
    return {
        reference.name.removeprefix("params.")
        for task in task_set.tasks
        if not task.get("podSelector")
        for text, _ in scalars(task, task_shape())
        if isinstance(text, str)
        for reference in references(text)
    }


def _say_tasks_of_two(document: Document, sets: Sequence[Flat]) -> bool:
    """Report two sets of a binding with a task of the same name. A task that both inherit is one task."""
    first: dict[str, tuple[TaskSet, Mapping[str, Any]]] = {}
    clash = False
    for index, one in enumerate(sets):
        for task in one.task_set.tasks:
            other, there = first.setdefault(task["name"], (one.task_set, task))
            if there is not task:
                message = (
                    f'"{other.name}" and "{one.task_set.name}" both have a task "{task["name"]}"; rename one'
                )
                document.say(document.span((*_SETS, index)), message, "bound-task")
                clash = True
                break
    return clash


def _say_clashes(placed: Placed, sets: Sequence[Flat], files: _Files) -> None:
    """Report contradictions between the sets of a binding."""
    if len(sets) < 2:
        return
    alone = {message for one in sets for _, message, _ in clashes(one.task_set)}
    whole = replace(
        sets[0].task_set,
        tasks=tuple({task["name"]: task for one in sets for task in one.task_set.tasks}.values()),
        params=tuple({param.name: param for one in sets for param in one.task_set.params}.values()),
    )
    for index, message, rule in clashes(whole):
        if message in alone:
            continue
        document, span = files.task(whole.tasks[index]) or (placed.document, placed.document.key(_SETS))
        where = f'{placed.kind} "{placed.name[2]}" {placed.place(document)}'
        document.say(span, f"{where} brings both to its pods: {message}", rule)


def _check_pairs(bound: Sequence[_Bound]) -> None:
    """Report two bindings that give the same pods a task of the same name.

    That is certain if all pods that one of them selects are selected by the other.
    """
    by_task: dict[str, list[_Bound]] = {}
    for one in bound:
        for name in one.tasks:
            by_task.setdefault(name, []).append(one)
    said = set[tuple[int, int]]()
    for name, owners in by_task.items():
        for index, second in enumerate(owners[:_MAX_COMPARED]):
            for first in owners[:index]:
                pair = (id(first), id(second))
                if pair in said or first.tasks[name] is second.tasks[name] or not _overlap(first, second):
                    continue
                said.add(pair)
                document = second.placed.document
                message = (
                    f'{first.placed.kind} "{first.binding.name}" {first.placed.place(document)} selects these pods '
                    f'too, and both bring a task "{name}"; rename one, or bind one of them'
                )
                document.say(document.key(_SETS), message, "bound-task")


def _overlap(first: _Bound, second: _Bound) -> bool:
    one, other = first.binding, second.binding
    if one.key == other.key:
        return False  # two copies of one binding
    everywhere = one.cluster or other.cluster or ANY in {one.namespace, other.namespace}
    if not everywhere and one.namespace != other.namespace:
        return False
    return _within(one.pod_selector, other.pod_selector) or _within(other.pod_selector, one.pod_selector)


def _within(inner: Selector, outer: Selector) -> bool:
    """True if every pod that ``inner`` selects is certainly selected by ``outer``."""
    return outer.labels.items() <= inner.labels.items() and set(outer.requirements) <= set(inner.requirements)


def _check_extends(files: _Files) -> None:
    """Report the sets that extend a set which is not in the files."""
    for placed in files.placed:
        task_set = placed.value
        if isinstance(task_set, TaskSet):
            sets = files.of(placed.file)
            for index, name in enumerate(task_set.extends):
                if sets.base(name, task_set) is None and not any(key[2] == name for key in files.names):
                    _say_no_base(placed, task_set, index, files)


def _say_no_base(placed: Placed, task_set: TaskSet, index: int, files: _Files) -> None:
    document, name = placed.document, task_set.extends[index]
    span = document.span(("spec", "extends", index))
    if any((finding.line, finding.column) == (span.line, span.column) for finding in document.findings):
        return
    others = sorted({key[2] for key, one in files.names.items() if one is not placed})
    message = f'set "{name}" is in none of these files, so what "{task_set.name}" inherits was not checked'
    if near := _near(name, others):
        document.say(span, f'there is no set "{name}"; did you mean "{near}"?', "unknown-set")
    elif others:
        document.say(span, message, "absent-set")
    else:
        files.pass_over(document, span, message)
