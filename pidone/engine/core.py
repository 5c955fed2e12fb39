"""What runs when: the graph of tasks as a machine without I/O and without a clock of its own.

``Core.handle(event, now)`` takes what happened and answers with what to do. Times are seconds of one
monotonic clock. The life of a task:

    waiting ──needs held──► armed, due ──its event, its time──► running ──ended──► armed, due, finished, failed
       │                       │    ▲                              │
       │                 while does │ not hold              while does not hold
       │                       ▼    │                              ▼
       │                       paused ◄────────────────────── pausing
       └──────── its task leaves the plan, from anywhere ──────────┴──► stopping ──► undoing ──► gone

A task that leaves is stopped only when every leaving task that depends on it is gone, so undoing goes through
the graph in reverse, one level at a time and each level at once. New tasks are made when all that leave
are gone: a port or a registration is given up before its successor asks for it. Tasks that stay do not notice.

A leaving task may have an heir, a task of the new plan that will hold outside what it holds: the heir takes its
place as soon as its run has ended, nothing is undone, and the heir is undone in its turn even if it never ran.

A paused task answers for nothing: whatever its action reported last, none of its states holds until it
runs again. What cannot run yet, because a run is on, because ``needs`` or ``while`` do not hold or within the
floor, is remembered once: an event is neither lost nor queued.

Work is proportional to what an event changes and not to the plan: ``_dirty`` are the tasks to look at again. They
are looked at in the order of the graph, so that nothing is started on a state that the same event takes away.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from heapq import heapify, heappop, heappush
from math import floor, inf
from random import Random

from pidone.plan.difference import difference
from pidone.plan.model import LASTING, TERMINATING, Edge, Task

START_FLOOR = 1.0  # seconds between two starts of one task, whatever its backoff says (s6 has the same)
GOOD_RUN = 600.0  # seconds after which earlier failures are forgotten (the kubelet's rule)
JITTER = 0.1  # the part of a period by which it may be shortened; never lengthened: leases are behind it
GRAIN = 0.05  # seconds: the times of all periods are so far apart at least, or the same. A wakeup costs as
# much as a start, so that tasks which share one cost less; 20 a second are enough for any number of tasks.


class Stage(StrEnum):
    """Where a task stands in its life."""

    WAITING = "waiting"  # for its needs
    ARMED = "armed"  # for an event
    DUE = "due"  # for its time
    RUNNING = "running"
    PAUSING = "pausing"  # a run that has been cancelled, because of its while
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"  # for good: its backoffLimit is reached
    STOPPING = "stopping"
    UNDOING = "undoing"


_PAUSE = (Stage.PAUSING, Stage.PAUSED)


@dataclass(slots=True)
class TaskState:
    """What is known of one task; times are of the core's clock."""

    task: Task
    since: float  # of ``stage`` and ``state``, whichever changed last
    stage: Stage = Stage.WAITING
    state: str = ""  # the state its action reported last: healthy, registered, ...
    leaving: bool = False
    pending: bool = False  # an event came that no run has answered yet
    due: float = inf
    slot: float = 0.0  # the time in its period that this run belongs to
    floor: float = 0.0  # no start before
    started: float = 0.0
    runs: int = 0
    inherited: bool = False  # it took over what the task before it holds outside
    failures: int = 0
    streak: int = 0  # failures since the last good run
    ends: int = 0  # runs that ended and were begun again since the last good one: what backoff grows with
    error: str = ""  # of the last run
    last_duration: float | None = None
    last_success: float | None = None

    @property
    def shown(self) -> str:
        """One word for people: paused where it is, else what its action says, else where it stands."""
        return "paused" if self.stage in _PAUSE else self.state or self.stage.value

    @property
    def holds(self) -> bool:
        """Whether there may be something outside of the pod that is to be undone."""
        return self.runs > 0 or self.inherited


@dataclass(frozen=True, slots=True)
class PlanChanged:
    """Event: these are the tasks from now on. No tasks: nothing is wanted at present.

    ``heirs``: by the name of a task that leaves, the name of the one in ``tasks`` that takes over what it holds.
    """

    tasks: tuple[Task, ...]
    heirs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ending:
    """Event: the pod ends. What runs on that has until ``undo_at``, then everything is undone. Once, and for good."""

    undo_at: float


@dataclass(frozen=True, slots=True)
class Happened:
    """Event: something of the pod that tasks may run on, as ``signal.SIGHUP``.

    What is so from then on (``LASTING``) happens once for each task, to those that come later as they come.
    """

    name: str


