"""Executes the commands of the core: the thin Trio shell of the engine.

All runs and undoings are in one nursery. Each has a cancel scope of its own. Events are passed to the core at once,
without a queue, so that none is lost.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import inf
from random import Random

import trio

from pidone import actions
from pidone.actions import Action, Preparable, Setting, Successor
from pidone.engine.core import (
    Cancel,
    Command,
    Core,
    Ending,
    Event,
    HandOver,
    PlanChanged,
    PodEvent,
    RunEnded,
    Stage,
    Start,
    StateReported,
    TaskState,
    Undo,
    UndoEnded,
    waits_for,
)
from pidone.errors import PidoneError, RegistryRefused, describe
from pidone.journal import Journal
from pidone.pacing import RateLimit
from pidone.plan.model import Plan, Task

Build = Callable[[Task, Setting], Action]

# Journal lines about the states of one task, and about stalls: lines at once, and seconds until one more.
STATE_LINES_BURST, STATE_LINES_SECONDS = 20, 10.0
STALL_LINES_BURST, STALL_LINES_SECONDS = 5, 60.0
# A timer that is late by more than this is logged: a task has blocked the thread, or the pod got no processor time.
STALL_MIN_SECONDS = 1.0
# After a cancellation and ``stopTimeout``: longer than the limits of calls that must not be cut off, such as a
# registration, which takes at most 25 s with a Eureka that does not answer.
CANCELLATION_TIMEOUT_SECONDS = 30.0
# For a call that must not be cut off, from the cancellation on, if its task leaves before the pod's end.
SHIELD_MIN_SECONDS = 15.0


class Engine:
    """Runs the tasks of the last applied plan. ``changed`` is called after every change of a task's state."""

    def __init__(
        self,
        setting: Setting,
        journal: Journal,
        *,
        changed: Callable[[], None],
        random: Random,
        build: Build | None = None,
    ) -> None:
        self._build = build
        self._setting = setting
        self._journal = journal
        self.left = dict[str, str]()  # by name of a task that is gone: the reason why it was not undone
        self.random = random
        self._core = Core(random)
        self._changed = changed
        self._actions: dict[str, Action] = {}  # by task digest: of present tasks and of the plan
        self._scopes: dict[str, trio.CancelScope] = {}  # by task name: of its run or its undoing
        self._stuck: set[trio.CancelScope] = (
            set()
        )  # of runs and undoings that were given up and have not ended
        self._rates: dict[str, RateLimit] = {}  # by task name: of its states in the journal
        self._stalls = RateLimit(STALL_LINES_BURST, STALL_LINES_SECONDS)
        self._shields: dict[trio.CancelScope, trio.CancelScope] = {}  # by shield: the scope of its run
        self._nursery: trio.Nursery | None = None
        self._core_error: Exception | None = None  # after it the core is not used any more
        self._timer = trio.CancelScope()
        self._state_changed = trio.Event()
        self._budget_spent = False  # the time for the pod's end is over
        self._cancelled = False  # the engine itself was cancelled; then no events reach the core
        self._end_over = trio.Event()

    @property
    def tasks(self) -> Iterable[TaskState]:
        """The state of all tasks, not to be changed by the caller."""
        return self._core.tasks.values()

    def action(self, task: str) -> Action | None:
        """Return the action of a task; None while it has none."""
        state = self._core.tasks.get(task)
        return self._actions.get(state.task.digest) if state is not None else None

    @property
    def idle(self) -> bool:
        """True if the plan is empty and all earlier tasks are gone."""
        return self._core.idle

    @property
    def ending(self) -> bool:
        """True if the pod's end has begun."""
        return self._core.ending

    @property
    def reportable_changes(self) -> int:
        """Number of changes that cause a status report: a task is new, is gone, has failed or has another state."""
        return self._core.reportable_changes

    @property
    def stuck(self) -> bool:
        """True if a cancelled run or undoing has not ended, so that a nursery around the engine cannot be left."""
        return bool(self._stuck)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled. Then all runs are cancelled, and no task is undone: that is the work of ``drain``.

        Raises an exception of the core, whose state is not consistent after it.
        """
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                while True:
                    # events change the deadline without a wakeup of this task
                    with trio.CancelScope(deadline=self._core.next_due()) as self._timer:
                        await trio.sleep_forever()
                    if self._core_error is not None:
                        raise self._core_error
                    self._handle(None)
        finally:
            self._end_over.set()

    def apply(self, plan: Plan, *, setting: Setting | None = None) -> None:
        """Change to another plan. Raises ``Refused`` if a part of it cannot be built; then nothing changes."""
        actions.check_states(plan.tasks)
        setting = setting or self._setting
        build = self._build or actions.build
        built = {task.digest: build(task, setting) for task in plan.tasks if task.digest not in self._actions}
        self._actions |= built
        self._setting = setting
        self._handle(PlanChanged(plan.tasks, self._heirs(plan)))
        if not self._core.ending:
            self._prepare(built.values())
        in_use = {task.digest for task in plan.tasks} | {state.task.digest for state in self.tasks}
        self._actions = {digest: action for digest, action in self._actions.items() if digest in in_use}
        names = {task.name for task in plan.tasks}
        self._rates = {name: rate for name, rate in self._rates.items() if name in names}

    def _prepare(self, built: Iterable[Action]) -> None:
        """Let new actions do before their first runs what these would wait for."""

        async def prepare(action: Preparable) -> None:
            try:
                await action.prepare()
            except Exception as error:  # noqa: BLE001 - as in ``_run``
                self._journal.write("prepare-failed", error=self._describe(error))

        for action in built:
            if isinstance(action, Preparable):
                assert self._nursery is not None
                self._nursery.start_soon(prepare, action)

    def _heirs(self, plan: Plan) -> dict[str, str]:
        """Return the heirs by the name of the leaving task: the tasks that take over what it holds outside the pod.

        An heir is the changed form of the same task, else a new task of another name.
        """
        digests = {task.name: task.digest for task in plan.tasks}
        leaving = [
            state
            for state in self.tasks
            if state.may_hold_outside and (state.leaving or state.task.digest != digests.get(state.task.name))
        ]
        if not leaving:
            return {}
        leaving_names = {state.task.name for state in leaving}
        present = {state.task.name for state in self.tasks} - leaving_names
        candidates = {
            task.name: action
            for task in plan.tasks
            if task.name not in present and isinstance(action := self._actions[task.digest], Successor)
        }
        heirs: dict[str, str] = {}
        for state in leaving:
            name, previous = state.task.name, self._actions[state.task.digest]
            for heir in [name, *(other for other in candidates if other not in leaving_names)]:
                if heir in candidates and candidates[heir].succeeds(previous):
                    heirs[name] = heir
                    del candidates[heir]
                    break
        return heirs

    async def wait_change(self) -> None:
        """Wait until the state of any task changes."""
        await self._state_changed.wait()

    def wake_tasks(self) -> None:
        """End every wait in ``Context.changed``: something else than a task has changed."""
        self._wake_waiting()

    def handle_pod_event(self, event: str) -> bool:
        """Pass an event of ``pidone.plan.model.EVENTS`` to the tasks. Return True if a task has it in ``runOn``."""
        self._handle(PodEvent(event))
        return any(event == str(edge) for state in self.tasks for edge in state.task.run_on)

    def end(self, budget: float) -> None:
        """Begin the pod's end, unless it has begun. Tasks that remain after ``budget`` seconds are cancelled.

        Tasks with ``runOn: pod.terminating`` have half of the budget. Then all tasks are undone in reverse order.
        """
        if self._core.ending:
            return
        assert self._nursery is not None
        self._handle(Ending(trio.current_time() + budget / 2))
        self._wake_waiting()  # for tasks that look at ``Context.ending``
        self._nursery.start_soon(self._limit_end, budget)

    async def drain(self, budget: float) -> None:
        """Begin the pod's end, unless it has begun, and wait until it is over. A cancelled wait does not stop it."""
        self.end(budget)
        await self.wait_over()

    async def _limit_end(self, budget: float) -> None:
        """Wait until all tasks are gone, and cancel those that remain after ``budget`` seconds."""
        with trio.move_on_after(budget):
            await self.wait_idle()
            self._end_over.set()
            return
        names = [state.task.name for state in self.tasks]
        self._journal.write("teardown-late", budget=f"{budget:g}s", tasks=",".join(names))
        self._budget_spent = True
        # Each run and undoing is cancelled by its own scope and not with the nursery, so that it reports its end to the
        # core, and the core gives no command for a task whose run is gone.
        for scope in (*self._shields, *self._scopes.values()):
            scope.cancel()
        # a cancelled run may need some time to end, and one that does not end must not delay ``wait_over``
        with trio.move_on_after(CANCELLATION_TIMEOUT_SECONDS):
            await self.wait_idle()
        self._stuck.update(self._scopes.values())
        self._end_over.set()

    async def wait_over(self) -> None:
        """Return when the pod's end is over."""
        await self._end_over.wait()

    async def wait_idle(self) -> None:
        """Return when the engine is ``idle``."""
        while not self._core.idle:
            await self._state_changed.wait()

    async def wait_busy(self) -> None:
        """Return when the engine is not ``idle``."""
        while self._core.idle:
            await self._state_changed.wait()

    def _handle(self, event: Event | None) -> None:
        if self._cancelled or self._core_error is not None:
            return
        before, now = self._core.changes, trio.current_time()
        if now - self._timer.deadline > STALL_MIN_SECONDS:
            self._log_stall(now)
        try:
            for command in self._core.handle(event, now):
                self._execute(command)
        except Exception as error:  # noqa: BLE001 - ``run`` raises it, and not the task that reported the event
            self._core_error = error
            self._timer.cancel()
            return
        due = self._core.next_due()
        if due != self._timer.deadline:  # setting it costs more than the comparison
            self._timer.deadline = due
        if before != self._core.changes:
            self._wake_waiting()
            self._changed()

    def _log_stall(self, now: float) -> None:
        if self._stalls.take(now) == 0:
            late = now - self._timer.deadline
            self._journal.write("stalled", seconds=f"{late:.1f}", untold=self._stalls.refused or None)
            self._stalls.refused = 0

    def _log_state(self, name: str, state: str) -> None:
        task = self._core.tasks.get(name)
        if task is None or task.stage in {Stage.PAUSING, Stage.STOPPING}:
            return  # the state of a cancelled run is not logged
        now = trio.current_time()
        rate = self._rates.setdefault(name, RateLimit(STATE_LINES_BURST, STATE_LINES_SECONDS))
        if rate.take(now) == 0:
            self._journal.write("state", task=name, state=state, untold=rate.refused or None)
            rate.refused = 0

    def _execute(self, command: Command) -> None:
        assert self._nursery is not None
        match command:
            case Start(task):
                scope = self._new_scope(task)
                self._nursery.start_soon(self._run, task, scope, name=task.name)
            case Cancel(name):
                state = self._core.tasks[name]
                if state.stage is Stage.PAUSING:
                    self._journal.write("paused", task=name, waits=waits_for(state, self.tasks))
                scope = self._scopes[name]
                scope.cancel()
                until = trio.current_time() + self._shield_seconds(state.task)
                for shield, run in self._shields.items():
                    if run is scope:
                        shield.deadline = min(shield.deadline, until)
                ended = RunEnded(name, "does not end, though it was cancelled")
                self._nursery.start_soon(self._give_up_after_timeout, state.task, scope, ended)
            case Undo(task):
                scope = self._new_scope(task)
                self._nursery.start_soon(self._undo, task, scope, name=f"undo {task.name}")
                self._nursery.start_soon(self._give_up_after_timeout, task, scope, UndoEnded(task.name))
            case HandOver(task, heir):
                previous, successor = self._actions[task.digest], self._actions[heir.digest]
                assert isinstance(successor, Successor)
                # they are the same if a plan is changed back before its tasks have left
                if successor is not previous:
                    try:
                        successor.take_over(previous)
                    except Exception as error:  # noqa: BLE001 - as in ``_run``
                        self.left[task.name] = self._describe(error)
                        self._journal.write("undo-failed", task=task.name, error=self._describe(error))

    def _shield_seconds(self, task: Task) -> float:
        """Return the seconds from the cancellation on for a call of the task that must not be cut off."""
        return task.stop_timeout if self._core.ending else max(task.stop_timeout, SHIELD_MIN_SECONDS)

    def _new_scope(self, task: Task) -> trio.CancelScope:
        """Return the scope for a new run or undoing; already cancelled if the budget of the pod's end is spent."""
        scope = self._scopes[task.name] = trio.CancelScope()
        if self._budget_spent:
            scope.cancel()
        return scope

    async def _run(self, task: Task, scope: trio.CancelScope) -> None:
        ended, bug = RunEnded(task.name, "cancelled"), False
        if task.timeout is not None:
            scope.deadline = trio.current_time() + task.timeout
        try:
            with scope:
                await self._actions[task.digest].run(_TaskContext(self, task, scope))
                ended = RunEnded(task.name)
        except Exception as error:  # noqa: BLE001 - no exception of a task ends other tasks or the process
            # Outside of the scope, which removes the cancellation from a group of exceptions. The action may be gone,
            # because a cancelled run can end after its task has left.
            refused = isinstance(error, RegistryRefused)
            limit = "refused_retry_seconds" if refused else "retry_seconds"
            retry = getattr(self._actions.get(task.digest), limit, inf)
            ended = RunEnded(task.name, self._describe(error), refused, retry)
            bug = not isinstance(error, PidoneError)
        except BaseException:  # the engine itself is cancelled
            self._cancelled = True
            self._remove_scope(task, scope)
            raise
        current = self._scopes.get(task.name) is scope and not self._budget_spent
        running = current and self._core.tasks[task.name].stage is Stage.RUNNING
        if ended.error is not None and running and scope.cancelled_caught:
            # by its deadline: the core sets another stage before it cancels a run
            ended = RunEnded(task.name, f"not done within its timeout of {task.timeout:g} s")
        if ended.error is not None and (running or bug) and not self._is_known(ended):
            self._journal.write("failed", task=task.name, error=ended.error)
        if not self._report_end(task, scope, ended):
            return
        state = self._core.tasks.get(task.name)
        if state is not None and state.stage is Stage.FAILED:
            self._journal.write("gave-up", task=task.name, failures=state.streak)

    def _is_known(self, ended: RunEnded) -> bool:
        """True if the last run failed with the same lasting error: a person has been told."""
        state = self._core.tasks.get(ended.name)
        return ended.lasting and state is not None and state.streak > 0 and state.error == ended.error

    async def _undo(self, task: Task, scope: trio.CancelScope) -> None:
        scope.deadline = trio.current_time() + task.stop_timeout
        try:
            with scope:
                await self._actions[task.digest].undo(_TaskContext(self, task, scope))
            self.left.pop(task.name, None)
        except Exception as error:  # noqa: BLE001 - as in ``_run``
            self.left[task.name] = self._describe(error)
            self._journal.write("undo-failed", task=task.name, error=self._describe(error))
        except BaseException:  # as in ``_run``
            self._cancelled = True
            self._remove_scope(task, scope)
            raise
        if scope.cancelled_caught:
            limit = f"{task.stop_timeout:g} s"
            self.left[task.name] = (
                "the pod's end had no time left for it"
                if self._budget_spent
                else f"not done within its stopTimeout of {limit}"
            )
            self._journal.write("undo-late", task=task.name, stopTimeout=limit.replace(" ", ""))
        self._report_end(task, scope, UndoEnded(task.name))

    async def _give_up_after_timeout(
        self, task: Task, scope: trio.CancelScope, event: RunEnded | UndoEnded
    ) -> None:
        """Log a run or an undoing that does not end after its cancellation, and treat it as ended.

        That it does not end is a bug in pidone.
        """
        with trio.move_on_after(task.stop_timeout + CANCELLATION_TIMEOUT_SECONDS) as timeout:
            while self._scopes.get(task.name) is scope:
                await self._state_changed.wait()
        if timeout.cancelled_caught:
            self._journal.write("stuck", task=task.name)
            if isinstance(event, UndoEnded):
                self.left[task.name] = "its undoing does not end, though it was cancelled"
            self._report_end(task, scope, event)
            self._stuck.add(scope)

    def _describe(self, error: BaseException) -> str:
        """Return the error for people, without values of Secrets."""
        return self._journal.mask(describe(error))

    def _report_end(self, task: Task, scope: trio.CancelScope, event: RunEnded | UndoEnded) -> bool:
        """Report the end to the core, unless it was reported before. True if it was reported now.

        A run that was given up can end while another run of the same task is active.
        """
        current = self._scopes.get(task.name) is scope
        self._remove_scope(task, scope)
        if current:
            self._handle(event)
        return current

    def _remove_scope(self, task: Task, scope: trio.CancelScope) -> None:
        self._stuck.discard(scope)
        if self._scopes.get(task.name) is scope:
            del self._scopes[task.name]

    def _wake_waiting(self) -> None:
        self._state_changed.set()
        self._state_changed = trio.Event()


