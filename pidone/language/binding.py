"""From labels to tasks: which TaskBindings choose a pod, and what their TaskSets come to in it.

Pure: the same rules and pod give the same tasks in the same order in any process, so every replica serves
the same bytes. Where two bindings disagree nothing is derived and both are named: the last one winning is
how people lose an afternoon.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pidone.errors import LanguageError, PidoneError
from pidone.language.model import TaskBinding, TaskSet
from pidone.language.rendering import render
from pidone.language.selector import matches

ANY = ""  # the namespace of what names none, outside a cluster: it is for pods of all of them


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

    task_sets: Mapping[tuple[str, str], TaskSet] = field(default_factory=dict)  # by namespace and name
    bindings: Sequence[TaskBinding] = ()  # those of ANY first, then by namespace and name

    def task_set(self, namespace: str, name: str) -> TaskSet | None:
        """The nearer one: the namespace's own before one for all."""
        return self.task_sets.get((namespace, name)) or self.task_sets.get((ANY, name))


def collect(files: Iterable[tuple[str, Iterable[TaskSet | TaskBinding]]]) -> tuple[Rules, tuple[str, ...]]:
    """Rules from files in order, and what is there twice: the first stays, the complaint names both files."""
    first: dict[tuple[type, str, str], tuple[str, TaskSet | TaskBinding]] = {}
    complaints: list[str] = []
    for file, objects in files:
        for item in objects:
            there, kept = first.setdefault((type(item), item.namespace, item.name), (file, item))
            if kept is not item:
                complaints.append(f"{shown(item)} is in {there} and again in {file}; the first counts")
    items = [item for _, item in first.values()]
    bindings = [item for item in items if isinstance(item, TaskBinding)]
    return Rules(
        task_sets={(item.namespace, item.name): item for item in items if isinstance(item, TaskSet)},
        bindings=sorted(bindings, key=lambda binding: (binding.namespace, binding.name)),
    ), tuple(complaints)


def shown(item: TaskSet | TaskBinding) -> str:
    """``TaskBinding shop/web``; without a namespace where it is for all."""
    return f"{type(item).__name__} {item.namespace}/{item.name}".replace(" /", " ")


def derive(pod: Bound, rules: Rules) -> list[dict[str, Any]]:
    """The rendered tasks of one pod; none where nothing binds it. Raises ``BindingError``."""
    tasks: dict[str, dict[str, Any]] = {}
    owners: dict[str, TaskBinding] = {}  # which binding each task came by
    for binding in rules.bindings:
        if binding.namespace not in {ANY, pod.namespace} or not matches(binding.pod_selector, pod.labels):
            continue
        for task in _render(binding, pod, rules):
            name = task["name"]
            if name in tasks:
                earlier = owners[name]
                shared = [item for item in binding.task_sets if item in earlier.task_sets]
                # One set bound twice is one set, as long as both bindings make the same of it.
                if shared and tasks[name] == task:
                    continue
                raise BindingError(_conflict(name, earlier, binding, shared))
            tasks[name] = task
            owners[name] = binding
    return list(tasks.values())


def _render(binding: TaskBinding, pod: Bound, rules: Rules) -> list[dict[str, Any]]:
    task_sets = []
    for name in binding.task_sets:
        task_set = rules.task_set(pod.namespace, name)
        if task_set is None:
            raise BindingError(
                f'{shown(binding)} names TaskSet "{name}", which is not there for pods in {pod.namespace}'
            )
        task_sets.append(task_set)
    try:
        return render(task_sets, binding.params, pod.manifest)
    except LanguageError as error:
        raise BindingError(f"{shown(binding)}: {error}") from error


def _conflict(task: str, first: TaskBinding, second: TaskBinding, shared: Sequence[str]) -> str:
    both = f"{shown(first)} and {shown(second)}"
    if shared:
        return (
            f'{both} bind TaskSet "{shared[0]}" with different params, and task "{task}" cannot be both; '
            "bind it once, or give both the same params"
        )
    return f'{both} each bring a task "{task}"; rename one, or bind one of them'
