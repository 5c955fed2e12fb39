"""Derives the plan of a pod: finds the TaskBindings that select it, and renders the tasks of their TaskSets.

Functions over values: the same rules and pod give the same tasks in the same order in every process, so all replicas
serve the same bytes. If two bindings bring different tasks of one name, the pod gets the tasks of neither, and the
error names both.

A binding brings the present sets, unless the rules have a rollout for it: then a pod gets one of two versions, by its
place, which is a hash of its uid.
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
from pidone.language.secrets import NoSecrets, SecretError, Secrets
from pidone.language.selector import matches

Key = tuple[bool, str, str]  # of a set or a binding: True for the cluster's, the namespace, the name
Task = Mapping[str, Any]
PLACES = 10_000  # of pods in a rollout
MAX_BINDINGS = 200  # of one pod
_MAX_FAULTS = 20  # of one pod in the text of an error


class Bound(Protocol):
    """The fields of a pod that bindings read; ``manifest`` is its core/v1 object."""

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
    """The reason why bindings bring no new plan to a pod; the text names them."""

    text: str
    bindings: tuple[TaskBinding, ...]
    task: str = ""  # the task that two of them bring
    secret: bool = False  # a value of a Secret is missing
    pending: bool = False  # that value will be read in a moment


class BindingError(PidoneError):
    """The plan of a pod cannot be derived; the text names the bindings at fault.

    ``rest`` are the tasks of all other bindings, for a pod without a plan. A pod with a plan keeps it.
    """

    def __init__(self, faults: Sequence[Fault], rest: Sequence[dict[str, Any]] = ()) -> None:
        more = [f"and {len(faults) - _MAX_FAULTS} more"] if len(faults) > _MAX_FAULTS else []
        super().__init__("; ".join([*(fault.text for fault in faults[:_MAX_FAULTS]), *more]))
        self.faults = tuple(faults)
        self.rest = list(rest)

    @property
    def bindings(self) -> tuple[str, ...]:
        """The bindings at fault, as ``shown`` writes them."""
        return tuple(dict.fromkeys(shown(binding) for fault in self.faults for binding in fault.bindings))

    @property
    def task(self) -> str:
        """The task that two of them bring; empty for another fault."""
        return next((fault.task for fault in self.faults if fault.task), "")


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """The content of a binding at one time."""

    task_sets: tuple[str, ...]
    params: Mapping[str, Any]
    sets: Sets  # those that it reaches, in their versions at that time


@dataclass(frozen=True, slots=True)
class Rollout:
    """Two versions of a binding; None brings no tasks. Pods whose place is below ``share`` have the target."""

    current: Version | None
    target: Version | None = None
    share: int = 0  # of PLACES
    seed: str = ""  # differs for each rollout, so that different pods are the first

    def version(self, uid: str) -> Version | None:
        """Return the version of a pod."""
        return self.target if self.share and place(uid, self.seed) < self.share else self.current


def place(uid: str, seed: str) -> int:
    """Return the place of a pod in a rollout, 0 up to ``PLACES``: the same in every process."""
    return int.from_bytes(sha256(f"{seed} {uid}".encode()).digest()[:8]) % PLACES


@dataclass(frozen=True, slots=True)
class Rules:
    """All sets, bindings and rollouts at one time. Compared by identity: a change makes a new object."""

    sets: Sets = field(default_factory=Sets)
    bindings: Sequence[TaskBinding] = ()  # the cluster's first, then those of ANY, then by namespace and name
    # Of bindings that do not bring the present sets. A text is the reason why the version is unknown.
    rollouts: Mapping[Key, Rollout | str] = field(default_factory=dict)
    secrets: Secrets = field(default_factory=NoSecrets, compare=False)
    flattened: dict[tuple[int, int], TaskSet] = field(
        default_factory=dict, compare=False
    )  # a cache by identity of Sets and set
    by_namespace: dict[str, list[TaskBinding]] = field(
        default_factory=dict, compare=False
    )  # see ``matching``

    def matching(self, pod: Bound) -> Iterator[TaskBinding]:
        """Yield the bindings that select a pod, in order."""
        if not self.by_namespace:
            for binding in self.bindings:
                self.by_namespace.setdefault(binding.namespace, []).append(binding)
        for namespace in dict.fromkeys((ANY, pod.namespace)):
            for binding in self.by_namespace.get(namespace, ()):
                if matches(binding.pod_selector, pod.labels):
                    yield binding

    def version(self, binding: TaskBinding, uid: str) -> Version | None:
        """Return the version of a binding for a pod; None: no tasks of it. Raises ``BindingError`` if it is unknown."""
        rollout = self.rollouts.get(binding.key)
        if rollout is None:
            return Version(binding.task_sets, binding.params, self.sets)
        if isinstance(rollout, str):
            raise BindingError([Fault(f"{shown(binding)}: {rollout}", (binding,))])
        return rollout.version(uid)

    def task_set(self, name: str, binding: TaskBinding, namespace: str, sets: Sets | None = None) -> TaskSet:
        """Return a set of a binding for pods of a namespace, merged with the sets that it extends.

        A set of the namespace takes precedence over one for all namespaces; a binding of the cluster names sets of the
        cluster. ``sets`` are those of a version, by default the present ones. Raises ``BindingError``.
        """
        sets = self.sets if sets is None else sets
        task_set = sets.find(name, namespace, cluster=binding.cluster)
        if task_set is None:
            kind, where = (
                ("ClusterTaskSet", "") if binding.cluster else ("TaskSet", f" for pods in {namespace}")
            )
            text = f'{shown(binding)} names {kind} "{name}", which is not there{where}'
            raise BindingError([Fault(text, (binding,))])
        key = id(sets), id(task_set)
        if key not in self.flattened:
            try:
                self.flattened[key] = flatten(task_set, sets)
            except LanguageError as error:
                raise BindingError([Fault(f"{shown(binding)}: {error}", (binding,))]) from error
        return self.flattened[key]


def collect(files: Iterable[tuple[str, Iterable[TaskSet | TaskBinding]]]) -> tuple[Rules, tuple[str, ...]]:
    """Return the rules of files, and a complaint for each repeated object, of which the first one counts."""
    first: dict[tuple[str, str, str], tuple[str, TaskSet | TaskBinding]] = {}
    complaints: list[str] = []
    for file, objects in files:
        for item in objects:
            first_file, kept = first.setdefault((item.kind, item.namespace, item.name), (file, item))
            if kept is not item:
                complaints.append(f"{shown(item)} is in {first_file} and again in {file}; the first counts")
    items = [item for _, item in first.values()]
    bindings = [item for item in items if isinstance(item, TaskBinding)]
    return Rules(
        sets=Sets.of(item for item in items if isinstance(item, TaskSet)),
        bindings=sorted(bindings, key=lambda binding: (not binding.cluster, binding.namespace, binding.name)),
    ), tuple(complaints)


def shown(item: TaskSet | TaskBinding) -> str:
    """Return the object for messages: ``TaskBinding shop/web``; without a namespace if it is for all."""
    return f"{item.kind} {item.namespace}/{item.name}".replace(" /", " ")


def derive(pod: Bound, rules: Rules) -> list[dict[str, Any]]:
    """Return the rendered tasks of one pod; none if no binding selects it. Raises ``BindingError``."""
    brought: list[_Brought] = []
    faults: list[Fault] = []
    for number, binding in enumerate(rules.matching(pod)):
        if number == MAX_BINDINGS:
            text = f"more than {MAX_BINDINGS} bindings select this pod, {shown(binding)} among them; select fewer pods"
            faults.append(Fault(text, (binding,)))
            break
        try:
            contribution = _bring(binding, pod, rules)
        except BindingError as error:
            faults += error.faults
        else:
            brought += [contribution] if contribution else []
    conflicts = [*_conflicts(brought), *_second_idle_task(brought)]
    faults += conflicts
    disagreeing = {binding.key for fault in conflicts for binding in fault.bindings}
    tasks: dict[str, dict[str, Any]] = {}
    for contribution in brought:
        if contribution.binding.key not in disagreeing:
            tasks.update(contribution.tasks)  # tasks of one name are equal
    if faults:
        raise BindingError(faults, list(tasks.values()))
    return list(tasks.values())


@dataclass(frozen=True, slots=True)
class _Brought:
    """The tasks that one binding brings to one pod."""

    binding: TaskBinding
    version: Version
    flat: Sequence[TaskSet]
    tasks: Mapping[str, dict[str, Any]]

    def written(self, name: str) -> Task:
        """Return a task before rendering."""
        return next(task for task_set in self.flat for task in task_set.tasks if task["name"] == name)

    def origin(self, name: str) -> Key | None:
        """Return the key of the set from which a task was inherited."""
        sets = self.version.sets
        return next(filter(None, (sets.origin(name, task_set.key) for task_set in self.flat)), None)


def _bring(binding: TaskBinding, pod: Bound, rules: Rules) -> _Brought | None:
    """Return the tasks of a binding; None if its rollout brings none to this pod. Raises ``BindingError``."""
    version = rules.version(binding, pod.uid)
    if version is None:
        return None
    flat = [rules.task_set(name, binding, pod.namespace, version.sets) for name in version.task_sets]
    try:
        tasks = render(flat, version.params, pod.manifest, rules.secrets)
    except SecretError as error:
        fault = Fault(f"{shown(binding)}: {error}", (binding,), secret=True, pending=error.pending)
        raise BindingError([fault]) from error
    except LanguageError as error:
        raise BindingError([Fault(f"{shown(binding)}: {error}", (binding,))]) from error
    return _Brought(binding, version, flat, {task["name"]: task for task in tasks})


def _conflicts(brought: Sequence[_Brought]) -> Iterator[Fault]:
    """Yield a fault for each two bindings that bring different tasks of one name. Equal tasks of one origin are one.

    A task is compared with the first one of its name alone, since "the same" is transitive. So the work grows with the
    tasks, and not with the pairs of bindings.
    """
    agreeing: dict[str, list[_Brought]] = {}  # those that bring the same task as the first one
    other: dict[str, _Brought] = {}  # the first one that brings another
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


def _second_idle_task(brought: Sequence[_Brought]) -> Iterator[Fault]:
    """Yield a fault if a pod gets several tasks that freeze its application: each would undo the other's work."""
    bringing = {name: one.binding for one in brought for name, task in one.tasks.items() if "idle" in task}
    if len(bringing) > 1:
        (first, binding), (second, other), *_ = bringing.items()
        text = f'{shown(binding)} brings the idle task "{first}", and {shown(other)} brings "{second}"; a pod has one'
        yield Fault(text, (binding, other), second)


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
