"""The shell around the core: real Trio tasks, fake actions, a mock clock."""

import json
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone import actions
from pidone.actions import Context, Setting
from pidone.counters import Counters
from pidone.engine.runner import CANCELLATION_TIMEOUT_SECONDS, Engine
from pidone.errors import Refused, TaskFailed
from pidone.journal import Journal
from pidone.pid1.reaper import Reaper
from pidone.plan.format import decode_plan
from pidone.plan.model import Plan, Pod, Task

Body = Callable[[Context], Awaitable[None]]


class Fake:
    """An action made of two functions; ``log`` is shared by all of a test."""

    def __init__(self, name: str, body: Body, log: list[str], undo: Body | None) -> None:
        self.name, self.body, self.log, self._undo = name, body, log, undo

    async def run(self, context: Context) -> None:
        self.log.append(f"run {self.name}")
        try:
            await self.body(context)
        except trio.Cancelled:
            self.log.append(f"cancelled {self.name}")
            raise

    async def undo(self, context: Context) -> None:
        self.log.append(f"undo {self.name}")
        if self._undo:
            await self._undo(context)


class Prepared(Fake):
    """A fake whose preparation is another function."""

    def __init__(self, fake: Fake, preparation: Callable[[], Awaitable[None]]) -> None:
        super().__init__(fake.name, fake.body, fake.log, fake._undo)
        self._preparation = preparation

    async def prepare(self) -> None:
        self.log.append(f"prepare {self.name}")
        await self._preparation()


