"""Pods with the real driver against real servers with faults: each registry and each fault, for docs/registries.md.

Afterwards each registry has exactly the instances that are alive, once, with their status, as its own client reads it.
Nobody who left comes back within two intervals.

Without a fault, people take an instance out of service, and the controller takes out those of pods that were killed.
"""

import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pidone.http.message import Response
from pidone.plan.digest import digest
from pidone.plan.report import Report, TaskReport
from pidone_controller.deregistration import Deregistration
from tests.controller.factories import pod as kubernetes_pod
from tests.patience import PATIENCE_SECONDS
from tests.ports import free_port
from tests.registries.between import PAGE, Ingress, always
from tests.registries.cables import plugged_cable
from tests.registries.checks import CHECKS, FAULTS, INGRESS, is_built
from tests.registries.lines import Fault, Line
from tests.registries.pods import Look, Pods
from tests.registries.world import Seen, World, check_without_meaning, missing, pod_ip, running
from tests.results import has_no_meaning, made_by, serve_with

T = TypeVar("T")

LEASE_SECONDS = 6
LEASE_OF_PEOPLE_SECONDS = 30  # or as many as the servers allow
MAINTAINED, LIVING = 4, 5  # pods by number
# A server that is slow by 5 s is to answer a call before the lease ends, and 200 pods are not to hit it each second.
LONG_LEASE_SECONDS = 15
INGRESS_SECONDS = 20.0
BUDGET_SECONDS = 20.0  # for the end of a pod
DOWN_BEFORE, DOWN_MEANWHILE, LEFT_MEANWHILE = 1, 2, 3  # pods by number
PODS = range(6)
KILLED = range(6, 8)  # pods in a process that is killed during the fault
MANY = range(200)
FOREIGN = (
    Response(404, {}, b"default backend - 404"),
    Response(403, {}, b"RBAC: access denied"),
    Response(200, {"content-type": "text/html"}, PAGE),
)


