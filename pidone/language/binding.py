"""The plan of a pod: the TaskBindings that select it, and the tasks of their TaskSets.

Functions over values: the same rules and pod give the same tasks in the same order in every process, so all replicas
serve the same bytes. If two bindings bring different tasks of one name, the pod gets nothing of either, and the error
names both.

A binding brings the sets as they are, unless the rules have a rollout for it: then a pod gets one of two versions,
by a number that is made of its uid.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Protocol

from pidone.errors import LanguageError, PidoneError
from pidone.language.extends import ANY, Sets
from pidone.language.model import TaskBinding, TaskSet
from pidone.language.rendering import render
from pidone.language.resolution import flatten
from pidone.language.selector import matches

Key = tuple[bool, str, str]  # of a set or a binding: whether it is the cluster's, its namespace, its name
Task = Mapping[str, Any]
PLACES = 10_000  # a pod has one of so many places in a rollout
MAX_BINDINGS = 200  # of one pod
_MAX_FAULTS = 20  # of one pod in the text of an error


class Bound(Protocol):
    """What is read of a pod; ``manifest`` is its core/v1 object."""

    @property
    def uid(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def manifest(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Fault:
    """Why bindings bring nothing new to a pod: the text names them."""

    text: str
    bindings: tuple[TaskBinding, ...]
    task: str = ""  # what two of them each bring


class BindingError(PidoneError):
    """The plan of a pod cannot be derived; the text names the bindings at fault.

    ``rest`` are the tasks of all other bindings, for a pod that has no plan yet. A pod that has one keeps it.
    """

    def __init__(self, faults: Sequence[Fault], rest: Sequence[dict[str, Any]] = ()) -> None:
        more = [f"and {len(faults) - _MAX_FAULTS} more"] if len(faults) > _MAX_FAULTS else []
        super().__init__("; ".join([*(fault.text for fault in faults[:_MAX_FAULTS]), *more]))
        self.faults = tuple(faults)
        self.rest = list(rest)

    @property
    def bindings(self) -> tuple[str, ...]:
        """Those at fault, as ``shown`` calls them."""
        return tuple(dict.fromkeys(shown(binding) for fault in self.faults for binding in fault.bindings))

    @property
    def task(self) -> str:
        """What two of them each bring; empty where that is not what is wrong."""
        return next((fault.task for fault in self.faults if fault.task), "")


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """What a binding brings at one moment of its history."""

    task_sets: tuple[str, ...]
    params: Mapping[str, Any]
    sets: Sets  # those that it reaches, as they were then


@dataclass(frozen=True, slots=True)
class Rollout:
    """Two versions of a binding; None is nothing of it. Pods whose place is below ``share`` have the target."""

    current: Version | None
    target: Version | None = None
    share: int = 0  # of PLACES
    seed: str = ""  # what tells this rollout from others, so that not always the same pods are the first

    def version(self, uid: str) -> Version | None:
        """Of a pod."""
        return self.target if self.share and place(uid, self.seed) < self.share else self.current


def place(uid: str, seed: str) -> int:
    """The place of a pod in a rollout, 0 up to ``PLACES``: the same in every process."""
    return int.from_bytes(sha256(f"{seed} {uid}".encode()).digest()[:8]) % PLACES


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything people wrote, at one moment. Compared by identity: a change makes a new one."""

    sets: Sets = field(default_factory=Sets)
    bindings: Sequence[TaskBinding] = ()  # the cluster's first, then those of ANY, then by namespace and name
    # Of bindings that do not just bring the sets as they are; a text says why it is not known what one brings.
    rollouts: Mapping[Key, Rollout | str] = field(default_factory=dict)
    flattened: dict[tuple[int, int], TaskSet] = field(
        default_factory=dict, compare=False
    )  # by identity of Sets and set, as they are asked for
    by_namespace: dict[str, list[TaskBinding]] = field(
        default_factory=dict, compare=False
    )  # see ``matching``

    def matching(self, pod: Bound) -> Iterator[TaskBinding]:
        """The bindings that choose a pod, in order."""
        if not self.by_namespace:
            for binding in self.bindings:
                self.by_namespace.setdefault(binding.namespace, []).append(binding)
        for namespace in dict.fromkeys((ANY, pod.namespace)):
            for binding in self.by_namespace.get(namespace, ()):
                if matches(binding.pod_selector, pod.labels):
                    yield binding

    def version(self, binding: TaskBinding, uid: str) -> Version | None:
        """Which version of a binding a pod gets. Raises ``BindingError`` where that is not known."""
        rollout = self.rollouts.get(binding.key)
        if rollout is None:
            return Version(binding.task_sets, binding.params, self.sets)
        if isinstance(rollout, str):
            raise BindingError([Fault(f"{shown(binding)}: {rollout}", (binding,))])
        return rollout.version(uid)

    def task_set(self, name: str, binding: TaskBinding, namespace: str, sets: Sets | None = None) -> TaskSet:
        """A set of a binding, for pods of a namespace, with all that it extends. Raises ``BindingError``.

        The namespace's own counts before one for all; a binding of the cluster takes the cluster's. ``sets`` are
        those of a version, without them the present ones.
        """
        sets = self.sets if sets is None else sets
        found = sets.find(name, namespace, cluster=binding.cluster)
        if found is None:
            kind, where = (
                ("ClusterTaskSet", "") if binding.cluster else ("TaskSet", f" for pods in {namespace}")
            )
            text = f'{shown(binding)} names {kind} "{name}", which is not there{where}'
            raise BindingError([Fault(text, (binding,))])
        key = id(sets), id(found)
        if key not in self.flattened:
            try:
                self.flattened[key] = flatten(found, sets)
            except LanguageError as error:
                raise BindingError([Fault(f"{shown(binding)}: {error}", (binding,))]) from error
        return self.flattened[key]