class _TaskContext:
    """``pidone.actions.Context`` for one task."""

    def __init__(self, engine: Engine, task: Task, scope: trio.CancelScope) -> None:
        self._engine = engine
        self._scope = scope
        self._stop_timeout = task.stop_timeout
        self.task = task.name
        self.every = task.every
        self.random = engine.random

    @property
    def ending(self) -> bool:
        return self._engine.ending

    def report(self, state: str, reason: str | None = None) -> None:
        if self.state_of(self.task) != state and self._engine._scopes.get(self.task) is self._scope:
            self._engine._log_state(self.task, state)
            reason = reason and self._engine._journal.mask(reason)
            self._engine._handle(StateReported(self.task, state, reason))

    def explain(self, reason: str) -> None:
        if self._engine._scopes.get(self.task) is self._scope:
            reason = self._engine._journal.mask(reason)
            self._engine._handle(StateReported(self.task, self.state_of(self.task), reason))

    def log(self, event: str, **fields: object) -> None:
        self._engine._journal.write(event, task=self.task, **fields)

    def state_of(self, task: str) -> str:
        state = self._engine._core.tasks.get(task)
        return state.state if state is not None else ""

    async def state_change(self, task: str, seen: str) -> str:
        while (state := self.state_of(task)) == seen:
            await self._engine._state_changed.wait()
        return state

    async def changed(self) -> None:
        await self._engine._state_changed.wait()

    @contextmanager
    def grace(self) -> Iterator[None]:
        with self._shield_for(self._stop_timeout):
            yield

    @contextmanager
    def shield(self) -> Iterator[trio.CancelScope]:
        task = self._engine._core.tasks[self.task].task
        with self._shield_for(
            self._engine._shield_seconds(task) if self._scope.cancel_called else inf
        ) as scope:
            yield scope

    @contextmanager
    def _shield_for(self, seconds: float) -> Iterator[trio.CancelScope]:
        seconds = -inf if self._engine._budget_spent else seconds
        with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds) as scope:
            self._engine._shields[scope] = self._scope
            try:
                yield scope
            finally:
                del self._engine._shields[scope]

    def retry_delay(self, failures: int, at_most: float, *, lasting: bool = False) -> float:
        task = self._engine._core.tasks[self.task].task
        return self._engine._core.retry_delay(task, failures, at_most=at_most, lasting=lasting)

    def action_of(self, task: str) -> Action | None:
        return self._engine.action(task)
