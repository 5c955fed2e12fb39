"""What pods left in registries is taken out when they are gone, once, and never what is another's by now."""

import itertools
import json
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone.errors import ConnectError, PidoneError, RegistryRefused
from pidone.http.client import request
from pidone.language.schemas import registries
from pidone.plan.digest import digest
from pidone.plan.report import Report, TaskReport
from pidone.registries import Entry, Registry, Status
from pidone_controller import deregistration as module
from pidone_controller.deregistration import (
    GIVE_UP_SECONDS,
    HANDOVER_SECONDS,
    LOOK_AGAIN_SECONDS,
    MAX_CALLS_PER_REGISTRY,
    NEW_LEADER_SECONDS,
    NEW_POD_REPORT_SECONDS,
    Deregistration,
    build,
    outside,
)
from pidone_controller.pods.model import Pod
from tests.controller.factories import pod
from tests.eureka.fake import FakeEureka
from tests.eureka.real import RealEureka
from tests.http.serving import http_server
from tests.patience import PATIENCE_SECONDS
from tests.registries.test_eureka import fake_eureka

Tasks = list[dict[str, Any]]


def plan(app: str = "web", url: str = "http://eureka/", **more: Any) -> Tasks:
    return [
        {"name": "ready", "probe": {"tcpSocket": {"port": 1}}},
        {"name": "registration", "register": {"eureka": {"url": url, "app": app, "port": 80}, **more}},
    ]


def report(tasks: Tasks, state: str = "registered", runs: int = 1, **more: Any) -> Report:
    return Report(
        "applied", digest=digest(tasks), tasks={"registration": TaskReport(state, runs=runs)}, **more
    )


