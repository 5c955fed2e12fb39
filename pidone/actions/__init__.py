"""What tasks do: one module an action, named as people write it, imported when a plan asks for it.

A module of this folder has

    def build(fields: Fields, setting: Setting) -> Action    raises Refused; no I/O, no waiting
    STATES                                                   what edges to it can name
    def privileged(config) -> bool                           where plain http must not bring all of it
    HOLDS_OUTSIDE = True                                     where its tasks hold something outside the pod
    def families(views) -> Iterable[Family]                  metrics of its tasks, where it has any

and nothing else is needed here for a new action. Its fields and states for people stand in ``schema/``.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import trio

from pidone.counters import Counters, TaskView
from pidone.errors import Refused
from pidone.metrics.exposition import Family
from pidone.pid1.reaper import Reaper
from pidone.plan.fields import Fields
from pidone.plan.model import Pod, Task

PROGRAMS = "/opt/pidone"  # where the image has those that are meant for tasks


@dataclass(frozen=True, slots=True)
class Setting:
    """What an action may use of the process around it."""

    pod: Pod
    source: str | None  # the address to connect from and to listen on; None: the kernel's choice, and all
    reaper: Reaper
    counters: Counters
    tasks: Callable[[], Iterable[TaskView]]
    programs: str = PROGRAMS  # the folder of the programs that a plan may have run; "/" is all


class Context(Protocol):
    """What one task sees of the engine."""

    @property
    def task(self) -> str:
        """The name of this task."""

    @property
    def every(self) -> float | None:
        """Its period in seconds, for an action whose run has no end."""

    def report(self, state: str) -> None:
        """Say which state the task is in: what ``needs`` of others and people see."""

    def log(self, event: str, **fields: object) -> None:
        """One line in the journal, in this task's name."""

    def state_of(self, task: str) -> str:
        """What another task reported last; empty before it has reported."""

    async def state_change(self, task: str, seen: str) -> str:
        """Wait until another task is in another state than ``seen``."""

    def grace(self) -> AbstractContextManager[None]:
        """For cleaning up after a cancellation: shielded from it, for ``stopTimeout`` seconds.

        What takes longer is cut off without an exception, as where the pod's end has no time left.
        """

    def unbroken(self) -> AbstractContextManager[trio.CancelScope]:
        """For what has an effect outside and should not be broken off: shielded from a cancellation for a while.

        For ``stopTimeout`` at the pod's end, else for 15 seconds at least. Cut off as with ``grace``;
        ``cancelled_caught`` of the scope says whether it was.
        """

    def pause(self, failures: int, at_most: float) -> float:
        """Seconds until the next try after so many failures in a row, by the task's ``backoff``."""

    async def changed(self) -> None:
        """Wait until the state of any task changes."""

    def action_of(self, task: str) -> "Action | None":
        """The action of another task, to work with; None while there is none."""


class Action(Protocol):
    """One task at work. The same object serves all runs of the task, and its undoing."""

    async def run(self, context: Context) -> None:
        """Do it. Ends when done, raises when failed (``TaskFailed`` where it is no bug), and is cancelled to stop."""

    async def undo(self, context: Context) -> None:
        """Take back what was done outside of this process. Called once, after the last run; is cancelled when late."""


@runtime_checkable
class Successor(Protocol):
    """An action that can go on with what an earlier one holds outside of this process, such as a registration.

    Optional, for the actions of a module with ``HOLDS_OUTSIDE``. Where the plan changes, nothing is undone then and
    nothing is done twice. Both methods do no I/O.
    """

    def succeeds(self, previous: Action) -> bool:
        """Whether what ``previous`` holds is what this action would hold. Asked while ``previous`` may still run."""

    def take_over(self, previous: Action) -> None:
        """Hold what ``previous`` held. Its run has ended, it is not undone, and it is not used any more."""


def names() -> list[str]:
    """The actions that this program has."""
    return sorted({entry.partition(".")[0] for entry in os.listdir(__path__[0]) if not entry.startswith("_")})


def privileged(action: str, config: Mapping[str, Any] = MappingProxyType({})) -> bool:
    """Whether this action, with these fields, needs a repo that proved who it is."""
    module = import_module(f"{__name__}.{action}")
    return bool(module.privileged(config)) if hasattr(module, "privileged") else False


def holds_outside(action: str) -> bool:
    """Whether the tasks of this action hold something outside the pod, as a registration, until they are undone."""
    return getattr(import_module(f"{__name__}.{action}"), "HOLDS_OUTSIDE", False)


def task_families(setting: Setting, views: Sequence[TaskView]) -> Iterator[Family]:
    """Return the metrics of the plan and of these tasks: those of all tasks, and those that actions add."""
    from pidone.metrics import tasks

    yield from tasks.collect(setting.pod, setting.reaper, setting.counters, views)
    by_action: dict[str, list[TaskView]] = {}
    for view in views:
        by_action.setdefault(view.task.action, []).append(view)
    for action, own in sorted(by_action.items()):
        module = import_module(f"{__name__}.{action}")
        if hasattr(module, "families"):
            yield from module.families(own)


def check_states(tasks: Iterable[Task]) -> None:
    """Raises ``Refused`` for an edge to a state that its task never has: it would be waited for in vain."""
    by_name = {task.name: task for task in tasks}
    for task in by_name.values():
        for edge in (*task.gates, *task.run_on):
            other = by_name.get(edge.task)
            if other is None:
                continue  # an event of the pod
            states: tuple[str, ...] = import_module(f"{__name__}.{other.action}").STATES
            if edge.state not in states:
                raise Refused(
                    f'task "{task.name}" waits for "{edge}", and a {other.action} is never {edge.state}; '
                    f"it has {', '.join(states)}"
                )


def build(task: Task, setting: Setting) -> Action:
    """Make the action of a task. Raises ``Refused`` for what this program does not know or cannot do."""
    fields = Fields(task.config, f'task "{task.name}".{task.action}')
    action: Action = import_module(f"{__name__}.{task.action}").build(fields, setting)
    return action
