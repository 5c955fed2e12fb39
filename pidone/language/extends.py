"""A set with all that it extends: ``extends``, ``override``, ``disable``.

Earlier sets come first, tasks are merged by name, and nothing is replaced that was not meant to be: a task of
the same name is an error unless it says ``override``, or the inherited one is disabled. A param that a set
declares itself counts before inherited ones of its name, and keeps their type, since inherited tasks refer to it.
A set that is reached on two ways is there once.

Functions over values: the checker has the sets of its files, the controller those of its cluster.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pidone.language.findings import suggestion
from pidone.language.model import Param, TaskSet
from pidone.language.schemas import mismatch_of

MAX_DEPTH = 4  # of sets that extend sets that extend sets
ANY = ""  # the namespace of what names none, outside a cluster: it is for all of them

Task = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sets:
    """The sets there are, and which of them a name means."""

    by_key: Mapping[tuple[bool, str, str], TaskSet] = field(default_factory=dict)  # cluster, namespace, name

    @classmethod
    def of(cls, sets: Iterable[TaskSet]) -> "Sets":
        return cls({one.key: one for one in sets})

    def find(self, name: str, namespace: str, *, cluster: bool = False) -> TaskSet | None:
        """The nearest one: the namespace's, one without namespace, the cluster's; with ``cluster`` that alone."""
        keys = (
            [(True, ANY, name)]
            if cluster
            else [(False, namespace, name), (False, ANY, name), (True, ANY, name)]
        )
        return next((self.by_key[key] for key in keys if key in self.by_key), None)

    def base(self, name: str, of: TaskSet) -> TaskSet | None:
        """What ``of`` means by a name in its ``extends``."""
        return self.find(name, of.namespace, cluster=of.cluster)

    def names(self, of: TaskSet) -> list[str]:
        """What ``of`` could extend."""
        mine = {(True, ANY)} if of.cluster else {(False, of.namespace), (False, ANY), (True, ANY)}
        return sorted({key[2] for key, one in self.by_key.items() if key[:2] in mine and one is not of})


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a set as an heir; ``path`` leads to the place in its spec."""

    owner: TaskSet
    path: tuple[str | int, ...]
    message: str
    rule: str


@dataclass(frozen=True, slots=True)
class Flat:
    """A set with all that it extends, as far as that could be found and fits."""

    task_set: (
        TaskSet  # its extends and disable are empty; tasks that nothing was changed in are the same objects
    )
    problems: tuple[Problem, ...] = ()  # all of this set, after one of each that it extends
    missing: tuple[
        tuple[TaskSet, int], ...
    ] = ()  # of the same: sets, and which entry of their extends is not there
    chain: tuple[str, ...] = ()  # the names on the longest way up, this set's first


def flat(task_set: TaskSet, sets: Sets) -> Flat:
    """A set with all that it extends, and all that is wrong with that."""
    return _flat(task_set, sets, (), {})


def _flat(
    task_set: TaskSet, sets: Sets, trail: tuple[TaskSet, ...], known: dict[tuple[int, int], Flat]
) -> Flat:
    """``trail`` are the sets on the way here, ``known`` what was found out at each level: a set may be on many ways."""
    here = (id(task_set), len(trail))
    if here not in known:
        known[here] = _merged(task_set, sets, trail, known)
    return known[here]


def _merged(
    task_set: TaskSet, sets: Sets, trail: tuple[TaskSet, ...], known: dict[tuple[int, int], Flat]
) -> Flat:
    merging = _Merging(task_set)
    below: list[Problem] = []
    missing: list[tuple[TaskSet, int]] = []
    chain: tuple[str, ...] = ()
    for index, name in enumerate(task_set.extends if len(trail) <= MAX_DEPTH else ()):
        base = sets.base(name, task_set)
        if base is None:
            if task_set.cluster and any(key[2] == name for key in sets.by_key):
                message = f'"{name}" is a TaskSet; a ClusterTaskSet extends ClusterTaskSets'
                merging.say(("extends", index), message, "unknown-set")
            else:
                missing.append((task_set, index))
            continue
        # The first set learns whether it is in a circle itself, those above only that there is one.
        circle = [] if trail else _way(base, task_set, sets)
        if circle or any(one is base for one in trail):
            names = " -> ".join([task_set.name, *(circle or [base.name])])
            merging.say(("extends", index), f"these sets extend each other: {names}", "extends-cycle")
            continue
        inherited = _flat(base, sets, (*trail, task_set), known)
        chain = max(chain, inherited.chain, key=len)
        if len(inherited.chain) > MAX_DEPTH:
            names = " -> ".join([task_set.name, *inherited.chain])
            message = f"{names}: a set may extend sets that extend sets, {MAX_DEPTH} deep and no deeper"
            merging.say(("extends", index), message, "extends-depth")
            continue
        below += inherited.problems[:1]
        missing += inherited.missing[:1]
        merging.inherit(index, base, inherited.task_set)
    merging.decide(open_ended=bool(missing or below or merging.problems))
    return Flat(merging.result(), (*below, *merging.problems), tuple(missing), (task_set.name, *chain))


