"""Registration and heartbeat on the real engine, with a registry that is what the test says and a mock clock."""

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone import actions
from pidone.actions import Action, Context, Setting, register
from pidone.counters import Counters
from pidone.engine.runner import Engine
from pidone.errors import PidoneError, Refused, RegistryError, RegistryRefused, TransferError
from pidone.http import probing
from pidone.http.message import Response
from pidone.journal import Journal
from pidone.maintenance import Maintenance
from pidone.metrics.exposition import render
from pidone.pid1.reaper import Reaper
from pidone.plan import model
from pidone.plan.fields import Fields
from pidone.plan.format import decode_plan
from pidone.plan.model import Task
from pidone.registries import Entry, Registry, Status
from tests.registries.between import FOREIGN, Network, Node


class FakeRegistry:
    """Remembers what was called and when. ``takes`` seconds a call; ``trouble`` is raised by those it names."""

    instance, address = "web", "10.0.0.5"
    interval, lease = 10.0, 30.0

    def __init__(self, called: Callable[[], None], name: str = "registry") -> None:
        self.where = self.endpoint = f"http://{name}/"
        self.places = frozenset({self.where})
        self.calls: list[str] = []
        self.times: list[float] = []
        self.takes = 0.0
        self.trouble: dict[str, PidoneError] = {}
        self.known = False
        self.shown: str | None = None  # the status of an operator's override
        self.overlapped = False
        self.prepares = False  # it has something to do before the first registration
        self._busy = False
        self._called = called

    async def prepare(self) -> None:
        if self.prepares:
            await self._call("prepare")

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

    async def read(self) -> Entry | None:
        return Entry("UP", self.address) if self.known else None

    def succeeds(self, previous: Registry) -> bool:
        return previous is self

    def take_over(self, previous: Registry) -> None:
        pass

    async def _call(self, name: str, word: str = "") -> None:
        self.calls.append(word or name)
        self.times.append(trio.current_time())
        self.overlapped |= self._busy
        self._busy = True
        self._called()
        try:
            await trio.sleep(self.takes)
        finally:
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
        self.registries: dict[str, FakeRegistry] = {"": self.registry}  # by their field "at"
        self.ready = ScriptedProbe()
        self.others: dict[str, ScriptedProbe] = {}  # by the names of their tasks
        self.real_probe = False
        self.journal = Journal(echo=lambda line: None)
        pod = model.Pod("p", "n", "u", "127.0.0.1")
        self.maintenance = Maintenance(changed=self._wake)
        self.setting = setting = Setting(
            pod,
            None,
            Reaper(),
            Counters(),
            lambda: self.engine.tasks,
            maintenance=self.maintenance,
            action=lambda task: self.engine.action(task),  # noqa: PLW0108 - there is no engine yet
        )
        self.engine = Engine(setting, self.journal, changed=self._move, random=Random(1))
        build = actions.build

        def build_action(task: Task, setting: Setting) -> Action:
            if task.action != "probe" or self.real_probe:
                return build(task, setting)
            return self.ready if task.name == "ready" else self.others.setdefault(task.name, ScriptedProbe())

        def build_registry(fields: Fields, pod: model.Pod, source: str | None) -> Registry:
            at = fields.object("fake").text("at", "")
            return self.registries.setdefault(at, FakeRegistry(self._move, at))

        monkeypatch.setattr(actions, "build", build_action)
        monkeypatch.setattr(register, "build_registry", build_registry)

    def apply(self, *, period: int | None = 10, backoff: int = 10, stop: float = 2, **ready: Any) -> None:
        """Without a ``period`` there is no ``beat``."""
        tasks: list[dict[str, Any]] = [
            {"name": "ready", "probe": {"tcpSocket": {"port": 1}} | ready},
            {
                "name": "web",
                "register": {"fake": {}, "follow": "ready"},
                "needs": ["ready.healthy"],
                "backoff": {"initial": 1, "max": backoff},
                "stopTimeout": stop,
            },
        ]
        if period is not None:
            beat = {"name": "beat", "heartbeat": {"of": "web"}, "every": period, "needs": ["web.registered"]}
            tasks.append(beat)
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

    def _wake(self) -> None:
        self.engine.wake_tasks()

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
    assert bench.registry.calls[0] == "UP"
    assert set(bench.registry.calls[1:]) == {"heartbeat"}


