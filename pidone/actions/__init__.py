"""The actions of tasks: one module for each, with the name of the action, imported when a plan contains it.

A module of this folder defines:

    def build(fields: Fields, setting: Setting) -> Action    raises Refused; no I/O, no waiting
    STATES                                                   the states that edges can name

and optionally:

    def privileged(config) -> bool                           True if plain http must not bring these fields
    HOLDS_OUTSIDE = True                                     if its tasks hold something outside the pod
    def families(setting, views) -> Iterable[Family]         the metrics of its tasks

A new action needs such a module, and a file in ``schema/actions/`` that describes its fields and states.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from random import Random
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import trio

from pidone.containers import Containers
from pidone.counters import Counters, TaskView
from pidone.errors import Refused
from pidone.maintenance import Maintenance
from pidone.metrics.exposition import Family
from pidone.pid1.reaper import Reaper
from pidone.plan.fields import Fields
from pidone.plan.model import Pod, Task

PROGRAMS = "/opt/pidone"  # the folder of the image with programs for tasks


def _no_action(_task: str) -> "Action | None":
    return None


@dataclass(frozen=True, slots=True)
class Setting:
    """The parts of the process that an action may use."""

    pod: Pod
    source: str | None  # the address to connect from and to listen on; None: chosen by the kernel, and all
    reaper: Reaper
    counters: Counters
    tasks: Callable[[], Iterable[TaskView]]
    programs: str = PROGRAMS  # the folder with the programs that a plan may run; "/" is all
    maintenance: Maintenance = field(default_factory=Maintenance)  # its changes wake ``Context.changed``
    containers: Containers = field(default_factory=Containers)  # its changes wake ``Context.changed``
    action: "Callable[[str], Action | None]" = _no_action  # of a task, by its name
    kept: dict[str, object] = field(
        default_factory=dict
    )  # what actions share, and keep when the plan changes


class Context(Protocol):
    """The interface of the engine for one task."""

    @property
    def task(self) -> str:
        """The name of this task."""

    @property
    def random(self) -> Random:
        """The source of random numbers."""

    @property
    def ending(self) -> bool:
        """True if the pod's end has begun."""

    @property
    def every(self) -> float | None:
        """The task's period in seconds, for an action whose run does not end."""

    def report(self, state: str, reason: str | None = None) -> None:
        """Set the state of the task, for the edges of other tasks and for people.

        ``reason`` becomes the error of the task, which its report and webhooks have; None leaves the last one.
        """

    def explain(self, reason: str) -> None:
        """Set the error of the task, without a change of its state; empty: there is none any more."""

    def log(self, event: str, **fields: object) -> None:
        """Write a line with the task's name to the journal."""

    def state_of(self, task: str) -> str:
        """Return the state that another task reported last; "" before its first report."""

    async def state_change(self, task: str, seen: str) -> str:
        """Wait until the state of another task is not ``seen``, and return it."""

    def grace(self) -> AbstractContextManager[None]:
        """Return a scope for cleaning up after a cancellation, shielded from it for ``stopTimeout`` seconds.

        After that time, or when the time of the pod's end is over, the block is left without an exception.
        """

    def shield(self) -> AbstractContextManager[trio.CancelScope]:
        """Return a scope for a request with an effect outside the pod, which is not cut off at once by a cancellation.

        The request has ``stopTimeout`` after the cancellation, and at least 15 seconds if the pod does not end. Then
        the block is left as with ``grace``, and ``cancelled_caught`` of the scope is True.
        """

    def retry_delay(self, failures: int, at_most: float, *, lasting: bool = False) -> float:
        """Return the seconds until the next try after ``failures`` in a row, by the task's ``backoff``.

        After a ``lasting`` error they are at least half of the maximum.
        """

    async def changed(self) -> None:
        """Wait until the state of any task changes, or the pod's maintenance."""

    def action_of(self, task: str) -> "Action | None":
        """Return the action of another task; None while that task has none."""