class Bench:
    """The servers, a line to each of them, and pods in two processes."""

    def __init__(self, world: World, service: str, folder: Path, closing: AsyncExitStack) -> None:
        self.world = world
        self.service = service
        self.folder = folder
        self.nursery: trio.Nursery
        self.closing = closing
        self.lines: list[Line] = []
        self.expected: dict[int, str] = {}  # status by the number of the pod
        self.lease = LEASE_SECONDS
        self.way = ""  # how the fault is made, where this depends on the user's rights
        self._processes: list[Pods] = []
        self._ended: dict[
            int, float
        ] = {}  # by the number of a pod that left: when its end was seen to be over
        self._homes: dict[int, Pods] = {}  # the process of each pod
        self._doomed: tuple[Pods, range] | None = None  # the process that is to be killed, and its pods

    @property
    def servers(self) -> range:
        return range(len(self.world.addresses))

    async def call(self, function: Callable[..., T], *arguments: object, **options: object) -> T:
        """Call a function of the world, which blocks."""
        return await trio.to_thread.run_sync(partial(function, *arguments, **options))

    def connect(self, host: str = "127.0.0.1") -> list[str]:
        """Lay a line to each server, and return their addresses."""
        for address in self.world.addresses:
            line = Line(free_port(), int(address.rpartition(":")[2]), host).start()
            self.closing.callback(line.close)
            self.lines.append(line)
        return [line.address for line in self.lines]

    def set_lines(self, fault: Fault) -> None:
        for line in self.lines:
            line.fault = fault

    async def start(
        self,
        addresses: Callable[[int], list[str]],
        numbers: range = PODS,
        killed: range = KILLED,
        prefix: list[str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Start pods, and wait until the registry has them, one as unhealthy. ``addresses`` are those of a pod."""
        for group in (numbers, killed):
            if not group:
                continue
            log = self.closing.enter_context((self.folder / "pods.log").open("ab"))
            process = await Pods.start(log, prefix or (), environment)
            self.closing.push_async_callback(process.kill)
            self._processes.append(process)
            starts = {
                number: {
                    self.world.name: self.world.config(self.service, number, addresses(number), self.lease)
                }
                for number in group
            }
            await process.order(start=starts)
            self._homes |= dict.fromkeys(group, process)
            if group is killed:
                self._doomed = process, killed
            self.expected |= dict.fromkeys(group, "UP")
        await self.settled()
        await self.become_unhealthy(DOWN_BEFORE)
        await self.settled()
        await self.renewed(1)

    async def become_unhealthy(self, number: int) -> None:
        await self._homes[number].order(health={number: "unhealthy"})
        self.expected[number] = self.world.unhealthy

    async def leave(self, *numbers: int) -> None:
        """Let pods begin their end."""
        for process in self._processes:
            here = [number for number in numbers if self._homes[number] is process]
            await process.order(drain=dict.fromkeys(here, BUDGET_SECONDS))
        for number in numbers:
            del self.expected[number]

    async def change(self) -> None:
        """Let a pod become unhealthy, another one end, and a process of two be killed."""
        await self.become_unhealthy(DOWN_MEANWHILE)
        await self.leave(LEFT_MEANWHILE)
        if self._doomed is not None:
            process, killed = self._doomed
            await process.kill()
            self._processes.remove(process)
            for number in killed:
                del self.expected[number], self._homes[number]

    async def look(self, **orders: object) -> dict[int, Look]:
        looks: dict[int, Look] = {}
        for process in self._processes:
            looks |= await process.order(**orders)
        for number, look in looks.items():
            if look.over:
                self._ended.setdefault(number, trio.current_time())
        return looks

    async def noticed(self, since: Mapping[int, Look] | None = None) -> None:
        """Wait until a call of each living pod has failed since then, or from now on."""
        await self._more(lambda look: look.failures, 1, since)

    async def renewed(self, times: int) -> None:
        """Wait until each living pod has renewed its lease so many times from now on."""
        await self._more(lambda look: look.renewals, times)

    async def _more(
        self, count: Callable[[Look], int], more: int, since: Mapping[int, Look] | None = None
    ) -> None:
        before = await self.look() if since is None else since

        async def all_have() -> str:
            looks = await self.look()
            behind = [
                number for number in self.expected if count(looks[number]) < count(before[number]) + more
            ]
            return "" if not behind else f"waiting for pod {behind[0]}: {looks[behind[0]]}"

        await until(all_have)

    async def settled(self) -> None:
        """Wait until the registry has exactly the living pods, once, with their status."""
        expected = sorted(Seen(number, status) for number, status in self.expected.items() if status)

        async def as_expected() -> str:
            seen = await self.call(self.world.instances, self.service)
            if seen is not None and sorted(seen) == expected:
                return ""
            if seen is None:
                return "the servers do not answer, or do not agree"
            more, less = (
                Counter(one) - Counter(other) for one, other in ((seen, expected), (expected, seen))
            )
            return f"too much: {[*more][:9]}; missing: {[*less][:9]}"

        async def silent() -> str:
            seen = await self.call(self.world.instances, self.service)
            return "the servers do not answer, or do not agree" if seen is None else ""

        await until(silent)  # a server in Java that starts on a busy machine takes a minute
        try:
            await until(as_expected)
        except AssertionError as error:
            looks = list((await self.look(log=True)).values())
            raise AssertionError("\n".join([str(error), *map(str, looks[:8])])) from None

    async def stays(self) -> None:
        """See that nobody gets lost, and that in two intervals nobody comes back who has left."""
        await self.settled()
        await self.renewed(1)
        interval = await self._over()
        await trio.sleep_until(max(self._ended.values()) + 2 * interval)
        await self.settled()

    async def _over(self) -> float:
        """Wait until the end of all pods that leave is over, and return the interval of renewals."""

        async def over() -> str:
            looks = await self.look()
            late = [number for number in looks.keys() - self.expected.keys() if not looks[number].over]
            return "" if not late else f"pod {late[0]} does not end: {looks[late[0]]}"

        await until(over)
        return max(look.interval for look in (await self.look()).values())

    async def kill_all(self) -> None:
        for server in self.servers:
            await self.call(self.world.kill, server)

    async def restart_all(self, *, empty: bool) -> None:
        for server in self.servers:
            await self.call(self.world.restart, server, empty=empty)

    async def lapse(self, since: float) -> None:
        """Let the time pass after which a registry has given up all that was not renewed since then."""
        await trio.sleep_until(since + self.world.lapse_seconds(self.lease))


async def until(wrong: Callable[[], Awaitable[str]]) -> None:
    """Wait until ``wrong`` has nothing to say."""
    said = ""
    with trio.move_on_after(PATIENCE_SECONDS):
        while said := await wrong():
            await trio.sleep(0.2)  # the state of other processes has no event
        return
    raise AssertionError(said)


async def killed_and_restarted_empty(bench: Bench) -> None:
    addresses = bench.connect()
    await bench.start(lambda _: addresses)
    await bench.kill_all()
    await bench.noticed()
    await bench.change()
    await bench.restart_all(empty=True)


async def restarted_with_data(bench: Bench) -> None:
    """One after the other, where there are several."""
    addresses = bench.connect()
    await bench.start(lambda _: addresses)
    for server in bench.servers:
        await bench.call(bench.world.kill, server)
        if len(bench.servers) == 1:
            await bench.noticed()
        if server == 0:
            await bench.change()
        await bench.call(bench.world.restart, server, empty=False)
        await bench.renewed(1)


async def paused_past_the_lease(bench: Bench) -> None:
    addresses = bench.connect()
    await bench.start(lambda _: addresses)
    since, before = trio.current_time(), await bench.look()
    for server in bench.servers:
        await bench.call(bench.world.pause, server)
    await bench.change()
    await bench.lapse(since)
    await bench.noticed(before)
    for server in bench.servers:
        await bench.call(bench.world.resume, server)


async def slow(bench: Bench) -> None:
    bench.lease = LONG_LEASE_SECONDS
    addresses = bench.connect()
    await bench.start(lambda _: addresses)
    bench.set_lines(Fault.SLOW)
    await bench.change()
    await bench.renewed(2)
    await bench.settled()
    bench.set_lines(Fault.NONE)


async def network_cut_and_healed(bench: Bench) -> None:
    cable = bench.closing.enter_context(plugged_cable())
    bench.way = "network namespace" if cable is not None else "proxy"
    addresses = bench.connect(cable.host if cable is not None else "127.0.0.1")
    await bench.start(lambda _: addresses, prefix=cable.prefix if cable is not None else None)
    since, before = trio.current_time(), await bench.look()
    cable.cut() if cable is not None else bench.set_lines(Fault.HELD)
    await bench.change()
    await bench.lapse(since)
    await bench.noticed(before)
    cable.heal() if cable is not None else bench.set_lines(Fault.NONE)


async def leader_change(bench: Bench) -> None:
    addresses = bench.connect()
    await bench.start(lambda _: addresses)
    await bench.call(bench.world.change_leader)
    await bench.change()
    await bench.renewed(2)
    await bench.call(bench.world.mend)


async def token_revoked(bench: Bench) -> None:
    addresses = bench.connect()
    await bench.start(lambda _: addresses)
    since = trio.current_time()
    await bench.call(bench.world.revoke_token)
    await bench.change()
    await bench.lapse(since)
    await bench.call(bench.world.restore_token)


async def clock_jumped_back(bench: Bench) -> None:
    clock = bench.folder / "clock"
    clock.write_text("+0")
    addresses = bench.connect()
    await bench.start(lambda _: addresses, environment=faketime(clock))
    clock.with_suffix(".new").write_text("-1h")
    clock.with_suffix(".new").rename(clock)
    assert {abs(time.time() - 3600 - look.clock) < 600 for look in (await bench.look()).values()} == {True}
    await bench.change()
    await bench.settled()
    await bench.kill_all()
    await bench.noticed()
    await bench.restart_all(empty=True)


async def foreign_answers(bench: Bench) -> None:
    addresses = bench.connect()
    server = f"http://{addresses[0]}/"
    ingresses = [await Ingress(server).start(bench.nursery, connections=50) for _ in FOREIGN]
    await bench.start(lambda number: [ingresses[number % len(FOREIGN)].address])
    for ingress, answer in zip(ingresses, FOREIGN, strict=True):
        ingress.fault = always(answer)
    await bench.change()
    await trio.sleep(INGRESS_SECONDS)
    for ingress in ingresses:
        ingress.fault = lambda _: None


async def many_after_an_outage(bench: Bench) -> None:
    bench.lease = LONG_LEASE_SECONDS
    addresses = bench.connect()
    await bench.start(lambda _: addresses, MANY, range(0))
    await bench.kill_all()
    await bench.noticed()
    await bench.change()
    await bench.restart_all(empty=True)
    await bench.settled()
    await bench.leave(*MANY[100:])


SCENARIOS: Mapping[str, Callable[[Bench], Awaitable[None]]] = dict(
    zip(
        FAULTS,
        (
            killed_and_restarted_empty,
            restarted_with_data,
            paused_past_the_lease,
            slow,
            network_cut_and_healed,
            leader_change,
            token_revoked,
            clock_jumped_back,
            foreign_answers,
            many_after_an_outage,
        ),
        strict=True,
    )
)


def faketime(file: Path) -> dict[str, str]:
    """Return the environment of a process whose wall clock differs by what the file says."""
    words = ["ldconfig", "-p"]
    libraries = [*Path("/usr/lib").glob("*/faketime/libfaketime.so.1")]
    if shutil.which("ldconfig"):
        known = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        libraries += [Path(path) for path in re.findall(r"=> (\S+/libfaketime\.so\.1)", known)]
    if not libraries:
        pytest.skip("no libfaketime: apt-get install libfaketime")
    return {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


@pytest.fixture(scope="module")
def world_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], World]]:
    """Returns the servers of a registry. Those of another one are ended first."""
    with ExitStack() as closing:
        now: dict[str, World] = {}

        def get(name: str) -> World:
            if name not in now:
                if reason := missing(name):
                    pytest.skip(reason)
                closing.close()
                now.clear()
                now[name] = closing.enter_context(running(name, tmp_path_factory.mktemp(name)))
                check_without_meaning(now[name])
            return now[name]

        yield get


@pytest.fixture
async def closing() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


CELLS = [
    pytest.param(name, fault, id=f"{name}-{fault}", marks=pytest.mark.fault(name, fault))
    for name in CHECKS
    if is_built(name)
    for fault in FAULTS
]


@pytest.mark.parametrize(("name", "fault"), CELLS)
async def test_a_registry_has_the_living_instances_after_a_fault(
    name: str,
    fault: str,
    world_of: Callable[[str], World],
    tmp_path: Path,
    nursery: trio.Nursery,
    closing: AsyncExitStack,
    request: pytest.FixtureRequest,
) -> None:
    world = world_of(name)
    serve_with(request, f"{world.server}; read by {world.reader}")
    if reason := world.without_meaning.get(fault):
        has_no_meaning(request, reason)
        return
    if fault == INGRESS and not world.is_http:
        has_no_meaning(request, "no HTTP")
        return
    bench = Bench(world, f"faults{FAULTS.index(fault)}", tmp_path, closing)
    bench.nursery = nursery
    await bench.call(world.mend)
    await SCENARIOS[fault](bench)
    if bench.way:
        made_by(request, bench.way)
    await bench.stays()
    await bench.leave(*bench.expected)
    await bench.settled()
    await bench.call(world.mend)
    nursery.cancel_scope.cancel()


async def shows(bench: Bench, number: int, *, up: bool) -> None:
    """Wait until clients get this instance, or get it no more."""

    async def wrong() -> str:
        seen = await bench.call(bench.world.instances, bench.service)
        if seen is None:
            return "the servers do not answer, or do not agree"
        is_up = any((one.number, one.status) == (number, "UP") for one in seen)
        return "" if is_up is up else f"{seen}"

    await until(wrong)


@pytest.mark.parametrize(
    "name", [pytest.param(name, id=f"{name}-people") for name in CHECKS if is_built(name)]
)
async def test_people_take_an_instance_out_and_the_controller_those_of_dead_pods(
    name: str,
    world_of: Callable[[str], World],
    tmp_path: Path,
    nursery: trio.Nursery,
    closing: AsyncExitStack,
) -> None:
    bench = Bench(world_of(name), "people", tmp_path, closing)
    bench.nursery, bench.lease = nursery, LEASE_OF_PEOPLE_SECONDS
    await bench.call(bench.world.mend)
    await bench.start(lambda _: list(bench.world.addresses))

    await bench._homes[MAINTAINED].order(maintenance={MAINTAINED: True})
    await shows(bench, MAINTAINED, up=False)
    await bench.renewed(1)
    await shows(bench, MAINTAINED, up=False)
    await bench._homes[MAINTAINED].order(maintenance={MAINTAINED: False})
    await bench.settled()

    results = list[tuple[str, Any]]()

    def log(event: str, **values: Any) -> None:
        results.append((event, values.get("error") or values.get("by")))

    deregistration = Deregistration(log, random=Random(1))
    nursery.start_soon(deregistration.run)
    await wait_all_tasks_blocked()
    keys = {number: hears(bench, deregistration, number) for number in (*KILLED, LIVING)}
    # the next pod of the same name has another address, and holds the instance by its plan
    hears(bench, deregistration, LIVING, uid="next")
    await bench.change()
    for number in KILLED:
        deregistration.gone(keys[number])
    deregistration.gone(keys[LIVING], namesake=True)
    await bench.settled()
    while deregistration.pending:
        await trio.sleep(0.1)
    assert sorted(event for event, _ in results) == [*["deregistered"] * len(KILLED), "registered-anew"], (
        results
    )
    await bench.leave(*bench.expected)
    await bench.settled()
    nursery.cancel_scope.cancel()


def hears(bench: Bench, deregistration: Deregistration, number: int, uid: str = "") -> str:
    """The controller gets the report of a pod. Returns the pod's key."""
    config = bench.world.config(bench.service, number, list(bench.world.addresses), LEASE_OF_PEOPLE_SECONDS)
    tasks = [{"name": "web", "register": {bench.world.name: config}}]
    reported = Report("applied", digest=digest(tasks), tasks={"web": TaskReport("registered", runs=1)})
    pod = kubernetes_pod(f"web-{number}", pod_ip(number), uid=uid or f"uid-{number}")
    deregistration.reported(pod, reported, digest(tasks), partial(list, tasks))
    return pod.key