async def test_a_registration_that_follows_several_probes_is_up_while_all_are_healthy(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.registry.interval = 1000.0
    tasks = [
        *({"name": name, "probe": {}} for name in ("ready", "warm", "other")),
        {"name": "web", "register": {"fake": {}, "follow": ["ready", "warm"], "untilHealthy": "starting"}},
    ]
    bench.ready.state = ""
    bench.others |= {name: ScriptedProbe() for name in ("warm", "other")}
    probes = {"ready": bench.ready, **bench.others}
    bench.engine.apply(decode_plan(tasks, actions.names()))
    for name, state, calls in (
        ("warm", "healthy", ["STARTING"]),
        ("ready", "healthy", ["UP"]),
        ("warm", "unhealthy", ["DOWN"]),
        ("ready", "unhealthy", []),
        ("warm", "healthy", []),
        ("other", "unhealthy", []),
        ("ready", "healthy", ["UP"]),
    ):
        probes[name].say(state)
        await trio.sleep(5)
        assert bench.registry.calls == calls
        bench.forget_calls()


@pytest.mark.parametrize("follow", [1, True, {}, [1], ["ready", None]])
def test_what_it_follows_are_names(follow: object) -> None:
    with pytest.raises(Refused):
        register.instance_of({"follow": follow, "eureka": {}}, model.Pod("p", "n", "u", "127.0.0.1"), ())


def following(**fields: str) -> model.Plan:
    """A registration without a condition that follows a probe without a result."""
    register_fields = {"fake": {}, "follow": "ready", **fields}
    tasks = [{"name": "ready", "probe": {}}, {"name": "web", "register": register_fields, "stopTimeout": 7}]
    return decode_plan(tasks, actions.names())


@pytest.mark.parametrize(
    ("until", "calls"), [("wait", []), ("starting", ["STARTING"]), ("up", ["UP"]), ("", [])]
)
async def test_before_the_first_result_of_the_probe_it_is_what_the_task_says(
    bench: Bench, until: str, calls: list[str], autojump_clock: MockClock
) -> None:
    bench.ready.state, bench.registry.interval = "", 1000.0
    bench.engine.apply(following(**{"untilHealthy": until} if until else {}))
    await trio.sleep(60)
    assert bench.registry.calls == calls
    assert bench.state("web") == ("registered" if calls else "running")
    bench.ready.say("healthy")
    await trio.sleep(1)
    assert bench.registry.calls == list(dict.fromkeys([*calls, "UP"]))
    assert bench.state("web") == "registered"


@pytest.mark.parametrize(("until", "calls"), [("wait", []), ("starting", ["DOWN"]), ("up", ["DOWN"])])
async def test_a_probe_that_is_unhealthy_at_first(
    bench: Bench, until: str, calls: list[str], autojump_clock: MockClock
) -> None:
    bench.ready.state = "unhealthy"
    bench.engine.apply(following(untilHealthy=until))
    await trio.sleep(5)
    assert [call for call in bench.registry.calls if call != "heartbeat"] == calls


@pytest.mark.parametrize(
    ("when", "calls"),
    [("down", ["DOWN", "UP"]), ("", ["DOWN", "UP"]), ("deregister", ["deregister", "UP"]), ("ignore", [])],
)
async def test_while_a_probe_is_unhealthy_it_is_what_the_task_says(
    bench: Bench, when: str, calls: list[str], autojump_clock: MockClock
) -> None:
    bench.registry.interval = 1000.0
    bench.engine.apply(following(**{"whenUnhealthy": when} if when else {}))
    await trio.sleep(5)
    bench.forget_calls()
    bench.ready.say("unhealthy")
    await trio.sleep(5)
    assert bench.registry.calls == calls[:1]
    assert bench.state("web") == ("running" if when == "deregister" else "registered")
    await trio.sleep(2000)
    bench.ready.say("healthy")
    await trio.sleep(5)
    assert [call for call in bench.registry.calls if call != "heartbeat"] == calls
    assert bench.state("web") == "registered"
    await bench.engine.drain(8)
    assert bench.registry.calls[-1] == "deregister"


async def test_a_deregistered_instance_gets_no_heartbeat_and_is_not_deregistered_twice(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.engine.apply(following(whenUnhealthy="deregister"))
    await trio.sleep(5)
    bench.registry.trouble["deregister"] = RegistryError("answered 503")
    bench.forget_calls()
    bench.ready.say("unhealthy")
    await trio.sleep(60)
    assert set(bench.registry.calls) == {"deregister"}
    assert max(b - a for a, b in pairwise(bench.registry.times)) <= 10
    web = next(state for state in bench.engine.tasks if state.task.name == "web")
    assert (web.state, web.error) == ("registered", "answered 503; the lease must have ended")
    bench.registry.trouble.clear()
    await trio.sleep(11)
    assert (web.state, web.error) == ("", "")
    bench.forget_calls()
    await trio.sleep(600)
    await bench.engine.drain(8)
    assert bench.registry.calls == []


async def test_a_changed_plan_changes_what_follows_and_not_the_registration(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.registry.interval = 1000.0
    bench.engine.apply(following(untilHealthy="starting"))
    await trio.sleep(5)
    bench.ready.say("")
    bench.ready.state = ""
    bench.forget_calls()
    bench.engine.apply(following(untilHealthy="wait", whenUnhealthy="ignore"))
    await trio.sleep(5)
    assert bench.registry.calls == ["UP"]


async def test_a_flapping_probe_does_not_become_a_storm(bench: Bench, autojump_clock: MockClock) -> None:
    bench.registry.interval = 1000.0
    bench.engine.apply(following())
    await trio.sleep(5)
    bench.forget_calls()
    for _ in range(300):
        bench.ready.say("unhealthy")
        await trio.sleep(0.5)
        assert bench.registry.calls[-1] == "DOWN", "told at once"
        bench.ready.say("healthy")
        await trio.sleep(1.5)
    calls = Counter(bench.registry.calls)
    assert calls["UP"] <= 2 + 600 / 15
    assert calls["DOWN"] <= calls["UP"] + 1
    assert calls["UP"] >= 20
    await trio.sleep(16)
    assert bench.registry.calls[-1] == "UP", "in the end it is what the probe says"
    bench.forget_calls()
    await trio.sleep(300)
    bench.ready.say("unhealthy")
    await trio.sleep(0.1)
    bench.ready.say("healthy")
    await trio.sleep(0.1)
    assert [call for call in bench.registry.calls if call != "heartbeat"] == ["DOWN", "UP"]


@pytest.mark.parametrize(("drain", "stop", "seconds"), [(3, 7, 3), (0, 7, 0), (7, 4, 4), (20, 30, 8)])
async def test_callers_have_the_drain_after_the_deregistration(
    bench: Bench, drain: float, stop: float, seconds: float, autojump_clock: MockClock
) -> None:
    fields = {"fake": {}, "drain": drain}
    plan = [{"name": "web", "register": fields, "stopTimeout": stop}]
    bench.engine.apply(decode_plan(plan, actions.names()))
    await trio.sleep(5)
    began = trio.current_time()
    await bench.engine.drain(8)
    assert bench.registry.calls[-1] == "deregister"
    assert bench.registry.times[-1] == began
    assert trio.current_time() - began == pytest.approx(seconds)
    assert bench.engine.left == {}, "deregistered in any case"


async def test_a_registration_that_leaves_a_pod_that_goes_on_needs_no_drain(
    bench: Bench, autojump_clock: MockClock
) -> None:
    tasks = [{"name": "web", "register": {"fake": {}, "drain": 5}, "stopTimeout": 7}]
    bench.engine.apply(decode_plan(tasks, actions.names()))
    await trio.sleep(5)
    bench.engine.apply(decode_plan([], actions.names()))
    with trio.fail_after(1):
        await bench.engine.wait_idle()


@pytest.mark.parametrize(
    "config",
    [
        {"untilHealthy": "later"},
        {"whenUnhealthy": "DOWN"},
        {"drain": 3601},
        {"drain": "5s"},
        {"untilHealthy": 1},
    ],
)
def test_the_pod_refuses_what_it_does_not_know(config: Any) -> None:
    setting = Setting(model.Pod("p", "n", "u", "127.0.0.1"), None, Reaper(), Counters(), lambda: ())
    with pytest.raises(Refused):
        register.build(Fields({"eureka": EUREKA, **config}, "register"), setting)


async def test_a_registry_is_prepared_before_the_first_registration(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.registry.prepares = True
    bench.registry.trouble["prepare"] = RegistryRefused("a wrong password")
    bench.ready.say("unhealthy")
    bench.apply()
    await trio.sleep(60)
    assert bench.registry.calls == ["prepare"]
    assert not bench.said("a wrong password")  # the registration says it
    bench.ready.say("healthy")
    await bench.when(lambda: bench.state("web") == "registered")
    bench.engine.apply(decode_plan([{"name": "web", "register": {"fake": {}}}], actions.names()))
    await trio.sleep(60)
    assert bench.registry.calls.count("prepare") == 1  # what is taken over needs no preparation


async def test_a_registry_that_does_not_answer_its_preparation_holds_up_the_first_registration_for_an_interval(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.registry.prepares = True
    bench.registry.takes = 1000
    bench.apply()
    await wait_all_tasks_blocked()
    bench.registry.takes = 0
    await bench.when(lambda: bench.state("web") == "registered")
    assert bench.registry.times[:2] == [0, bench.registry.interval]
    assert not bench.registry.overlapped


async def test_calls_never_overlap_whatever_comes_together(bench: Bench, autojump_clock: MockClock) -> None:
    bench.registry.takes = 3
    bench.registry.prepares = True
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
async def test_teardown_waits_for_a_registration_in_flight_begins_no_other_and_deregisters_once(
    bench: Bench, call: str, autojump_clock: MockClock
) -> None:
    bench.registry.takes = 4
    bench.apply(period=5, stop=5)
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
    if call == "heartbeat":  # which has no effect after the deregistration, so nobody waits for it
        assert bench.registry.times[0] == began
    else:
        assert began + 3 < bench.registry.times[0] <= began + 4
    assert not bench.registry.overlapped
    assert bench.engine.left == {}
    await trio.sleep(100)
    assert bench.registry.calls == ["deregister"]  # nobody comes back


async def test_a_registration_that_the_end_has_no_time_for_is_cut_off_and_reported(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.registry.takes = 4
    bench.apply()
    await bench.when(lambda: "UP" in bench.registry.calls)
    bench.registry.takes = 1
    began = trio.current_time()
    await bench.engine.drain(8)
    assert bench.registry.times[1:] == [began + 2]
    assert "may arrive later" in bench.engine.left["web"], "it is the controller's to look again"


@pytest.mark.parametrize("takes", [1, 3, 7.9, 60])
async def test_an_end_once_begun_is_an_end_however_late_the_registry(
    bench: Bench, takes: float, autojump_clock: MockClock
) -> None:
    bench.apply()
    await bench.when(lambda: bench.state("web") == "registered")
    bench.registry.takes = takes
    bench.ready.say("unhealthy")
    await bench.when(lambda: "DOWN" in bench.registry.calls)
    bench.forget_calls()
    with trio.fail_after(8.1):
        await bench.engine.drain(8)
    assert bench.registry.calls == ["deregister"]
    assert set(bench.engine.left) == (set() if takes < 2 else {"web"})
    bench.registry.takes = 0
    bench.ready.say("healthy")
    bench.apply(period=20)
    await trio.sleep(200)
    assert bench.registry.calls == ["deregister"]


async def test_a_probe_that_hangs_does_not_cost_the_lease(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    answers = iter([""])

    async def once_then_hang(*args: object, timeout: float, **options: object) -> str:
        for answer in answers:
            return answer
        await trio.sleep(timeout)
        return "silent"

    monkeypatch.setattr(probing, "get", once_then_hang)
    bench.real_probe = True
    tasks = [
        {"name": "ready", "probe": {"httpGet": {"port": 1}, "timeoutSeconds": 60, "failureThreshold": 10}},
        {"name": "web", "register": {"fake": {}, "follow": "ready"}, "needs": ["ready.healthy"]},
        {"name": "beat", "heartbeat": {"of": "web"}, "every": 10, "needs": ["web.registered"]},
    ]
    bench.engine.apply(decode_plan(tasks, actions.names()))
    await trio.sleep(200)
    assert bench.registry.calls.count("heartbeat") >= 19


async def test_a_registration_that_no_heartbeat_task_names_renews_itself(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.apply(period=None)
    await trio.sleep(300)
    calls, times = bench.registry.calls, bench.registry.times
    assert calls[0] == "UP"
    assert set(calls[1:]) == {"heartbeat"}
    gaps = [later - earlier for earlier, later in pairwise(times[1:])]
    assert 0 < times[1] - times[0] <= 10, "at a random point of the first interval"
    assert all(9 <= gap <= 10 for gap in gaps)
    assert len(set(gaps)) > 10


@pytest.mark.parametrize("period", [3, 10, 1000])
async def test_a_heartbeat_task_that_comes_and_goes_turns_the_renewal_off_and_on(
    bench: Bench, period: int, autojump_clock: MockClock
) -> None:
    bench.apply(period=None)
    await trio.sleep(60)
    bench.apply(period=period)
    await trio.sleep(20)
    bench.forget_calls()
    await trio.sleep(2 * period)
    runs = next(state.runs for state in bench.engine.tasks if state.task.name == "beat")
    assert len(bench.registry.calls) in {2, 3}, "one each period"
    assert runs >= 2
    last = bench.registry.times[-1]
    bench.apply(period=None)
    bench.forget_calls()
    left = trio.current_time()
    await trio.sleep(100)
    assert bench.registry.times[0] - left <= 10
    assert bench.registry.times[0] - min(last, left) > 0
    assert len(bench.registry.calls) >= 10
    assert set(bench.registry.calls) == {"heartbeat"}, "nothing was registered again"


async def test_a_paused_heartbeat_task_is_a_heartbeat_task(bench: Bench, autojump_clock: MockClock) -> None:
    tasks = [
        {"name": "ready", "probe": {}},
        {"name": "warm", "probe": {}},
        {"name": "web", "register": {"fake": {}, "follow": "ready"}},
        {"name": "beat", "heartbeat": {"of": "web"}, "every": 10, "while": ["warm.healthy"]},
    ]
    bench.others["warm"] = ScriptedProbe()
    bench.engine.apply(decode_plan(tasks, actions.names()))
    await trio.sleep(60)
    bench.others["warm"].say("unhealthy")
    await wait_all_tasks_blocked()
    bench.forget_calls()
    await trio.sleep(600)
    assert bench.state("beat") == "paused"
    assert bench.registry.calls == []


async def test_renewals_that_fail_take_nothing_back_and_are_said(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.apply(period=None)
    await bench.when(lambda: "heartbeat" in bench.registry.calls)
    bench.registry.trouble["heartbeat"] = TransferError("PUT: Connection refused")
    bench.forget_calls()
    await trio.sleep(20)
    web = next(state for state in bench.engine.tasks if state.task.name == "web")
    assert (web.state, web.error) == ("registered", "PUT: Connection refused")
    await trio.sleep(580)
    assert set(bench.registry.calls) == {"heartbeat"}
    web = next(state for state in bench.engine.tasks if state.task.name == "web")
    assert (web.state, web.error) == (
        "registered",
        "PUT: Connection refused; the lease must have ended",
    )
    assert sum("event=lease-over" in line for line in bench.journal.lines) == 1
    gaps = [b - a for a, b in pairwise(bench.registry.times)]
    assert max(gaps) <= 10, "while the lease may still be saved"
    assert bench.said("registry-failed")
    del bench.registry.trouble["heartbeat"]
    await trio.sleep(11)
    assert (web.state, web.error) == ("registered", "")


async def test_a_renewal_of_a_forgotten_registration_makes_it_again(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.apply(period=None)
    await trio.sleep(30)
    bench.registry.known = False
    bench.forget_calls()
    await trio.sleep(10)
    assert bench.registry.calls == ["heartbeat", "UP"]
    assert bench.registry.times[0] == bench.registry.times[1]
    assert bench.state("web") == "registered"
    assert bench.said("state=lost")


async def test_a_status_that_changes_does_not_move_the_renewals(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.apply(period=None)
    await trio.sleep(30)
    bench.forget_calls()
    for _ in range(10):
        bench.ready.say("unhealthy")
        await trio.sleep(4)
        bench.ready.say("healthy")
        await trio.sleep(4)
    beats = [
        at for at, call in zip(bench.registry.times, bench.registry.calls, strict=True) if call == "heartbeat"
    ]
    assert max(b - a for a, b in pairwise(beats)) <= 10


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


async def test_before_the_first_answer_of_the_registry_it_is_asked_as_often_as_by_a_heartbeat(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.registry.trouble["register"] = RegistryError("answered 401")
    bench.apply(backoff=300)
    await trio.sleep(3000)
    gaps = [b - a for a, b in pairwise(bench.registry.times)]
    assert max(gaps) <= bench.registry.interval
    bench.registry.trouble.clear()
    await trio.sleep(bench.registry.interval)
    assert bench.state("web") == "registered"


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
    assert 600 / 20 < len(gaps) < 200
    assert "heartbeat" not in bench.registry.calls
    bench.registry.trouble.clear()
    await trio.sleep(20)
    assert bench.state("web") == "registered"


async def test_a_refusal_is_tried_again_after_half_of_the_lease_at_least(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.registry.trouble["register"] = RegistryRefused("answered 401: it wants a user")
    bench.apply(backoff=100)
    await trio.sleep(350)
    gaps = [b - a for a, b in pairwise(bench.registry.times)]
    assert min(gaps) >= bench.registry.lease / 2, "what failed together does not come back together"
    assert max(gaps) <= bench.registry.lease, "the instance of the program before this one may be there"
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


EUREKA = {"url": "http://e/eureka", "app": "web", "port": 80}


# The driver of Eureka and the engine together, over a network on the mock clock


INSTANCE = "/eureka/apps/WEB/p%3Aweb%3A80"
LEASE_SECONDS = 90.0


class Pod:
    """One pod of an Eureka that has several servers."""

    def __init__(self, network: Network, *, seed: int = 1, name: str = "p") -> None:
        self.network = network
        self.name = name
        self.ready = ScriptedProbe()
        self.journal = Journal(echo=lambda line: None)
        facts = model.Pod(name, "n", "u", "10.0.0.5")
        setting = Setting(facts, None, Reaper(), Counters(), lambda: self.engine.tasks)
        self.engine = Engine(
            setting, self.journal, changed=lambda: None, random=Random(seed), build=self._build
        )

    def _build(self, task: Task, setting: Setting) -> Action:
        return self.ready if task.action == "probe" else actions.build(task, setting)

    def apply(
        self, *, name: str = "web", stop: float = 5, metadata: Any = None, beat: bool = True, **eureka: Any
    ) -> None:
        """The ready-made set for Eureka, but for these, and with a heartbeat task if ``beat``."""
        urls = ",".join(f"http://{host}/eureka" for host in self.network.nodes)
        fields = {"url": urls, "app": "web", "port": 80, "metadata": metadata or {}, **eureka}
        tasks = [
            {"name": "ready", "probe": {"tcpSocket": {"port": 1}}},
            {
                "name": name,
                "register": {"eureka": fields, "follow": "ready"},
                "needs": ["ready.healthy"],
                "backoff": {"initial": 1, "max": 300},
                "stopTimeout": stop,
            },
            {
                "name": "beat",
                "heartbeat": {"of": name},
                "every": 30,
                "needs": [f"{name}.registered"],
                "while": [f"{name}.registered"],
            },
        ]
        self.engine.apply(decode_plan(tasks if beat else tasks[:2], actions.names()))

    def state(self, name: str) -> str:
        return next(state.shown for state in self.engine.tasks if state.task.name == name)

    def entry(self, host: str = "a") -> dict[str, Any] | None:
        now = self.network.epoch + trio.current_time()
        target = INSTANCE.replace("p%3A", f"{self.name}%3A")
        status, _, body = self.network.nodes[host].registry.handle("GET", target, b"", now)
        found: dict[str, Any] | None = json.loads(body)["instance"] if status == 200 else None
        return found

    def status(self, host: str = "a") -> str | None:
        entry = self.entry(host)
        return entry["status"] if entry else None


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery) -> Callable[..., Awaitable[Pod]]:
    """A registered pod of these servers."""

    async def start_pod(**nodes: Node) -> Pod:
        network = Network(**nodes or {"a": Node()})
        monkeypatch.setattr("pidone.registries._servers.request", network.request)
        pod = Pod(network)
        await nursery.start(pod.engine.run)
        pod.apply()
        await trio.sleep(31)
        assert (pod.status(), pod.state("web"), pod.state("beat")) == ("UP", "registered", "started")
        network.calls.clear()
        return pod

    return start_pod


@pytest.mark.parametrize("seconds", [5, 20, 70])
@pytest.mark.parametrize("answer", FOREIGN)
async def test_what_somebody_in_between_answers_for_a_while_does_not_cost_the_lease(
    answer: str, seconds: float, start: Callable[..., Awaitable[Pod]], autojump_clock: MockClock
) -> None:
    pod = await start()
    node = pod.network.nodes["a"]
    node.foreign = FOREIGN[answer]
    began = trio.current_time()
    while trio.current_time() < began + seconds:
        await trio.sleep(1)
        assert pod.status() == "UP"
    node.foreign = None
    await trio.sleep(61)  # a third of the lease, and a heartbeat
    assert (pod.status(), pod.state("web"), pod.state("beat")) == ("UP", "registered", "started")
    assert "DELETE" not in pod.network.methods()
    # one 404 alone is 404 to a heartbeat and to the registration
    times = [began, *(at for at, _, _ in pod.network.calls)]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert max(gaps) <= 31


@pytest.mark.parametrize("answer", FOREIGN)
async def test_the_second_server_keeps_the_instance_when_the_first_is_hidden_for_long(
    answer: str, start: Callable[..., Awaitable[Pod]], autojump_clock: MockClock
) -> None:
    pod = await start(a=Node(), b=Node())
    pod.network.nodes["a"].foreign = FOREIGN[answer]
    await trio.sleep(31)
    for _ in range(40):
        await trio.sleep(10)
        assert pod.status("b") == "UP"
    assert pod.network.methods("a").count("POST") <= 1
    assert pod.state("web") == "registered"


async def test_one_404_for_all_pods_brings_them_back_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    network = Network(a=Node())
    monkeypatch.setattr("pidone.registries._servers.request", network.request)
    pods = [Pod(network, seed=number, name=f"p{number}") for number in range(100)]
    for pod in pods:
        await nursery.start(pod.engine.run)
        pod.apply()
    await trio.sleep(60)
    network.nodes["a"].foreign = Response(404)
    await trio.sleep(80)
    network.nodes["a"].foreign = None
    network.calls.clear()
    back = trio.current_time()
    await trio.sleep(30)
    assert [pod.status() for pod in pods] == ["UP"] * 100, "within the lease"
    seconds = Counter(int(at - back) for at, _, method in network.calls if method == "POST")
    assert sum(seconds.values()) == 100
    assert max(seconds.values()) <= 15
    for pod in pods:
        pod.engine._nursery.cancel_scope.cancel()  # type: ignore[union-attr]


async def test_pods_that_start_together_do_not_renew_together(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    network = Network(a=Node())
    monkeypatch.setattr("pidone.registries._servers.request", network.request)
    pods = [Pod(network, seed=number, name=f"p{number}") for number in range(100)]
    for pod in pods:
        await nursery.start(pod.engine.run)
        pod.apply(beat=False)
    await trio.sleep(30.5)
    seconds = Counter(int(at) for at, _, method in network.calls if method == "PUT")
    assert sum(seconds.values()) >= 100
    assert max(seconds.values()) <= 15
    for pod in pods:
        pod.engine._nursery.cancel_scope.cancel()  # type: ignore[union-attr]


async def test_a_status_that_changes_in_an_outage_is_told_by_the_next_call_that_is_answered(
    start: Callable[..., Awaitable[Pod]], autojump_clock: MockClock
) -> None:
    pod = await start()
    node = pod.network.nodes["a"]
    node.up = False
    await trio.sleep(10)
    pod.ready.say("unhealthy")
    await trio.sleep(50)
    assert pod.status() == "UP"
    node.up = True
    pod.network.calls.clear()
    began = trio.current_time()
    while pod.status() == "UP":
        await trio.sleep(0.1)
    assert trio.current_time() - began <= 30
    assert pod.network.methods()[0] in {"PUT", "POST"}
    assert len(pod.network.calls) <= 3, "the first that was answered, or right after it"
    assert pod.status() == "DOWN"
    assert not any("not registered at present" in line for line in pod.journal.lines)
    await trio.sleep(31)
    assert pod.state("beat") == "started"


async def test_registration_and_heartbeat_share_one_backoff(
    start: Callable[..., Awaitable[Pod]], autojump_clock: MockClock
) -> None:
    pod = await start()
    pod.network.nodes["a"].up = False
    pod.ready.say("unhealthy")
    await trio.sleep(3600)
    calls = [at for at, _, _ in pod.network.calls]
    gaps = [later - earlier for earlier, later in pairwise(calls)]
    assert max(gaps) <= 31
    assert len(calls) < 3600 / 30 * 3, "15 s on average, and not twice that"
    told = [line for line in pod.journal.lines if "event=registry-failed" in line]
    assert 3 <= len(told) < 20


async def test_a_registry_that_takes_no_document_still_gets_heartbeats(
    start: Callable[..., Awaitable[Pod]], autojump_clock: MockClock
) -> None:
    pod = await start()
    node = pod.network.nodes["a"]
    node.foreign, node.methods = Response(413), ("POST",)
    pod.ready.say("unhealthy")
    for _ in range(100):
        await trio.sleep(10)
        assert pod.status() == "UP", "not evicted"
    assert pod.state("beat") == "started"
    node.foreign = None
    await trio.sleep(31)
    assert pod.status() == "DOWN"


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"version": "2"}},
        {"stop": 7},
        {"leaseDuration": 60},
        {"url": "http://b/eureka,http://a/eureka"},
        {"url": "http://A.:80/eureka/"},
        {"name": "registration"},
        {"name": "registration", "metadata": {"version": "2"}},
    ],
)
async def test_a_changed_registration_is_one_post(
    change: Any, start: Callable[..., Awaitable[Pod]], autojump_clock: MockClock
) -> None:
    pod = await start(a=Node(), b=Node())
    now = pod.network.epoch + trio.current_time()
    pod.network.nodes["a"].registry.handle("PUT", f"{INSTANCE}/status?value=OUT_OF_SERVICE", b"", now)
    pod.network.nodes["a."] = pod.network.nodes["a"]
    pod.network.calls.clear()
    pod.apply(**({"url": "http://a/eureka,http://b/eureka"} | change))
    await trio.sleep(5)
    methods = [method for method in pod.network.methods() if method != "PUT"]
    assert methods == ["POST", "GET"]
    assert pod.status() == "OUT_OF_SERVICE", "an operator's word is not forgotten"
    for _ in range(30):
        await trio.sleep(10)
        assert pod.status() == "OUT_OF_SERVICE"
    assert pod.network.methods().count("POST") == 1
    assert pod.state("beat") == "started"
    await pod.engine.drain(8)
    assert pod.status() is None
    assert pod.network.methods().count("DELETE") == 1


@pytest.mark.parametrize("change", [{"app": "other"}, {"port": 81}, {"url": "http://c/eureka"}])
async def test_another_instance_is_another(
    change: Any, start: Callable[..., Awaitable[Pod]], autojump_clock: MockClock
) -> None:
    pod = await start(a=Node(), b=Node())
    pod.network.nodes["c"] = Node()
    pod.apply(**({"url": "http://a/eureka,http://b/eureka"} | change))
    await trio.sleep(5)
    assert pod.network.methods()[:2] == ["DELETE", "POST"]
    assert pod.status() is None


async def test_a_changed_registration_follows_what_the_probe_says_by_now(
    start: Callable[..., Awaitable[Pod]], autojump_clock: MockClock
) -> None:
    pod = await start()
    pod.ready.say("unhealthy")
    await trio.sleep(1)
    pod.network.calls.clear()
    pod.apply(metadata={"version": "2"})
    await trio.sleep(5)
    methods = [method for method in pod.network.methods() if method != "PUT"]
    assert methods == ["POST", "GET"], "though it needs the probe to be healthy to begin"
    entry = pod.entry()
    assert entry is not None
    assert (entry["status"], entry["metadata"]) == ("DOWN", {"version": "2"})


async def test_a_changed_registration_that_the_end_overtakes_is_taken_out(
    start: Callable[..., Awaitable[Pod]], autojump_clock: MockClock
) -> None:
    pod = await start()
    pod.network.nodes["a"].takes = 2
    pod.apply(metadata={"version": "2"})
    await trio.sleep(1)
    await pod.engine.drain(8)
    assert pod.status() is None
    assert pod.network.methods()[-1] == "DELETE"
    assert pod.engine.left == {}


async def test_a_deregistration_that_somebody_else_answers_is_reported_as_failed(
    start: Callable[..., Awaitable[Pod]], autojump_clock: MockClock
) -> None:
    pod = await start()
    pod.network.nodes["a"].foreign = Response(404)
    await pod.engine.drain(8)
    assert "not the registry's word" in pod.engine.left["web"]
    assert not any("event=deregistered" in line for line in pod.journal.lines)
    assert pod.status() == "UP"


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
    assert bench.said('there is no registration \\"ready\\" to renew')
    assert bench.state("beat") == "failing"


# Several registries


def several(*at: str, name: str = "web", **more: Any) -> list[dict[str, Any]]:
    """A plan with a registration in these registries."""
    to = [{"fake": {"at": one}} for one in at]
    return [
        {"name": "ready", "probe": {}},
        {
            "name": name,
            "register": {"to": to, "follow": "ready"},
            "backoff": {"initial": 1, "max": 60},
            "stopTimeout": 5,
            **more,
        },
    ]


async def test_several_registries_each_have_the_instance(bench: Bench, autojump_clock: MockClock) -> None:
    bench.engine.apply(decode_plan(several("a", "b", "c"), actions.names()))
    await trio.sleep(60)
    assert bench.state("web") == "registered"
    for registry in map(bench.registries.get, "abc"):
        assert registry is not None
        assert registry.calls[0] == "UP"
        assert registry.calls.count("heartbeat") >= 5
    bench.ready.say("unhealthy")
    await trio.sleep(1)
    assert all("DOWN" in bench.registries[name].calls for name in "abc")
    await bench.engine.drain(8)
    assert all(bench.registries[name].calls[-1] == "deregister" for name in "abc")
    assert bench.engine.left == {}


@pytest.mark.parametrize("trouble", [RegistryError("answered 503"), RegistryRefused("answered 403"), None])
async def test_one_that_fails_from_the_start_does_not_hold_back_the_other(
    bench: Bench, trouble: PidoneError | None, autojump_clock: MockClock
) -> None:
    bad = bench.registries["bad"] = FakeRegistry(bench._move, "bad")
    if trouble is None:
        bad.takes = 10_000
    else:
        bad.trouble["register"] = trouble
    bench.engine.apply(decode_plan(several("bad", "good"), actions.names()))
    await trio.sleep(300)
    good = bench.registries["good"]
    assert good.calls[0] == "UP"
    assert set(good.calls[1:]) == {"heartbeat"}
    assert max(b - a for a, b in pairwise(good.times[1:])) <= 10
    web = next(state for state in bench.engine.tasks if state.task.name == "web")
    assert web.state == "", "registered when all are"
    if trouble is not None:
        assert web.error == f"http://bad/: {trouble}"
        assert 2 <= len(bad.calls) < 100
    assert web.runs == 1
    bad.trouble.clear()
    await trio.sleep(61)
    if trouble is not None:
        assert (web.state, web.error) == ("registered", "")


async def test_one_that_is_away_or_lost_is_named_and_costs_the_other_nothing(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.engine.apply(decode_plan(several("a", "b"), actions.names()))
    await trio.sleep(60)
    a, b = bench.registries["a"], bench.registries["b"]
    web = next(state for state in bench.engine.tasks if state.task.name == "web")
    a.trouble["heartbeat"] = TransferError("Connection refused")
    a.calls.clear()
    b.times.clear()
    await trio.sleep(20)
    assert (web.state, web.error) == ("registered", "http://a/: Connection refused")
    await trio.sleep(40)
    assert max(later - earlier for earlier, later in pairwise(b.times)) <= 10
    a.known = False
    a.trouble = {"register": RegistryError("answered 503")}
    await trio.sleep(30)
    assert (web.state, web.error) == ("lost", "http://a/: answered 503")
    a.trouble.clear()
    await trio.sleep(30)
    assert (web.state, web.error) == ("registered", "")


async def test_if_all_fail_the_run_fails_with_all_reasons(bench: Bench, autojump_clock: MockClock) -> None:
    for name, error in (("a", RegistryRefused("answered 401")), ("b", TransferError("Connection refused"))):
        registry = bench.registries[name] = FakeRegistry(bench._move, name)
        registry.trouble["register"] = error
    bench.engine.apply(decode_plan(several("a", "b", backoffLimit=3), actions.names()))
    await trio.sleep(600)
    web = next(state for state in bench.engine.tasks if state.task.name == "web")
    assert web.state == "failed"
    assert web.failures == 4
    assert web.error == "http://a/: answered 401; http://b/: Connection refused"


async def test_undoing_names_those_that_failed(bench: Bench, autojump_clock: MockClock) -> None:
    bench.engine.apply(decode_plan(several("a", "b", "c"), actions.names()))
    await trio.sleep(5)
    bench.registries["a"].trouble["deregister"] = RegistryError("answered 500")
    bench.registries["b"].takes = 100
    await bench.engine.drain(8)
    assert not bench.registries["c"].known
    assert bench.engine.left["web"] == "http://a/: answered 500; http://b/: not done within 4.75 s"


@pytest.mark.parametrize("name", ["web", "other"])
async def test_a_changed_plan_keeps_the_registries_that_stay(
    bench: Bench, name: str, autojump_clock: MockClock
) -> None:
    bench.engine.apply(decode_plan(several("a", "b"), actions.names()))
    await trio.sleep(20)
    for registry in bench.registries.values():
        registry.calls.clear()
    bench.engine.apply(decode_plan(several("b", "c", name=name), actions.names()))
    await trio.sleep(1)
    a, b, c = (bench.registries[one].calls for one in "abc")
    assert (a, c[0]) == (["deregister"], "UP")
    assert [call for call in b if call != "heartbeat"] == ["UP"], "the new document"
    await trio.sleep(100)
    assert a == ["deregister"]
    assert bench.state(name) == "registered"
    await bench.engine.drain(8)
    assert (b[-1], c[-1]) == ("deregister", "deregister")
    assert a == ["deregister"]


async def test_a_registry_that_left_the_plan_and_does_not_answer_is_tried_for_a_lease(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.engine.apply(decode_plan(several("a", "b"), actions.names()))
    await trio.sleep(20)
    a = bench.registries["a"]
    a.trouble["deregister"] = TransferError("Connection refused")
    a.calls.clear()
    bench.engine.apply(decode_plan(several("b"), actions.names()))
    await trio.sleep(5)
    web = next(state for state in bench.engine.tasks if state.task.name == "web")
    assert web.error == "http://a/: not deregistered: Connection refused"
    await trio.sleep(200)
    assert 3 <= len(a.calls) < 60
    assert set(a.calls) == {"deregister"}
    assert (web.state, web.error) == ("registered", "")
    assert bench.said("event=left-registered")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([("one", "a"), ("two", "b")], [("one", "a", "b")]),
        ([("one", "a"), ("two", "b")], [("three", "a", "b")]),
        ([("one", "a", "b")], [("one", "a"), ("two", "b")]),
        ([("one", "a", "b")], [("two", "b"), ("three", "a")]),
    ],
)
async def test_tasks_that_are_merged_or_split_keep_their_instances(
    bench: Bench, before: Any, after: Any, autojump_clock: MockClock
) -> None:
    def plan(tasks: Any) -> model.Plan:
        registrations = [several(*at, name=name)[1] for name, *at in tasks]
        return decode_plan([several("a")[0], *registrations], actions.names())

    for name in "ab":
        bench.registries[name] = FakeRegistry(bench._move, name)
        bench.registries[name].takes = 0.5
    bench.engine.apply(plan(before))
    await trio.sleep(20)
    bench.engine.apply(plan(after))
    await trio.sleep(5)
    for name in "ab":
        registry = bench.registries[name]
        assert registry.known
        assert not registry.overlapped
    for name, *_ in after:
        assert bench.state(name) == "registered"


async def test_each_registry_may_follow_probes_of_its_own(bench: Bench, autojump_clock: MockClock) -> None:
    tasks = [
        {"name": "ready", "probe": {}},
        {"name": "admin", "probe": {}},
        {
            "name": "web",
            "register": {
                "to": [{"fake": {"at": "a"}}, {"fake": {"at": "b"}, "follow": ["admin"]}],
                "follow": "ready",
            },
        },
    ]
    bench.others["admin"] = ScriptedProbe()
    bench.engine.apply(decode_plan(tasks, actions.names()))
    await trio.sleep(5)
    for registry in bench.registries.values():
        registry.calls.clear()
    bench.others["admin"].say("unhealthy")
    await trio.sleep(1)
    assert "DOWN" not in bench.registries["a"].calls
    assert "DOWN" in bench.registries["b"].calls


async def test_a_heartbeat_task_renews_all_and_names_those_that_fail(
    bench: Bench, autojump_clock: MockClock
) -> None:
    beat = {"name": "beat", "heartbeat": {"of": "web"}, "every": 10, "needs": ["web.registered"]}
    bench.engine.apply(decode_plan([*several("a", "b"), beat], actions.names()))
    await trio.sleep(100)
    counts = [bench.registries[name].calls.count("heartbeat") for name in "ab"]
    assert min(counts) >= 9
    bench.registries["b"].trouble["heartbeat"] = RegistryError("answered 503")
    await trio.sleep(20)
    state = next(state for state in bench.engine.tasks if state.task.name == "beat")
    assert (state.state, state.error) == ("failing", "http://b/: answered 503")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"to": []}, "expected 1 to 10 registries, not 0"),
        ({"to": [{"eureka": EUREKA}] * 11}, "expected 1 to 10 registries, not 11"),
        ({"to": [{"eureka": EUREKA}] * 2}, "two targets keep the same instance at http://e/eureka/"),
        (
            {"to": [{"eureka": EUREKA}, {"eureka": EUREKA | {"url": "http://f/eureka,http://E:80/eureka"}}]},
            "two targets keep the same instance",
        ),
        ({"to": [{"eureka": EUREKA}], "eureka": EUREKA}, "move eureka into the list"),
        ({"to": [{}]}, "expected exactly one variant"),
        ({"to": [{"eureka": EUREKA, "to": [{"eureka": EUREKA}]}]}, "expected exactly one variant"),
        ({"to": [{"eureka": EUREKA, "fellow": "ready"}]}, "expected exactly one variant"),
        ({"to": {"eureka": EUREKA}}, "expected a list"),
    ],
)
def test_what_to_holds_is_refused_by_the_pod_too(config: Any, reason: str) -> None:
    setting = Setting(model.Pod("p", "n", "u", "127.0.0.1"), None, Reaper(), Counters(), lambda: ())
    with pytest.raises(Refused, match=reason):
        register.build(Fields(config, 'task "web".register'), setting)


async def test_maintenance_is_shown_whatever_the_health_is(bench: Bench, autojump_clock: MockClock) -> None:
    bench.engine.apply(decode_plan(several("a", "b"), actions.names()))
    await trio.sleep(5)
    maintenance = bench.maintenance
    action = bench.engine.action("web")
    assert isinstance(action, register.Register)
    for on, health, wanted in (
        (True, "healthy", "OUT_OF_SERVICE"),
        (True, "unhealthy", "OUT_OF_SERVICE"),
        (False, "unhealthy", "DOWN"),
        (False, "healthy", "UP"),
    ):
        maintenance.set("a person", on=on)
        bench.ready.say(health)
        await trio.sleep(1)
        shown = action.shown()
        assert {name: (one.status, one.error) for name, one in shown.items()} == {
            "http://a/": (wanted, ""),
            "http://b/": (wanted, ""),
        }
    bench.registries["a"].trouble["register"] = RegistryError("answered 503")
    bench.registries["b"].shown = "UP"
    maintenance.set("a person", on=True)
    await trio.sleep(1)
    assert {name: (one.status, one.error) for name, one in action.shown().items()} == {
        "http://a/": ("UP", "answered 503"),
        "http://b/": ("UP", "the registry keeps this status; has an operator set it?"),
    }


# Metrics


def metrics(bench: Bench, at: str = "") -> dict[str, float]:
    """Return the metrics of the registrations, by the name and the label beside the task and its target."""
    values = {}
    page = render(register.families(bench.setting, list(bench.engine.tasks))).decode()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = dict(sample.labels)
            task, target = labels.pop("task"), labels.pop("target")
            labels.pop("registry")
            if (task, target) == ("web", f"http://{at}/"):
                name = sample.name.removeprefix("pidone_").removeprefix("registration_")
                values[" ".join([name, *labels.values()])] = sample.value
    return values


async def test_the_metrics_say_how_each_registry_is(bench: Bench, autojump_clock: MockClock) -> None:
    bench.engine.apply(decode_plan(several("a", "b"), actions.names()))
    assert metrics(bench, "a")["up"] == 0
    await trio.sleep(100)
    a, b = bench.registries["a"], bench.registries["b"]
    read = metrics(bench, "a")
    assert (read["up"], read["status UP"], read["endpoint http://a/"]) == (1, 1, 1)
    assert read["registrations_total first"] == 1
    assert read["heartbeats_total accepted"] == a.calls.count("heartbeat")
    assert 0 <= read["heartbeat_age_seconds"] <= 10
    assert read["lease_seconds"] == pytest.approx(30 - read["heartbeat_age_seconds"])
    assert read["backoff_seconds"] == 0

    a.trouble["heartbeat"] = TransferError("Connection refused")
    await trio.sleep(60)
    read = metrics(bench, "a")
    assert read["up"] == 1, "it is not known that it is gone"
    assert (read["lease_seconds"], read["heartbeats_total forgotten"]) == (0, 0)
    assert read["heartbeat_age_seconds"] > 50
    assert read["heartbeats_total failed"] >= 5
    assert 0 <= read["backoff_seconds"] <= 10
    assert metrics(bench, "b")["heartbeats_total failed"] == 0

    a.trouble.clear()
    a.known, b.shown = False, "OUT_OF_SERVICE"
    bench.ready.say("unhealthy")
    await trio.sleep(20)
    read = metrics(bench, "a")
    assert (read["up"], read["heartbeats_total forgotten"]) == (1, 1)
    assert read["registrations_total forgotten"] == 1
    read = metrics(bench, "b")
    assert read["registrations_total changed"] == 1
    assert read["status OUT_OF_SERVICE"] == 1, "as the registry shows it"

    bench.engine.apply(decode_plan(several("a", "b", stopTimeout=6), actions.names()))
    await trio.sleep(5)
    read = metrics(bench, "a")
    assert read["registrations_total took-over"] == 1
    assert read["registrations_total first"] == 1, "counters go on"
