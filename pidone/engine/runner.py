"""Does what the core decides: the thin Trio shell of the engine.

One nursery holds every run and every undoing; each run has a cancel scope of its own. Events are handed to
the core in the step in which they happen, without a queue: nothing can pile up, and nothing can be lost.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import inf
from random import Random

import trio

from pidone import actions
from pidone.actions import Action, Setting, Successor
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

# Journal lines on the states of one task, and on stalls: so many at once, and one more each so many seconds.
STATES_BURST, STATES_SECONDS = 20, 10.0
STALLS_BURST, STALLS_SECONDS = 5, 60.0
# Seconds by which a timer is late where somebody did not give the thread back, or the pod got no processor.
STALLED = 1.0
# Seconds beyond ``stopTimeout`` after which a run that was cancelled is not waited for any more. What must not be
# cut off, as a registration that is on its way, has limits of its own: 25 with a Eureka that answers nothing.
STUCK = 30.0
UNBROKEN = (
    15.0  # seconds that a call has which should not be broken off, where its task leaves before the pod's end
)


class Engine:
    """Runs the plan it was given last. ``changed`` is called after every change of a task's state."""

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
        self.left = dict[str, str]()  # by name of a task that is gone: why what it did was not undone
        self._core = Core(random)
        self._changed = changed
        self._actions: dict[str, Action] = {}  # by task digest: of what runs, and of what is wanted next
        self._scopes: dict[str, trio.CancelScope] = {}  # by task name: of its run, or of its undoing
        self._stuck: set[trio.CancelScope] = set()  # of those that were given up, and have not ended yet
        self._rates: dict[str, RateLimit] = {}  # by task name: of its changes of state in the journal
        self._stalls = RateLimit(STALLS_BURST, STALLS_SECONDS)
        self._graces: dict[trio.CancelScope, trio.CancelScope] = {}  # shields, and the run that each is of
        self._nursery: trio.Nursery | None = None
        self._broken: Exception | None = None
        self._timer = trio.CancelScope()
        self._state_changed = trio.Event()
        self._late = False  # the budget of the end is spent
        self._closed = False  # the engine itself was cancelled: no run tells the core any more how it ends
        self._over = trio.Event()

    @property
    def tasks(self) -> Iterable[TaskState]:
        """For looking only."""
        return self._core.tasks.values()

    @property
    def idle(self) -> bool:
        """There is nothing to do, and nothing to take back."""
        return self._core.idle

    @property
    def ending(self) -> bool:
        """Whether the pod's end has begun."""
        return self._core.ending

    @property
    def reportable_changes(self) -> int:
        """Grows where a task is there, is gone, has failed, or is in another state: more than a count has changed."""
        return self._core.reportable_changes

    @property
    def stuck(self) -> bool:
        """Whether something does not end though it was cancelled: a nursery around it cannot be left."""
        return bool(self._stuck)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; then all runs are cancelled at once, without undoing (``drain`` does that).

        Raises what the core raised: a machine that failed in the middle of a step is not to be trusted further.
        """
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                while True:
                    # events move the deadline and wake nobody
                    with trio.CancelScope(deadline=self._core.next_due()) as self._timer:
                        await trio.sleep_forever()
                    if self._broken is not None:
                        raise self._broken
                    self._handle(None)
        finally:
            self._over.set()

    def apply(self, plan: Plan, *, setting: Setting | None = None) -> None:
        """Go over to another plan. Raises ``Refused`` when a part of it cannot be built; then nothing changes."""
        actions.check_states(plan.tasks)
        setting = setting or self._setting
        build = self._build or actions.build
        self._actions |= {
            task.digest: build(task, setting) for task in plan.tasks if task.digest not in self._actions
        }
        self._setting = setting
        self._handle(PlanChanged(plan.tasks, self._heirs(plan)))
        in_use = {task.digest for task in plan.tasks} | {state.task.digest for state in self.tasks}
        self._actions = {digest: action for digest, action in self._actions.items() if digest in in_use}
        names = {task.name for task in plan.tasks}
        self._rates = {name: rate for name, rate in self._rates.items() if name in names}

    def _heirs(self, plan: Plan) -> dict[str, str]:
        """By the name of a task that leaves with this plan, the task that takes over what it holds outside.

        That is the changed form of the same task, or else a new task of another name.
        """
        wanted = {task.name: task.digest for task in plan.tasks}
        leaving = [
            state
            for state in self.tasks
            if state.may_hold_outside and (state.leaving or state.task.digest != wanted.get(state.task.name))
        ]
        if not leaving:
            return {}
        leaving_names = {state.task.name for state in leaving}
        present = {state.task.name for state in self.tasks} - leaving_names
        coming = {
            task.name: action
            for task in plan.tasks
            if task.name not in present and isinstance(action := self._actions[task.digest], Successor)
        }
        heirs: dict[str, str] = {}
        for state in leaving:
            name, previous = state.task.name, self._actions[state.task.digest]
            for heir in [name, *(other for other in coming if other not in leaving_names)]:
                if heir in coming and coming[heir].succeeds(previous):
                    heirs[name] = heir
                    del coming[heir]
                    break
        return heirs

    def happened(self, event: str) -> bool:
        """Tell of something that tasks may run on, one of ``pidone.plan.model.EVENTS``; whether any does."""
        self._handle(PodEvent(event))
        return any(event == str(edge) for state in self.tasks for edge in state.task.run_on)

    def end(self, budget: float) -> None:
        """Begin the end, once and for good; ``budget`` seconds later what is left is cancelled, then killed.

        What runs on ``pod.terminating`` has half of them. Then all is undone in reverse order of ``needs``.
        """
        if self._core.ending:
            return
        assert self._nursery is not None
        self._handle(Ending(trio.current_time() + budget / 2))
        self._nursery.start_soon(self._keep_to, budget)

    async def drain(self, budget: float) -> None:
        """Bring about the end, or wait for the one that has begun. Cancelling this does not stop it."""
        self.end(budget)
        await self.wait_over()

    async def _keep_to(self, budget: float) -> None:
        with trio.move_on_after(budget):
            await self.wait_idle()
            self._over.set()
            return
        late = [state.task.name for state in self.tasks]
        self._journal.write("teardown-late", budget=f"{budget:g}s", tasks=",".join(late))
        self._late = True
        # Runs and undoings are cancelled one by one, and not with the nursery: each reports its end to the core as
        # at any other time, so that the core never commands what the shell no longer has.
        for scope in (*self._graces, *self._scopes.values()):
            scope.cancel()
        # what is cancelled may need a moment, and what does not end must not hold up those who wait
        with trio.move_on_after(STUCK):
            await self.wait_idle()
        self._stuck.update(self._scopes.values())
        self._over.set()

    async def wait_over(self) -> None:
        """Return when the end is over, whoever brought it about."""
        await self._over.wait()

    async def wait_idle(self) -> None:
        """Return when there is nothing to do, and nothing to take back."""
        while not self._core.idle:
            await self._state_changed.wait()

    async def wait_busy(self) -> None:
        """Return when there is something to do."""
        while self._core.idle:
            await self._state_changed.wait()

    def _handle(self, event: Event | None) -> None:
        if self._closed or self._broken is not None:
            return
        before, now = self._core.changes, trio.current_time()
        if now - self._timer.deadline > STALLED:
            self._tell_stall(now)
        try:
            for command in self._core.handle(event, now):
                self._do(command)
        except Exception as error:  # noqa: BLE001 - told by ``run``, and not by the task that happened to be here
            self._broken = error
            self._timer.cancel()
            return
        due = self._core.next_due()
        if due != self._timer.deadline:  # which costs more to set than to see
            self._timer.deadline = due
        if before != self._core.changes:
            self._tell_changed()
            self._changed()

    def _tell_stall(self, now: float) -> None:
        if self._stalls.take(now) == 0:
            late = now - self._timer.deadline
            self._journal.write("stalled", seconds=f"{late:.1f}", untold=self._stalls.refused or None)
            self._stalls.refused = 0

    def _tell_state(self, name: str, state: str) -> None:
        task = self._core.tasks.get(name)
        if task is None or task.stage in {Stage.PAUSING, Stage.STOPPING}:
            return  # how a cancelled run ends is nobody's news
        now = trio.current_time()
        rate = self._rates.setdefault(name, RateLimit(STATES_BURST, STATES_SECONDS))
        if rate.take(now) == 0:
            self._journal.write("state", task=name, state=state, untold=rate.refused or None)
            rate.refused = 0

    def _do(self, command: Command) -> None:
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
                until = trio.current_time() + self._patience(state.task)
                for shield, run in self._graces.items():
                    if run is scope:
                        shield.deadline = min(shield.deadline, until)
                gone = RunEnded(name, "does not end, though it was cancelled")
                self._nursery.start_soon(self._outwait, state.task, scope, gone)
            case Undo(task):
                scope = self._new_scope(task)
                self._nursery.start_soon(self._undo, task, scope, name=f"undo {task.name}")
                self._nursery.start_soon(self._outwait, task, scope, UndoEnded(task.name))

            case HandOver(task, heir):
                previous, successor = self._actions[task.digest], self._actions[heir.digest]
                assert isinstance(successor, Successor)
                if successor is not previous:  # it is where a plan is changed back before the change was done
                    try:
                        successor.take_over(previous)
                    except Exception as error:  # noqa: BLE001 - as below
                        self.left[task.name] = describe(error)
                        self._journal.write("undo-failed", task=task.name, error=describe(error))

    def _patience(self, task: Task) -> float:
        """Seconds for what should not be broken off, from the cancellation on; the end has to undo it after that."""
        return task.stop_timeout if self._core.ending else max(task.stop_timeout, UNBROKEN)

    def _new_scope(self, task: Task) -> trio.CancelScope:
        """For a run or an undoing that is about to begin; it has no time where the budget of the end is spent."""
        scope = self._scopes[task.name] = trio.CancelScope()
        if self._late:
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
        except Exception as error:  # noqa: BLE001 - whatever a task does, the others and the process go on
            # around the scope: it takes the cancellation out of a group, and what is left of it comes here
            # the action may be gone: a run that was cancelled can end after its task has left
            retry = getattr(self._actions.get(task.digest), "retry_seconds", inf)
            ended = RunEnded(task.name, describe(error), isinstance(error, RegistryRefused), retry)
            bug = not isinstance(error, PidoneError)
        except BaseException:  # the engine itself is cancelled
            self._closed = True
            self._leave(task, scope)
            raise
        current = self._scopes.get(task.name) is scope and not self._late
        at_work = current and self._core.tasks[task.name].stage is Stage.RUNNING
        if ended.error is not None and at_work and scope.cancelled_caught:
            # by nobody but the clock: the core cancels no run that it still counts on
            ended = RunEnded(task.name, f"not done within its timeout of {task.timeout:g} s")
        if ended.error is not None and (at_work or bug):
            self._journal.write("failed", task=task.name, error=ended.error)
        if not self._ends(task, scope, ended):
            return
        state = self._core.tasks.get(task.name)
        if state is not None and state.stage is Stage.FAILED:
            self._journal.write("gave-up", task=task.name, failures=state.streak)

    async def _undo(self, task: Task, scope: trio.CancelScope) -> None:
        scope.deadline = trio.current_time() + task.stop_timeout
        try:
            with scope:
                await self._actions[task.digest].undo(_TaskContext(self, task, scope))
            self.left.pop(task.name, None)
        except Exception as error:  # noqa: BLE001 - as above: what cannot be undone must not stop the rest
            self.left[task.name] = describe(error)
            self._journal.write("undo-failed", task=task.name, error=describe(error))
        except BaseException:  # as above
            self._closed = True
            self._leave(task, scope)
            raise
        if scope.cancelled_caught:
            late = f"{task.stop_timeout:g} s"
            self.left[task.name] = (
                "the pod's end had no time left for it"
                if self._late
                else f"not done within its stopTimeout of {late}"
            )
            self._journal.write("undo-late", task=task.name, stopTimeout=late.replace(" ", ""))
        self._ends(task, scope, UndoEnded(task.name))

    async def _outwait(self, task: Task, scope: trio.CancelScope, gone: RunEnded | UndoEnded) -> None:
        """What does not end is a bug of ours: it is told, and the others go on without it."""
        with trio.move_on_after(task.stop_timeout + STUCK) as patience:
            while self._scopes.get(task.name) is scope:
                await self._state_changed.wait()
        if patience.cancelled_caught:
            self._journal.write("stuck", task=task.name)
            if isinstance(gone, UndoEnded):
                self.left[task.name] = "its undoing does not end, though it was cancelled"
            self._ends(task, scope, gone)
            self._stuck.add(scope)

    def _ends(self, task: Task, scope: trio.CancelScope, event: RunEnded | UndoEnded) -> bool:
        """Tell the core, once for each start: another run may have the name when one that was stuck ends at last."""
        current = self._scopes.get(task.name) is scope
        self._leave(task, scope)
        if current:
            self._handle(event)
        return current

    def _leave(self, task: Task, scope: trio.CancelScope) -> None:
        self._stuck.discard(scope)
        if self._scopes.get(task.name) is scope:
            del self._scopes[task.name]

    def _tell_changed(self) -> None:
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

    def report(self, state: str, reason: str | None = None) -> None:
        if self.state_of(self.task) != state and self._engine._scopes.get(self.task) is self._scope:
            self._engine._tell_state(self.task, state)
            self._engine._handle(StateReported(self.task, state, reason))

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
        with self._shield(self._stop_timeout):
            yield

    @contextmanager
    def unbroken(self) -> Iterator[trio.CancelScope]:
        task = self._engine._core.tasks[self.task].task
        with self._shield(self._engine._patience(task) if self._scope.cancel_called else inf) as scope:
            yield scope

    @contextmanager
    def _shield(self, seconds: float) -> Iterator[trio.CancelScope]:
        seconds = -inf if self._engine._late else seconds
        with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds) as scope:
            self._engine._graces[scope] = self._scope
            try:
                yield scope
            finally:
                del self._engine._graces[scope]

    def retry_delay(self, failures: int, at_most: float) -> float:
        state = self._engine._core.tasks[self.task]
        return self._engine._core.retry_delay(state.task, failures, at_most=at_most)

    def action_of(self, task: str) -> Action | None:
        state = self._engine._core.tasks.get(task)
        return self._engine._actions.get(state.task.digest) if state is not None else None