@dataclass(frozen=True, slots=True)
class StateReported:
    """Event: the action of a task says which state it is in."""

    name: str
    state: str
    reason: str | None = None  # for people; None: the last error stays


@dataclass(frozen=True, slots=True)
class RunEnded:
    """Event: a run is over. ``error`` is None after success; ``lasting`` errors need a person.

    The next try after any other error comes within ``retry`` seconds, or earlier, as the task's backoff has it.
    """

    name: str
    error: str | None = None
    lasting: bool = False
    retry: float = inf


@dataclass(frozen=True, slots=True)
class UndoEnded:
    """Event: what a task had done outside of the pod is taken back, or given up."""

    name: str


Event = PlanChanged | Ending | Happened | StateReported | RunEnded | UndoEnded


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


@dataclass(frozen=True, slots=True)
class HandOver:
    """Command: ``task``, whose run has ended, leaves to ``heir`` what it holds outside. Done when this is read."""

    task: Task
    heir: Task


Command = Start | Cancel | Undo | HandOver


class Core:
    """The graph of one pod. ``tasks`` may be read at any time; only ``handle`` changes it."""

    def __init__(self, random: Random) -> None:
        self.tasks: dict[str, TaskState] = {}
        self.changes = 0  # of a stage or a state; grows, so that a difference says that something changed
        self.news = (
            0  # of these, how many somebody elsewhere should hear of: not that the same came once more
        )
        self.ending = False
        self._random = random
        self._phase = (
            random.random() * GRAIN
        )  # pods of one node, whose clock is the same, do not beat together
        self._wanted: tuple[Task, ...] = ()
        self._coming = False  # whether some of them are not there yet
        self._replaced = False  # whether heirs have come that the index does not have yet
        self._leaving: set[str] = set()
        self._heirs: dict[str, Task] = {}  # by name of a task that leaves
        self._farewells: set[str] = set()  # what runs on the end, and has not yet
        self._undo_at = inf
        self._floors: dict[str, float] = {}  # of tasks that have left, for those that come under their names
        self._dependents: dict[str, list[str]] = {}  # by task: whose needs or while it is in
        self._listeners: dict[str, list[str]] = {}  # by event: who runs on it
        self._lasting = set[str]()  # of ``LASTING``, what has happened
        self._timers: list[tuple[float, str]] = []  # a heap; an entry that its task has left behind is stale
        self._rank: dict[str, int] = {}  # by task: higher than those of all that its needs and while name
        self._dirty: list[tuple[int, str]] = []  # a heap by rank; a task may be in it more than once
        self._commands: list[Command] = []

    @property
    def idle(self) -> bool:
        """Nothing is there, and nothing is wanted."""
        return not self.tasks and not self._wanted

    def next_due(self) -> float:
        """When ``handle(None, now)`` is wanted at the latest; infinity where only events count."""
        if self.ending:  # nothing but the farewells starts, and when they are over only events count
            dues = [self.tasks[name].due for name in self._farewells if self._is_due(name)]
            return min([self._undo_at, *dues]) if self._farewells else inf
        while self._timers:
            due, name = self._timers[0]
            if self._is_due(name) and self.tasks[name].due == due:
                return due
            heappop(self._timers)
        return inf

    def handle(self, event: Event | None, now: float) -> list[Command]:
        """Take in what happened, or just the time, and say what to do. An event of a task that is gone is nothing."""
        match event:
            case PlanChanged(tasks, heirs):
                self._take_plan(tasks, heirs)
            case Ending(undo_at):
                self._end(undo_at)
            case Happened(name):
                if name not in self._lasting:
                    self._lasting |= LASTING & {name}
                    self._fire(name)
            case StateReported(name, word, reason):
                if name in self.tasks:
                    self._reported(self.tasks[name], word, reason, now)
            case RunEnded(name):
                if name in self.tasks:
                    self._run_ended(self.tasks[name], event, now)
            case UndoEnded(name):
                if name in self.tasks and self.tasks[name].stage is Stage.UNDOING:
                    self._remove(name)
        self._settle(now)
        commands, self._commands = self._commands, []
        return commands

    def pause(self, task: Task, failures: int, *, at_most: float = inf, lasting: bool = False) -> float:
        """Seconds until the next try: a random part of a growing limit.

        What failed together does not come back together. A lasting error waits for half of the maximum at least.
        """
        backoff = replace(task.backoff, maximum=min(task.backoff.maximum, at_most))
        if lasting:
            return backoff.maximum * (1 - backoff.jitter / 2 * self._random.random())
        return backoff.delay(failures, self._random)

    # The plan

    def _take_plan(self, tasks: tuple[Task, ...], heirs: Mapping[str, str]) -> None:
        if self.ending:
            return
        self._wanted, self._coming = tasks, True
        wanted = {task.name: task for task in tasks}
        self._heirs = {name: wanted[heir] for name, heir in heirs.items()}
        running = {name: s.task.digest for name, s in self.tasks.items() if not s.leaving}
        for name in difference(running, tasks).leaving:
            self._leave(name)

    def _leave(self, name: str) -> None:
        self.tasks[name].leaving = True
        self._leaving.add(name)
        self._touch_dependents(name)

    def _remove(self, name: str) -> None:
        state = self.tasks.pop(name)
        self._leaving.discard(name)
        self._floors[name] = state.floor
        self.changes += 1
        self.news += 1

    def _create(self, now: float) -> None:
        self._coming = False
        for task in self._wanted:
            if task.name not in self.tasks:
                floor_then = self._floors.get(task.name, 0.0)
                pending = any(str(edge) in self._lasting for edge in task.run_on)
                self.tasks[task.name] = TaskState(task, since=now, floor=floor_then, pending=pending)
                self.changes += 1
                self.news += 1
        self._floors = {name: until for name, until in self._floors.items() if until > now}
        self._index()
        for name in self.tasks:
            self._touch(name)

    def _replace(self, name: str, heir: Task, now: float) -> None:
        """Put the heir in the place of a leaving task whose run has ended."""
        state = self.tasks[name]
        self._remove(name)
        floor_then = max(self._floors[name], self._floors.get(heir.name, 0.0))
        self.tasks[heir.name] = new = TaskState(heir, since=now, floor=floor_then, inherited=True)
        new.pending = any(str(edge) in self._lasting for edge in heir.run_on)
        self._commands.append(HandOver(state.task, heir))
        # ``needs`` asks whether something may begin; what the heir goes on with has begun
        if state.stage is not Stage.WAITING and set(heir.needs) <= set(state.task.needs):
            self._open(new, now)
        self._touch(heir.name)
        self._replaced = True

    def _index(self) -> None:
        """Who depends on whom, who listens to what, and the order in which to look at them."""
        self._replaced = False
        self._dependents, self._listeners = {}, {}
        for name, state in self.tasks.items():
            for edge in state.task.gates:
                self._dependents.setdefault(edge.task, []).append(name)
            for edge in state.task.run_on:
                self._listeners.setdefault(str(edge), []).append(name)
        self._rank = self._ranked()
        self._dirty = [(self._rank.get(name, 0), name) for _, name in self._dirty]
        heapify(self._dirty)

    def _ranked(self) -> dict[str, int]:
        """Every task after all that its gates name; else as they stand in the plan."""
        missing = {
            name: sum(edge.task in self.tasks for edge in s.task.gates) for name, s in self.tasks.items()
        }
        order = [name for name, gates in missing.items() if not gates]
        for name in order:  # which grows meanwhile
            for dependent in self._dependents.get(name, ()):
                missing[dependent] -= 1
                if not missing[dependent]:
                    order.append(dependent)
        return {name: rank for rank, name in enumerate(order)}

    def _end(self, undo_at: float) -> None:
        if self.ending:
            return
        self._fire(TERMINATING)
        self.ending, self._undo_at, self._wanted, self._coming, self._heirs = True, undo_at, (), False, {}
        listeners = self._listeners.get(TERMINATING, ())
        self._farewells = {name for name in listeners if name in self.tasks and self.tasks[name].pending}

    # What follows from what happened

    def _settle(self, now: float) -> None:
        if self._leaving:
            self._tear_down(now)
        if self._coming and not self._leaving:
            self._create(now)
        elif self._replaced:
            self._index()
        while self._timers and self._timers[0][0] <= now:
            self._touch(heappop(self._timers)[1])
        while self._dirty:
            _, name = entry = heappop(self._dirty)
            while self._dirty and self._dirty[0] == entry:
                heappop(self._dirty)
            if name in self.tasks and not self.tasks[name].leaving:
                self._advance(self.tasks[name], now)
        if self.ending and not self._saying_farewell(now):
            self._farewells = set()
            for name, state in self.tasks.items():
                if not state.leaving:
                    self._leave(name)
            self._tear_down(now)

    def _saying_farewell(self, now: float) -> bool:
        """Whether one of them runs or will; what is held up by its gates alone is not waited for."""
        busy = (Stage.DUE, Stage.RUNNING, Stage.PAUSING)
        return now < self._undo_at and any(
            name in self.tasks and not self.tasks[name].leaving and self.tasks[name].stage in busy
            for name in self._farewells
        )

    def _tear_down(self, now: float) -> None:
        settled = False
        while not settled:
            settled = True
            needed = {edge.task for name in self._leaving for edge in self.tasks[name].task.gates}
            for name in [name for name in self.tasks if name in self._leaving and name not in needed]:
                state = self.tasks[name]
                if state.stage is Stage.RUNNING:
                    self._commands.append(Cancel(name))
                    self._enter(state, Stage.STOPPING, now)
                elif state.stage is Stage.PAUSING:
                    self._enter(state, Stage.STOPPING, now)
                elif state.stage not in {Stage.STOPPING, Stage.UNDOING}:
                    heir = self._heirs.get(name) if state.holds else None
                    if heir is not None and (heir.name == name or heir.name not in self.tasks):
                        self._replace(name, heir, now)
                    elif state.holds:
                        self._enter(state, Stage.UNDOING, now)
                        self._commands.append(Undo(state.task))
                        continue
                    else:
                        self._remove(name)
                    settled = False  # what it depended on may go now

    def _advance(self, state: TaskState, now: float) -> None:
        task = state.task
        if state.stage is Stage.WAITING:
            if not all(map(self._holds, task.needs)):
                return
            self._open(state, now)
        held = not task.while_ or all(map(self._holds, task.while_))
        if state.stage is Stage.PAUSED and held:
            self._resume(state, now)
        elif not held and state.stage is Stage.RUNNING:
            self._enter(state, Stage.PAUSING, now)
            self._commands.append(Cancel(task.name))
        elif not held and state.stage in {Stage.ARMED, Stage.DUE}:
            state.state = ""
            self._enter(state, Stage.PAUSED, now, due=state.due)
        if state.pending and state.stage in {Stage.ARMED, Stage.DUE} and state.due > max(now, state.floor):
            self._schedule(state, now, now)
        may_start = not self.ending or (task.name in self._farewells and now < self._undo_at)
        if may_start and state.stage is Stage.DUE and state.due <= now:
            state.runs += 1
            state.pending, state.started, state.floor = False, now, now + START_FLOOR
            self._enter(state, Stage.RUNNING, now)
            self._commands.append(Start(task))
            self._fire(f"{task.name}.started")

    def _open(self, state: TaskState, now: float) -> None:
        """Its needs hold, once and for all."""
        if state.task.every is not None:
            # a first run at a random time of its period: pods that start together do not beat together
            state.slot = max(now, self._grained(now + self._random.random() * state.task.every))
            self._schedule(state, state.slot, now)
        else:
            self._schedule(state, inf if state.task.run_on else now, now)

    def _resume(self, state: TaskState, now: float) -> None:
        every = state.task.every
        if every is not None and state.due <= now:
            # the same phase; what the pause left out is not made up for
            state.slot += every * (floor((now - state.slot) / every) + 1) if state.slot <= now else 0.0
            state.due = state.slot
        self._schedule(state, state.due, now)

    def _schedule(self, state: TaskState, due: float, now: float) -> None:
        """Its next run is then, and not before its floor; at infinity only an event starts it."""
        self._touch(state.task.name)  # an event may have come already
        if due == inf:
            self._enter(state, Stage.ARMED, now)
            return
        due = max(due, state.floor)
        self._enter(state, Stage.DUE, now, due=due)
        if len(self._timers) > 64 + 4 * len(self.tasks):
            # events leave stale entries behind, of times that may be far off
            self._timers = [(other.due, name) for name, other in self.tasks.items() if self._is_due(name)]
            heapify(self._timers)
        heappush(self._timers, (due, state.task.name))

    # What happened

    def _reported(self, state: TaskState, word: str, reason: str | None, now: float) -> None:
        at_work = {Stage.RUNNING, Stage.PAUSING, Stage.STOPPING, Stage.UNDOING}
        if state.state == word or state.stage not in at_work:
            return
        state.state, state.since = word, now
        if reason is not None:
            state.error = reason
        self.changes += 1
        self.news += 1
        if not state.leaving and state.stage is not Stage.PAUSING:
            self._fire_state(state)

    def _run_ended(self, state: TaskState, ended: RunEnded, now: float) -> None:
        stage, task = state.stage, state.task
        if stage is Stage.STOPPING:
            self._enter(state, Stage.FINISHED, now)  # from here _tear_down takes it on
        elif stage in {Stage.RUNNING, Stage.PAUSING}:
            state.last_duration = now - state.started
            if stage is Stage.PAUSING and ended.error is not None:
                # cut off, so neither good nor bad; begun again, or in its period, when its while holds again
                state.state = ""
                self._enter(state, Stage.PAUSED, now, due=now)
                self._touch(task.name)
                return
            self._judge(state, ended, now)
            if stage is Stage.PAUSING and not state.leaving:
                self._fire_state(state)  # it came to its end before the cancellation came to it

    def _judge(self, state: TaskState, ended: RunEnded, now: float) -> None:
        task, error = state.task, ended.error
        state.error = error or ""
        if now - state.started >= GOOD_RUN:
            state.streak = state.ends = 0
        if error is None:
            state.streak, state.last_success = 0, now
        else:
            state.streak += 1
            state.failures += 1
            self.news += 1
        repeated = task.every is not None or bool(task.run_on)
        # An end that is good in itself is one too many for what should run for ever: as in a pod, it backs off.
        state.ends = 0 if error is None and repeated else state.ends + 1
        again = task.restart == "Always" if error is None else task.restart != "Never"
        if self.ending:
            if state.pending and task.name in self._farewells:
                self._schedule(state, now, now)
            else:
                self._farewells.discard(task.name)
                self._enter(state, Stage.FINISHED, now)
        elif error is not None and task.backoff_limit is not None and state.streak > task.backoff_limit:
            self._enter(state, Stage.FAILED, now)
            if state.state != "failed":
                state.state = "failed"
                self._fire_state(state)
        elif not repeated and not again:
            self._enter(state, Stage.FINISHED, now)
        else:
            at_most = inf if error is None or ended.lasting else ended.retry
            wait = self.pause(task, state.ends, at_most=at_most, lasting=ended.lasting)
            retry = now + wait if again else inf
            if repeated and error is None:
                retry = inf
            self._schedule(state, min(self._next_slot(state, now), retry), now)

    def _next_slot(self, state: TaskState, now: float) -> float:
        every = state.task.every
        if every is None:
            return inf
        if state.slot <= now:  # a retry within the period leaves the next one where it is
            shortened = every * (1 - JITTER * self._random.random())
            slot = self._grained(state.slot + shortened)
            if slot < state.slot + every * (1 - JITTER):
                slot += GRAIN
            state.slot = max(slot, now)  # periods missed by a long run are not made up for
        return state.slot

    def _grained(self, time: float) -> float:
        """The last time up to this one that is shared by all periods."""
        return floor((time - self._phase) / GRAIN + 1e-6) * GRAIN + self._phase  # 0.15 / 0.05 is less than 3

    # Edges and events

    def _holds(self, edge: Edge) -> bool:
        state = self.tasks.get(edge.task)
        if state is None or state.leaving or state.stage in _PAUSE:
            return False
        match edge.state:
            case "started":
                return state.runs > 0
            case "completed":
                return state.state in {"succeeded", "failed"}
            case wanted:
                return state.state == wanted

    def _fire_state(self, state: TaskState) -> None:
        name = state.task.name
        self._touch_dependents(name)
        if state.state != "started":  # a start fires that, and once
            self._fire(f"{name}.{state.state}")
        if state.state in {"succeeded", "failed"}:
            self._fire(f"{name}.completed")

    def _fire(self, event: str) -> None:
        for name in self._listeners.get(event, ()) if not self.ending else ():
            state = self.tasks.get(name)
            if state is not None and not state.leaving and state.stage is not Stage.FAILED:
                state.pending = True
                self._touch(name)

    def _touch(self, name: str) -> None:
        heappush(self._dirty, (self._rank.get(name, 0), name))

    def _touch_dependents(self, name: str) -> None:
        for dependent in self._dependents.get(name, ()):
            self._touch(dependent)

    def _is_due(self, name: str) -> bool:
        state = self.tasks.get(name)
        return state is not None and state.stage is Stage.DUE and not state.leaving

    def _enter(self, state: TaskState, stage: Stage, now: float, *, due: float = inf) -> None:
        shown = state.shown
        state.stage, state.since, state.due = stage, now, due
        self.changes += 1
        self.news += state.shown != shown
        self._touch_dependents(state.task.name)


def waits_for(state: TaskState, states: Iterable[TaskState]) -> str:
    """Why a task does not run, for people: what it depends on, as ``task.state (is ...)``."""
    by_name = {other.task.name: other.shown for other in states}
    edges = state.task.needs if state.stage is Stage.WAITING else state.task.while_
    return ", ".join(f"{edge} (is {by_name.get(edge.task, 'gone')})" for edge in edges)