class FakeRegistries:
    """Drivers that record their calls; those in ``trouble`` raise."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, str]] = []
        self.trouble: dict[str, PidoneError] = {}
        self.entries: dict[str, Entry | None] = {}  # by instance; the pod's own where it is not told
        self.out: set[str] = set()  # instances that were deregistered
        self.reads = self.closed = 0
        self.takes = 0.0
        self.now = self.most = 0

    def build(self, config: Mapping[str, Any], pod: Pod) -> Any:
        registry, outer = build(config, pod), self

        class FakeDriver:
            where, instance = registry.where, registry.instance
            places, address = registry.places, registry.address

            async def read(self) -> Entry | None:
                outer.reads += 1
                if self.instance in outer.out:
                    return None
                return outer.entries.get(self.instance, Entry("UP", self.address))

            async def deregister(self) -> None:
                outer.now += 1
                outer.most = max(outer.most, outer.now)
                outer.calls.append((round(trio.current_time(), 3), self.instance))
                await trio.sleep(outer.takes)
                outer.now -= 1
                if self.where in outer.trouble:
                    raise outer.trouble[self.where]
                outer.out.add(self.instance)

            async def close(self) -> None:
                outer.closed += 1

        return FakeDriver()


class World:
    """A deregistration with the pods that have reported."""

    def __init__(self) -> None:
        self.registries = FakeRegistries()
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.deregistration = Deregistration(self._say, self.registries.build, Random(1))

    def _say(self, event: str, **values: Any) -> None:
        self.log.append((event, values))

    def hears(self, of: Pod, tasks: Tasks | None = None, said: Report | None = None) -> None:
        tasks = plan() if tasks is None else tasks
        self.registries.out.clear()
        self.deregistration.reported(of, said or report(tasks), digest(tasks), lambda: tasks)

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.log]

    @property
    def taken(self) -> list[str]:
        return [instance for _, instance in self.registries.calls]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def led(world: World, nursery: trio.Nursery) -> World:
    nursery.start_soon(world.deregistration.run)
    await wait_all_tasks_blocked()
    return world


WEB = pod("web-0", "10.0.0.5")


async def test_a_pod_that_is_gone_is_taken_out_at_once(autojump_clock: MockClock, led: World) -> None:
    began = trio.current_time()
    led.hears(WEB)
    led.deregistration.gone(WEB.key)
    await wait_all_tasks_blocked()
    assert led.registries.calls == [(round(began, 3), "apps/WEB/web-0%3Aweb%3A80")]
    told = {
        "pod": "shop/web-0",
        "task": "registration",
        "registry": "http://eureka/",
        "instance": led.taken[0],
    }
    assert led.log == [("deregistered", told)]
    assert led.deregistration.pending == 0


@pytest.mark.parametrize(
    ("last", "taken"),
    [
        (report(plan(), "registered"), 1),
        (report(plan(), "lost"), 1),  # the registry forgot it, and it was about to come back
        (report(plan(), "paused"), 1),  # its heartbeat has ended; what it registered is still there
        (report(plan(), "failed"), 1),  # a call that got no answer may have been heard
        (report(plan(), "undoing"), 1),
        (report(plan(), "waiting", 0), 1),  # it may have begun since: a report is up to a second old
        (Report("applied", digest=digest(plan())), 0),  # taken back
        (Report("applied", digest=digest([]), left=("registration",)), 1),  # it tried, and could not
    ],
)
async def test_it_is_what_the_pods_last_word_says(
    autojump_clock: MockClock, led: World, last: Report, taken: int
) -> None:
    led.hears(
        WEB,
        said=report(plan(), "registered" if last.left or not last.tasks else "waiting", int(bool(last.left))),
    )
    led.hears(WEB, said=last)
    led.deregistration.gone(WEB.key)
    led.deregistration.gone(WEB.key)
    led.deregistration.gone("of nobody")
    await trio.sleep(1)
    assert len(led.taken) == taken


def crowded(registered: bool = True) -> Tasks:
    """A plan with more tasks than a report has room for."""
    probes = [{"name": f"probe-{index}", "probe": {"tcpSocket": {"port": 1}}} for index in range(300)]
    return probes + (plan() if registered else [])


def full_report(tasks: Tasks) -> Report:
    """The report of a pod that leaves its registration out for lack of room."""
    reported = {f"probe-{index}": TaskReport("healthy") for index in range(250)}
    return Report("applied", digest=digest(tasks), tasks=reported, omitted=len(tasks) - 250)


async def test_a_registration_that_a_full_report_leaves_out_is_not_undone(
    autojump_clock: MockClock, led: World
) -> None:
    led.hears(WEB, crowded(), full_report(crowded()))
    led.hears(WEB, crowded(), full_report(crowded()))
    led.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert led.taken == ["apps/WEB/web-0%3Aweb%3A80"]


async def test_a_registration_that_the_plan_has_no_more_is_undone_though_the_report_is_full(
    autojump_clock: MockClock, led: World
) -> None:
    led.hears(WEB, crowded(), full_report(crowded()))
    led.hears(WEB, crowded(registered=False), full_report(crowded(registered=False)))
    led.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert led.taken == []


async def test_a_full_report_of_an_earlier_plan_undoes_nothing(autojump_clock: MockClock, led: World) -> None:
    led.hears(WEB, crowded(), full_report(crowded()))
    served = crowded(registered=False)
    led.deregistration.reported(WEB, full_report(crowded()), digest(served), lambda: served)
    led.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert led.taken == ["apps/WEB/web-0%3Aweb%3A80"]


async def test_a_process_that_began_anew_and_was_killed_again_left_what_it_had(
    autojump_clock: MockClock, led: World
) -> None:
    led.hears(WEB, said=report(plan(), boot="1"))
    led.hears(WEB, said=report(plan(), "waiting", 0, boot="2"))
    led.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert len(led.taken) == 1


async def test_on_pod_gone_none_is_nobodys_business(autojump_clock: MockClock, led: World) -> None:
    led.hears(WEB, plan(onPodGone="none"))
    led.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert led.taken == []


async def test_the_plan_that_the_pod_runs_counts_and_not_the_one_it_has_not_taken(
    autojump_clock: MockClock, led: World
) -> None:
    led.hears(WEB)
    renamed = plan("shop")
    led.deregistration.reported(WEB, report(plan()), digest(renamed), lambda: renamed)
    led.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert led.taken == ["apps/WEB/web-0%3Aweb%3A80"]
    # a controller that has just begun knows only what is served now
    led.deregistration.reported(WEB, report(plan()), digest(renamed), lambda: renamed)
    led.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert led.taken[1:] == ["apps/SHOP/web-0%3Ashop%3A80"]
    # and a plan that was taken replaces it
    led.hears(WEB)
    led.hears(WEB, renamed)
    led.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert led.taken[2:] == ["apps/SHOP/web-0%3Ashop%3A80"]


@pytest.mark.parametrize("state", ["registered", "waiting"])
async def test_the_next_pod_of_a_stateful_set_keeps_its_instance(
    autojump_clock: MockClock, led: World, state: str
) -> None:
    led.registries.trouble = {"http://eureka/": ConnectError("nobody there")}
    led.hears(WEB)
    led.deregistration.gone(WEB.key)
    await trio.sleep(0.5)
    assert len(led.taken) == 1  # and the registry was away
    anew = pod("web-0", "10.0.0.5", uid="uid-2")  # name and address came back
    led.hears(anew, said=report(plan(), state, int(state == "registered")))
    led.registries.trouble = {}
    await trio.sleep(GIVE_UP_SECONDS)
    assert len(led.taken) == 1
    assert led.log[-1][0] == "registered-anew"
    assert led.log[-1][1]["by"] == "shop/web-0"
    led.deregistration.gone(anew.key)
    await trio.sleep(1)
    assert len(led.taken) == 2


async def test_a_namesake_that_is_there_already_is_given_time_to_speak(
    autojump_clock: MockClock, led: World
) -> None:
    led.hears(WEB)
    led.deregistration.gone(WEB.key, namesake=True)
    await trio.sleep(NEW_POD_REPORT_SECONDS / 2)
    led.hears(pod("web-0", "10.0.0.5", uid="uid-2"))
    await trio.sleep(NEW_POD_REPORT_SECONDS)
    assert led.taken == []
    assert led.events == ["registered-anew"]
    led.hears(WEB, plan("other"))
    led.deregistration.gone(WEB.key, namesake=True)
    await trio.sleep(NEW_POD_REPORT_SECONDS + 0.1)
    assert led.taken == ["apps/OTHER/web-0%3Aother%3A80"]


@pytest.mark.parametrize(
    "url",
    [
        "http://EUREKA/",
        "http://eureka:80",
        "http://eureka//",
        "http://me:s3cret@eureka./",
        "http://other/,http://eureka/",
        "http://eureka.shop/",
        "http://eureka.shop.svc/",
        "http://eureka.shop.svc.cluster.local:80/",
    ],
)
async def test_the_instance_of_a_live_pod_stays_however_the_registry_is_spelled(
    url: str, autojump_clock: MockClock, led: World
) -> None:
    led.hears(WEB)
    led.deregistration.gone(WEB.key, namesake=True)
    led.hears(pod("web-0", "10.0.0.99", uid="uid-2"), plan(url=url))
    await trio.sleep(NEW_POD_REPORT_SECONDS + 1)
    assert (led.taken, led.events) == ([], ["registered-anew"])
    assert led.log[0][1]["by"] == "shop/web-0"


async def test_of_two_pods_with_one_address_the_live_one_keeps_the_instance_behind_any_alias(
    autojump_clock: MockClock, led: World
) -> None:
    led.hears(WEB)
    led.deregistration.gone(WEB.key, namesake=True)
    led.hears(pod("web-0", "10.0.0.5", uid="uid-2"), plan(url="http://alias-of-eureka/"))
    await trio.sleep(NEW_POD_REPORT_SECONDS + 1)
    assert (led.taken, led.events) == ([], ["registered-anew"])


async def test_an_instance_with_another_address_is_of_another_pod_known_or_not(
    autojump_clock: MockClock, led: World
) -> None:
    led.hears(WEB)
    led.registries.entries["apps/WEB/web-0%3Aweb%3A80"] = Entry("UP", "10.0.0.99")
    led.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert (led.taken, led.events) == ([], ["registered-anew"])
    assert "10.0.0.99" in led.log[0][1]["by"]


async def test_a_namesake_in_another_namespace_with_a_registry_of_its_own_keeps_nothing(
    autojump_clock: MockClock, led: World
) -> None:
    led.hears(WEB)
    led.hears(
        pod("web-0", "10.0.0.99", uid="uid-2", namespace="prod")
    )  # http://eureka/ is another Service there
    led.hears(pod("web-0", "10.0.0.98", uid="uid-3"), plan(url="http://elsewhere/"))
    led.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert (led.taken, led.events) == (["apps/WEB/web-0%3Aweb%3A80"], ["deregistered"])


@pytest.mark.parametrize(
    ("home", "called"),
    [("pidone", "http://eureka.shop.svc/"), ("shop", "http://eureka/"), ("", "http://eureka/")],
)
async def test_a_short_name_is_looked_up_in_the_namespace_of_the_pod(
    home: str, called: str, autojump_clock: MockClock, world: World, nursery: trio.Nursery
) -> None:
    world.deregistration = Deregistration(world._say, world.registries.build, Random(1), namespace=home)
    nursery.start_soon(world.deregistration.run)
    world.registries.trouble = {called: RegistryRefused("asked there")}
    await wait_all_tasks_blocked()
    world.hears(WEB)
    world.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert world.events == ["left-registered"]
    assert world.log[0][1]["registry"] == "http://eureka/"


async def test_what_the_registry_does_not_have_is_not_deregistered(
    autojump_clock: MockClock, led: World
) -> None:
    led.hears(WEB)
    led.registries.entries["apps/WEB/web-0%3Aweb%3A80"] = None
    led.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert (led.taken, led.events) == ([], ["deregistered"])


async def test_a_registry_that_is_away_is_asked_for_minutes_and_then_left(
    autojump_clock: MockClock, led: World
) -> None:
    led.registries.trouble = {"http://eureka/": ConnectError("nobody there")}
    led.hears(WEB)
    began = trio.current_time()
    led.deregistration.gone(WEB.key)
    await trio.sleep(2 * GIVE_UP_SECONDS)
    times = [at - began for at, _ in led.registries.calls]
    assert times[0] == 0
    assert 0.9 < times[1] < 2.1
    assert max(b - a for a, b in itertools.pairwise(times)) < 31
    assert GIVE_UP_SECONDS - 31 < times[-1] <= GIVE_UP_SECONDS
    (event, said), *more = led.log
    assert (event, more) == ("left-registered", [])
    assert said["error"].startswith("nobody there; tried ")
    assert led.deregistration.results == {"given_up": 1}
    assert led.deregistration.pending == 0


async def test_a_registry_that_says_no_is_not_asked_again(autojump_clock: MockClock, led: World) -> None:
    led.registries.trouble = {"http://eureka/": RegistryRefused("401: it wants a user")}
    led.hears(WEB)
    led.deregistration.gone(WEB.key)
    await trio.sleep(GIVE_UP_SECONDS)
    assert len(led.taken) == 1
    assert led.events == ["left-registered"]


async def test_a_registry_that_hangs_holds_up_itself_alone(autojump_clock: MockClock, led: World) -> None:
    led.registries.takes = 5
    slow = [pod(f"slow-{number}", f"10.0.1.{number}") for number in range(40)]
    for one in slow:
        led.hears(one)
    led.hears(WEB, plan(url="http://other/"))
    for one in (*slow, WEB):
        led.deregistration.gone(one.key)
    await wait_all_tasks_blocked()
    assert len(led.taken) == MAX_CALLS_PER_REGISTRY + 1
    assert "apps/WEB/web-0%3Aweb%3A80" in led.taken
    await trio.sleep(5 * 40 / MAX_CALLS_PER_REGISTRY + 1)
    assert len(led.taken) == 41
    assert led.registries.most == MAX_CALLS_PER_REGISTRY + 1


async def term(world: World, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await world.deregistration.run()


async def test_what_is_due_waits_for_a_leader_and_not_for_ever(
    autojump_clock: MockClock, world: World
) -> None:
    world.hears(WEB)
    world.deregistration.gone(WEB.key)
    await trio.sleep(HANDOVER_SECONDS - 1)
    await term(world, NEW_LEADER_SECONDS + 1)
    assert len(world.taken) == 1
    world.hears(WEB)
    world.deregistration.gone(WEB.key)
    await trio.sleep(HANDOVER_SECONDS + 1)
    other = pod("db", "10.0.0.9")
    world.hears(other)
    world.deregistration.gone(other.key)
    assert world.deregistration.pending == 1
    await term(world, NEW_LEADER_SECONDS + 1)
    assert world.taken[1:] == ["apps/WEB/db%3Aweb%3A80"]


async def test_a_new_leader_hears_first_who_holds_a_place_by_now(
    autojump_clock: MockClock, world: World
) -> None:
    world.hears(WEB)
    world.deregistration.gone(WEB.key)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.deregistration.run)
        await trio.sleep(NEW_LEADER_SECONDS / 2)
        world.hears(pod("web-0", "10.0.0.5", uid="uid-2"))  # a peer tells
        await trio.sleep(NEW_LEADER_SECONDS)
        nursery.cancel_scope.cancel()
    assert (world.taken, world.events) == ([], ["registered-anew"])


async def test_who_loses_the_lead_in_a_call_takes_it_up_again(
    autojump_clock: MockClock, world: World
) -> None:
    world.registries.takes = 3
    world.hears(WEB)
    world.deregistration.gone(WEB.key)
    await term(world, NEW_LEADER_SECONDS + 1)
    assert world.events == []
    await term(world, NEW_LEADER_SECONDS + 4)
    assert len(world.taken) == 2
    assert world.events == ["deregistered"]


async def test_two_tasks_of_one_pod_and_a_plan_that_cannot_be_read(
    autojump_clock: MockClock, led: World
) -> None:
    twice = [*plan(), {**plan()[1], "name": "again"}, {"name": "bad", "register": {"consul": {}}}]
    tasks = {name: TaskReport("registered", runs=1) for name in ("registration", "again", "bad")}
    led.hears(WEB, twice, Report("applied", digest=digest(twice), tasks=tasks))
    led.hears(WEB, twice, Report("applied", digest=digest(twice), tasks=tasks))
    assert led.events == ["unknown-registry"]
    led.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert led.taken == ["apps/WEB/web-0%3Aweb%3A80"] * 2
    assert not led.deregistration._holders


# A second look


async def test_an_instance_that_comes_back_after_its_deregistration_is_taken_out_again(
    autojump_clock: MockClock, led: World
) -> None:
    led.hears(WEB)
    led.deregistration.gone(WEB.key)
    await trio.sleep(LOOK_AGAIN_SECONDS / 2)
    assert led.deregistration.pending == 0
    led.registries.out.clear()  # the registry was starved, and carries out a POST of the pod only now
    await trio.sleep(LOOK_AGAIN_SECONDS)
    assert led.events == ["deregistered", "deregistered-again"]
    assert led.taken == ["apps/WEB/web-0%3Aweb%3A80"] * 2
    assert led.deregistration.results == {"deregistered": 1, "deregistered_again": 1}
    await trio.sleep(GIVE_UP_SECONDS)
    assert led.registries.reads == led.registries.closed == 2
    assert not led.deregistration._jobs


async def test_a_second_look_that_finds_nothing_is_one_read_and_says_nothing(
    autojump_clock: MockClock, led: World
) -> None:
    led.hears(WEB)
    led.deregistration.gone(WEB.key)
    await trio.sleep(GIVE_UP_SECONDS)
    assert (led.registries.reads, len(led.taken), led.events) == (2, 1, ["deregistered"])


async def test_an_instance_that_another_has_by_the_second_look_stays(
    autojump_clock: MockClock, led: World
) -> None:
    led.hears(WEB)
    led.deregistration.gone(WEB.key)
    other = pod("web-1", "10.0.0.6")
    led.hears(other)
    led.deregistration.gone(other.key)
    await trio.sleep(1)
    led.hears(pod("web-0", "10.0.0.5", uid="uid-2"))
    led.registries.entries["apps/WEB/web-1%3Aweb%3A80"] = Entry("UP", "10.0.0.99")
    await trio.sleep(GIVE_UP_SECONDS)
    assert led.events == ["deregistered"] * 2
    assert len(led.taken) == 2


async def test_a_registry_that_is_away_at_the_second_look_is_asked_for_minutes_and_then_left(
    autojump_clock: MockClock, led: World
) -> None:
    led.hears(WEB)
    led.deregistration.gone(WEB.key)
    await trio.sleep(1)
    led.registries.out.clear()
    led.registries.trouble = {"http://eureka/": ConnectError("nobody there")}
    await trio.sleep(3 * GIVE_UP_SECONDS)
    assert led.events == ["deregistered"], "which it was"
    assert 5 < len(led.taken) < 50
    assert not led.deregistration._jobs


async def test_a_new_leader_looks_a_second_time_too(autojump_clock: MockClock, world: World) -> None:
    world.hears(WEB)
    world.deregistration.gone(WEB.key)
    await term(world, NEW_LEADER_SECONDS + 1)
    assert world.events == ["deregistered"]
    world.registries.out.clear()
    await term(world, LOOK_AGAIN_SECONDS)
    assert world.events == ["deregistered", "deregistered-again"]


# What the plan means to others than the pod


@pytest.mark.parametrize("name", sorted(registries()))
def test_servers_get_the_namespace_of_the_pod_and_files_of_the_pod_are_not_read(name: str) -> None:
    servers = registries()[name].instance[0]
    fields = {"port": 80, "tokenFile": "/var/run/secrets/token", "tls": {"caFile": "/ca", "serverName": "x"}}
    config = {"follow": "ready", name: {servers: "http://one:1/x, http://two.infra:1", **fields}}
    kept = {"port": 80, "tls": {"serverName": "x"}}
    assert outside(config, "shop", "pidone") == {
        "follow": "ready",
        name: {servers: "http://one.shop.svc:1/x,http://two.infra:1", **kept},
    }
    assert outside(config, "shop", "shop")[name] == kept | {servers: "http://one:1/x,http://two.infra:1"}
    several = {"to": [{name: {servers: "one:2181,two:2181"}}]}
    assert outside(several, "shop", "pidone") == {
        "to": [{name: {servers: "one.shop.svc:2181,two.shop.svc:2181"}}]
    }


@pytest.mark.parametrize("url", ["http://127.0.0.1:8500/", "http://eureka/,http://localhost/", "http://0/"])
@pytest.mark.parametrize("namespace", ["shop", "pidone"])
async def test_the_controller_calls_nothing_at_its_own_loopback_address(
    url: str, namespace: str, autojump_clock: MockClock, world: World, nursery: trio.Nursery
) -> None:
    world.deregistration = Deregistration(world._say, world.registries.build, Random(1), namespace=namespace)
    nursery.start_soon(world.deregistration.run)
    await wait_all_tasks_blocked()
    world.hears(WEB, plan(url=url))
    world.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert (world.registries.reads, world.events) == (0, ["left-registered"])
    assert "within the pod" in world.log[0][1]["error"]


async def test_a_controller_on_the_host_of_the_pod_has_the_same_loopback_address(
    autojump_clock: MockClock, world: World, nursery: trio.Nursery
) -> None:
    world.deregistration = Deregistration(world._say, world.registries.build, Random(1), namespace="pidone")
    nursery.start_soon(world.deregistration.run)
    await wait_all_tasks_blocked()
    local = pod("web-0", "127.0.0.5")
    world.hears(local, plan(url="http://127.0.0.1:8761/"))
    world.deregistration.gone(local.key)
    await trio.sleep(1)
    assert world.events == ["deregistered"]


async def test_a_registry_that_keeps_a_call_for_ever_is_given_up(
    autojump_clock: MockClock, led: World
) -> None:
    led.registries.takes = 1e9
    led.hears(WEB)
    led.deregistration.gone(WEB.key)
    await trio.sleep(2 * GIVE_UP_SECONDS)
    assert led.events == ["left-registered"]
    assert led.registries.closed == len(led.taken) > 3


# A real one


_apps = (f"BACKSTOP{number}" for number in itertools.count(1))


@pytest.fixture(params=["fake", pytest.param("spring", marks=pytest.mark.eureka)])
def real(request: pytest.FixtureRequest) -> RealEureka | None:
    if request.param == "fake":
        return None
    server: RealEureka = request.getfixturevalue("spring")
    return server


@pytest.fixture
async def eureka(real: RealEureka | None, nursery: trio.Nursery) -> str:
    """The URL of a registry."""
    if real is not None:
        return real.url
    port = await http_server(nursery, fake_eureka(FakeEureka()), body=1 << 16)
    return f"http://127.0.0.1:{port}/eureka/"


async def test_an_instance_that_was_killed_is_out_of_eureka_long_before_its_lease_ends(
    nursery: trio.Nursery, eureka: str
) -> None:
    app = next(_apps)
    tasks = plan(app, eureka)
    deregistration = Deregistration(lambda *_, **__: None)
    nursery.start_soon(deregistration.run)
    pods = [pod(f"web-{number}", f"10.0.0.{number}") for number in range(5)]
    for one in pods:
        driver = build(tasks[1]["register"], one)
        await driver.register(Status.UP)
        deregistration.reported(one, report(tasks), digest(tasks), lambda: tasks)
    headers = {"accept": "application/json"}
    listed = await request("GET", f"{eureka}apps/{app}", timeout=30, headers=headers)
    assert len(json.loads(listed.body)["application"]["instance"]) == len(pods)
    began = trio.current_time()
    for one in pods:
        deregistration.gone(one.key)
    while (await request("GET", f"{eureka}apps/{app}", timeout=30, headers=headers)).status != 404:
        assert trio.current_time() < began + 30
        await trio.sleep(0.02)
    print(f"{len(pods)} instances are out after {trio.current_time() - began:.3f} s")
    assert deregistration.results == {"deregistered": len(pods)}
    nursery.cancel_scope.cancel()


class _LateDriver:
    """A driver to whose registry a registration of the pod comes right before it is read."""

    def __init__(self, driver: Registry) -> None:
        self._driver = driver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    async def read(self) -> Entry | None:
        await self._driver.register(Status.UP)
        return await self._driver.read()


async def test_a_registration_that_eureka_carries_out_late_does_not_stay(
    nursery: trio.Nursery, eureka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN_SECONDS", 0.1)
    tasks, web = plan(next(_apps), eureka), pod("web-0", "10.0.0.1")
    looks = 0
    again = trio.Event()

    def build_driver(config: Mapping[str, Any], pod: Pod) -> Any:
        nonlocal looks
        looks += 1
        return _LateDriver(build(config, pod)) if looks == 3 else build(config, pod)

    def log(event: str, **_: Any) -> None:
        if event == "deregistered-again":
            again.set()

    deregistration = Deregistration(log, build_driver)
    nursery.start_soon(deregistration.run)
    driver = build(tasks[1]["register"], web)
    await driver.register(Status.UP)
    deregistration.reported(web, report(tasks), digest(tasks), lambda: tasks)
    deregistration.gone(web.key)
    with trio.fail_after(PATIENCE_SECONDS):
        await again.wait()
    assert await driver.read() is None
    nursery.cancel_scope.cancel()


def in_two(**more: Any) -> Tasks:
    to = [{"eureka": {"url": f"http://{host}/", "app": "web", "port": 80}} for host in ("one", "two")]
    return [{"name": "registration", "register": {"to": to, "follow": "ready", **more}}]


async def test_each_target_of_a_task_is_taken_out_alone(autojump_clock: MockClock, led: World) -> None:
    led.registries.trouble["http://one/"] = RegistryRefused("answered 401")
    led.hears(WEB, in_two())
    led.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert led.taken == ["apps/WEB/web-0%3Aweb%3A80"] * 2
    assert {(event, values["registry"]) for event, values in led.log} == {
        ("left-registered", "http://one/"),
        ("deregistered", "http://two/"),
    }


async def test_all_targets_of_a_task_stay_if_it_says_so(autojump_clock: MockClock, led: World) -> None:
    led.hears(WEB, in_two(onPodGone="none"))
    led.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert led.taken == []


async def test_a_pod_in_one_of_the_registries_keeps_its_instance_there(
    autojump_clock: MockClock, led: World
) -> None:
    led.hears(WEB, in_two())
    other = pod("web-0", "10.0.0.6", uid="other")
    led.hears(other, plan(url="http://two/"))
    led.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert {(event, values["registry"]) for event, values in led.log} == {
        ("deregistered", "http://one/"),
        ("registered-anew", "http://two/"),
    }


async def test_a_password_of_a_secret_is_used_and_told_nowhere(
    autojump_clock: MockClock, world: World, nursery: trio.Nursery
) -> None:
    secret = "correct-horse-battery"
    task = plan(url=f"http://pidone:{secret}@eureka:8761/eureka")[1] | {
        "secrets": {"salt": "0" * 64, "values": [secret]}
    }
    seen: list[str] = []

    def build(config: Mapping[str, Any], pod: Pod) -> Registry:
        seen.append(json.dumps(config))
        if len(seen) > 1:
            raise RegistryRefused(f"answered 401 to {json.dumps(config)}")
        registry: Registry = world.registries.build(config, pod)
        return registry

    world.deregistration = Deregistration(world._say, build, Random(1))
    nursery.start_soon(world.deregistration.run)
    await wait_all_tasks_blocked()
    world.hears(WEB, [task])
    world.deregistration.gone(WEB.key)
    await trio.sleep(1)
    assert all(secret in config for config in seen)
    assert world.events == ["left-registered"]
    assert "***" in str(world.log)
    assert secret not in str(world.log)
