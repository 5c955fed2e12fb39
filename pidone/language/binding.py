"""From labels to tasks: which TaskBindings choose a pod, and what their TaskSets come to in it.

Pure: the same rules and pod give the same tasks in the same order in any process, so every replica serves
the same bytes. Where two bindings disagree nothing is derived and both are named: the last one winning is
how people lose an afternoon.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pidone.errors import LanguageError, PidoneError
from pidone.language.extends import ANY, Sets
from pidone.language.model import TaskBinding, TaskSet
from pidone.language.rendering import render
from pidone.language.resolution import flatten
from pidone.language.selector import matches


class Bound(Protocol):
    """What is read of a pod; ``manifest`` is its core/v1 object."""

    @property
    def namespace(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def manifest(self) -> Mapping[str, Any]: ...


class BindingError(PidoneError):
    """No plan can be derived for a pod; the text names the bindings it comes from."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything people wrote, at one moment. Compared by identity: a change makes a new one."""

    sets: Sets = field(default_factory=Sets)
    bindings: Sequence[TaskBinding] = ()  # the cluster's first, then those of ANY, then by namespace and name
    flattened: dict[int, TaskSet] = field(
        default_factory=dict, compare=False
    )  # by identity, as they are asked for

    def task_set(self, name: str, binding: TaskBinding, namespace: str) -> TaskSet:
        """A set of a binding, for pods of a namespace, with all that it extends. Raises ``BindingError``.

        The namespace's own counts before one for all; a binding of the cluster takes the cluster's.
        """
        found = self.sets.find(name, namespace, cluster=binding.cluster)
        if found is None:
            kind, where = (
                ("ClusterTaskSet", "") if binding.cluster else ("TaskSet", f" for pods in {namespace}")
            )
            raise BindingError(f'{shown(binding)} names {kind} "{name}", which is not there{where}')
        if id(found) not in self.flattened:
            try:
                self.flattened[id(found)] = flatten(found, self.sets)
            except LanguageError as error:
                raise BindingError(f"{shown(binding)}: {error}") from error
        return self.flattened[id(found)]


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
    tasks: dict[str, dict[str, Any]] = {}
    owners: dict[
        str, tuple[TaskBinding, Mapping[str, Any]]
    ] = {}  # by which binding each task came, as written
    for binding in rules.bindings:
        if binding.namespace not in {ANY, pod.namespace} or not matches(binding.pod_selector, pod.labels):
            continue
        sets = [rules.task_set(name, binding, pod.namespace) for name in binding.task_sets]
        written = {task["name"]: task for task_set in sets for task in task_set.tasks}
        for task in _render(binding, sets, pod):
            name = task["name"]
            if name in tasks:
                earlier, there = owners[name]
                # What is bound twice, or inherited twice, is one, as long as both bindings make the same of it.
                if written[name] is not there or tasks[name] != task:
                    raise BindingError(_conflict(name, earlier, binding, same=written[name] is there))
                continue
            tasks[name] = task
            owners[name] = binding, written[name]
    return list(tasks.values())


def _render(binding: TaskBinding, task_sets: Sequence[TaskSet], pod: Bound) -> list[dict[str, Any]]:
    try:
        return render(task_sets, binding.params, pod.manifest)
    except LanguageError as error:
        raise BindingError(f"{shown(binding)}: {error}") from error


def _conflict(task: str, first: TaskBinding, second: TaskBinding, *, same: bool) -> str:
    both = f"{shown(first)} and {shown(second)}"
    if same:
        shared = [name for name in second.task_sets if name in first.task_sets]
        what = f'bind TaskSet "{shared[0]}"' if shared else "bind sets that extend the same one"
        return (
            f'{both} {what} with different params, and task "{task}" cannot be both; '
            "bind it once, or give both the same params"
        )
    return f'{both} each bring a task "{task}"; rename one, or bind one of them'