class Action(Protocol):
    """The action of one task. The same object is used for all runs of the task, and for undoing it.

    It may have ``retry_seconds``: the longest wait after a failed run, if that is shorter than the task's backoff; and
    ``refused_retry_seconds``: the same after ``RegistryRefused``.
    """

    async def run(self, context: Context) -> None:
        """Run once. Return on success, raise on failure (``TaskFailed`` if it is expected); cancelled to stop."""

    async def undo(self, context: Context) -> None:
        """Undo the effects outside of this process. Called once, after the last run; cancelled after a time limit."""


@runtime_checkable
class Successor(Protocol):
    """An action that can take over what an earlier action holds outside of this process, such as a registration.

    Optional for actions of a module with ``HOLDS_OUTSIDE``. A change of the plan then undoes nothing and does nothing
    twice. Both methods do no I/O.
    """

    def succeeds(self, previous: Action) -> bool:
        """True if this action would hold the same as ``previous``, which may still run."""

    def take_over(self, previous: Action) -> None:
        """Take over what ``previous`` holds. Its run has ended; it will not be undone or used again."""


@runtime_checkable
class Preparable(Protocol):
    """An action that can do before its first run what that would wait for, such as a login. Optional.

    So is a registry, before its first registration.
    """

    async def prepare(self) -> None:
        """Do it. Called once, when the task is planned: its ``needs`` may not hold, and its run may begin meanwhile.

        It has no effect outside of this process that would have to be undone, and may be cancelled at any time. Its
        errors are for the first run to tell.
        """


@dataclass(frozen=True, slots=True)
class Shown:
    """What a registry shows of an instance of this pod."""

    status: str  # in the registry's words, by its last answer
    error: str = ""  # why it does not show the status that it should; empty if it does
    pending: bool = False  # it has not accepted the maintenance, or its end, yet


@runtime_checkable
class Displayed(Protocol):
    """An action that shows the pod's maintenance outside of it. Optional."""

    def shown(self) -> Mapping[str, Shown]:
        """Return what each registry shows, by its name for people. One that has no instance of ours is left out."""


@runtime_checkable
class Reasoned(Protocol):
    """An action with a reason for its state. Optional."""

    def why(self) -> str:
        """Return why the task is in its state, for people; empty if that needs no reason."""


def names() -> list[str]:
    """Return the names of all actions of this program."""
    return sorted({entry.partition(".")[0] for entry in os.listdir(__path__[0]) if not entry.startswith("_")})


def privileged(action: str, config: Mapping[str, Any] = MappingProxyType({})) -> bool:
    """True if this action with these fields is accepted only from an https repo or a local file."""
    module = import_module(f"{__name__}.{action}")
    return bool(module.privileged(config)) if hasattr(module, "privileged") else False


def holds_outside(action: str) -> bool:
    """True if tasks of this action hold something outside the pod until they are undone, such as a registration."""
    return getattr(import_module(f"{__name__}.{action}"), "HOLDS_OUTSIDE", False)


def task_families(setting: Setting, views: Sequence[TaskView]) -> Iterator[Family]:
    """Yield the metrics of the plan and of these tasks: those of all tasks, and those of their actions."""
    from pidone.metrics import tasks

    yield from tasks.collect(setting.pod, setting.reaper, setting.counters, views)
    by_action: dict[str, list[TaskView]] = {}
    for view in views:
        by_action.setdefault(view.task.action, []).append(view)
    for action, action_views in sorted(by_action.items()):
        module = import_module(f"{__name__}.{action}")
        if hasattr(module, "families"):
            yield from module.families(setting, action_views)


def check_states(tasks: Iterable[Task]) -> None:
    """Raise ``Refused`` for an edge to a state that its task never has, because the wait would never end."""
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
    """Build the action of a task. Raises ``Refused`` for fields that this program does not know or cannot run."""
    fields = Fields(task.config, f'task "{task.name}".{task.action}')
    action: Action = import_module(f"{__name__}.{task.action}").build(fields, setting)
    return action
