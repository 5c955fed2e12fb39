"""Registration and heartbeat on the real engine, with a registry that is what the test says and a mock clock."""

from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone import actions
from pidone.actions import Action, Context, Setting, probe, register
from pidone.counters import Counters
from pidone.engine.runner import Engine
from pidone.errors import PidoneError, RegistryError, RegistryRefused, TransferError
from pidone.http.message import Response
from pidone.journal import Journal
from pidone.pid1.reaper import Reaper
from pidone.plan.fields import Fields
from pidone.plan.format import decode_plan
from pidone.plan.model import Pod, Task
from pidone.registries import Registry, Status


class FakeRegistry:
    """Remembers what was called and when. ``takes`` seconds a call; ``trouble`` is raised by those it names."""

    where, instance = "http://registry/", "web"

    def __init__(self, called: Callable[[], None]) -> None:
        self.calls: list[str] = []
        self.times: list[float] = []
        self.takes = 0.0
        self.trouble: dict[str, PidoneError] = {}
        self.known = False
        self.shown: str | None = None  # the status of an operator's override
        self.overlapped = False
        self._busy = False
        self._called = called

    async def register(self, status: Status) -> str:
        await self._call("register", str(status))
        self.known = True
        return self.shown or status

    async def heartbeat(self) -> bool:
        await self._call("heartbeat")
        return self.known

    async def deregister(self) -> None:
        await self._call("deregister")
        self.known = False

    async def _call(self, name: str, word: str = "") -> None:
        self.calls.append(word or name)
        self.times.append(trio.current_time())
        self.overlapped |= self._busy
        self._busy = True
        self._called()
        await trio.sleep(self.takes)
        self._busy = False
        if name in self.trouble:
            raise self.trouble[name]


class ScriptedProbe:
    """Is in the state that the test says."""

    def __init__(self) -> None:
        self.state = "healthy"
        self._changed = trio.Event()

    def say(self, state: str) -> None:
        self.state = state
        self._changed.set()

    async def run(self, context: Context) -> None:
        while True:
            if self.state:
                context.report(self.state)
            self._changed = trio.Event()
            await self._changed.wait()

    async def undo(self, context: Context) -> None:
        pass