def _way(start: TaskSet, goal: TaskSet, sets: Sets) -> list[str]:
    """The names from one set to another along ``extends``; empty where none leads there."""
    before: dict[int, list[str]] = {id(start): [start.name]}
    waiting = [start]
    for one in waiting:
        if one is goal:
            return before[id(one)]
        for base in _bases(one, sets):
            if id(base) not in before:
                before[id(base)] = [*before[id(one)], base.name]
                waiting.append(base)
    return []


def _bases(task_set: TaskSet, sets: Sets) -> Iterator[TaskSet]:
    found = (sets.base(name, task_set) for name in task_set.extends)
    return (base for base in found if base is not None)


@dataclass(slots=True)
class _Merging:
    """Inherited tasks and params by name, each with all the different forms in which it comes."""

    task_set: TaskSet
    problems: list[Problem] = field(default_factory=list)
    tasks: dict[str, list[tuple[Task, TaskSet, int]]] = field(default_factory=dict)
    params: dict[str, list[tuple[Param, TaskSet, int]]] = field(default_factory=dict)

    def say(self, path: tuple[str | int, ...], message: str, rule: str) -> None:
        self.problems.append(Problem(self.task_set, path, message, rule))

    def inherit(self, index: int, base: TaskSet, inherited: TaskSet) -> None:
        for task in inherited.tasks:
            forms = self.tasks.setdefault(task["name"], [])
            if not any(form is task for form, _, _ in forms):
                forms.append((task, base, index))
        for param in inherited.params:
            its = self.params.setdefault(param.name, [])
            if not any(form == param for form, _, _ in its):
                its.append((param, base, index))

    def decide(self, *, open_ended: bool) -> None:
        """Disable, override, add. With ``open_ended`` more may be inherited than is known here."""
        for index, name in enumerate(self.task_set.disable):
            if self.tasks.pop(name, None) is None and not open_ended:
                meant = suggestion(name, self.tasks)
                self.say(("disable", index), f'no set that is extended has a task "{name}"{meant}', "disable")
        for index, task in enumerate(self.task_set.tasks):
            self._own_task(index, task, open_ended=open_ended)
        for index, param in enumerate(self.task_set.params):
            self._own_param(index, param)
        for name, forms in self.tasks.items():
            if len(forms) > 1:
                message = f'{_both(forms)} have a task "{name}"; disable it, or give one here with override: replace'
                self.say(("extends", forms[1][2]), message, "inherited-task")
        for name, its in self.params.items():
            if len(its) > 1:
                message = f'{_both(its)} declare a param "{name}" differently; declare it here'
                self.say(("extends", its[1][2]), message, "inherited-param")

    def _own_param(self, index: int, param: Param) -> None:
        for form, base, _ in self.params.get(param.name, ()):
            if form.type != param.type:
                message = f'in "{base.name}" the param "{param.name}" is of type {form.type}, and its tasks count on it'
                self.say(("params", index, "type"), message, "param-type")
                break
        self.params[param.name] = [(param, self.task_set, -1)]

    def _own_task(self, index: int, task: Task, *, open_ended: bool) -> None:
        name, override = task["name"], task.get("override")
        forms = [one for one in self.tasks.get(name, ()) if one[1] is not self.task_set]
        path = ("tasks", index, "override" if override else "name")
        if forms and not override:
            base = forms[0][1]
            message = (
                f'"{base.name}" has a task "{name}" already; say override: replace or merge, or rename it'
            )
            self.say(path, message, "inherited-task")
        elif override and not forms and not open_ended:
            meant = suggestion(name, self.tasks)
            message = f'no set that is extended has a task "{name}" to {override}{meant}'
            if not self.task_set.extends:
                message = f'there is no "{name}" to {override}, for this set extends nothing; remove override'
            self.say(path, message, "override")
        elif override == "merge" and len(forms) > 1:
            self.say(
                path, f'{_both(forms)} have a task "{name}"; it can be replaced, and not merged', "override"
            )
        elif override == "merge" and forms:
            task = merge(forms[0][0], task)
            wrong = mismatch_of("task", without_override(task))
            if wrong:
                message = (
                    f'with what "{forms[0][1].name}" has, {wrong}; override: replace, or leave the rest out'
                )
                self.say(path, message, "override")
        if override != "merge" or forms:  # a part of a task is none by itself
            self.tasks[name] = [(without_override(task), self.task_set, -1)]

    def result(self) -> TaskSet:
        return replace(
            self.task_set,
            extends=(),
            disable=(),
            tasks=tuple(forms[0][0] for forms in self.tasks.values()),
            params=tuple(its[0][0] for its in self.params.values()),
        )


def _both(forms: Sequence[tuple[Any, TaskSet, int]]) -> str:
    return " and ".join(f'"{base.name}"' for _, base, _ in forms[:2])


def merge(base: Any, given: Any) -> Any:
    """Objects field by field, ``given`` before ``base``; everything else, lists too, as a whole."""
    if not isinstance(base, Mapping) or not isinstance(given, Mapping):
        return given
    return {**base, **{name: merge(base.get(name), value) for name, value in given.items()}}


def without_override(task: Task) -> Task:
    return {name: value for name, value in task.items() if name != "override"} if "override" in task else task
