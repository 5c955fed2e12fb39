"""What runs when: the graph of tasks as a machine without I/O and without a clock of its own.

``Core.handle(event, now)`` takes what happened and answers with what to do. Times are seconds of one
monotonic clock. The life of a task:

    waiting ──needs held──► due ──its time──► running ──ended──► due, or finished
       │                     │                   │
       └──── its task leaves the plan ───────────┴──► stopping ──► undoing ──► gone

A task that leaves is stopped only when every leaving task that needs it is gone, so undoing goes through
the graph in reverse, one level at a time and each level at once. New tasks are made when all that leave
are gone: a port or a registration is given up before its successor asks for it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from random import Random

from pidone.plan.difference import difference
from pidone.plan.model import Edge, Task

START_FLOOR = 1.0  # seconds between two starts of one task, whatever its backoff says (s6 has the same)
GOOD_RUN = 600.0  # seconds after which earlier failures are forgotten (the kubelet's rule)
JITTER = 0.1  # the part of a period by which it may be shortened; never lengthened: leases are behind it


class Stage(StrEnum):
    """Where a task stands in its life."""

    WAITING = "waiting"
    DUE = "due"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPING = "stopping"
    UNDOING = "undoing"


@dataclass(slots=True)
class TaskState:
    """What is known of one task; times are of the core's clock."""

    task: Task
    since: float  # of ``stage`` and ``state``, whichever changed last
    stage: Stage = Stage.WAITING
    state: str = ""  # the state its action reported last: healthy, registered, ...
    leaving: bool = False
    due: float = 0.0
    slot: float = 0.0  # the time in its period that this run belongs to
    started: float = 0.0
    runs: int = 0
    failures: int = 0
    streak: int = 0  # failures since the last good run
    error: str = ""  # of the last run
    last_duration: float | None = None
    last_success: float | None = None

    @property
    def shown(self) -> str:
        """One word for people: what its action says, else where it stands."""
        return self.state or self.stage.value


@dataclass(frozen=True, slots=True)
class PlanChanged:
    """Event: these are the tasks from now on. No tasks: the end."""

    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class StateReported:
    """Event: the action of a task says which state it is in."""

    name: str
    state: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    """Event: a run is over. ``error`` is None where it did what it is for; ``lasting`` errors need a person."""

    name: str
    error: str | None = None
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class UndoEnded:
    """Event: what a task had done outside of the pod is taken back, or given up."""

    name: str


Event = PlanChanged | StateReported | RunEnded | UndoEnded


@dataclass(frozen=True, slots=True)
class Start:
    """Command: begin a run of this task; answer with ``RunEnded``."""

    task: Task


@dataclass(frozen=True, slots=True)
class Cancel:
    """Command: end the run of this task; answer with ``RunEnded``."""

    name: str


@dataclass(frozen=True, slots=True)
class Undo:
    """Command: take back what this task did, within its ``stop_timeout``; answer with ``UndoEnded``."""

    task: Task


Command = Start | Cancel | Undo