def collect(files: Iterable[tuple[str, Iterable[TaskSet | TaskBinding]]]) -> tuple[Rules, tuple[str, ...]]:
    """Rules from files in order, and what is there twice: the first stays, the complaint names both files."""
    first: dict[tuple[str, str, str], tuple[str, TaskSet | TaskBinding]] = {}
    complaints: list[str] = []
    for file, objects in files:
        for item in objects:
            there, kept = first.setdefault((item.kind, item.namespace, item.name), (file, item))
            if kept is not item:
                complaints.append(f"{shown(item)} is in {there} and again in {file}; the first counts")
    items = [item for _, item in first.values()]
    bindings = [item for item in items if isinstance(item, TaskBinding)]
    return Rules(
        sets=Sets.of(item for item in items if isinstance(item, TaskSet)),
        bindings=sorted(bindings, key=lambda one: (not one.cluster, one.namespace, one.name)),
    ), tuple(complaints)


def shown(item: TaskSet | TaskBinding) -> str:
    """``TaskBinding shop/web``; without a namespace where it is for all."""
    return f"{item.kind} {item.namespace}/{item.name}".replace(" /", " ")


def derive(pod: Bound, rules: Rules) -> list[dict[str, Any]]:
    """The rendered tasks of one pod; none where nothing binds it. Raises ``BindingError``."""
    brought: list[_Brought] = []
    faults: list[Fault] = []
    for number, binding in enumerate(rules.matching(pod)):
        if number == MAX_BINDINGS:
            text = f"more than {MAX_BINDINGS} bindings select this pod, {shown(binding)} among them; select fewer pods"
            faults.append(Fault(text, (binding,)))
            break
        try:
            found = _bring(binding, pod, rules)
        except BindingError as error:
            faults += error.faults
        else:
            brought += [found] if found else []
    conflicts = list(_conflicts(brought))
    faults += conflicts
    disagreeing = {binding.key for fault in conflicts for binding in fault.bindings}
    tasks: dict[str, dict[str, Any]] = {}
    for one in brought:
        if one.binding.key not in disagreeing:
            tasks.update(one.tasks)  # what two have is the same
    if faults:
        raise BindingError(faults, list(tasks.values()))
    return list(tasks.values())


@dataclass(frozen=True, slots=True)
class _Brought:
    """What one binding brings to one pod."""

    binding: TaskBinding
    version: Version
    flat: Sequence[TaskSet]
    tasks: Mapping[str, dict[str, Any]]

    def written(self, name: str) -> Task:
        """A task before it was rendered."""
        return next(task for one in self.flat for task in one.tasks if task["name"] == name)

    def origin(self, name: str) -> Key | None:
        """The set that a task comes from, wherever it was inherited."""
        sets = self.version.sets
        return next(filter(None, (sets.origin(name, one.key) for one in self.flat)), None)


def _bring(binding: TaskBinding, pod: Bound, rules: Rules) -> _Brought | None:
    """None where a rollout brings nothing of the binding to this pod. Raises ``BindingError``."""
    version = rules.version(binding, pod.uid)
    if version is None:
        return None
    flat = [rules.task_set(name, binding, pod.namespace, version.sets) for name in version.task_sets]
    try:
        tasks = render(flat, version.params, pod.manifest)
    except LanguageError as error:
        raise BindingError([Fault(f"{shown(binding)}: {error}", (binding,))]) from error
    return _Brought(binding, version, flat, {task["name"]: task for task in tasks})


def _conflicts(brought: Sequence[_Brought]) -> Iterator[Fault]:
    """Yield a fault for each two bindings that bring different tasks of one name. Equal ones of one origin are one.

    A task is compared with the first one of its name alone, since "the same" is transitive. So the work grows with the
    tasks, and not with the pairs of bindings.
    """
    agreeing: dict[str, list[_Brought]] = {}  # those that make the same of a task as the first one
    other: dict[str, _Brought] = {}  # the first one that does not
    pairs: set[tuple[int, int]] = set()
    for one in brought:
        for name in one.tasks:
            before = agreeing.setdefault(name, [])
            if not before or _agree(name, before[0], one):
                before.append(one)
                against = [other[name]] if name in other else []
            else:
                against = before if name not in other else before[:1]
                other.setdefault(name, one)
            for first in against:
                if (id(first), id(one)) not in pairs:
                    pairs.add((id(first), id(one)))
                    text = _conflict(name, first, one, same=first.origin(name) == one.origin(name))
                    yield Fault(text, (first.binding, one.binding), name)


def _agree(task: str, first: _Brought, second: _Brought) -> bool:
    return first.origin(task) == second.origin(task) and first.tasks[task] == second.tasks[task]


def _conflict(task: str, first: _Brought, second: _Brought, *, same: bool) -> str:
    both = f"{shown(first.binding)} and {shown(second.binding)}"
    if not same:
        return f'{both} each bring a task "{task}"; rename one, or bind one of them'
    shared = [name for name in second.version.task_sets if name in first.version.task_sets]
    what = f'bind TaskSet "{shared[0]}"' if shared else "bind sets that extend the same one"
    if first.written(task) != second.written(task):
        return (
            f'{both} {what} at different versions, and task "{task}" cannot be both; '
            "it is one again when the rollout is complete, or bind it once"
        )
    return (
        f'{both} {what} with different params, and task "{task}" cannot be both; '
        "bind it once, or give both the same params"
    )
