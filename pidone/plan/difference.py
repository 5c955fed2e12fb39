"""What changes between two plans, by task digest: equal digests are the same task and do not notice."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pidone.plan.model import Task


@dataclass(frozen=True, slots=True)
class Difference:
    """Names of tasks. A changed task is in both: its old form leaves, its new form comes."""

    leaving: frozenset[str]
    coming: tuple[Task, ...]


def difference(running: Mapping[str, str], tasks: Iterable[Task]) -> Difference:
    """``running`` maps the name of each task that runs to its digest."""
    wanted = {task.name: task for task in tasks}
    kept = {name for name, digest in running.items() if name in wanted and wanted[name].digest == digest}
    return Difference(
        leaving=frozenset(running) - kept,
        coming=tuple(task for name, task in wanted.items() if name not in kept),
    )