class Bench:
    """An engine whose actions are what the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.bodies: dict[str, Body] = {}
        self.undos: dict[str, Body] = {}
        self.preparations: dict[str, Callable[[], Awaitable[None]]] = {}
        self.journal = Journal(echo=lambda line: None)
        self.changes = 0
        setting = Setting(Pod("p", "n", "u", "127.0.0.1"), None, Reaper(), Counters(), lambda: ())
        self.engine = Engine(setting, self.journal, changed=self._changed, random=Random(1))
        monkeypatch.setattr(actions, "build", self._build)

    def _changed(self) -> None:
        self.changes += 1

    def _build(self, task: Task, setting: Setting) -> Fake:
        if task.config.get("unbuildable"):
            raise Refused(f'task "{task.name}": cannot be built')
        fake = Fake(task.name, self.bodies.get(task.name, sleep), self.log, self.undos.get(task.name))
        preparation = self.preparations.get(task.name)
        return fake if preparation is None else Prepared(fake, preparation)

    def state(self, name: str) -> Any:
        return next(state for state in self.engine.tasks if state.task.name == name)


async def sleep(context: Context) -> None:
    context.report("healthy")
    await trio.sleep_forever()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


def plan(*tasks: dict[str, Any]) -> Plan:
    once = {"probe": {}, "restartPolicy": "OnFailure"}
    return decode_plan([once | task for task in tasks], ["probe"])


async def test_a_task_that_raises_hangs_or_floods_does_not_touch_the_others(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def fail(context: Context) -> None:
        raise ZeroDivisionError("a bug")

    async def flood(context: Context) -> None:
        for turn in range(1000):
            context.report(str(turn % 2))
            await trio.lowlevel.checkpoint()

    ticks: list[float] = []

    async def tick(context: Context) -> None:
        ticks.append(trio.current_time())

    async def memory(context: Context) -> None:
        raise MemoryError

    bench.bodies = {"fail": fail, "flood": flood, "tick": tick, "memory": memory}
    await nursery.start(bench.engine.run)
    bench.engine.apply(
        plan(
            {"name": "fail"}, {"name": "flood"}, {"name": "hang"}, {"name": "memory"},
            {"name": "tick", "every": 1, "restartPolicy": "Always"},
        )
    )  # fmt: skip
    await trio.sleep(60.5)
    assert 59 <= len(ticks) <= 70
    assert bench.state("fail").failures > 3
    assert bench.state("fail").error == "ZeroDivisionError: a bug"
    assert bench.state("hang").state == "healthy"
    assert any("a bug" in line for line in bench.journal.lines)
    nursery.cancel_scope.cancel()


async def test_an_action_is_prepared_once_before_its_needs_hold(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def fail() -> None:
        raise ZeroDivisionError("a bug")

    async def slow(context: Context) -> None:
        await trio.sleep(10)
        context.report("healthy")
        await trio.sleep_forever()

    bench.bodies = {"ready": slow}
    bench.preparations = {"web": trio.lowlevel.checkpoint, "bug": fail, "hang": trio.sleep_forever}
    tasks: list[dict[str, Any]] = [{"name": "ready"}]
    tasks += ({"name": name, "needs": ["ready.healthy"]} for name in bench.preparations)
    await nursery.start(bench.engine.run)
    bench.engine.apply(plan(*tasks))
    await trio.sleep(5)
    assert sorted(bench.log) == ["prepare bug", "prepare hang", "prepare web", "run ready"]
    assert any("event=prepare-failed" in line and "a bug" in line for line in bench.journal.lines)
    bench.engine.apply(plan(*tasks, {"name": "new"}))
    await trio.sleep(10)
    assert sorted(bench.log[4:]) == ["run bug", "run hang", "run new", "run web"]
    nursery.cancel_scope.cancel()


async def test_a_run_longer_than_its_timeout_is_ended_and_counts_as_failed(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(bench.engine.run)
    bench.engine.apply(plan({"name": "slow", "timeout": 5, "backoffLimit": 0}))
    await trio.sleep(6)
    assert bench.state("slow").error == "not done within its timeout of 5 s"
    assert bench.log == ["run slow", "cancelled slow"]
    nursery.cancel_scope.cancel()


async def test_a_plan_that_cannot_be_built_changes_nothing(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(bench.engine.run)
    bench.engine.apply(plan({"name": "a"}))
    await wait_all_tasks_blocked()
    with pytest.raises(Refused, match="cannot be built"):
        bench.engine.apply(plan({"name": "b"}, {"name": "c", "probe": {"unbuildable": True}}))
    await trio.sleep(10)
    assert bench.log == ["run a"]
    assert [state.task.name for state in bench.engine.tasks] == ["a"]
    nursery.cancel_scope.cancel()


async def test_teardown_is_in_reverse_and_an_undo_that_hangs_is_cut_off(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def hang(context: Context) -> None:
        await trio.sleep_forever()

    async def fail(context: Context) -> None:
        raise TaskFailed("the registry is away")

    bench.undos = {"b": hang, "c": fail}
    await nursery.start(bench.engine.run)
    bench.engine.apply(
        plan(
            {"name": "a"},
            {"name": "b", "needs": ["a.healthy"], "stopTimeout": 3},
            {"name": "c", "needs": ["b.healthy"]},
        )
    )
    await wait_all_tasks_blocked()
    began = trio.current_time()
    await bench.engine.drain(8)
    assert trio.current_time() - began == pytest.approx(3)
    assert bench.log[3:] == ["cancelled c", "undo c", "cancelled b", "undo b", "cancelled a", "undo a"]
    assert any("the registry is away" in line for line in bench.journal.lines)
    assert any("undo-late" in line for line in bench.journal.lines)
    assert bench.engine.left == {"b": "not done within its stopTimeout of 3 s", "c": "the registry is away"}
    nursery.cancel_scope.cancel()


async def test_the_end_has_one_budget_for_all(bench: Bench, autojump_clock: MockClock) -> None:
    async def hang(context: Context) -> None:
        await trio.sleep_forever()

    bench.undos = {"a": hang, "b": hang}
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.engine.run)
        bench.engine.apply(
            plan({"name": "a", "stopTimeout": 60}, {"name": "b", "needs": ["a.healthy"], "stopTimeout": 60})
        )
        await wait_all_tasks_blocked()
        began = trio.current_time()
        await bench.engine.drain(8)
        assert trio.current_time() - began == pytest.approx(8)
        nursery.cancel_scope.cancel()
    assert any("teardown-late" in line and "tasks=a,b" in line for line in bench.journal.lines)


async def test_a_task_sees_the_changes_of_another(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    seen: list[str] = []

    async def flip(context: Context) -> None:
        for word in ("healthy", "unhealthy", "healthy"):
            context.report(word)
            await trio.sleep(1)
        await trio.sleep_forever()

    async def watch(context: Context) -> None:
        state = context.state_of("flip")
        while True:
            seen.append(state)
            state = await context.state_change("flip", state)

    bench.bodies = {"flip": flip, "watch": watch}
    await nursery.start(bench.engine.run)
    bench.engine.apply(plan({"name": "flip"}, {"name": "watch", "needs": ["flip.healthy"]}))
    await trio.sleep(5)
    assert seen == ["healthy", "unhealthy", "healthy"]
    nursery.cancel_scope.cancel()


async def test_an_idle_engine_does_nothing(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0
    handle = bench.engine._core.handle

    def counted(event: Any, now: float) -> Any:
        nonlocal turns
        turns += 1
        return handle(event, now)

    monkeypatch.setattr(bench.engine._core, "handle", counted)
    await nursery.start(bench.engine.run)
    bench.engine.apply(plan({"name": "a"}, {"name": "b", "every": 100, "restartPolicy": "Always"}))
    await trio.sleep(3600)
    assert turns < 10
    nursery.cancel_scope.cancel()


async def test_a_paused_task_is_cancelled_and_begun_again(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def flip(context: Context) -> None:
        for word in ("healthy", "unhealthy", "healthy"):
            context.report(word)
            await trio.sleep(10)
        await trio.sleep_forever()

    bench.bodies = {"flip": flip}
    await nursery.start(bench.engine.run)
    bench.engine.apply(plan({"name": "flip"}, {"name": "a", "while": ["flip.healthy"]}))
    await trio.sleep(15)
    assert bench.log == ["run flip", "run a", "cancelled a"]
    assert bench.state("a").shown == "paused"
    assert any("event=paused task=a waits=" in line and "unhealthy" in line for line in bench.journal.lines)
    await trio.sleep(10)
    assert bench.log[3:] == ["run a"]
    assert bench.state("a").failures == 0
    nursery.cancel_scope.cancel()


async def test_the_end_runs_termination_tasks_first_and_only_once(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def flush(context: Context) -> None:
        await trio.sleep(1)

    bench.bodies = {"bye": flush}
    await nursery.start(bench.engine.run)
    bench.engine.apply(plan({"name": "a"}, {"name": "bye", "runOn": ["pod.terminating"]}))
    await wait_all_tasks_blocked()
    bench.engine.end(8)
    assert bench.engine.ending
    bench.engine.end(8)
    bench.engine.apply(plan({"name": "late"}))
    await bench.engine.drain(8)
    assert bench.log[:2] == ["run a", "run bye"]
    assert sorted(bench.log[2:]) == ["cancelled a", "undo a", "undo bye"]
    assert bench.engine.idle
    nursery.cancel_scope.cancel()


async def test_a_termination_task_that_hangs_has_half_of_the_budget(
    bench: Bench, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.engine.run)
        bench.engine.apply(plan({"name": "a"}, {"name": "bye", "runOn": ["pod.terminating"]}))
        await wait_all_tasks_blocked()
        began = trio.current_time()
        await bench.engine.drain(8)
        assert trio.current_time() - began == pytest.approx(4)
        assert "undo a" in bench.log
        nursery.cancel_scope.cancel()


async def test_a_grace_is_as_long_as_the_stop_timeout_and_ends_with_the_budget(
    bench: Bench, autojump_clock: MockClock
) -> None:
    took: dict[str, float] = {}

    def cleaning(name: str) -> Body:
        async def body(context: Context) -> None:
            try:
                await trio.sleep_forever()
            finally:
                began = trio.current_time()
                with context.grace():
                    await trio.sleep_forever()
                took[name] = trio.current_time() - began

        return body

    bench.bodies = {name: cleaning(name) for name in ("short", "long", "after")}
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.engine.run)
        bench.engine.apply(
            plan(
                {"name": "after", "stopTimeout": 50},
                {"name": "short", "stopTimeout": 3},
                {"name": "long", "stopTimeout": 50, "needs": ["after.started"]},
            )
        )
        await wait_all_tasks_blocked()
        await bench.engine.drain(8)
        nursery.cancel_scope.cancel()
    assert took == pytest.approx({"short": 3, "long": 8, "after": 0}), (
        "after is cancelled when nothing is left"
    )


async def test_what_a_task_raises_while_it_is_cancelled_does_not_end_the_engine(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def raises_at_the_end(context: Context) -> None:
        async with trio.open_nursery() as inner:
            inner.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ZeroDivisionError

    bench.bodies = {"a": raises_at_the_end}
    await nursery.start(bench.engine.run)
    bench.engine.apply(plan({"name": "a", "timeout": 5, "backoffLimit": 0}, {"name": "b"}))
    await trio.sleep(6)
    assert bench.state("a").shown == "failed"
    assert any("event=gave-up task=a failures=1" in line for line in bench.journal.lines)
    assert bench.state("b").state == "healthy"
    bench.engine.apply(plan({"name": "c"}))
    await wait_all_tasks_blocked()
    assert [state.task.name for state in bench.engine.tasks] == ["c"]
    nursery.cancel_scope.cancel()


async def test_events_reach_the_tasks_that_run_on_them(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def once(context: Context) -> None:
        pass

    bench.bodies = {"a": once}
    await nursery.start(bench.engine.run)
    bench.engine.apply(plan({"name": "a", "runOn": ["signal.SIGHUP"]}))
    assert bench.engine.handle_pod_event("signal.SIGHUP")
    assert not bench.engine.handle_pod_event("pod.terminating"), "nobody runs on it"
    await wait_all_tasks_blocked()
    assert bench.log == ["run a"]
    nursery.cancel_scope.cancel()


async def test_a_state_that_its_task_never_has_is_refused(bench: Bench, nursery: trio.Nursery) -> None:
    await nursery.start(bench.engine.run)
    for edge in ("needs", "while", "runOn"):
        with pytest.raises(Refused) as refused:
            bench.engine.apply(plan({"name": "a"}, {"name": "b", edge: ["a.registered"]}))
        assert str(refused.value) == (
            'task "b" waits for "a.registered", and a probe is never registered; '
            "it has started, healthy, unhealthy"
        )
    assert not list(bench.engine.tasks)
    nursery.cancel_scope.cancel()


def test_every_state_of_an_action_is_classified_in_its_schema() -> None:
    """A state that the schema does not have is neither good nor bad for a rollout, and no case can expect it."""
    schema = json.loads((Path(__file__).parents[2] / "schema/taskset.v1alpha1.schema.json").read_text())
    for name in actions.names():
        states = import_module(f"pidone.actions.{name}").STATES
        assert set(states) == set(schema["definitions"][name]["x-pidone-states"]), name


async def test_a_task_whose_state_flaps_does_not_fill_the_journal(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def flap(context: Context) -> None:
        for turn in range(1000):
            context.report("healthy" if turn % 2 else "unhealthy")
        await trio.sleep(60)
        context.report("unhealthy")
        await trio.sleep_forever()

    bench.bodies = {"a": flap}
    await nursery.start(bench.engine.run)
    bench.engine.apply(plan({"name": "a"}))
    await trio.sleep(61)
    lines = [line for line in bench.journal.lines if "event=state" in line]
    assert len(lines) == 21
    assert lines[-1].endswith("task=a state=unhealthy untold=980")
    nursery.cancel_scope.cancel()


async def deaf(context: Context) -> None:
    """What no action may do: not to end when it is cancelled."""
    context.report("healthy")
    with trio.CancelScope(shield=True):
        await trio.sleep(1000)
    context.report("unhealthy")


async def test_a_run_that_does_not_end_is_logged_and_given_up(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    bench.bodies, bench.undos = {"run": deaf}, {"undo": deaf}
    await nursery.start(bench.engine.run)
    bench.engine.apply(plan({"name": "run"}, {"name": "undo"}))
    await wait_all_tasks_blocked()
    bench.bodies = {}
    began = trio.current_time()
    bench.engine.apply(plan({"name": "run", "timeout": 3600}, {"name": "new"}))
    while not any(state.task.name == "new" for state in bench.engine.tasks):
        await trio.sleep(0.1)
    assert trio.current_time() - began == pytest.approx(2 + CANCELLATION_TIMEOUT_SECONDS, abs=0.2)
    told = [line.split()[2] for line in bench.journal.lines if "event=stuck" in line]
    assert sorted(told) == ["task=run", "task=undo"]
    assert bench.engine.stuck
    await trio.sleep(1001)  # its successor has its name, and not its end and its states
    assert not bench.engine.stuck
    assert (bench.state("run").runs, bench.state("run").state) == (1, "healthy")
    nursery.cancel_scope.cancel()


async def test_a_teardown_is_over_in_time_whatever_does_not_end(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    bench.bodies = {"a": deaf}
    await nursery.start(bench.engine.run)
    bench.engine.apply(plan({"name": "a", "stopTimeout": 60}, {"name": "b", "needs": ["a.healthy"]}))
    await wait_all_tasks_blocked()
    began = trio.current_time()
    await bench.engine.drain(8)
    assert trio.current_time() - began == pytest.approx(8 + CANCELLATION_TIMEOUT_SECONDS)
    assert bench.engine.stuck
    assert "undo b" in bench.log
    nursery.cancel_scope.cancel()


class Holder(Fake):
    """Holds what its configuration names, from its first run until it is undone."""

    def __init__(self, name: str, held: str, bench: Bench) -> None:
        super().__init__(name, bench.bodies.get(name, sleep), bench.log, bench.undos.get(name))
        self.held = held

    def succeeds(self, previous: actions.Action) -> bool:
        return isinstance(previous, Holder) and previous.held == self.held

    def take_over(self, previous: actions.Action) -> None:
        if self.held == "trouble":
            raise ZeroDivisionError("a bug")
        assert isinstance(previous, Holder)
        self.log.append(f"{self.name} takes over from {previous.name}")


@pytest.fixture
async def holding(bench: Bench, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Bench:
    def build(task: Task, setting: Setting) -> actions.Action:
        return Holder(task.name, task.config.get("held", task.name), bench)

    monkeypatch.setattr(actions, "build", build)
    await nursery.start(bench.engine.run)
    return bench


async def test_what_a_task_holds_passes_to_its_changed_form(
    holding: Bench, autojump_clock: MockClock
) -> None:
    bench = holding
    bench.engine.apply(plan({"name": "a"}, {"name": "b"}))
    await trio.sleep(2)
    bench.engine.apply(plan({"name": "a", "stopTimeout": 7}, {"name": "b", "probe": {"held": "other"}}))
    await trio.sleep(0.1)
    assert sorted(bench.log[:2]) == ["run a", "run b"]
    assert [line for line in bench.log[2:] if line.endswith("a")] == [
        "cancelled a",
        "a takes over from a",
        "run a",
    ]
    assert [line for line in bench.log[2:] if line.endswith("b")] == ["cancelled b", "undo b", "run b"]


async def test_what_a_task_holds_passes_to_a_task_of_another_name(
    holding: Bench, autojump_clock: MockClock
) -> None:
    bench = holding
    bench.engine.apply(plan({"name": "a", "probe": {"held": "x"}}, {"name": "b", "probe": {"held": "x"}}))
    await trio.sleep(2)
    bench.engine.apply(plan({"name": "c", "probe": {"held": "x"}}))
    await trio.sleep(0.1)
    log = sorted(bench.log[2:])
    assert log == ["c takes over from a", "cancelled a", "cancelled b", "run c", "undo b"]


async def test_a_plan_that_is_changed_back_meanwhile_undoes_nothing(
    holding: Bench, autojump_clock: MockClock
) -> None:
    bench = holding

    async def slow(context: Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(5)

    bench.bodies = {"a": slow}
    bench.engine.apply(plan({"name": "a"}))
    await trio.sleep(2)
    bench.engine.apply(plan({"name": "a", "stopTimeout": 7}))
    await trio.sleep(1)
    bench.engine.apply(plan({"name": "a"}))
    await trio.sleep(6)
    assert bench.log == ["run a", "cancelled a", "run a"]


async def test_a_hand_over_that_fails_is_reported_and_stops_nothing(
    holding: Bench, autojump_clock: MockClock
) -> None:
    bench = holding
    bench.engine.apply(plan({"name": "a", "probe": {"held": "trouble"}}))
    await trio.sleep(2)
    bench.engine.apply(plan({"name": "a", "probe": {"held": "trouble"}, "stopTimeout": 7}))
    await trio.sleep(2)
    assert bench.log == ["run a", "cancelled a", "run a"]
    assert bench.engine.left == {"a": "ZeroDivisionError: a bug"}


@pytest.mark.parametrize("shielded", [9, 20, 36])
async def test_an_undoing_that_outlasts_the_budget_ends_nothing_but_itself(
    bench: Bench, nursery: trio.Nursery, shielded: float, autojump_clock: MockClock
) -> None:
    async def late(context: Context) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(shielded)

    bench.undos = {"web": late}
    await nursery.start(bench.engine.run)
    bench.engine.apply(plan({"name": "ready"}, {"name": "web", "needs": ["ready.healthy"]}))
    await wait_all_tasks_blocked()
    await bench.engine.drain(8)
    await trio.sleep(100)
    bench.engine.apply(plan({"name": "ready"}))  # the engine is there, and accepts no plan any more
    assert bench.engine.ending
    assert bench.engine.idle
    assert bench.log[2:] == ["cancelled web", "undo web", "cancelled ready", "undo ready"]
    nursery.cancel_scope.cancel()


async def test_an_engine_that_is_cancelled_amid_an_undoing_does_not_fail(
    bench: Bench, autojump_clock: MockClock
) -> None:
    async def late(context: Context) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(20)

    bench.undos = {"web": late}
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.engine.run)
        bench.engine.apply(plan({"name": "ready"}, {"name": "web", "needs": ["ready.healthy"]}))
        await wait_all_tasks_blocked()
        bench.engine.end(8)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert bench.log[2:] == ["cancelled web", "undo web", "cancelled ready"]


async def test_a_bug_that_shows_itself_while_its_task_leaves_is_told_as_well(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    def leaving(error: Exception) -> Body:
        async def body(context: Context) -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise error

        return body

    bench.bodies = {"bug": leaving(ZeroDivisionError("a bug")), "late": leaving(TaskFailed("cut off"))}
    await nursery.start(bench.engine.run)
    bench.engine.apply(plan({"name": "bug"}, {"name": "late"}))
    await wait_all_tasks_blocked()
    bench.engine.apply(plan())
    await bench.engine.wait_idle()
    told = [line for line in bench.journal.lines if "event=failed" in line]
    assert len(told) == 1, "what failed because it was cut off is nobody's news"
    assert told[0].endswith('task=bug error="ZeroDivisionError: a bug"')
    nursery.cancel_scope.cancel()


async def test_who_does_not_give_the_thread_back_is_told_and_what_it_held_up_goes_on(
    bench: Bench, nursery: trio.Nursery
) -> None:
    ticks: list[float] = []

    async def tick(context: Context) -> None:
        ticks.append(trio.current_time())

    async def block(context: Context) -> None:
        time.sleep(2.5)  # noqa: ASYNC251 - what no action may do

    bench.bodies = {"tick": tick, "block": block}
    await nursery.start(bench.engine.run)
    bench.engine.apply(plan({"name": "tick", "every": 1}, {"name": "block", "runOn": ["signal.SIGHUP"]}))
    while len(ticks) < 2:
        await bench.engine._state_changed.wait()
    assert bench.engine.handle_pod_event("signal.SIGHUP")
    while len(ticks) < 4:
        await bench.engine._state_changed.wait()
    gaps = [after - before for before, after in pairwise(ticks)]
    assert max(gaps) > 2
    assert min(gaps) > 0.99, "what was missed is not made up for"
    stalls = [line.rpartition("=")[2] for line in bench.journal.lines if "event=stalled" in line]
    assert max(map(float, stalls)) > 1
    nursery.cancel_scope.cancel()
