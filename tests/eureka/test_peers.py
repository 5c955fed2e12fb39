"""Pods against two stock Netflix servers with faults between all three; read back by Netflix' own client."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from random import Random
from typing import Any

import httpx
import pytest
import trio

from pidone import actions
from pidone.actions import Action, Setting
from pidone.counters import Counters
from pidone.engine.runner import Engine
from pidone.http.message import Response
from pidone.journal import Journal
from pidone.maintenance import LOCAL, Maintenance
from pidone.pid1.reaper import Reaper
from pidone.plan import model
from pidone.plan.digest import digest
from pidone.plan.format import decode_plan
from pidone.plan.model import Task
from pidone.plan.report import Report, TaskReport
from pidone.registries import Status
from pidone_controller.deregistration import Deregistration
from tests.actions.test_register import ScriptedProbe
from tests.controller.factories import pod as kubernetes_pod
from tests.eureka.peers import Peers, missing, running_peers, version
from tests.patience import PATIENCE_SECONDS
from tests.ports import free_port
from tests.registries.between import FOREIGN, Ingress, always
from tests.registries.lines import Fault, Line
from tests.registries.test_eureka import make
from tests.results import serve_with

LEASE_SECONDS = 4  # of which each of two servers has a half for its answer
ADDRESS = "127.0.0.1"
_apps = (f"PEERS{number}" for number in itertools.count(1))


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    if reason := missing():
        pytest.skip(reason)
    with running_peers(tmp_path_factory.mktemp("peers")) as peers:
        yield peers


class TestPod:
    """A pod with a probe, a registration that follows it, and a heartbeat each second."""

    __test__ = False

    def __init__(self, app: str, name: str = "web-0") -> None:
        self.app, self.name = app, name
        self.id = f"{name}:{app.lower()}:80"
        self.ready = ScriptedProbe()
        self.journal = Journal(echo=lambda line: None)
        self.maintenance = Maintenance(changed=self._wake)
        facts = model.Pod(name, "shop", "uid", ADDRESS)
        setting = Setting(facts, None, Reaper(), Counters(), lambda: (), maintenance=self.maintenance)
        self.engine = Engine(setting, self.journal, changed=lambda: None, random=Random(1), build=self._build)

    def tasks(self, url: str, **eureka: Any) -> list[dict[str, Any]]:
        fields = {"app": self.app, "port": 80, "renewalInterval": 1, "leaseDuration": LEASE_SECONDS}
        return [
            {"name": "ready", "probe": {"tcpSocket": {"port": 1}}},
            {
                "name": "web",
                "register": {"eureka": {"url": url, **fields, **eureka}, "follow": "ready"},
                "needs": ["ready.healthy"],
                "stopTimeout": 6,
            },
            {"name": "beat", "heartbeat": {"of": "web"}, "every": 1, "needs": ["web.registered"]},
        ]

    def apply(self, url: str, **eureka: Any) -> None:
        self.engine.apply(decode_plan(self.tasks(url, **eureka), actions.names()))

    def logged(self, text: str) -> bool:
        return any(text in line for line in self.journal.lines)

    def state(self, name: str) -> str:
        return next(state.shown for state in self.engine.tasks if state.task.name == name)

    def _wake(self) -> None:
        self.engine.wake_tasks()

    def _build(self, task: Task, setting: Setting) -> Action:
        return self.ready if task.action == "probe" else actions.build(task, setting)


class Bench:
    """The servers, and a line to each of them for pods."""

    def __init__(self, servers: Peers, nursery: trio.Nursery) -> None:
        self.servers = servers
        self.lines = tuple(Line(free_port(), peer.port).start() for peer in servers.all)
        self.url_a, self.url_b = (f"http://{ADDRESS}:{line.port}/eureka/v2/" for line in self.lines)
        self.urls = f"{self.url_a},{self.url_b}"
        self._nursery = nursery

    async def start(self, name: str = "web-0", url: str = "", app: str = "", **eureka: Any) -> TestPod:
        pod = TestPod(app or next(_apps), name)
        await self._nursery.start(pod.engine.run)
        pod.apply(url or self.urls, **eureka)
        return pod

    def read(self, server: int, pod: TestPod) -> Mapping[str, Any]:
        """The instance as the official client reads it from a server; empty if it is not there."""
        instances = self.servers.read(server, pod.app)
        return {"status": "?"} if instances is None else instances.get(pod.id, {})

    def count(self, server: int, app: str) -> int:
        """The number of instances of an application; -1 if the server does not answer."""
        instances = self.servers.read(server, app)
        return -1 if instances is None else len(instances)

    async def shown(self, pod: TestPod, status: str, *, by: tuple[int, ...] = (0, 1)) -> None:
        """Wait until the official client reads this status from these servers; "" is no instance."""
        await until(lambda: all(self.read(server, pod).get("status", "") == status for server in by))

    async def beats(self, line: int, count: int) -> None:
        """Wait for so many heartbeats on a line."""
        asked = self.lines[line].asked
        wanted = asked.count("PUT") + count
        await until(lambda: asked.count("PUT") >= wanted)


async def until(good: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while not good():
            await trio.sleep(0.1)  # the state of another process has no event


@pytest.fixture
async def bench(servers: Peers, nursery: trio.Nursery, request: pytest.FixtureRequest) -> Any:
    serve_with(request, f"Netflix Eureka {version()}, two peers")
    servers.mend()
    bench = Bench(servers, nursery)
    yield bench
    for line in bench.lines:
        line.close()
    servers.mend()
    nursery.cancel_scope.cancel()


@pytest.mark.check("eureka", "two peers: failover, override replicated, DELETE replicated")
async def test_what_one_server_was_told_both_show(bench: Bench) -> None:
    pod = await bench.start(securePort=8443, portEnabled=True, metadata={"zone": "a"})
    await bench.shown(pod, "UP")
    expected = {
        "status": "UP",
        "overridden": "UNKNOWN",
        "ip": ADDRESS,
        "port": 80,
        "securePort": 8443,
        "metadata": {"zone": "a"},
    }
    assert bench.read(1, pod) == expected
    await until(lambda: bench.servers.read(1, pod.app, by_consumer=True) == {pod.id: expected})
    pod.ready.say("unhealthy")
    await bench.shown(pod, "DOWN")
    await pod.engine.drain(8)
    await bench.shown(pod, "")
    assert (pod.engine.left, bench.lines[1].asked) == ({}, []), "one server at a time"


@pytest.mark.check("eureka", "two peers: failover, override replicated, DELETE replicated")
async def test_a_server_that_dies_costs_nothing_and_comes_back_with_everything(bench: Bench) -> None:
    pod = await bench.start()
    await bench.shown(pod, "UP")
    posts = [line.asked.count("POST") for line in bench.lines]
    bench.servers.all[0].kill()
    await bench.beats(1, 3)
    assert bench.read(1, pod)["status"] == "UP"
    assert [line.asked.count("POST") for line in bench.lines] == posts, "its peer had it"
    bench.servers.all[0].start()
    await bench.shown(pod, "UP")


async def test_twenty_pods_outlive_two_servers_that_forget_everything(bench: Bench) -> None:
    app = next(_apps)
    pods = [await bench.start(f"web-{number}", app=app) for number in range(20)]
    await until(lambda: bench.count(1, app) == len(pods))
    for peer in bench.servers.all:
        peer.kill()
    pods[0].ready.say("unhealthy")
    await until(lambda: all(pod.state("beat") == "failing" for pod in pods))
    bench.servers.mend()
    await until(lambda: bench.count(0, app) == bench.count(1, app) == len(pods))
    await bench.shown(pods[0], "DOWN")
    assert {bench.read(1, pod)["status"] for pod in pods[1:]} == {"UP"}
    async with trio.open_nursery() as nursery:
        for pod in pods:
            nursery.start_soon(pod.engine.drain, 8)
    await until(lambda: bench.count(0, app) == bench.count(1, app) == 0)


@pytest.mark.check("eureka", "two peers: failover, override replicated, DELETE replicated")
async def test_a_pod_that_cannot_reach_its_server_goes_to_the_other(bench: Bench) -> None:
    pod = await bench.start()
    await bench.shown(pod, "UP")
    bench.lines[0].fault = Fault.SILENT
    await bench.beats(1, 2)
    pod.ready.say("unhealthy")
    await bench.shown(pod, "DOWN")
    bench.lines[0].fault = Fault.NONE
    await pod.engine.drain(8)
    await bench.shown(pod, "")


async def test_servers_that_could_not_reach_each_other_agree_afterwards(bench: Bench) -> None:
    pod = await bench.start()
    await bench.shown(pod, "UP")
    for line in bench.servers.between:
        line.fault = Fault.REFUSED
    pod.ready.say("unhealthy")
    await bench.shown(pod, "DOWN", by=(0,))
    assert bench.read(1, pod).get("status", "") != "DOWN"
    for line in bench.servers.between:
        line.fault = Fault.NONE
    await bench.shown(pod, "DOWN")


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.CUT, Fault.REFUSED])
async def test_a_connection_that_is_reset_in_the_middle(fault: Fault, bench: Bench) -> None:
    pod = await bench.start()
    await bench.shown(pod, "UP")
    bench.lines[0].fault = fault
    pod.ready.say("unhealthy")
    await bench.shown(pod, "DOWN")
    await bench.beats(1, 1)
    await pod.engine.drain(8)
    await bench.shown(pod, "")
    asked = sum(len(line.asked) for line in bench.lines)
    bench.lines[0].fault = Fault.NONE
    await bench.shown(pod, "")
    assert sum(len(line.asked) for line in bench.lines) == asked, "nobody comes back"


async def test_an_answer_that_is_lost_is_looked_up_and_not_repeated(bench: Bench) -> None:
    line = bench.lines[0]
    line.fault, line.only = Fault.LOST, "POST"
    pod = await bench.start(url=bench.url_a)
    await until(lambda: pod.state("web") == "registered")
    assert line.asked.count("POST") == 1
    line.only = "DELETE"
    await pod.engine.drain(8)
    assert pod.engine.left == {}
    assert line.asked.count("DELETE") == 1
    await bench.shown(pod, "")


async def test_an_answer_that_stays_lost_is_no_deregistration(bench: Bench) -> None:
    pod = await bench.start(url=bench.url_a)
    await bench.shown(pod, "UP")
    bench.lines[0].fault = Fault.RESET
    await pod.engine.drain(8)
    assert "web" in pod.engine.left, "it is the controller's to look again"
    await bench.shown(pod, "")


async def test_a_paused_server_is_passed_over_and_brings_nothing_back(bench: Bench) -> None:
    pod = await bench.start()
    await bench.shown(pod, "UP")
    bench.servers.all[0].pause()
    await bench.beats(1, 2)
    pod.ready.say("unhealthy")
    await bench.shown(pod, "DOWN", by=(1,))
    await pod.engine.drain(8)
    await bench.shown(pod, "", by=(1,))
    bench.servers.all[0].resume()
    await bench.shown(pod, "")


async def test_a_registration_in_the_queue_of_a_paused_server_does_not_outlive_the_pod(bench: Bench) -> None:
    bench.servers.all[0].pause()
    pod = await bench.start()
    await bench.shown(pod, "UP", by=(1,))
    await pod.engine.drain(8)
    assert "may carry out later" in pod.engine.left["web"], "it is the controller's to look again"
    bench.servers.all[0].resume()
    await bench.shown(pod, "")


async def test_a_server_that_is_not_up_is_passed_over(bench: Bench) -> None:
    pod = await bench.start()
    await bench.shown(pod, "UP")
    bench.servers.all[0].say("OUT_OF_SERVICE")
    await bench.beats(1, 2)
    bench.servers.all[1].say("STARTING")
    pod.ready.say("unhealthy")
    await until(lambda: pod.logged("answered 307"))
    await until(lambda: pod.state("beat") == "failing")
    assert pod.state("web") == "registered"
    bench.servers.mend()
    await bench.shown(pod, "DOWN")
    await until(lambda: pod.state("beat") == "started")


async def test_what_an_ingress_answers_is_not_the_registrys_word(bench: Bench, nursery: trio.Nursery) -> None:
    ingress = await Ingress(bench.url_a).start(nursery)
    app = next(_apps)
    driver = make(f"{ingress.url},{bench.url_b}", app, leaseDuration=60)
    instance = f"{bench.servers.all[1].url}apps/{app}/web-7d9c:{app.lower()}:9080"
    async with httpx.AsyncClient() as client:
        for number, (name, answer) in enumerate(FOREIGN.items()):
            ingress.fault = always(answer)
            driver._servers._current = 0
            await driver.register(Status.UP if number % 2 else Status.DOWN)
            driver._servers._current = 0
            assert await driver.heartbeat() or name.startswith("404"), name
            driver._servers._current = 0
            await driver.deregister()
            assert (await client.get(instance)).status_code == 404, name
        ingress.fault = always(Response(404))
        pod = await bench.start(url=ingress.url)
        await until(lambda: pod.logged("is the URL right"))
        ingress.fault = lambda _: None
        await bench.shown(pod, "UP")
        ingress.fault = always(Response(404))
        await until(lambda: pod.state("beat") == "failing")
        ingress.fault = lambda _: None
        await until(lambda: pod.state("beat") == "started")
        ingress.fault = always(Response(404), "DELETE", "GET")
        await pod.engine.drain(8)
        assert "not the registry's word" in pod.engine.left["web"]


@pytest.mark.check("eureka", "two peers: failover, override replicated, DELETE replicated")
async def test_an_operators_override_survives_other_metadata_and_a_server(bench: Bench) -> None:
    pod = await bench.start(metadata={"version": "1"})
    await bench.shown(pod, "UP")
    async with httpx.AsyncClient() as client:
        url = f"{bench.servers.all[0].url}apps/{pod.app}/{pod.id}/status?value=OUT_OF_SERVICE"
        assert (await client.put(url)).status_code == 200
    await bench.shown(pod, "OUT_OF_SERVICE")
    deletes = [line.asked.count("DELETE") for line in bench.lines]
    pod.apply(bench.urls, metadata={"version": "2"})
    await until(lambda: all(bench.read(n, pod).get("metadata") == {"version": "2"} for n in (0, 1)))
    await bench.shown(pod, "OUT_OF_SERVICE")
    bench.servers.all[0].kill()
    await bench.beats(1, 2)
    bench.servers.all[0].start()
    await bench.shown(pod, "OUT_OF_SERVICE")
    assert [line.asked.count("DELETE") for line in bench.lines] == deletes == [0, 0]


async def test_a_maintenance_is_replicated_survives_a_server_and_is_lifted(bench: Bench) -> None:
    pod = await bench.start()
    await bench.shown(pod, "UP")
    pod.maintenance.set(LOCAL, on=True)
    await bench.shown(pod, "OUT_OF_SERVICE")
    bench.servers.all[0].kill()
    await bench.beats(1, 2)
    pod.ready.say("unhealthy")
    bench.servers.all[0].start()
    await bench.shown(pod, "OUT_OF_SERVICE")
    pod.ready.say("healthy")
    pod.maintenance.set(LOCAL, on=False)
    await bench.shown(pod, "UP")
    await pod.engine.drain(8)
    await bench.shown(pod, "")


async def test_a_status_that_changes_during_an_outage_is_told_after_it(bench: Bench) -> None:
    pod = await bench.start(url=bench.url_a)
    await bench.shown(pod, "UP")
    bench.lines[0].fault = Fault.REFUSED
    pod.ready.say("unhealthy")
    await until(lambda: pod.logged("registry-failed"))
    await until(lambda: pod.state("beat") == "failing")
    assert not pod.logged("not registered at present")
    bench.lines[0].fault = Fault.NONE
    await bench.shown(pod, "DOWN")


async def test_the_controller_deregisters_a_killed_pod_behind_an_ingress_and_no_live_one(
    bench: Bench, nursery: trio.Nursery
) -> None:
    ingress = await Ingress(bench.url_a).start(nursery)
    ingress.fault = always(Response(404))
    app, events = next(_apps), list[str]()

    def log(event: str, **_: object) -> None:
        events.append(event)

    deregistration = Deregistration(log, random=Random(1))
    nursery.start_soon(deregistration.run)
    dead, live = TestPod(app), TestPod(app, "web-1")
    # The same server under another name, and a pod with the same name and address
    alias = bench.servers.all[0].url
    for pod, url, uid in ((dead, ingress.url, "1"), (live, ingress.url, "2"), (live, alias, "3")):
        tasks = pod.tasks(url, leaseDuration=600)
        driver = make(
            alias, app, pod=model.Pod(pod.name, "shop", uid, "10.0.0.5"), port=80, leaseDuration=600
        )
        await driver.register(Status.UP)
        reported = Report("applied", digest=digest(tasks), tasks={"web": TaskReport("registered", runs=1)})
        one = kubernetes_pod(pod.name, "10.0.0.5", uid=uid)
        deregistration.reported(one, reported, digest(tasks), partial(list, tasks))
        if uid != "3":
            deregistration.gone(one.key, namesake=uid == "2")
    await until(lambda: len(ingress.asked) >= 2)
    assert bench.count(0, app) == 2
    assert deregistration.results["deregistered"] == 0
    ingress.fault = lambda _: None
    await until(lambda: deregistration.pending == 0)
    assert deregistration.results == {"deregistered": 1, "taken_over": 1}
    await bench.shown(dead, "")
    assert bench.read(0, live)["status"] == "UP"
    assert sorted(events) == ["deregistered", "registered-anew"]
