"""Merges a set with the sets that it extends: ``extends``, ``override``, ``disable``.

Earlier sets come first, and tasks are merged by name. A task with the name of an inherited one is an error, unless it
has ``override`` or the inherited one is disabled. A param that a set
declares itself counts before inherited ones of its name, and keeps their type, since inherited tasks refer to it.
A set that is reached on two ways is there once.

Functions over values: the checker has the sets of its files, the controller those of its cluster. Each set is merged
once, and what it inherits is bounded, so the work grows with the sets and not with the ways between them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pidone.language.findings import MAX_COMPARED, suggestion
from pidone.language.model import Param, TaskSet
from pidone.language.safe_patterns import size
from pidone.language.schemas import mismatch_of
from pidone.plan.format import MAX_TASKS

MAX_DEPTH = 4  # of sets that extend sets that extend sets
MAX_PARAMS = 100  # of a set with all that it extends, as of one alone
MAX_PATTERNS = 5000  # instructions of all patterns of such a set, see ``safe_patterns``
_MAX_CIRCLES = 3  # that are said of one set
_MAX_WAY = 50  # sets that are visited to find the names of a circle
ANY = ""  # the namespace of what names none, outside a cluster: it is for all of them

Task = Mapping[str, Any]
Key = tuple[bool, str, str]  # of a set: whether it is the cluster's, its namespace, its name


@dataclass(slots=True)
class _Memo:
    """A cache of results about sets, by the identity of each set."""

    flattened: dict[int, tuple[TaskSet, "Flat"]] = field(default_factory=dict)
    inconsistencies: dict[int, list[tuple[str, str]]] = field(default_factory=dict)  # of flattened sets
    circles: dict[int, int] | None = None
    origins: dict[Key, dict[str, Key]] = field(
        default_factory=dict
    )  # of the tasks of a set, see ``Sets.origin``
    names: dict[tuple[bool, str], list[str]] = field(default_factory=dict)  # by cluster and namespace
    namespaced: frozenset[str] | None = None  # the names of those that are not the cluster's


@dataclass(frozen=True, slots=True)
class Sets:
    """All known sets. Resolves names to sets."""

    by_key: Mapping[Key, TaskSet] = field(default_factory=dict)  # cluster, namespace, name
    memo: _Memo = field(default_factory=_Memo, compare=False, repr=False)

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
        """Return the set that a name in the ``extends`` of ``of`` refers to."""
        return self.find(name, of.namespace, cluster=of.cluster)

    def bases(self, of: TaskSet) -> list[TaskSet]:
        """Return the sets that ``of`` extends, as far as they exist."""
        found = (self.base(name, of) for name in of.extends)
        return [base for base in found if base is not None]

    def names(self, of: TaskSet) -> list[str]:
        """Return the names that ``of`` could extend, in order."""
        names = self.memo.names.get((of.cluster, of.namespace))
        if names is None:
            mine = {(True, ANY)} if of.cluster else {(False, of.namespace), (False, ANY), (True, ANY)}
            names = sorted({name for *where, name in self.by_key if tuple(where) in mine})
            self.memo.names[of.cluster, of.namespace] = names
        return [name for name in names[: MAX_COMPARED + 1] if name != of.name]

    def origin(self, task: str, key: Key) -> Key | None:
        """Return the key of the set that a task of a set comes from, wherever it was inherited."""
        origins = self.memo.origins.get(key)
        if origins is None:
            origins = self.memo.origins[key] = {}
            waiting, seen = [self.by_key[key]], {key}
            while waiting:
                one = waiting.pop()
                for written in one.tasks:
                    origins.setdefault(written["name"], one.key)
                bases = {base.key: base for base in self.bases(one) if base.key not in seen}
                seen.update(bases)
                waiting += reversed(bases.values())
        return origins.get(task)


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault in how a set extends others. ``path`` is the position in its spec."""

    owner: TaskSet
    path: tuple[str | int, ...]
    message: str
    rule: str


