"""Compares the running tasks with a new plan by task digest. A task whose digest is equal is not touched."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pidone.plan.model import Task


@dataclass(frozen=True, slots=True)
class Difference:
    """The tasks to stop and the tasks to start. A changed task is in both: its old form leaves, its new form comes."""

    leaving: frozenset[str]  # names
    coming: tuple[Task, ...]


def difference(running: Mapping[str, str], tasks: Iterable[Task]) -> Difference:
    """Return the difference between the running tasks (digest by name) and the tasks of the new plan."""
    new = {task.name: task for task in tasks}
    unchanged = {name for name, digest in running.items() if name in new and new[name].digest == digest}
    return Difference(
        leaving=frozenset(running) - unchanged,
        coming=tuple(task for name, task in new.items() if name not in unchanged),
    )