class Bench:
    """An engine with a probe ``ready``, a registration ``web`` that follows it, and a heartbeat ``beat``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._moved = trio.Event()
        self.registry = FakeRegistry(self._move)
        self.ready = ScriptedProbe()
        self.real_probe = False
        self.journal = Journal(echo=lambda line: None)
        setting = Setting(Pod("p", "n", "u", "127.0.0.1"), None, Reaper(), Counters(), lambda: ())
        self.engine = Engine(setting, self.journal, changed=self._move, random=Random(1))
        build = actions.build

        def build_action(task: Task, setting: Setting) -> Action:
            return self.ready if task.action == "probe" and not self.real_probe else build(task, setting)

        def build_registry(fields: Fields, pod: Pod, source: str | None) -> Registry:
            fields.object("fake")
            return self.registry

        monkeypatch.setattr(actions, "build", build_action)
        monkeypatch.setattr(register, "build_registry", build_registry)

    def apply(self, *, period: int = 10, backoff: int = 10, **ready: Any) -> None:
        tasks = [
            {"name": "ready", "probe": {"tcpSocket": {"port": 1}} | ready},
            {
                "name": "web",
                "register": {"fake": {}, "follow": "ready"},
                "needs": ["ready.healthy"],
                "backoff": {"initial": 1, "max": backoff},
            },
            {"name": "beat", "heartbeat": {"of": "web"}, "every": period, "needs": ["web.registered"]},
        ]
        self.engine.apply(decode_plan(tasks, actions.names()))

    def state(self, name: str) -> str:
        return next(state.shown for state in self.engine.tasks if state.task.name == name)

    async def when(self, done: Callable[[], bool]) -> None:
        """Wait until this holds; it is looked at after every call and every change of state."""
        with trio.fail_after(10_000):
            while not done():
                self._moved = trio.Event()
                await self._moved.wait()

    def _move(self) -> None:
        self._moved.set()

    def forget_calls(self) -> None:
        self.registry.calls.clear()
        self.registry.times.clear()

    def said(self, text: str) -> bool:
        return any(text in line for line in self.journal.lines)


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery) -> Bench:
    bench = Bench(monkeypatch)
    await nursery.start(bench.engine.run)
    return bench


async def test_registered_kept_alive_and_taken_out(bench: Bench, autojump_clock: MockClock) -> None:
    bench.apply()
    await trio.sleep(65)
    await bench.engine.drain(8)
    calls = bench.registry.calls
    assert (calls[0], calls[-1]) == ("UP", "deregister")
    assert set(calls[1:-1]) == {"heartbeat"}
    beats = bench.registry.times[1:-1]
    gaps = [later - earlier for earlier, later in pairwise(beats)]
    assert all(9 <= gap <= 10 for gap in gaps)  # shortened by a tenth at most, never longer
    assert len(beats) >= 6
    assert beats[0] <= 10


async def test_it_waits_for_the_probe_and_then_follows_it(bench: Bench, autojump_clock: MockClock) -> None:
    bench.ready.say("unhealthy")
    bench.apply(period=1000)
    await trio.sleep(30)
    assert bench.registry.calls == []
    for state, calls in (
        ("healthy", ["UP"]),
        ("unhealthy", ["DOWN"]),
        ("unhealthy", []),
        ("healthy", ["UP"]),
    ):
        bench.forget_calls()
        bench.ready.say(state)
        await trio.sleep(5)
        assert bench.registry.calls == calls
        assert bench.state("web") == "registered"


async def test_a_registration_that_follows_nothing_is_up(bench: Bench, autojump_clock: MockClock) -> None:
    bench.engine.apply(decode_plan([{"name": "web", "register": {"fake": {}}}], actions.names()))
    await trio.sleep(60)
    assert bench.registry.calls == ["UP"]


async def test_without_a_first_answer_of_the_probe_it_is_starting(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.ready.state = ""
    tasks = [{"name": "ready", "probe": {}}, {"name": "web", "register": {"fake": {}, "follow": "ready"}}]
    bench.engine.apply(decode_plan(tasks, actions.names()))
    await trio.sleep(60)
    bench.ready.say("healthy")
    await trio.sleep(1)
    assert bench.registry.calls == ["STARTING", "UP"]


async def test_calls_never_overlap_whatever_comes_together(bench: Bench, autojump_clock: MockClock) -> None:
    bench.registry.takes = 3
    bench.apply(period=5)
    random = Random(7)
    for _ in range(200):
        bench.ready.say(random.choice(["healthy", "unhealthy"]))
        bench.registry.known = random.random() < 0.7
        await trio.sleep(4 * random.random())
    await bench.engine.drain(8)
    calls = bench.registry.calls
    assert not bench.registry.overlapped
    assert {"UP", "DOWN", "heartbeat"} <= set(calls)
    assert calls.count("deregister") == 1
    assert calls[-1] == "deregister"


@pytest.mark.parametrize("call", ["UP", "DOWN", "heartbeat"])
async def test_teardown_waits_for_the_call_in_flight_begins_no_other_and_deregisters_once(
    bench: Bench, call: str, autojump_clock: MockClock
) -> None:
    bench.registry.takes = 4
    bench.apply(period=5)
    if call == "DOWN":
        await bench.when(lambda: bench.state("web") == "registered")
        bench.ready.say("unhealthy")
    await bench.when(lambda: call in bench.registry.calls)
    bench.ready.say("healthy" if call == "DOWN" else "unhealthy")  # would be told next
    await wait_all_tasks_blocked()
    bench.forget_calls()
    began = trio.current_time()
    bench.registry.takes = 1
    await bench.engine.drain(8)
    assert bench.registry.calls == ["deregister"]
    assert began + 3 < bench.registry.times[0] <= began + 4  # what was in flight has ended
    assert not bench.registry.overlapped
    await trio.sleep(100)
    assert bench.registry.calls == ["deregister"]  # nobody comes back


async def test_a_probe_that_hangs_does_not_cost_the_lease(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    answers = iter([Response(200)])

    async def once_then_hang(*args: object, timeout: float, **options: object) -> Response:
        for answer in answers:
            return answer
        await trio.sleep(timeout)
        raise TransferError("silent")

    monkeypatch.setattr(probe, "request", once_then_hang)
    bench.real_probe = True
    tasks = [
        {"name": "ready", "probe": {"httpGet": {"port": 1}, "timeoutSeconds": 60, "failureThreshold": 10}},
        {"name": "web", "register": {"fake": {}, "follow": "ready"}, "needs": ["ready.healthy"]},
        {"name": "beat", "heartbeat": {"of": "web"}, "every": 10, "needs": ["web.registered"]},
    ]
    bench.engine.apply(decode_plan(tasks, actions.names()))
    await trio.sleep(200)
    assert bench.registry.calls.count("heartbeat") >= 19


async def test_a_forgotten_registration_is_made_again_in_the_same_beat(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.apply()
    await bench.when(lambda: "heartbeat" in bench.registry.calls)
    await wait_all_tasks_blocked()
    bench.registry.known = False
    bench.forget_calls()
    await bench.when(lambda: len(bench.registry.calls) == 2)
    assert bench.registry.calls == ["heartbeat", "UP"]
    assert bench.registry.times[0] == bench.registry.times[1]
    await wait_all_tasks_blocked()
    assert (bench.state("web"), bench.state("beat")) == ("registered", "started")
    assert bench.said("state=lost")


async def test_the_status_at_the_time_is_told_to_a_registry_that_forgot(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.apply()
    await bench.when(lambda: bench.state("web") == "registered")
    bench.ready.say("unhealthy")
    await bench.when(lambda: "DOWN" in bench.registry.calls)
    await wait_all_tasks_blocked()
    bench.registry.known = False
    bench.forget_calls()
    await bench.when(lambda: len(bench.registry.calls) == 2)
    assert bench.registry.calls == ["heartbeat", "DOWN"]


async def test_heartbeats_that_fail_take_nothing_back(bench: Bench, autojump_clock: MockClock) -> None:
    bench.apply()
    await bench.when(lambda: "heartbeat" in bench.registry.calls)
    bench.registry.trouble["heartbeat"] = TransferError("PUT: Connection refused")
    bench.forget_calls()
    await trio.sleep(600)
    assert set(bench.registry.calls) == {"heartbeat"}
    assert (bench.state("web"), bench.state("beat")) == ("registered", "failing")
    beat = next(state for state in bench.engine.tasks if state.task.name == "beat")
    assert beat.error == "PUT: Connection refused"
    gaps = [b - a for a, b in pairwise(bench.registry.times)]
    assert min(gaps) >= 1
    assert max(gaps) <= 10  # the next beat at the latest: a lease may still be saved
    del bench.registry.trouble["heartbeat"]
    await trio.sleep(11)
    assert bench.state("beat") == "started"


async def test_a_change_during_an_absence_of_the_registry_is_told_after_it(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.apply()
    await bench.when(lambda: "heartbeat" in bench.registry.calls)
    bench.registry.trouble = dict.fromkeys(("heartbeat", "register"), TransferError("nobody there"))
    bench.ready.say("unhealthy")
    await trio.sleep(60)
    bench.registry.trouble.clear()
    bench.forget_calls()
    await trio.sleep(11)
    assert "DOWN" in bench.registry.calls
    assert "UP" not in bench.registry.calls
    assert "deregister" not in bench.registry.calls


async def test_a_registry_that_is_away_is_asked_again_with_growing_pauses_up_to_the_cap(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.registry.trouble["register"] = RegistryError("answered 503")
    bench.apply(backoff=20)
    await trio.sleep(600)
    times = bench.registry.times
    gaps = [b - a for a, b in pairwise(times)]
    assert min(gaps) >= 1
    assert max(gaps) <= 20
    assert 600 / 20 < len(gaps) < 120
    assert "heartbeat" not in bench.registry.calls
    bench.registry.trouble.clear()
    await trio.sleep(20)
    assert bench.state("web") == "registered"


async def test_a_refusal_is_tried_again_at_the_cap_only(bench: Bench, autojump_clock: MockClock) -> None:
    bench.registry.trouble["register"] = RegistryRefused("answered 401: it wants a user")
    bench.apply(backoff=100)
    await trio.sleep(350)
    assert bench.registry.times == pytest.approx([0, 100, 200, 300])
    assert bench.said("it wants a user")


async def test_a_registration_that_never_succeeded_is_taken_out_as_well(
    bench: Bench, autojump_clock: MockClock
) -> None:
    # the answer was lost; what the registry made of the question is not known
    bench.registry.trouble["register"] = TransferError("no answer within 5 s")
    bench.apply()
    await trio.sleep(5)
    bench.forget_calls()
    await bench.engine.drain(8)
    assert bench.registry.calls == ["deregister"]


async def test_nothing_is_taken_out_that_was_never_asked_for(bench: Bench, autojump_clock: MockClock) -> None:
    bench.ready.say("unhealthy")
    bench.apply()
    await trio.sleep(5)
    await bench.engine.drain(8)
    assert bench.registry.calls == []


async def test_another_heartbeat_period_leaves_the_registration_untouched(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.apply(period=10)
    await trio.sleep(30)
    bench.forget_calls()
    bench.apply(period=20)
    await trio.sleep(200)
    assert set(bench.registry.calls) == {"heartbeat"}
    gaps = [b - a for a, b in pairwise(bench.registry.times)]
    assert min(gaps[1:]) >= 18


async def test_another_probe_leaves_the_registration_untouched_until_it_says_otherwise(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.apply(period=1000)
    await trio.sleep(5)
    bench.forget_calls()
    bench.ready.state = ""  # begun anew, without an answer yet
    bench.apply(period=1000, periodSeconds=3)
    await trio.sleep(30)
    assert bench.registry.calls == []
    bench.ready.say("unhealthy")
    await trio.sleep(1)
    assert bench.registry.calls == ["DOWN"]


async def test_an_override_is_said_in_the_journal(bench: Bench, autojump_clock: MockClock) -> None:
    bench.registry.shown = "OUT_OF_SERVICE"
    bench.apply()
    await trio.sleep(1)
    assert bench.said("status=UP overridden=OUT_OF_SERVICE")
    assert bench.state("web") == "registered"


async def test_a_heartbeat_of_nothing_says_so(bench: Bench, autojump_clock: MockClock) -> None:
    tasks = [
        {"name": "ready", "probe": {}},
        {"name": "beat", "heartbeat": {"of": "ready"}, "every": 10},
    ]
    bench.engine.apply(decode_plan(tasks, actions.names()))
    await trio.sleep(20)
    assert bench.said('there is no registration \\"ready\\" to keep alive')
    assert bench.state("beat") == "failing"