@dataclass(frozen=True, slots=True)
class Flat:
    """A set merged with the sets that it extends. Sets that are missing or do not fit are left out."""

    task_set: (
        TaskSet  # its extends and disable are empty; tasks that nothing was changed in are the same objects
    )
    problems: tuple[Problem, ...] = ()  # all of this set, after one of each that it extends
    missing: tuple[
        tuple[TaskSet, int], ...
    ] = ()  # of the same: sets, and which entry of their extends is not there
    chain: tuple[str, ...] = ()  # the names on the longest way up, this set's first


def flat(task_set: TaskSet, sets: Sets) -> Flat:
    """Return a set merged with the sets that it extends, and the faults.

    Each set is merged once for one ``sets``, however many others extend it.
    """
    flattened = sets.memo.flattened
    waiting = [task_set]
    while waiting:
        one = waiting[-1]
        if id(one) in flattened:
            waiting.pop()
            continue
        bases = [_Base.of(index, name, one, sets) for index, name in enumerate(one.extends)]
        missing = [base.task_set for base in bases if base.task_set is not None and not base.circle]
        missing = [base for base in missing if id(base) not in flattened]
        if missing:
            waiting += missing
        else:
            flattened[id(one)] = one, _merged(one, bases, sets)
            waiting.pop()
    return flattened[id(task_set)][1]


@dataclass(frozen=True, slots=True)
class _Base:
    """One entry of ``extends``."""

    index: int
    name: str
    task_set: TaskSet | None  # None: it does not exist
    circle: bool = False  # it extends, perhaps through others, the set that extends it

    @classmethod
    def of(cls, index: int, name: str, heir: TaskSet, sets: Sets) -> "_Base":
        base = sets.base(name, heir)
        circles = _circles(sets)
        number = circles.get(id(base))
        return cls(index, name, base, circle=number is not None and number == circles.get(id(heir)))


def _merged(task_set: TaskSet, bases: Iterable[_Base], sets: Sets) -> Flat:
    merging = _Merging(task_set)
    below: list[Problem] = []
    missing: list[tuple[TaskSet, int]] = []
    chain: tuple[str, ...] = ()
    for base in bases:
        path = ("extends", base.index)
        if base.task_set is None:
            if task_set.cluster and base.name in _namespaced(sets):
                message = f'"{base.name}" is a TaskSet; a ClusterTaskSet extends ClusterTaskSets'
                merging.say(path, message, "unknown-set")
            else:
                missing.append((task_set, base.index))
            continue
        if base.circle:
            if len(merging.problems) >= _MAX_CIRCLES:
                continue
            names = " -> ".join([task_set.name, *_way(base.task_set, task_set, sets)])
            merging.say(path, f"these sets extend each other: {names}", "extends-cycle")
            continue
        inherited = sets.memo.flattened[id(base.task_set)][1]
        chain = max(chain, inherited.chain, key=len)
        if len(inherited.chain) > MAX_DEPTH:
            names = " -> ".join([task_set.name, *inherited.chain])
            message = f"{names}: a set may extend sets that extend sets, {MAX_DEPTH} deep and no deeper"
            merging.say(path, message, "extends-depth")
            continue
        below += inherited.problems[:1]
        missing += inherited.missing[:1]
        merging.inherit(base.index, base.task_set, inherited.task_set)
    merging.decide(open_ended=bool(missing or below or merging.problems))
    problems = (*below, *merging.problems)
    return Flat(merging.result(), problems, tuple(missing), (task_set.name, *chain)[: MAX_DEPTH + 1])


def _namespaced(sets: Sets) -> frozenset[str]:
    """Return the names of the sets that are not the cluster's."""
    if sets.memo.namespaced is None:
        sets.memo.namespaced = frozenset(name for cluster, _, name in sets.by_key if not cluster)
    return sets.memo.namespaced


