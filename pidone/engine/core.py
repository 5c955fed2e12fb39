"""Decides when each task runs: a state machine over the graph of tasks, without I/O and without a clock of its own.

``Core.handle(event, now)`` takes an event and returns commands. Times are seconds of one monotonic clock. The life of
a task:

    waiting ──needs held──► armed, due ──its event, its time──► running ──ended──► armed, due, finished, failed
       │                       │    ▲                              │
       │                 while does │ not hold              while does not hold
       │                       ▼    │                              ▼
       │                       paused ◄────────────────────── pausing
       └──────── its task leaves the plan, from anywhere ──────────┴──► stopping ──► undoing ──► gone

A leaving task is stopped when all leaving tasks that depend on it are gone. So tasks are undone in the reverse order of
the graph, level by level, and all tasks of a level at the same time. New tasks are created when all leaving tasks are
gone: a port or a registration is released before the new task asks for it. Tasks that stay are not affected.

A leaving task may have an heir: a task of the new plan that takes over what the leaving task holds outside the pod. The
heir replaces it as soon as its run has ended, and nothing is undone. The heir is undone when it leaves, even if it has
never run.

While a task is paused, none of its states holds. If an event arrives and the task cannot start yet (it is running,
``needs`` or ``while`` do not hold, or the minimum start interval is not over), one pending start is remembered, and
further events add nothing.

The work for an event is proportional to the number of tasks that it affects, and not to the size of the plan.
``_dirty`` contains the tasks to check. They are checked in the order of the graph, so that no task starts on a state
that the same event ends.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from heapq import heapify, heappop, heappush
from math import floor, inf
from random import Random

from pidone.plan.difference import difference
from pidone.plan.model import LASTING, TERMINATING, Edge, Task

MIN_START_INTERVAL_SECONDS = 1.0  # between two starts of one task, also with a shorter backoff (as in s6)
BACKOFF_RESET_SECONDS = 600.0  # a run of this length resets the backoff (the kubelet's rule)
# Each period is shortened by at most this part. It is never lengthened, because leases depend on it.
PERIOD_JITTER = 0.1
# Run times of periods are rounded to this grid, so that tasks share wakeups: a wakeup costs as much as a start.
TIMER_GRID_SECONDS = 0.05


class Stage(StrEnum):
    """The stage of a task's life."""

    WAITING = "waiting"  # for its needs
    ARMED = "armed"  # for an event
    DUE = "due"  # for its time
    RUNNING = "running"
    PAUSING = "pausing"  # its while does not hold, and its cancelled run has not ended
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"  # for good: its backoffLimit is reached
    STOPPING = "stopping"
    UNDOING = "undoing"


_PAUSE_STAGES = (Stage.PAUSING, Stage.PAUSED)


@dataclass(slots=True)
class TaskState:
    """The state of one task. Times are of the core's clock."""

    task: Task
    since: float  # the last change of ``stage`` or ``state``
    stage: Stage = Stage.WAITING
    state: str = ""  # the state that its action reported last: healthy, registered, ...
    leaving: bool = False
    pending: bool = False  # an event came, and no run has started since
    due: float = inf
    slot: float = 0.0  # with ``every``: the scheduled time of the current period, without retries
    earliest_start: float = 0.0
    started: float = 0.0
    runs: int = 0
    inherited: bool = False  # it has taken over what a leaving task held outside the pod
    failures: int = 0
    streak: int = 0  # failures in a row; a run of ``BACKOFF_RESET_SECONDS`` resets it
    # Ends in a row that count for backoff: failures, and successes of a task that should run for ever.
    backoff_count: int = 0
    error: str = ""  # of the last run
    last_duration: float | None = None
    last_success: float | None = None

    @property
    def shown(self) -> str:
        """The state for people: "paused" during a pause, else the state that the action reported, else the stage."""
        return "paused" if self.stage in _PAUSE_STAGES else self.state or self.stage.value

    @property
    def may_hold_outside(self) -> bool:
        """True if the task may hold something outside the pod, so that it must be undone."""
        return self.runs > 0 or self.inherited


