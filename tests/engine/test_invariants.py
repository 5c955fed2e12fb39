"""Whatever plans and events come, in whatever order: what the engine promises holds after every step.

Hypothesis chooses the steps, and cuts a sequence that breaks a promise down to the shortest that does. The
rules are stated here a second time, from the outside: over the commands, and over what a reader sees.
PIDONE_TEST_STEPS sets how many steps: 8,000 in ``make test``, 1,000,000 in ``make nightly``.

``Promises`` is about the core alone, with a shell that does what it is told. ``Shell`` is about core and shell
together, with actions that fail, hang, and do not end when they are cancelled.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import combinations
from random import Random

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone import actions
from pidone.actions import Action, Context, Setting
from pidone.counters import Counters
from pidone.engine.core import (
    MIN_START_INTERVAL_SECONDS,
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
)
from pidone.engine.runner import CANCELLATION_TIMEOUT_SECONDS, Engine
from pidone.errors import TaskFailed
from pidone.journal import Journal
from pidone.pacing import Backoff
from pidone.pid1.reaper import Reaper
from pidone.plan.difference import difference
from pidone.plan.digest import digest
from pidone.plan.model import EVENTS, LASTING, Edge, Plan, Pod, Task

STEPS = int(os.environ.get("PIDONE_TEST_STEPS", "8000"))
STEPS_EACH = 50  # in a sequence; life goes on for twelve in some of them

NAMES = "abcdefg"
STATES = (
    "healthy",
    "healthy",
    "healthy",
    "succeeded",
    "failed",
)  # so that edges often hold, and are often lost
EDGES = ("started", "completed", *STATES)
PLANS = 4096  # different ones
BUSY = (Stage.RUNNING, Stage.PAUSING, Stage.STOPPING)

done: Counter[str] = Counter()


@cache
def make_plan(seed: int) -> tuple[Task, ...]:
    """A plan for each number; acyclic, since a task depends only on names before its own."""
    random = Random(seed)
    chosen = [name for name in NAMES if random.random() < 0.6]
    tasks = []
    for index, name in enumerate(chosen):

        def edges(among: list[str], chance: float) -> tuple[Edge, ...]:
            return tuple(Edge(other, random.choice(EDGES)) for other in among if random.random() < chance)

        events = tuple(Edge(*event.split(".")) for event in sorted(EVENTS) if random.random() < 0.15)
        needs, while_ = edges(chosen[:index], 0.15), edges(chosen[:index], 0.25)
        run_on = events + (edges(chosen, 0.2) if random.random() < 0.4 else ())
        every = random.choice([None, None, 0.1, 2.0, 3600.0])
        restart = random.choice(["Always", "OnFailure", "Never"])
        limit = random.choice([None, None, 0, 2])
        backoff = Backoff(random.choice([0.1, 5.0]), 300.0, 2.0, random.choice([0.0, 0.5, 1.0]))
        words = [str(edge) for edge in (*needs, Edge("|", "|"), *while_, Edge("|", "|"), *run_on)]
        content = digest([name, words, every, restart, limit, backoff.initial, backoff.jitter])
        tasks.append(
            Task(
                name, "exec", {}, content, needs, while_, run_on, every,
                restart=restart, backoff=backoff, backoff_limit=limit,
            )
        )  # fmt: skip
    random.shuffle(tasks)  # any order in the file
    return tuple(tasks)


class Promises(RuleBasedStateMachine):
    """A core, what the world around it does, and what was promised."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Core(Random(7))
        self.now = 1000.0
        self.plan: tuple[Task, ...] = ()
        self.running: dict[str, Task] = {}
        self.cancelled: set[str] = set()
        self.undoing: set[str] = set()
        self.holding: set[str] = set()  # what has run, or took over from what had, and is not undone
        self.opened: dict[str, TaskState] = {}  # whose needs held once
        self.started: dict[str, float] = {}
        self.starts: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.sound = True
        self.so_by_now: set[str] = set()  # events of which there is but one
        self.termination_tasks: set[str] | None = None  # from the end on: the tasks that may start, once each

    # The world; each step is a rule, and most take a number that chooses among what there is

    @rule(seed=st.integers(0, 1 << 20))
    def life_goes_on(self, seed: int) -> None:
        """Runs, undoings and time go their way, so that there is something for the other steps to fall into."""
        random = Random(seed)
        for _ in range(12):
            index = random.randrange(64)
            match random.randrange(6):
                case 0:
                    self.an_undoing_ends(index)
                case 1:
                    self.a_cancelled_run_ends(index)
                case 2:
                    self.a_run_ends(index, random.choice([None, None, "no"]), lasting=False)
                case 3:
                    self.the_timer_rings()
                case _:
                    self.a_state_is_reported(index, random.choice(STATES))

    @rule(seed=st.integers(0, PLANS - 1), burst=st.sampled_from([1, 1, 10]), patient=st.booleans())
    def plan_changes(self, seed: int, burst: int, *, patient: bool) -> None:
        for turn in range(burst):
            plan = make_plan((seed + turn) % PLANS)
            if self.termination_tasks is None:
                self.plan = plan
            self.handle(PlanChanged(plan, self.heirs(plan, seed)))
        if patient and self.termination_tasks is None:
            self.settle()

    def heirs(self, plan: tuple[Task, ...], seed: int) -> dict[str, str]:
        """Some of those that leave are followed by their changed form, some by a task of another name."""
        random = Random(seed)
        wanted = {task.name: task.digest for task in plan}
        leaving = [
            name
            for name, state in self.core.tasks.items()
            if state.leaving or wanted.get(name) != state.task.digest
        ]
        heirs = {name: name for name in leaving if name in wanted and random.random() < 0.5}
        free = [name for name in wanted if name not in self.core.tasks]
        for name in leaving:
            if name not in heirs and free and random.random() < 0.3:
                heirs[name] = free.pop()
        return heirs

    @rule()
    def the_same_plan_comes_again(self) -> None:
        self.handle(None)
        assert not difference({task.name: task.digest for task in self.plan}, self.plan).leaving
        assert not difference({task.name: task.digest for task in self.plan}, self.plan).coming
        before = self.core.changes
        assert self.handle(PlanChanged(self.plan, self.core_heirs())) == []
        assert self.core.changes == before

    def core_heirs(self) -> dict[str, str]:
        """As the shell has it, which finds the same heirs again."""
        return {name: heir.name for name, heir in self.core._heirs.items() if name in self.core.tasks}

    @rule(index=st.integers(0, 63), outcome=st.sampled_from([None, None, "no"]), lasting=st.booleans())
    def a_run_ends(self, index: int, outcome: str | None, *, lasting: bool) -> None:
        if self.running:
            self.end(_pick(self.running, index), outcome, lasting=lasting)

    @rule(index=st.integers(0, 63))
    def a_cancelled_run_ends(self, index: int) -> None:
        if self.cancelled:
            self.end(_pick(self.cancelled, index), "cancelled")

    @rule(index=st.integers(0, 63), word=st.sampled_from(["", "started", *STATES]))
    def a_state_is_reported(self, index: int, word: str) -> None:
        if self.running:
            self.handle(StateReported(_pick(self.running, index), word))

    @rule(index=st.integers(0, 63))
    def an_undoing_ends(self, index: int) -> None:
        if self.undoing:
            name = _pick(self.undoing, index)
            self.undoing.remove(name)
            self.handle(UndoEnded(name))

    @rule(seconds=st.sampled_from([0.05, 0.5, 1.0, 10.0, 700.0, 5000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.handle(None)

    @rule()
    def the_timer_rings(self) -> None:
        due = self.core.next_due()
        if due < self.now + 1e6:
            self.now = max(self.now, due)
            self.handle(None)

    @rule(event=st.sampled_from(sorted(EVENTS)))
    def something_happens(self, event: str) -> None:
        listeners = [state for state in self.core.tasks.values() if event in map(str, state.task.run_on)]
        answered = event in self.so_by_now  # by each that is there, once, as it came
        runs = {state.task.name: 0 if answered else state.runs for state in listeners}
        self.so_by_now |= LASTING & {event}
        self.handle(PodEvent(event))
        for state in listeners:
            if not state.leaving and state.stage is not Stage.FAILED and self.termination_tasks is None:
                assert state.pending or state.runs > runs[state.task.name], "an event is not lost"

    @rule(name=st.sampled_from(NAMES))
    def an_event_comes_late(self, name: str) -> None:
        if name not in self.running and name not in self.undoing:
            before = self.core.changes
            self.handle(None)
            between = self.core.changes
            for event in (RunEnded(name, "late"), StateReported(name, "healthy"), UndoEnded(name)):
                assert self.handle(event) == []
            assert self.core.changes == between >= before

    @rule(really=st.integers(0, 29))
    def the_end_comes(self, really: int) -> None:
        if really == 0 and self.termination_tasks is None:
            self.termination_tasks = {
                name
                for name, state in self.core.tasks.items()
                if not state.leaving and "pod.terminating" in map(str, state.task.run_on)
            }
            self.plan = ()
            self.handle(Ending(self.now + 4))

    def teardown(self) -> None:
        """Everything ends: what the last plan wants is all that is there; then nothing is."""
        if not self.sound:
            return
        self.settle()
        assert {state.task.digest for state in self.core.tasks.values()} == {
            task.digest for task in self.plan
        }
        assert len(self.core._timers) <= 65 + 4 * len(NAMES)
        self.handle(Ending(self.now))
        self.termination_tasks, self.plan = set(), ()
        self.settle()
        assert self.core.idle
        assert not self.holding, "what was held was undone"
        assert self.core.next_due() == float("inf")
        assert self.starts == self.ends, "each start has exactly one end"
        done["sequences"] += 1

    def settle(self) -> None:
        if self.termination_tasks is not None:
            self.now += 5
            self.handle(None)
        for _ in range(10 * len(NAMES)):
            for name in sorted(self.undoing):
                self.undoing.remove(name)
                self.handle(UndoEnded(name))
            for name in [name for name in sorted(self.running) if self.core.tasks[name].leaving]:
                if name in self.cancelled:
                    self.end(name, "cancelled")
        assert not self.undoing
        assert not any(state.leaving for state in self.core.tasks.values())

    def end(self, name: str, outcome: str | None, *, lasting: bool = False) -> None:
        del self.running[name]
        self.cancelled.discard(name)
        self.ends[name] += 1
        self.handle(RunEnded(name, outcome, lasting=lasting))

    # The promises

    def handle(self, event: Event | None) -> list[Command]:
        done["steps"] += 1
        self.sound = False  # until the promises were looked at
        before = dict(self.core.tasks)
        commands = self.core.handle(event, self.now)
        gone = [name for name, state in before.items() if self.core.tasks.get(name) is not state]
        handed = {command.task.name: command.heir for command in commands if isinstance(command, HandOver)}
        assert all(
            event == UndoEnded(name) or name not in self.holding for name in gone if name not in handed
        ), "what ran is undone"
        coming = {name for name, state in self.core.tasks.items() if before.get(name) is not state}
        opened = {name: self.opened.pop(name, None) for name in {*coming, *handed}}
        for name, heir in handed.items():
            assert name in gone
            assert self.core.tasks[heir.name].task is heir
            assert heir in self.plan
            if opened[name] is before[name] and set(heir.needs) <= set(before[name].task.needs):
                self.opened[heir.name] = self.core.tasks[heir.name]  # it has begun
        if coming - {heir.name for heir in handed.values()}:
            assert not any(state.leaving for name, state in before.items() if name not in gone), (
                "old before new"
            )
        for command in commands:
            match command:
                case Start(task):
                    self.check_start(task)
                case Cancel(name):
                    assert name in self.running, "what is cancelled runs"
                    assert name not in self.cancelled, "and is cancelled once"
                    self.cancelled.add(name)
                    self.check_order(name)
                case Undo(task):
                    assert task.name not in self.running
                    assert task.name not in self.undoing
                    self.undoing.add(task.name)
                    self.holding.remove(task.name)
                    self.check_order(task.name)
                case HandOver(task, heir):
                    done["handed over"] += 1
                    assert task.name not in self.running
                    assert task.name not in self.undoing
                    self.holding.remove(task.name)
                    assert heir.name not in self.holding, "nothing is lost for another"
                    self.holding.add(heir.name)
        self.check_everything()
        self.sound = True
        return commands

    def check_start(self, task: Task) -> None:
        done["starts"] += 1
        state = self.core.tasks[task.name]
        assert state.task is task
        assert task.name not in self.running, "at most one run at a time"
        assert task.name not in self.undoing
        assert not state.leaving
        assert self.opened.get(task.name) is state or self.hold(task.needs), "no run before its needs"
        assert self.hold(task.while_), "no run without its while"
        assert self.now - self.started.get(task.name, 0.0) >= MIN_START_INTERVAL_SECONDS - 1e-6, (
            "a second between starts"
        )
        if self.termination_tasks is not None:
            assert task.name in self.termination_tasks, "the end starts only termination tasks, each once"
            self.termination_tasks.remove(task.name)
        self.running[task.name] = task
        self.holding.add(task.name)
        self.started[task.name] = self.now
        self.starts[task.name] += 1

    def check_order(self, name: str) -> None:
        if self.core.tasks[name].leaving:
            for state in self.core.tasks.values():
                depends = name in {edge.task for edge in state.task.gates}
                assert not (state.leaving and depends), "who depends on it goes first"

    def check_everything(self) -> None:
        done["checks"] += 1
        for name, state in self.core.tasks.items():
            assert (name in self.running) is (state.stage in BUSY)
            assert (name in self.undoing) is (state.stage is Stage.UNDOING)
            if state.leaving:
                continue
            assert self.termination_tasks is not None or state.task in self.plan
            held = self.hold(state.task.while_)
            if self.hold(state.task.needs):
                self.opened[name] = state
                assert state.stage is not Stage.WAITING, "no task waits for what holds"
            if not held:
                assert state.stage not in {Stage.RUNNING, Stage.DUE, Stage.ARMED}, "none survives its while"
            if held:
                assert state.stage is not Stage.PAUSED, "no task is paused without a reason"
            if self.termination_tasks is None:
                assert not (state.stage is Stage.DUE and state.due <= self.now), "what is due has started"
                assert not (state.stage is Stage.ARMED and state.pending), "what happened is not forgotten"
        assert self.core.next_due() > self.now or self.termination_tasks is not None

    def hold(self, edges: Iterable[Edge]) -> bool:
        return all(map(self.holds, edges))

    def holds(self, edge: Edge) -> bool:
        """As the documentation has it: a state that the task's action reported, unless it is paused or leaves."""
        state = self.core.tasks.get(edge.task)
        if state is None or state.leaving or state.shown == "paused":
            return False
        if edge.state == "started":
            return state.runs > 0
        return state.state in ({"succeeded", "failed"} if edge.state == "completed" else {edge.state})


def _pick(names: Iterable[str], index: int) -> str:
    ordered = sorted(names)
    return ordered[index % len(ordered)]


def test_the_promises_hold_whatever_happens() -> None:
    done.clear()
    while done["steps"] < STEPS:
        size = max(1, min(1000, (STEPS - done["steps"]) // STEPS_EACH))
        run_state_machine_as_test(
            Promises,
            settings=settings(
                max_examples=size,
                stateful_step_count=STEPS_EACH,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    print(dict(done))
    assert done["starts"] > STEPS / 20, "the sequences do something"


def test_a_plan_after_another_is_the_same_as_that_plan_alone() -> None:
    """What runs, and what waits for what, does not depend on the plan before."""
    for first, second in combinations(map(make_plan, range(60)), 2):
        direct, after = Core(Random(1)), Core(Random(1))
        direct.handle(PlanChanged(second), 100.0)
        running = {
            command.task.name
            for command in after.handle(PlanChanged(first), 0.0)
            if isinstance(command, Start)
        }
        commands = after.handle(PlanChanged(second), 90.0)
        while any(state.leaving for state in after.tasks.values()):
            (command, *commands) = commands
            match command:
                case Cancel(name):
                    running.discard(name)
                    commands += after.handle(RunEnded(name, "cancelled"), 90.0)
                case Undo(task):
                    commands += after.handle(UndoEnded(task.name), 90.0)
        assert {name: state.task for name, state in after.tasks.items()} == {
            name: state.task for name, state in direct.tasks.items()
        }
        kept = {task.digest for task in first}
        for name, state in direct.tasks.items():
            if state.task.digest not in kept and state.task.every is None:
                assert after.tasks[name].stage is state.stage


# Core and shell together

BUDGET = 8.0
DEEDS = ("end", "fail", "bug", "hang", "hang", "hang")
PARTINGS = ("at once", "at once", "fail", "slow", "slower", "deaf")  # what a cancelled run or undoing does
SHIELDED = {"slow": 4.0, "slower": 20.0, "deaf": 400.0}  # seconds for which it does not end


class Unruly:
    """An action that does what no action should, at random."""

    def __init__(self, shell: "Shell", task: Task) -> None:
        self.shell, self.task = shell, task

    def succeeds(self, previous: Action) -> bool:
        """As registrations of one instance: some changes of a task leave it what it is, some names share one."""
        assert isinstance(previous, Unruly)
        return self.identity == previous.identity

    @property
    def identity(self) -> int:
        return Random(f"{self.task.name in 'abc'}{self.task.digest[-1] in '01234567'}").randrange(1 << 30)

    def take_over(self, previous: Action) -> None:
        assert isinstance(previous, Unruly)
        done["taken over"] += 1
        self.shell.holding.remove(previous)
        self.shell.holding.add(self)

    async def run(self, context: Context) -> None:
        self.shell.began(self)
        self.shell.holding.add(self)
        await self._act(context, self.shell.random.choice(DEEDS))

    async def undo(self, context: Context) -> None:
        assert self in self.shell.holding, "what holds nothing is not undone"
        self.shell.holding.remove(self)
        await self._act(context, self.shell.random.choice(DEEDS))

    async def _act(self, context: Context, deed: str) -> None:
        random = self.shell.random
        try:
            for _ in range(random.randrange(3)):
                context.report(random.choice(["", *STATES]))
                await trio.sleep(random.choice([0.0, 0.3, 3.0]))
            if deed == "hang":
                await trio.sleep_forever()
        except trio.Cancelled:
            await self._part(context, random.choice(PARTINGS))
            raise
        if deed == "fail":
            raise TaskFailed("no")
        if deed == "bug":
            raise KeyError("bug")

    async def _part(self, context: Context, how: str) -> None:
        context.report("healthy")
        if how in SHIELDED:
            with trio.CancelScope(shield=True):
                await trio.sleep(SHIELDED[how])
            context.report("failed")
        if how != "at once" and self.shell.random.random() < 0.5:
            raise KeyError("bug")


class Shell:
    """A real engine, what is done to it, and what was promised."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.termination_tasks: set[str] | None = None  # from the end on: the tasks that may start, once each
        setting = Setting(Pod("p", "n", "u", "127.0.0.1"), None, Reaper(), Counters(), lambda: ())
        journal = Journal(echo=lambda line: None)
        self.engine = Engine(
            setting,
            journal,
            changed=lambda: None,
            random=Random(seed),
            build=lambda task, _: Unruly(self, task),
        )
        self.starts = 0
        self.holding: set[Unruly] = set()

    def began(self, action: Unruly) -> None:
        self.starts += 1
        if self.termination_tasks is not None:
            assert action.task.name in self.termination_tasks, (
                "the end starts only termination tasks, each once"
            )
            self.termination_tasks.remove(action.task.name)

    async def live(self, steps: list[tuple[str, int]]) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.engine.run)
            for what, number in steps:
                await self.step(what, number, nursery)
                self.check()
            await self.end(nursery)
            nursery.cancel_scope.cancel()

    async def step(self, what: str, number: int, nursery: trio.Nursery) -> None:
        match what:
            case "plan":
                tasks = tuple(self.varied(task) for task in make_plan(number % PLANS))
                self.engine.apply(Plan(digest([task.digest for task in tasks]), tasks))
            case "event":
                self.engine.handle_pod_event(sorted(EVENTS)[number % len(EVENTS)])
            case "time":
                await trio.sleep([0.01, 0.4, 1.5, 5.0, 35.0][number % 5])
            case "end" if number % 4 == 0:
                self.begin_end()
            case "drain" if number % 4 == 0:
                self.begin_end()
                with trio.move_on_after(number % 20):  # who asked for it goes away
                    await self.engine.drain(BUDGET)

    def varied(self, task: Task) -> Task:
        random = Random(task.digest)  # what has the same digest is the same
        return replace(
            task,
            action="probe",
            timeout=random.choice([None, None, 2.0]),
            stop_timeout=random.choice([0.5, 2.0, 60.0]),
        )

    def begin_end(self) -> None:
        if self.termination_tasks is None:
            self.termination_tasks = {
                state.task.name
                for state in self.engine.tasks
                if not state.leaving and "pod.terminating" in map(str, state.task.run_on)
            }
        self.engine.end(BUDGET)

    async def end(self, nursery: trio.Nursery) -> None:
        self.begin_end()
        with trio.fail_after(BUDGET + CANCELLATION_TIMEOUT_SECONDS + 1):
            await self.engine.wait_over()
        await wait_all_tasks_blocked()
        self.check()
        for number in range(4):  # nothing brings it back
            await self.step("plan", number, nursery)
            await self.step("event", number, nursery)
            await trio.sleep(250)
            self.check()
        assert self.engine.idle
        assert not self.engine.stuck
        assert not self.holding, "all was undone, by the task that took it over last"

    def check(self) -> None:
        done["shell checks"] += 1
        engine = self.engine
        assert engine._core_error is None
        busy = {state.task.name for state in engine.tasks if state.stage in {*BUSY, Stage.UNDOING}}
        assert busy == set(engine._scopes), "core and shell agree on what is at work"


def test_core_and_shell_agree_whatever_tasks_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "check_states", lambda tasks: None)  # no action has all the states of PLANS
    done.clear()
    kinds = ["plan", "plan", "time", "time", "time", "time", "event", "end", "drain"]
    for seed in range(max(50, STEPS // 100)):
        random = Random(seed)
        steps = [(random.choice(kinds), random.randrange(1 << 16)) for _ in range(random.randrange(5, 40))]
        shell = Shell(seed)
        try:
            trio.run(shell.live, steps, clock=MockClock(autojump_threshold=0))
        except BaseException as error:
            error.add_note(f"seed {seed}: {steps}")
            raise
        done["starts"] += shell.starts
    print(dict(done))
    assert done["starts"] > STEPS / 50, "the sequences do something"