def _circles(sets: Sets) -> Mapping[int, int]:
    """Return a number for each set, by its identity, that is in a circle; sets that reach each other have the same.

    Tarjan's algorithm, with a stack of its own.
    """
    if sets.memo.circles is not None:
        return sets.memo.circles
    found = sets.memo.circles = {}
    order: dict[int, int] = {}
    lowest: dict[int, int] = {}
    path: dict[int, None] = {}
    for start in sets.by_key.values():
        walk = [] if id(start) in order else [(start, iter(sets.bases(start)))]
        while walk:
            here, rest = walk[-1]
            key = id(here)
            if key not in order:
                order[key] = lowest[key] = len(order)
                path[key] = None
            new = next((base for base in rest if id(base) not in order), None)
            if new is not None:
                walk.append((new, iter(sets.bases(new))))
                continue
            walk.pop()
            around = [id(base) for base in sets.bases(here)]
            lowest[key] = min([lowest[key], *(lowest[one] for one in around if one in path)])
            if lowest[key] == order[key]:
                members = [path.popitem()[0]]
                while members[-1] != key:
                    members.append(path.popitem()[0])
                if len(members) > 1 or key in around:
                    found.update(dict.fromkeys(members, order[key]))
    return found


def _way(start: TaskSet, goal: TaskSet, sets: Sets) -> tuple[str, ...]:
    """Return the names from one set to another of its circle along ``extends``; "..." if the way is long."""
    before: dict[int, tuple[str, ...]] = {id(start): (start.name,)}
    waiting, circles = [start], _circles(sets)
    for one in waiting:
        if one is goal:
            return before[id(one)]
        if len(waiting) > _MAX_WAY:
            break
        for base in sets.bases(one):
            if id(base) not in before and circles.get(id(base)) == circles[id(goal)]:
                before[id(base)] = (*before[id(one)], base.name)
                waiting.append(base)
    return start.name, "...", goal.name


@dataclass(slots=True)
class _Merging:
    """Inherited tasks and params by name, each with all the different forms in which it comes."""

    task_set: TaskSet
    problems: list[Problem] = field(default_factory=list)
    tasks: dict[str, list[tuple[Task, TaskSet, int]]] = field(default_factory=dict)
    params: dict[str, list[tuple[Param, TaskSet, int]]] = field(default_factory=dict)

    def say(self, path: tuple[str | int, ...], message: str, rule: str) -> None:
        self.problems.append(Problem(self.task_set, path, message, rule))

    def _say_size(self, index: int, most: str) -> None:
        message = f"with all that it extends, this set has more than {most}; extend fewer sets"
        self.say(("extends", index), message, "extends-size")

    def inherit(self, index: int, base: TaskSet, inherited: TaskSet) -> None:
        for task in inherited.tasks:
            if len(self.tasks) == MAX_TASKS and task["name"] not in self.tasks:
                self._say_size(index, f"{MAX_TASKS} tasks")
                return
            forms = self.tasks.setdefault(task["name"], [])
            if not any(form is task for form, _, _ in forms):
                forms.append((task, base, index))
        for param in inherited.params:
            if len(self.params) == MAX_PARAMS and param.name not in self.params:
                self._say_size(index, f"{MAX_PARAMS} params")
                return
            its = self.params.setdefault(param.name, [])
            if not any(form == param for form, _, _ in its):
                its.append((param, base, index))

    def decide(self, *, open_ended: bool) -> None:
        """Disable, override and add tasks. With ``open_ended`` the set may inherit tasks that are not known here."""
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
        self._check_patterns()

    def _check_patterns(self) -> None:
        """Bound the work for the values of one pod."""
        total = 0
        for name, forms in self.params.items():
            param, _, index = forms[0]
            total += size(param.pattern) if param.pattern else 0
            if total > MAX_PATTERNS:
                own = [place for place, one in enumerate(self.task_set.params) if one.name == name]
                path = ("params", own[0], "pattern") if own else ("extends", index)
                message = (
                    f"with this one the patterns of this set have, written out, more than {MAX_PATTERNS} parts; "
                    "repeat less"
                )
                self.say(path, message, "pattern")
                return

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
    """Merge objects field by field; ``given`` wins. Other values, also lists, are replaced as a whole."""
    if not isinstance(base, Mapping) or not isinstance(given, Mapping):
        return given
    return {**base, **{name: merge(base.get(name), value) for name, value in given.items()}}


def without_override(task: Task) -> Task:
    return {name: value for name, value in task.items() if name != "override"} if "override" in task else task