@dataclass(frozen=True, slots=True)
class PlanChanged:
    """Event: a new plan with these tasks. Without tasks, all tasks of the plan before are undone.

    ``heirs``: by the name of a leaving task, the name of the task in ``tasks`` that takes over what it holds outside.
    """

    tasks: tuple[Task, ...]
    heirs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ending:
    """Event: the pod ends. Tasks with ``runOn: pod.terminating`` may run until ``undo_at``; then all tasks are undone.

    Later ``Ending`` events are ignored.
    """

    undo_at: float


@dataclass(frozen=True, slots=True)
class PodEvent:
    """Event: an event of the pod, such as ``signal.SIGHUP``. Tasks with it in ``runOn`` run.

    An event in ``LASTING`` counts once for each task; for a task that is created later, when it is created.
    """

    name: str


@dataclass(frozen=True, slots=True)
class StateReported:
    """Event: the action of a task has reported its state."""

    name: str
    state: str
    reason: str | None = None  # the error of the task, for people; None: the last error stays


@dataclass(frozen=True, slots=True)
class RunEnded:
    """Event: a run has ended. ``error`` is None after success; a ``lasting`` error needs a person.

    The next try comes after the task's backoff, at most ``retry`` seconds.
    """

    name: str
    error: str | None = None
    lasting: bool = False
    retry: float = inf


@dataclass(frozen=True, slots=True)
class UndoEnded:
    """Event: the undoing of a task has ended, successfully or not."""

    name: str


Event = PlanChanged | Ending | PodEvent | StateReported | RunEnded | UndoEnded


@dataclass(frozen=True, slots=True)
class Start:
    """Command: start a run of this task. Its end is reported with ``RunEnded``."""

    task: Task


@dataclass(frozen=True, slots=True)
class Cancel:
    """Command: cancel the run of this task. Its end is reported with ``RunEnded``."""

    name: str


@dataclass(frozen=True, slots=True)
class Undo:
    """Command: undo this task within its ``stop_timeout``. The end is reported with ``UndoEnded``."""

    task: Task


@dataclass(frozen=True, slots=True)
class HandOver:
    """Command: pass what ``task`` holds outside the pod to ``heir``, at once. The run of ``task`` has ended."""

    task: Task
    heir: Task


Command = Start | Cancel | Undo | HandOver