class Core:
    """The graph of one pod. ``tasks`` may be read at any time; only ``handle`` changes it."""

    def __init__(self, random: Random) -> None:
        self.tasks: dict[str, TaskState] = {}
        self._wanted: tuple[Task, ...] = ()
        self._random = random

    @property
    def idle(self) -> bool:
        """Nothing is there, and nothing is wanted."""
        return not self.tasks and not self._wanted

    def next_due(self) -> float:
        """When ``handle(None, now)`` is wanted at the latest; infinity where only events count.

        While something leaves nothing starts, however long it has been due: the leaving's end is an event.
        """
        if any(state.leaving for state in self.tasks.values()):
            return inf
        return min((state.due for state in self.tasks.values() if state.stage is Stage.DUE), default=inf)

    def handle(self, event: Event | None, now: float) -> list[Command]:
        """Take in what happened, or just the time, and say what to do. An event of a task that is gone is nothing."""
        match event:
            case PlanChanged(tasks):
                self._wanted = tasks
                running = {name: s.task.digest for name, s in self.tasks.items() if not s.leaving}
                for name in difference(running, tasks).leaving:
                    self.tasks[name].leaving = True
            case StateReported(name, word):
                state = self.tasks.get(name)
                if state is not None and state.state != word:
                    state.state, state.since = word, now
            case RunEnded(name, error, lasting):
                if name in self.tasks:
                    self._run_ended(self.tasks[name], error, lasting=lasting, now=now)
            case UndoEnded(name):
                self.tasks.pop(name, None)
        return list(self._settle(now))

    def _settle(self, now: float) -> Iterator[Command]:
        yield from self._tear_down(now)
        leaving = any(state.leaving for state in self.tasks.values())
        if not leaving:
            for task in self._wanted:
                if task.name not in self.tasks:
                    self.tasks[task.name] = TaskState(task, since=now)
        for state in self.tasks.values():
            if state.leaving:
                continue
            if state.stage is Stage.WAITING and all(self._holds(edge) for edge in state.task.needs):
                # a first run at a random time of its period: pods that start together do not beat together
                wait = self._random.random() * state.task.every if state.task.every else 0.0
                state.slot = now + wait
                self._enter(state, Stage.DUE, now, due=state.slot)
            if state.stage is Stage.DUE and state.due <= now and not leaving:
                state.runs += 1
                state.started = now
                self._enter(state, Stage.RUNNING, now)
                yield Start(state.task)

    def _tear_down(self, now: float) -> Iterator[Command]:
        settled = False
        while not settled:
            settled = True
            needed = {
                edge.task for state in self.tasks.values() if state.leaving for edge in state.task.needs
            }
            for name, state in list(self.tasks.items()):
                if not state.leaving or name in needed:
                    continue
                if state.stage is Stage.RUNNING:
                    self._enter(state, Stage.STOPPING, now)
                    yield Cancel(name)
                elif state.stage in {Stage.WAITING, Stage.DUE, Stage.FINISHED}:
                    if state.runs:
                        self._enter(state, Stage.UNDOING, now)
                        yield Undo(state.task)
                    else:
                        del self.tasks[name]
                        settled = False  # what it needed may go now

    def _run_ended(self, state: TaskState, error: str | None, *, lasting: bool, now: float) -> None:
        task = state.task
        if state.stage is Stage.STOPPING:
            self._enter(state, Stage.FINISHED, now)  # from here _tear_down takes it on
            return
        duration = state.last_duration = now - state.started
        state.error = error or ""
        if error is None or duration >= GOOD_RUN:
            state.streak = 0
        if error is None:
            state.last_success = now
            again = task.restart == "Always"
        else:
            state.failures += 1
            state.streak += 1
            again = task.restart != "Never"
            if task.backoff_limit is not None and state.streak > task.backoff_limit:
                again = False
        if task.every is None and not again:
            self._enter(state, Stage.FINISHED, now)
            return
        retry = now + self._delay(task, state.streak, lasting=lasting)
        if task.every is None:
            due = retry
        else:
            if state.slot <= now:  # a retry within the period leaves the next one where it is
                shortened = task.every * (1 - JITTER * self._random.random())
                state.slot = max(
                    state.slot + shortened, now
                )  # periods missed by a long run are not made up for
            due = min(state.slot, retry) if error is not None and again else state.slot
        self._enter(state, Stage.DUE, now, due=max(due, state.started + START_FLOOR))

    def _delay(self, task: Task, streak: int, *, lasting: bool) -> float:
        """Full jitter (a random part of a growing limit): what failed together does not come back together."""
        if streak == 0:
            return 0.0
        backoff = task.backoff
        if lasting:
            return backoff.maximum
        exponent = min(streak - 1, 64)  # beyond, the limit has long been reached and floats overflow
        limit = min(backoff.maximum, backoff.initial * backoff.factor**exponent)
        return limit * self._random.random()

    def _holds(self, edge: Edge) -> bool:
        state = self.tasks.get(edge.task)
        if state is None or state.leaving:
            return False
        match edge.state:
            case "started":
                return state.runs > 0
            case "completed":
                return state.state in {"succeeded", "failed"}
            case wanted:
                return state.state == wanted

    def _enter(self, state: TaskState, stage: Stage, now: float, *, due: float = 0.0) -> None:
        state.stage, state.since, state.due = stage, now, due


def waits_for(state: TaskState, states: Iterable[TaskState]) -> str:
    """Why a task is waiting, for people: the edges that do not hold, as ``task.state (is ...)``."""
    by_name = {other.task.name: other.shown for other in states}
    return ", ".join(f"{edge} (is {by_name.get(edge.task, 'gone')})" for edge in state.task.needs)
