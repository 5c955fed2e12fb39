"""From labels to tasks: which TaskBindings choose a pod, and what their TaskSets come to in it.

Pure: the same rules and pod give the same tasks in the same order in any process, so every replica serves
the same bytes. Where two bindings disagree nothing is derived and both are named: the last one winning is
how people lose an afternoon.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pidone.language.rendering import render

from pidone.errors import LanguageError, PidoneError
from pidone.language.model import TaskBinding, TaskSet
from pidone.language.selector import matches
from pidone_controller.inventory import Pod

ANY = ""  # the namespace of what names none, outside a cluster: it is for pods of all of them


class BindingError(PidoneError):
    """No plan can be derived for a pod; the text names the bindings it comes from."""


@dataclass(frozen=True, slots=True)
class Scoped:
    """One object, and the namespace of the pods it is for (or ``ANY``)."""

    namespace: str
    item: TaskSet | TaskBinding

    @property
    def kind(self) -> str:
        return type(self.item).__name__

    @property
    def shown(self) -> str:
        return f"{self.kind}/{self.path}"

    @property
    def path(self) -> str:
        return f"{self.namespace}/{self.item.name}" if self.namespace else self.item.name


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything people wrote, at one moment. Compared by identity: a change makes a new one."""

    task_sets: Mapping[tuple[str, str], TaskSet] = field(default_factory=dict)  # by namespace and name
    bindings: Sequence[tuple[str, TaskBinding]] = ()  # with their namespaces: ANY first, then by name

    def task_set(self, namespace: str, name: str) -> TaskSet | None:
        """The nearer one: the namespace's own before one for all."""
        return self.task_sets.get((namespace, name)) or self.task_sets.get((ANY, name))


def collect(files: Iterable[tuple[str, Iterable[Scoped]]]) -> tuple[Rules, tuple[str, ...]]:
    """Rules from files in order, and what is there twice: the first stays, the complaint names both files."""
    first: dict[tuple[str, str, str], tuple[str, Scoped]] = {}
    complaints: list[str] = []
    for file, objects in files:
        for scoped in objects:
            there, kept = first.setdefault((scoped.kind, scoped.namespace, scoped.item.name), (file, scoped))
            if kept is not scoped:
                complaints.append(f"{scoped.shown} is in {there} and again in {file}; the first counts")
    task_sets: dict[tuple[str, str], TaskSet] = {}
    bindings: list[tuple[str, TaskBinding]] = []
    for _, scoped in first.values():
        if isinstance(scoped.item, TaskSet):
            task_sets[scoped.namespace, scoped.item.name] = scoped.item
        else:
            bindings.append((scoped.namespace, scoped.item))
    bindings.sort(key=lambda binding: (binding[0], binding[1].name))
    return Rules(task_sets, tuple(bindings)), tuple(complaints)


def derive(pod: Pod, rules: Rules) -> list[dict[str, Any]]:
    """The rendered tasks of one pod; none where nothing binds it. Raises ``BindingError``."""
    tasks: dict[str, dict[str, Any]] = {}
    owners: dict[str, tuple[str, TaskBinding]] = {}  # which binding each task came by
    for namespace, binding in rules.bindings:
        if namespace not in {ANY, pod.namespace} or not matches(binding.pod_selector, pod.labels):
            continue
        shown = Scoped(namespace, binding).path
        for task in _render(shown, binding, pod, rules):
            name = task["name"]
            if name in tasks:
                other, earlier = owners[name]
                shared = [item for item in binding.task_sets if item in earlier.task_sets]
                # One set bound twice is one set, as long as both bindings make the same of it.
                if shared and tasks[name] == task:
                    continue
                raise BindingError(_conflict(name, shown, other, shared))
            tasks[name] = task
            owners[name] = (shown, binding)
    return list(tasks.values())


def _render(shown: str, binding: TaskBinding, pod: Pod, rules: Rules) -> list[dict[str, Any]]:
    task_sets = []
    for name in binding.task_sets:
        task_set = rules.task_set(pod.namespace, name)
        if task_set is None:
            raise BindingError(
                f'TaskBinding {shown} names TaskSet "{name}", which is not there for pods in {pod.namespace}'
            )
        task_sets.append(task_set)
    try:
        return render(task_sets, binding.params, pod.manifest)
    except LanguageError as error:
        raise BindingError(f"TaskBinding {shown}: {error}") from error


def _conflict(task: str, shown: str, other: str, shared: Sequence[str]) -> str:
    both = f"TaskBinding {other} and TaskBinding {shown}"
    if shared:
        return (
            f'{both} bind TaskSet "{shared[0]}" with different params, and task "{task}" cannot be both; '
            "bind it once, or give both the same params"
        )
    return f'{both} each bring a task "{task}"; rename one, or bind one of them'