class Core:
    """The graph of one pod. ``tasks`` may be read at any time; only ``handle`` changes it."""

    def __init__(self, random: Random) -> None:
        self.tasks: dict[str, TaskState] = {}
        self.changes = 0  # number of changes of a stage or a state
        self.reportable_changes = 0  # number of changes that cause a status report
        self.ending = False
        self._random = random
        # A random offset of the grid: pods of one node have the same clock, and must not wake up together.
        self._grid_offset = random.random() * TIMER_GRID_SECONDS
        self._planned_tasks: tuple[Task, ...] = ()
        self._creation_pending = False  # True if tasks of the new plan are not created yet
        self._index_outdated = False  # True if heirs are not in the index yet
        self._leaving: set[str] = set()
        self._heirs: dict[str, Task] = {}  # by name of the leaving task
        self._termination_tasks: set[str] = set()  # with ``runOn: pod.terminating``, and not run yet
        self._undo_at = inf
        self._earliest_starts: dict[str, float] = {}  # of tasks that are gone, for new tasks of the same name
        self._dependents: dict[str, list[str]] = {}  # by task: the tasks whose needs or while name it
        self._listeners: dict[str, list[str]] = {}  # by event: the tasks that run on it
        self._lasting_events = set[str]()  # the events in ``LASTING`` that have happened
        self._timers: list[tuple[float, str]] = []  # a heap; entries whose task has another time are ignored
        self._rank: dict[str, int] = {}  # by task: higher than the ranks of all tasks in its needs and while
        self._dirty: list[tuple[int, str]] = []  # a heap by rank; a task may be in it more than once
        self._commands: list[Command] = []

    @property
    def idle(self) -> bool:
        """True if the plan is empty and all earlier tasks are gone."""
        return not self.tasks and not self._planned_tasks

    def next_due(self) -> float:
        """Return the time of the next ``handle(None, now)``; infinity if only an event can change something."""
        if self.ending:  # only termination tasks start
            dues = [self.tasks[name].due for name in self._termination_tasks if self._is_due(name)]
            return min([self._undo_at, *dues]) if self._termination_tasks else inf
        while self._timers:
            due, name = self._timers[0]
            if self._is_due(name) and self.tasks[name].due == due:
                return due
            heappop(self._timers)
        return inf

    def handle(self, event: Event | None, now: float) -> list[Command]:
        """Apply an event, or only the time, and return the commands. Events of tasks that are gone are ignored."""
        match event:
            case PlanChanged(tasks, heirs):
                self._take_plan(tasks, heirs)
            case Ending(undo_at):
                self._end(undo_at)
            case PodEvent(name):
                if name not in self._lasting_events:
                    self._lasting_events |= LASTING & {name}
                    self._fire(name)
            case StateReported(name, reported, reason):
                if name in self.tasks:
                    self._apply_report(self.tasks[name], reported, reason, now)
            case RunEnded(name):
                if name in self.tasks:
                    self._apply_run_end(self.tasks[name], event, now)
            case UndoEnded(name):
                if name in self.tasks and self.tasks[name].stage is Stage.UNDOING:
                    self._remove(name)
        self._settle(now)
        commands, self._commands = self._commands, []
        return commands

    def retry_delay(self, task: Task, failures: int, *, at_most: float = inf, lasting: bool = False) -> float:
        """Return the seconds until the next try, by the task's backoff.

        After a ``lasting`` error they are at least half of the maximum.
        """
        backoff = replace(task.backoff, maximum=min(task.backoff.maximum, at_most))
        if lasting:
            return backoff.maximum * (1 - backoff.jitter / 2 * self._random.random())
        return backoff.delay(failures, self._random)

    # The plan

    def _take_plan(self, tasks: tuple[Task, ...], heirs: Mapping[str, str]) -> None:
        if self.ending:
            return
        self._planned_tasks, self._creation_pending = tasks, True
        by_name = {task.name: task for task in tasks}
        self._heirs = {name: by_name[heir] for name, heir in heirs.items()}
        digests = {name: state.task.digest for name, state in self.tasks.items() if not state.leaving}
        for name in difference(digests, tasks).leaving:
            self._leave(name)

    def _leave(self, name: str) -> None:
        self.tasks[name].leaving = True
        self._leaving.add(name)
        self._touch_dependents(name)

    def _remove(self, name: str) -> None:
        state = self.tasks.pop(name)
        self._leaving.discard(name)
        self._earliest_starts[name] = state.earliest_start
        self.changes += 1
        self.reportable_changes += 1

    def _create(self, now: float) -> None:
        self._creation_pending = False
        for task in self._planned_tasks:
            if task.name not in self.tasks:
                earliest_start = self._earliest_starts.get(task.name, 0.0)
                pending = any(str(edge) in self._lasting_events for edge in task.run_on)
                self.tasks[task.name] = TaskState(
                    task, since=now, earliest_start=earliest_start, pending=pending
                )
                self.changes += 1
                self.reportable_changes += 1
        self._earliest_starts = {name: until for name, until in self._earliest_starts.items() if until > now}
        self._index()
        for name in self.tasks:
            self._touch(name)

    def _replace(self, name: str, heir: Task, now: float) -> None:
        """Replace a leaving task whose run has ended by its heir."""
        state = self.tasks[name]
        self._remove(name)
        earliest_start = max(self._earliest_starts[name], self._earliest_starts.get(heir.name, 0.0))
        self.tasks[heir.name] = new = TaskState(
            heir, since=now, earliest_start=earliest_start, inherited=True
        )
        new.pending = any(str(edge) in self._lasting_events for edge in heir.run_on)
        self._commands.append(HandOver(state.task, heir))
        # ``needs`` guards the first start, and the heir continues what the leaving task has started
        if state.stage is not Stage.WAITING and set(heir.needs) <= set(state.task.needs):
            self._schedule_first_run(new, now)
        self._touch(heir.name)
        self._index_outdated = True

    def _index(self) -> None:
        """Build the index: the dependents of each task, the listeners of each event, and the ranks."""
        self._index_outdated = False
        self._dependents, self._listeners = {}, {}
        for name, state in self.tasks.items():
            for edge in state.task.gates:
                self._dependents.setdefault(edge.task, []).append(name)
            for edge in state.task.run_on:
                self._listeners.setdefault(str(edge), []).append(name)
        self._rank = self._ranks()
        self._dirty = [(self._rank.get(name, 0), name) for _, name in self._dirty]
        heapify(self._dirty)

    def _ranks(self) -> dict[str, int]:
        """Return the rank of each task: higher than those of all tasks in its gates, else as in the plan."""
        missing = {
            name: sum(edge.task in self.tasks for edge in state.task.gates)
            for name, state in self.tasks.items()
        }
        order = [name for name, count in missing.items() if not count]
        for name in order:  # the list grows in the loop
            for dependent in self._dependents.get(name, ()):
                missing[dependent] -= 1
                if not missing[dependent]:
                    order.append(dependent)
        return {name: rank for rank, name in enumerate(order)}

    def _end(self, undo_at: float) -> None:
        if self.ending:
            return
        self._fire(TERMINATING)
        self.ending, self._undo_at = True, undo_at
        self._planned_tasks, self._creation_pending, self._heirs = (), False, {}
        listeners = self._listeners.get(TERMINATING, ())
        self._termination_tasks = {
            name for name in listeners if name in self.tasks and self.tasks[name].pending
        }

    # Consequences of an event

    def _settle(self, now: float) -> None:
        """Remove, create and advance tasks until an event or the time is needed."""
        if self._leaving:
            self._tear_down(now)
        if self._creation_pending and not self._leaving:
            self._create(now)
        elif self._index_outdated:
            self._index()
        while self._timers and self._timers[0][0] <= now:
            self._touch(heappop(self._timers)[1])
        while self._dirty:
            _, name = entry = heappop(self._dirty)
            while self._dirty and self._dirty[0] == entry:
                heappop(self._dirty)
            if name in self.tasks and not self.tasks[name].leaving:
                self._advance(self.tasks[name], now)
        if self.ending and not self._termination_tasks_active(now):
            self._termination_tasks = set()
            for name, state in self.tasks.items():
                if not state.leaving:
                    self._leave(name)
            self._tear_down(now)

    def _termination_tasks_active(self, now: float) -> bool:
        """True while a task with ``runOn: pod.terminating`` runs or is due.

        A task that only waits for ``needs`` or ``while`` does not count.
        """
        busy = (Stage.DUE, Stage.RUNNING, Stage.PAUSING)
        return now < self._undo_at and any(
            name in self.tasks and not self.tasks[name].leaving and self.tasks[name].stage in busy
            for name in self._termination_tasks
        )

    def _tear_down(self, now: float) -> None:
        """Stop, undo, replace or remove each leaving task that no other leaving task depends on."""
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
                    heir = self._heirs.get(name) if state.may_hold_outside else None
                    if heir is not None and (heir.name == name or heir.name not in self.tasks):
                        self._replace(name, heir, now)
                    elif state.may_hold_outside:
                        self._enter(state, Stage.UNDOING, now)
                        self._commands.append(Undo(state.task))
                        continue
                    else:
                        self._remove(name)
                    settled = False  # tasks in its gates may leave now

    def _advance(self, state: TaskState, now: float) -> None:
        """Start, pause or resume the task if its gates, its events and the time require it."""
        task = state.task
        if state.stage is Stage.WAITING:
            if not all(map(self._holds, task.needs)):
                return
            self._schedule_first_run(state, now)
        held = not task.while_ or all(map(self._holds, task.while_))
        if state.stage is Stage.PAUSED and held:
            self._schedule_resumed_run(state, now)
        elif not held and state.stage is Stage.RUNNING:
            self._enter(state, Stage.PAUSING, now)
            self._commands.append(Cancel(task.name))
        elif not held and state.stage in {Stage.ARMED, Stage.DUE}:
            state.state = ""
            self._enter(state, Stage.PAUSED, now, due=state.due)
        if (
            state.pending
            and state.stage in {Stage.ARMED, Stage.DUE}
            and state.due > max(now, state.earliest_start)
        ):
            self._schedule(state, now, now)
        may_start = not self.ending or (task.name in self._termination_tasks and now < self._undo_at)
        if may_start and state.stage is Stage.DUE and state.due <= now:
            state.runs += 1
            state.pending, state.started, state.earliest_start = False, now, now + MIN_START_INTERVAL_SECONDS
            self._enter(state, Stage.RUNNING, now)
            self._commands.append(Start(task))
            self._fire(f"{task.name}.started")

    def _schedule_first_run(self, state: TaskState, now: float) -> None:
        """Schedule the first run of a task whose needs hold."""
        if state.task.every is not None:
            # at a random time of its period, because pods that start together must not run together
            state.slot = max(now, self._on_grid(now + self._random.random() * state.task.every))
            self._schedule(state, state.slot, now)
        else:
            self._schedule(state, inf if state.task.run_on else now, now)

    def _schedule_resumed_run(self, state: TaskState, now: float) -> None:
        every = state.task.every
        if every is not None and state.due <= now:
            # the period keeps its phase, and runs missed in the pause are not made up for
            state.slot += every * (floor((now - state.slot) / every) + 1) if state.slot <= now else 0.0
            state.due = state.slot
        self._schedule(state, state.due, now)

    def _schedule(self, state: TaskState, due: float, now: float) -> None:
        """Schedule the next run at ``due``, or at the earliest start if that is later; infinity: wait for an event."""
        self._touch(state.task.name)  # an event may have come already
        if due == inf:
            self._enter(state, Stage.ARMED, now)
            return
        due = max(due, state.earliest_start)
        self._enter(state, Stage.DUE, now, due=due)
        if len(self._timers) > 64 + 4 * len(self.tasks):
            # a start on an event leaves an entry that is not used any more, and its time may be far off
            self._timers = [(other.due, name) for name, other in self.tasks.items() if self._is_due(name)]
            heapify(self._timers)
        heappush(self._timers, (due, state.task.name))

    # Reports and ends of runs

    def _apply_report(self, state: TaskState, reported: str, reason: str | None, now: float) -> None:
        active = {Stage.RUNNING, Stage.PAUSING, Stage.STOPPING, Stage.UNDOING}
        is_new = state.state != reported
        if state.stage not in active or not (is_new or reason not in {None, state.error}):
            return
        if is_new:
            state.state, state.since = reported, now
        if reason is not None:
            state.error = reason
        self.changes += 1
        self.reportable_changes += 1
        if is_new and not state.leaving and state.stage is not Stage.PAUSING:
            self._fire_state(state)

    def _apply_run_end(self, state: TaskState, ended: RunEnded, now: float) -> None:
        stage, task = state.stage, state.task
        if stage is Stage.STOPPING:
            self._enter(state, Stage.FINISHED, now)  # ``_tear_down`` continues
        elif stage in {Stage.RUNNING, Stage.PAUSING}:
            state.last_duration = now - state.started
            if stage is Stage.PAUSING and ended.error is not None:
                # Neither success nor failure. It starts again after the pause, with ``every`` at its next period.
                state.state = ""
                self._enter(state, Stage.PAUSED, now, due=now)
                self._touch(task.name)
                return
            self._schedule_after_run(state, ended, now)
            if stage is Stage.PAUSING and not state.leaving:
                self._fire_state(state)  # the run ended before the cancellation reached it

    def _schedule_after_run(self, state: TaskState, ended: RunEnded, now: float) -> None:
        """Count the run, and schedule the next one or set the task to finished or failed."""
        task, error = state.task, ended.error
        state.error = error or ""
        if now - state.started >= BACKOFF_RESET_SECONDS:
            state.streak = state.backoff_count = 0
        if error is None:
            state.streak, state.last_success = 0, now
        else:
            state.streak += 1
            state.failures += 1
            self.reportable_changes += 1
        repeated = task.every is not None or bool(task.run_on)
        # A task that should run for ever backs off after a success too, like a container of a pod.
        state.backoff_count = 0 if error is None and repeated else state.backoff_count + 1
        again = task.restart == "Always" if error is None else task.restart != "Never"
        if self.ending:
            if state.pending and task.name in self._termination_tasks:
                self._schedule(state, now, now)
            else:
                self._termination_tasks.discard(task.name)
                self._enter(state, Stage.FINISHED, now)
        elif error is not None and task.backoff_limit is not None and state.streak > task.backoff_limit:
            self._enter(state, Stage.FAILED, now)
            if state.state != "failed":
                state.state = "failed"
                self._fire_state(state)
        elif not repeated and not again:
            self._enter(state, Stage.FINISHED, now)
        else:
            at_most = inf if error is None else ended.retry
            wait = self.retry_delay(task, state.backoff_count, at_most=at_most, lasting=ended.lasting)
            retry = now + wait if again else inf
            if repeated and error is None:
                retry = inf
            self._schedule(state, min(self._next_slot(state, now), retry), now)

    def _next_slot(self, state: TaskState, now: float) -> float:
        every = state.task.every
        if every is None:
            return inf
        if state.slot <= now:  # a retry within the period does not move the next one
            shortened = every * (1 - PERIOD_JITTER * self._random.random())
            slot = self._on_grid(state.slot + shortened)
            if slot < state.slot + every * (1 - PERIOD_JITTER):
                slot += TIMER_GRID_SECONDS
            state.slot = max(slot, now)  # periods missed by a long run are not made up for
        return state.slot

    def _on_grid(self, time: float) -> float:
        """Return the last time of the grid up to this one."""
        steps = floor((time - self._grid_offset) / TIMER_GRID_SECONDS + 1e-6)  # 0.15 / 0.05 < 3
        return steps * TIMER_GRID_SECONDS + self._grid_offset

    # Edges and events

    def _holds(self, edge: Edge) -> bool:
        state = self.tasks.get(edge.task)
        if state is None or state.leaving or state.stage in _PAUSE_STAGES:
            return False
        match edge.state:
            case "started":
                return state.runs > 0
            case "completed":
                return state.state in {"succeeded", "failed"}
            case name:
                return state.state == name

    def _fire_state(self, state: TaskState) -> None:
        name = state.task.name
        self._touch_dependents(name)
        if state.state != "started":  # each start fires that event once
            self._fire(f"{name}.{state.state}")
        if state.state in {"succeeded", "failed"}:
            self._fire(f"{name}.completed")

    def _fire(self, event: str) -> None:
        """Mark the tasks that run on this event."""
        for name in self._listeners.get(event, ()) if not self.ending else ():
            state = self.tasks.get(name)
            if state is not None and not state.leaving and state.stage is not Stage.FAILED:
                state.pending = True
                self._touch(name)

    def _touch(self, name: str) -> None:
        """Add a task to those that ``_settle`` checks."""
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
        self.reportable_changes += state.shown != shown
        self._touch_dependents(state.task.name)


def waits_for(state: TaskState, states: Iterable[TaskState]) -> str:
    """Return the references that a task waits for, for people, as ``task.state (is STATE)``."""
    by_name = {other.task.name: other.shown for other in states}
    edges = state.task.needs if state.stage is Stage.WAITING else state.task.while_
    return ", ".join(f"{edge} (is {by_name.get(edge.task, 'gone')})" for edge in edges)
