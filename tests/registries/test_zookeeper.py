"""The ZooKeeper driver: its rules against a real server and the fake, its errors against servers that misbehave."""

import contextlib
import itertools
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio.lowlevel
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from pidone.errors import (
    ConnectError,
    PidoneError,
    Refused,
    RegistryError,
    RegistryRefused,
    TransferError,
    TransferTimeout,
)
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Connected, Entry, Registry, Status, build
from pidone.registries import _zookeeper_wire as wire
from pidone.registries._zookeeper_wire import Operation, Session
from pidone.registries.zookeeper import ZooKeeper
from tests.patience import PATIENCE_SECONDS
from tests.results import FAKE, serve_with
from tests.zookeeper.fake import OPEN, FakeNode, FakeServer, FakeZooKeeper, received_frame
from tests.zookeeper.outside import Node, Outside, outside
from tests.zookeeper.real import Ensemble, version

POD = Pod("web-7d9c", "shop", "uid-1", "10.42.0.18", "node-1")
T = TypeVar("T")
ID = "web-7d9c"
READERS_READ = 1


_made: list[ZooKeeper] = []


@pytest.fixture(autouse=True)
def no_connection_left() -> Iterator[None]:
    yield
    for driver in _made:
        if driver._client._stream is not None:
            os.close(driver._client._stream.socket.detach())  # outside of Trio
    _made.clear()


def make(servers: str, service: str = "ratings", *, pod: Pod = POD, **more: Any) -> ZooKeeper:
    config = {"zookeeper": {"servers": servers, "service": service, "id": pod.name, "port": 9080, **more}}
    registry = build(Fields(config, 'task "r".register'), pod, None)
    assert isinstance(registry, ZooKeeper)
    _made.append(registry)
    return registry


@dataclass
class Bench:
    """A registry, and a service of its own in it, seen from outside."""

    servers: str
    service: str
    operator: Outside
    fake: FakeServer | None
    drivers: list[ZooKeeper] = field(default_factory=list)

    @property
    def folder(self) -> str:
        return f"/services/{self.service}"

    @property
    def path(self) -> str:
        return f"{self.folder}/{ID}"

    def driver(self, **more: Any) -> ZooKeeper:
        driver = make(self.servers, self.service, **more)
        self.drivers.append(driver)
        return driver

    async def node(self) -> Node:
        node = await self.operator.get(self.path)
        assert node is not None
        return node

    async def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((await self.node()).data)
        return document

    async def status(self) -> str:
        return str((await self.document())["payload"]["metadata"]["instance_status"])

    async def until(self, holds: Callable[[Node | None], bool]) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while not holds(await self.operator.get(self.path)):
                await trio.sleep(0.05)


_names = (f"reviews{number}" for number in itertools.count(1))


@pytest.fixture(params=["fake", pytest.param("zookeeper", marks=pytest.mark.zookeeper)])
def real(request: pytest.FixtureRequest) -> Ensemble | None:
    serve_with(request, FAKE if request.param == "fake" else f"ZooKeeper {version()}")
    if request.param == "fake":
        return None
    servers: Ensemble = request.getfixturevalue("zookeeper")
    return servers


@pytest.fixture
async def bench(real: Ensemble | None, nursery: trio.Nursery) -> AsyncIterator[Bench]:
    fake = None if real is not None else await FakeServer(FakeZooKeeper()).start(nursery)
    servers = real.address if real is not None else f"127.0.0.1:{fake.port if fake is not None else 0}"
    async with outside(servers) as operator:
        bench = Bench(servers, next(_names), operator, fake)
        yield bench
        with trio.move_on_after(PATIENCE_SECONDS):
            for driver in bench.drivers:
                driver._path = ""
                await driver.close()
    nursery.cancel_scope.cancel()


async def test_what_is_registered_is_read_back_whole(bench: Bench) -> None:
    registry = bench.driver(metadata={"zone": "a"}, sslPort=9443)
    registry._clock = lambda: 1_795_384_612.176
    assert await registry.register(Status.UP) == "UP"
    assert await bench.document() == {
        "name": bench.service,
        "id": ID,
        "address": "10.42.0.18",
        "port": 9080,
        "sslPort": 9443,
        "payload": {
            "@class": "org.springframework.cloud.zookeeper.discovery.ZookeeperInstance",
            "id": ID,
            "name": bench.service,
            "metadata": {"zone": "a", "instance_status": "UP"},
        },
        "registrationTimeUTC": 1_795_384_612_176,
        "serviceType": "DYNAMIC",
        "uriSpec": {
            "parts": [
                {"value": "scheme", "variable": True},
                {"value": "://", "variable": False},
                {"value": "address", "variable": True},
                {"value": ":", "variable": False},
                {"value": "ssl-port", "variable": True},
            ]
        },
        "enabled": True,
    }
    assert (registry.lease, registry.interval, registry.endpoint) == (30, 10, bench.servers)


async def test_the_node_is_there_while_the_application_is_up(bench: Bench) -> None:
    registry = bench.driver()
    for status in (Status.STARTING, Status.UP, Status.DOWN, Status.UP, Status.STARTING):
        assert await registry.register(status) == status
        assert (await bench.operator.get(bench.path) is not None) == (status is Status.UP)
        assert await registry.heartbeat()
        assert await registry.read() == (Entry("UP", "10.42.0.18") if status is Status.UP else None)


async def test_one_session_lasts_from_the_registration_to_the_end(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.STARTING)
    session = registry._client.session
    assert session is not None
    for status in (Status.UP, Status.OUT_OF_SERVICE, Status.DOWN, Status.UP):
        await registry.register(status)
        assert registry._client.session == session
    assert (await bench.node()).owner == session.id
    await registry.deregister()
    assert registry._client.session is None
    registry._client.session = session
    assert not await registry.heartbeat()  # the server has ended it


async def test_maintenance_is_in_the_data_and_is_lifted_again(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.UP)
    created = (await bench.node()).created
    assert await registry.register(Status.OUT_OF_SERVICE) == "OUT_OF_SERVICE"
    assert (await bench.status(), (await bench.document())["enabled"]) == ("OUT_OF_SERVICE", False)
    assert await registry.heartbeat()
    assert await registry.register(Status.UP) == "UP"
    assert (await bench.status(), (await bench.document())["enabled"]) == ("UP", True)
    assert (await bench.node()).created == created


async def test_an_operators_maintenance_survives_and_is_told(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.UP)
    ours = (await bench.node()).data
    await bench.operator.set(bench.path, ours.replace(b'"UP"', b'"OUT_OF_SERVICE"'))
    assert await registry.heartbeat()
    assert await registry.register(Status.UP) == "OUT_OF_SERVICE"
    assert await registry.register(Status.DOWN) == "DOWN"
    assert await registry.register(Status.UP) == "OUT_OF_SERVICE"
    assert await bench.status() == "OUT_OF_SERVICE"
    assert await registry.read() == Entry("OUT_OF_SERVICE", "10.42.0.18")
    await bench.operator.set(bench.path, ours)  # the operator lifts it
    assert await registry.register(Status.UP) == "UP"
    await registry.deregister()
    await registry.register(Status.UP)
    assert await bench.status() == "UP"


async def test_our_maintenance_is_not_taken_for_an_operators(bench: Bench) -> None:
    registry = bench.driver()
    for status in (Status.UP, Status.OUT_OF_SERVICE, Status.DOWN, Status.OUT_OF_SERVICE, Status.UP):
        assert await registry.register(status) == status


async def test_a_node_that_is_deleted_is_told_and_comes_back(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.UP)
    await bench.operator.delete(bench.path)
    assert not await registry.heartbeat()
    assert not await registry.heartbeat()  # until it is registered again
    await registry.register(Status.UP)
    assert await registry.heartbeat()


@pytest.mark.check("zookeeper", "NodeExists with own and foreign owner")
async def test_the_node_of_a_predecessor_is_deleted_and_created_again(bench: Bench) -> None:
    before, registry = bench.driver(address="10.42.0.9"), bench.driver()
    await before.register(Status.UP)
    old = await bench.node()
    await registry.register(Status.UP)
    new = await bench.node()
    assert (new.owner, old.owner) == (session_id(registry), session_id(before))
    assert new.created > old.created
    assert (await bench.document())["address"] == "10.42.0.18"
    assert not await before.heartbeat()

    await registry.register(Status.UP)  # a node of our own stays
    assert (await bench.node()).created == new.created
    before._client.drop()
    await bench.operator.end(before._client.session)  # the predecessor's end does not touch ours
    assert await registry.heartbeat()


async def test_a_broken_connection_keeps_session_and_node(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.UP)
    session, node = registry._client.session, await bench.node()
    for _ in range(3):
        registry._client.drop()
        assert await registry.heartbeat()
    assert registry._client.session == session
    assert await bench.node() == node
    registry._client.drop()
    assert await registry.register(Status.UP) == "UP"
    assert (await bench.node()).created == node.created


async def test_another_process_can_take_the_session_up(bench: Bench) -> None:
    registry, restarted = bench.driver(), bench.driver()
    await registry.register(Status.UP)
    restarted._client.session, restarted._path = registry._client.session, registry._path
    assert await restarted.heartbeat()
    # the session has moved, so the old connection is of no use any more
    assert await registry.heartbeat()
    assert session_id(registry) == session_id(restarted)


@pytest.mark.check("zookeeper", "expiry → new session → node again")
async def test_after_the_expiry_of_the_session_the_node_is_created_again(bench: Bench) -> None:
    registry = bench.driver(sessionTimeout=1)
    await registry.register(Status.UP)
    session = session_id(registry)
    await bench.until(lambda node: node is None)
    assert not await registry.heartbeat()
    assert await registry.register(Status.UP) == "UP"
    node = await bench.node()
    assert node.owner == session_id(registry) != session


async def test_an_expiry_at_any_time_is_told_or_mended(bench: Bench) -> None:
    registry = bench.driver()
    for status in (Status.UP, Status.DOWN, Status.OUT_OF_SERVICE, Status.UP):
        await registry.register(status)
        await bench.operator.end(registry._client.session)
        assert not await registry.heartbeat()
        assert await registry.register(status) == status  # a registration begins a new session by itself
        await bench.operator.end(registry._client.session)
    await registry.deregister()
    assert await bench.operator.get(bench.path) is None


@pytest.mark.check("zookeeper", "missing container parent")
async def test_parents_are_containers_and_are_created_again(bench: Bench) -> None:
    registry = bench.driver()
    for _ in range(2):
        await registry.register(Status.UP)
        await registry.register(Status.DOWN)
        with trio.fail_after(PATIENCE_SECONDS):  # the server removes the service's folder
            while await bench.operator.get(bench.folder) is not None:
                await trio.sleep(0.05)
    assert await registry.register(Status.UP) == "UP"
    assert await bench.operator.children(bench.folder) == [ID]


async def test_a_path_of_many_parents_is_created(bench: Bench) -> None:
    registry = bench.driver(basePath=f"/deep/{bench.service}/a/b/c")
    assert await registry.register(Status.UP) == "UP"
    assert await bench.operator.children(f"/deep/{bench.service}/a/b/c/{bench.service}") == [ID]


async def test_services_can_be_below_the_root(bench: Bench) -> None:
    registry = bench.driver(basePath="/")
    await registry.register(Status.UP)
    assert await bench.operator.children(f"/{bench.service}") == [ID]


async def test_leaving_twice_or_without_having_come_is_fine(bench: Bench) -> None:
    registry = bench.driver()
    await registry.deregister()
    await registry.register(Status.UP)
    await registry.deregister()
    assert await bench.operator.get(bench.path) is None
    await registry.deregister()
    await registry.register(Status.UP)
    assert await bench.status() == "UP"


async def test_leaving_takes_the_connection_up_again(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.UP)
    registry._client.drop()
    await registry.deregister()
    assert await bench.operator.get(bench.path) is None


async def test_nobody_elses_node_is_deleted_by_leaving(bench: Bench) -> None:
    registry, other = bench.driver(), bench.driver(address="10.42.0.99")
    await registry.register(Status.UP)
    await other.register(Status.UP)
    await registry.deregister()
    assert (await bench.node()).owner == session_id(other)


async def test_a_fresh_driver_reads_and_deletes_the_node_of_a_dead_pod(bench: Bench) -> None:
    await bench.driver().register(Status.UP)
    controller = bench.driver()
    assert await controller.read() == Entry("UP", "10.42.0.18")
    await controller.deregister()
    assert await bench.operator.get(bench.path) is None
    assert await controller.read() is None
    await controller.close()
    assert controller._client.session is None


async def test_a_fresh_driver_deletes_only_the_node_that_it_has_read(bench: Bench) -> None:
    first = bench.driver(address="10.42.0.9")
    await first.register(Status.UP)
    controller = bench.driver()
    await controller.deregister()  # the address is not the pod's
    assert await bench.operator.get(bench.path) is not None
    assert await controller.read() == Entry("UP", "10.42.0.9")
    await first.register(Status.DOWN)
    await first.register(Status.UP)
    await controller.deregister()  # the pod has registered again since
    assert await bench.operator.get(bench.path) is not None
    assert await controller.read() == Entry("UP", "10.42.0.9")
    await controller.deregister()  # its other address, as the caller knows
    assert await bench.operator.get(bench.path) is None


async def test_a_node_that_is_no_document_is_nobodys(bench: Bench) -> None:
    await bench.driver().register(Status.UP)
    for data in (b"", b"\xff", b"[1]", b'{"address": 7, "payload": {"metadata": 3}}', b"[" * 100_000):
        await bench.operator.set(bench.path, data)
        entry = await bench.driver().read()
        assert entry is not None
        assert entry.address == ""


async def test_a_change_of_the_plan_keeps_session_and_connection(bench: Bench) -> None:
    registry, successor = bench.driver(), bench.driver(metadata={"version": "2"})
    await registry.register(Status.OUT_OF_SERVICE)
    node, session, stream = await bench.node(), registry._client.session, registry._client._stream
    assert successor.succeeds(registry)
    successor.take_over(registry)
    assert (successor._client.session, successor._client._stream) == (session, stream)
    assert await successor.heartbeat()
    assert await successor.register(Status.UP) == "UP"
    assert (await bench.document())["payload"]["metadata"] == {"version": "2", "instance_status": "UP"}
    assert (await bench.node()).created == node.created
    await successor.deregister()
    assert await bench.operator.get(bench.path) is None


async def test_a_change_of_the_timeout_is_negotiated_for_the_same_session(bench: Bench) -> None:
    registry, successor = bench.driver(), bench.driver(sessionTimeout=12)
    await registry.register(Status.UP)
    number = session_id(registry)
    successor.take_over(registry)
    assert await successor.heartbeat()
    assert (successor.lease, successor.interval, session_id(successor)) == (12, 4, number)


async def test_the_server_brings_the_timeout_within_its_bounds(bench: Bench) -> None:
    registry = bench.driver(sessionTimeout=3600)
    assert (registry.lease, registry.interval) == (3600, 1200)
    await registry.register(Status.UP)
    assert registry.lease == 40
    assert registry.interval == pytest.approx(40 / 3)


async def test_a_closed_driver_connects_again(bench: Bench) -> None:
    registry = bench.driver()
    assert isinstance(registry, Connected)
    await registry.register(Status.UP)
    number = session_id(registry)
    await registry.close()
    assert await bench.operator.get(bench.path) is not None
    assert await registry.heartbeat()
    assert session_id(registry) == number


async def test_smartstacks_node_is_numbered_and_stays_one(bench: Bench) -> None:
    if await bench.operator.get("/services") is None:
        await bench.operator.create("/services")
    await bench.operator.create(bench.folder)  # no container, so that its numbers go on
    registry = bench.driver(layout="smartstack", metadata={"zone": "a"}, weight=3)
    assert await registry.register(Status.UP) == "UP"
    assert await registry.register(Status.UP) == "UP"
    (child,) = await bench.operator.children(bench.folder)
    assert child == f"{ID}_0000000000"
    node = await bench.operator.get(f"{bench.folder}/{child}")
    assert node is not None
    expected = {"host": "10.42.0.18", "port": 9080, "name": ID, "weight": 3, "labels": {"zone": "a"}}
    assert json.loads(node.data) == expected
    assert await registry.heartbeat()
    assert await registry.read() == Entry("UP", "10.42.0.18")
    assert await registry.register(Status.OUT_OF_SERVICE) == "OUT_OF_SERVICE"
    assert await bench.operator.children(bench.folder) == []
    assert await registry.heartbeat()
    assert await registry.register(Status.UP) == "UP"
    assert await bench.operator.children(bench.folder) == [f"{ID}_0000000001"]

    restarted = bench.driver(layout="smartstack")
    await restarted.register(Status.UP)
    assert await bench.operator.children(bench.folder) == [f"{ID}_0000000002"]
    assert not await registry.heartbeat()
    controller = bench.driver(layout="smartstack")
    assert await controller.read() == Entry("UP", "10.42.0.18")
    await controller.deregister()
    assert await bench.operator.children(bench.folder) == []


async def test_smartstacks_neighbours_are_left_alone(bench: Bench) -> None:
    names = (f"{ID}_x", f"{ID}_00000000011_0000000001", f"{ID}2_0000000007", ID)
    await bench.driver(layout="smartstack", id="other").register(Status.UP)
    for name in names:
        await bench.operator.create(f"{bench.folder}/{name}", b'{"host": "10.42.0.18"}', ephemeral=True)
    registry = bench.driver(layout="smartstack")
    await registry.register(Status.UP)
    await registry.deregister()
    assert set(names) <= set(await bench.operator.children(bench.folder))


async def test_a_user_protects_the_node_and_its_folder(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("s3cret\n", "utf-8")
    base = f"/secure/{bench.service}"
    registry = bench.driver(basePath=base, user="pidone", passwordFile=str(file))
    await registry.register(Status.UP)
    bench.service = f"{bench.service}"
    path = f"{base}/{bench.service}/{ID}"
    assert await bench.operator.get(path) is not None  # everybody may read
    for change in (
        partial(bench.operator.delete, path),
        partial(bench.operator.set, path, b"x"),
        partial(bench.operator.create, f"{path}2"),
    ):
        with pytest.raises(RegistryError, match="NO_AUTH"):
            await change()
    await bench.operator.create(f"{base}/other")  # but others may have services beside ours

    stranger = bench.driver(basePath=base, id="stranger")
    with pytest.raises(RegistryRefused, match="permits it to users alone; give user and password"):
        await stranger.register(Status.UP)
    wrong = bench.driver(basePath=base, user="pidone", password="wrong")
    with pytest.raises(
        RegistryRefused, match='does not permit it to the user "pidone"; is the password right'
    ):
        await wrong.register(Status.UP)
    successor = bench.driver(basePath=base, user="pidone", password="s3cret")
    assert successor.succeeds(registry)
    assert not stranger.succeeds(registry)
    registry._client.drop()
    assert await registry.heartbeat()
    successor.take_over(registry)
    assert await successor.register(Status.UP) == "UP"
    await successor.deregister()
    assert await bench.operator.get(path) is None


async def test_a_private_node_is_read_by_its_user_alone(bench: Bench) -> None:
    fields = {"basePath": f"/private/{bench.service}", "user": "pidone", "password": "s3cret"}
    registry = bench.driver(**fields, worldReadable=False)
    await registry.register(Status.UP)
    with pytest.raises(RegistryError, match="NO_AUTH"):
        await bench.operator.get(f"/private/{bench.service}/{bench.service}/{ID}")
    assert await bench.driver(**fields).read() == Entry("UP", "10.42.0.18")


async def test_a_password_is_read_anew_for_each_connection(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "password"
    registry = bench.driver(basePath=f"/rotated/{bench.service}", user="pidone", passwordFile=str(file))
    with pytest.raises(RegistryError, match=r"/.*password: No such file"):
        await registry.register(Status.UP)
    assert registry._client._stream is None
    file.write_text("first", "utf-8")
    await registry.register(Status.UP)
    registry._client.drop()
    file.write_text("second", "utf-8")
    with pytest.raises(RegistryRefused, match="is the password right"):
        await registry.register(Status.UP)


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_node_is_taken_away_without_the_permission_to_delete_it(
    bench: Bench, tmp_path: Path, leaves: bool
) -> None:
    file = tmp_path / "password"
    file.write_text("right", "utf-8")
    base = f"/revoked/{bench.service}"
    registry = bench.driver(basePath=base, user="pidone", passwordFile=str(file))
    await registry.register(Status.UP)
    file.write_text("wrong", "utf-8")
    registry._client.drop()
    if leaves:
        await registry.deregister()
    else:
        assert await registry.register(Status.DOWN) == "DOWN"
    assert await bench.operator.get(f"{base}/{bench.service}/{ID}") is None
    assert not await registry.heartbeat()
    if not leaves:
        assert await registry.register(Status.DOWN) == "DOWN"
        assert await registry.heartbeat()


async def test_a_parent_of_another_program_is_told(bench: Bench) -> None:
    await bench.operator.create(f"/{bench.service}-ephemeral", ephemeral=True)
    registry = bench.driver(basePath=f"/{bench.service}-ephemeral")
    with pytest.raises(RegistryRefused, match="another program's ephemeral node; use another basePath"):
        await registry.register(Status.UP)


async def test_a_folder_in_the_place_of_the_node_is_told(bench: Bench) -> None:
    await bench.driver(id="first").register(Status.UP)
    await bench.operator.create(bench.path)
    await bench.operator.create(f"{bench.path}/child")
    with pytest.raises(RegistryRefused, match="has nodes below it; is it a folder of another program"):
        await bench.driver().register(Status.UP)


async def test_cancelled_calls_leave_nothing_half_done(bench: Bench) -> None:
    registry = bench.driver()
    for checkpoints in range(1, 40):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_after, checkpoints, scope)
                if checkpoints % 2:
                    await registry.register(Status.UP)
                else:
                    await registry.heartbeat()
                nursery.cancel_scope.cancel()
    assert await registry.register(Status.UP) == "UP"
    assert (await bench.node()).owner == session_id(registry)
    assert await registry.heartbeat()
    await registry.deregister()
    assert await bench.operator.get(bench.path) is None


async def cancel_after(checkpoints: int, scope: trio.CancelScope) -> None:
    for _ in range(checkpoints):
        await trio.lowlevel.checkpoint()
    scope.cancel()


def session_id(registry: ZooKeeper) -> int:
    assert registry._client.session is not None
    return registry._client.session.id


# Servers that misbehave


@pytest.fixture
async def fakes(nursery: trio.Nursery) -> AsyncIterator[list[FakeServer]]:
    """Three servers of one ensemble."""
    tree = FakeZooKeeper()
    yield [await FakeServer(tree).start(nursery) for _ in range(3)]
    nursery.cancel_scope.cancel()


def together(fakes: list[FakeServer]) -> str:
    return ",".join(f"127.0.0.1:{fake.port}" for fake in fakes)


def in_use(registry: ZooKeeper, fakes: list[FakeServer]) -> FakeServer:
    return next(fake for fake in fakes if registry.endpoint.endswith(f":{fake.port}"))


@pytest.mark.parametrize("layout", ["spring", "curator", "smartstack"])
@pytest.mark.parametrize("lost", range(1, 12))
async def test_requests_without_an_answer_are_repeated_once(
    fakes: list[FakeServer], lost: int, layout: str
) -> None:
    registry = make(together(fakes), layout=layout)
    for status in (Status.UP, Status.OUT_OF_SERVICE, Status.UP, Status.DOWN, Status.UP):
        fakes[lost % 3].lost_answers = lost // 3 + 1
        try:
            shown = await registry.register(status)
        except TransferError:
            shown = await registry.register(status)
        assert shown == status
        nodes = [path for path, node in fakes[0].ensemble.nodes.items() if node.owner]
        assert len(nodes) == (
            status is Status.UP or (status, layout != "smartstack") == (Status.OUT_OF_SERVICE, True)
        )
    await registry.deregister()
    assert not [node for node in fakes[0].ensemble.nodes.values() if node.owner]


def expire(tree: FakeZooKeeper) -> None:
    for session in list(tree.sessions):
        tree.expire(session)


def take_away(tree: FakeZooKeeper) -> None:
    for path in [path for path, node in tree.nodes.items() if node.owner]:
        tree._remove(path)


def hang_up(fakes: list[FakeServer]) -> None:
    for fake in fakes:
        fake.hang_up()


def lose_answers(fakes: list[FakeServer]) -> None:
    for fake in fakes:
        fake.lost_answers = 1


EVENTS: dict[str, Callable[[list[FakeServer]], None]] = {
    "expiry": lambda fakes: expire(fakes[0].ensemble),
    "operator": lambda fakes: take_away(fakes[0].ensemble),
    "restart without data": lambda fakes: fakes[0].ensemble.wipe(),
    "broken connections": hang_up,
    "lost answers": lose_answers,
    "one server away": lambda fakes: setattr(fakes[0], "refuses", True),
    "the other server away": lambda fakes: setattr(fakes[1], "refuses", True),
}


@pytest.mark.parametrize("layout", ["spring", "smartstack"])
@given(
    st.lists(
        st.one_of(
            st.sampled_from(sorted(EVENTS)),
            st.sampled_from(["heartbeat", "read", "close"]),
            st.sampled_from(list(Status)),
        ),
        max_size=12,
    )
)
async def test_after_any_faults_the_registry_has_what_was_registered_last(
    layout: str, steps: list[str | Status]
) -> None:
    tree = FakeZooKeeper()
    async with trio.open_nursery() as nursery:
        fakes = [await FakeServer(tree).start(nursery) for _ in range(2)]
        registry = make(together(fakes), layout=layout)

        async def settled(call: Callable[[], Awaitable[T]]) -> T:
            """Call until there is an answer, as a registration does; servers come back meanwhile."""
            with trio.fail_after(PATIENCE_SECONDS):
                while True:
                    try:
                        return await call()
                    except TransferError:
                        fakes[0].refuses = fakes[1].refuses = False

        for step in steps:
            if step in EVENTS:
                EVENTS[step](fakes)
            elif step == "close":
                await registry.close()
            elif step == "read":
                await settled(registry.read)
            elif step == "heartbeat":
                held = sum(bool(node.owner) for node in tree.nodes.values())
                renewed = await settled(registry.heartbeat)
                assert not renewed or registry._client.session is not None
                assert not (renewed and registry._path) or held == 1
            else:
                status = Status(step)
                assert await settled(partial(registry.register, status)) == status
                nodes = [node for node in tree.nodes.values() if node.owner]
                shown = status is Status.UP or (status is Status.OUT_OF_SERVICE and layout == "spring")
                assert [node.owner for node in nodes] == [session_id(registry)] * shown
                assert await settled(registry.heartbeat)
        await settled(registry.deregister)
        assert not any(node.owner for node in tree.nodes.values())
        await registry.close()
        nursery.cancel_scope.cancel()


async def test_the_session_goes_on_at_another_server(fakes: list[FakeServer]) -> None:
    registry = make(together(fakes))
    await registry.register(Status.UP)
    number = session_id(registry)
    for _ in range(2):
        ill = in_use(registry, fakes)
        ill.refuses = True
        ill.hang_up()
        assert await registry.heartbeat()
        assert in_use(registry, fakes) is not ill
    assert session_id(registry) == number
    assert fakes[0].ensemble.asked[Operation.SYNC] == 2  # the new server may be behind the old one


async def test_a_silent_server_is_left_within_the_sessions_timeout(
    fakes: list[FakeServer], autojump_clock: MockClock
) -> None:
    registry = make(together(fakes[:2]))
    await registry.register(Status.UP)
    number, began = session_id(registry), trio.current_time()
    in_use(registry, fakes).mute = True
    assert await registry.heartbeat()
    assert trio.current_time() - began < 2 * registry.lease / 3
    assert session_id(registry) == number


async def test_a_slow_server_is_kept_and_its_answers_are_waited_for(
    fakes: list[FakeServer], autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05  # the kernel takes a moment from one socket to the other
    for folder in ("/services", "/services/ratings"):
        fakes[0].ensemble.nodes[folder] = FakeNode(b"", OPEN, 0)
    registry = make(together(fakes), sessionTimeout=15)
    for fake in fakes:
        fake.takes = 5.0
    for _ in range(3):  # a call takes no longer than the lease, and the next one goes on
        try:
            await registry.register(Status.UP)
            break
        except TransferTimeout:
            continue
    assert sum(fake.connections for fake in fakes) == 1
    for status in (Status.DOWN, Status.UP):
        assert await registry.heartbeat()
        assert await registry.register(status) == status
    await registry.deregister()
    assert registry.instance not in fakes[0].ensemble.nodes
    assert sum(fake.connections for fake in fakes) == 1


async def test_answers_to_cancelled_calls_are_passed_over(
    fakes: list[FakeServer], autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05
    registry = make(together(fakes))
    await registry.register(Status.UP)
    server = in_use(registry, fakes)
    server.takes = 1.0
    for seconds in (0.1, 0.5, 0.9):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(registry.heartbeat)
                await trio.sleep(seconds)
                scope.cancel()
        await trio.sleep(0.3)
    assert await registry.heartbeat()
    assert server.connections == 1
    server.mute = True
    for _ in range(200):  # a server that does not answer is left, however soon the calls are cancelled
        with trio.move_on_after(0.1), contextlib.suppress(TransferTimeout):
            await registry.heartbeat()
    assert in_use(registry, fakes) is not server


async def test_a_call_takes_the_lease_at_most(fakes: list[FakeServer], autojump_clock: MockClock) -> None:
    registry = make(together(fakes))
    await registry.register(Status.UP)
    for fake in fakes:
        fake.mute = True
    for call in (
        registry.heartbeat,
        partial(registry.register, Status.UP),
        registry.read,
        registry.deregister,
    ):
        began = trio.current_time()
        with pytest.raises(TransferTimeout, match=r"127\.0\.0\.1:\d+: no answer within .* s"):
            await call()
        assert trio.current_time() - began <= registry.lease + 0.1
        assert registry._client.session is not None
    with pytest.raises(TransferTimeout), trio.fail_after(3):
        await registry.deregister()


async def test_no_server_is_an_error_that_names_all(free_port: Callable[[], int]) -> None:
    ports = free_port(), free_port()
    registry = make(",".join(f"127.0.0.1:{port}" for port in ports))
    with pytest.raises(ConnectError) as caught:
        await registry.register(Status.UP)
    assert all(f"127.0.0.1:{port}: Connection refused" in str(caught.value) for port in ports)
    assert not caught.value.sent


async def test_the_first_server_is_a_random_one() -> None:
    drivers = [make("zk-0,zk-1,zk-2") for _ in range(60)]
    assert {driver.endpoint for driver in drivers} == {"zk-0:2181", "zk-1:2181", "zk-2:2181"}


async def answering(nursery: trio.Nursery, *answers: bytes) -> str:
    """Start a server that sends this after each frame it gets, whatever it is, and then hangs up."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            for answer in answers:
                await received_frame(stream)
                await stream.send_all(answer)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(trio.serve_listeners, serve, listeners)
    return f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"


def begin(number: int = 7, timeout: int = 30_000, password: bytes = bytes(16), version: int = 0) -> bytes:
    head = wire.integer(version) + wire.integer(timeout) + wire.long(number)
    return wire.frame(head, wire.buffer(password), b"\0")


def answer(xid: int, code: int = 0, rest: bytes = b"") -> bytes:
    return wire.frame(wire.integer(xid), wire.long(1), wire.integer(code), rest)


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "is it its client port"),
        ((b"\x15\x03\x03\x00\x02\x02\x50",), "is it its client port"),
        ((), "hung up instead of an answer"),
        ((wire.integer(-1),), "a frame of -1 bytes"),
        ((wire.integer(0),), "a frame of 0 bytes"),
        ((wire.integer(1 << 24),), "a frame of 16777216 bytes"),
        ((wire.frame(b"abc"),), "a frame that ends early"),
        ((begin(version=1),), "version 1 of the protocol"),
        ((begin(password=b"short"),), "without a password of 16 bytes"),
        ((begin(timeout=1 << 30),), "more than a day"),
        ((begin(0),), "a new session that has expired"),
        ((begin(), answer(9, rest=b"")), "an answer to request 9, and none to 1"),
        ((begin(), wire.frame(b"abc")), "a frame that ends early"),
        ((begin(), answer(1, rest=wire.integer(1 << 30))), "a frame that ends early"),
        ((begin(), answer(1, -118)), "the session is at another server"),
        ((begin(),), "the connection ended|Connection reset by peer"),
    ],
)
async def test_what_is_not_zookeeper_is_told(
    answers: tuple[bytes, ...], error: str, nursery: trio.Nursery
) -> None:
    registry = make(await answering(nursery, *answers))
    with pytest.raises(TransferError, match=error):
        await registry.register(Status.UP)
    assert registry._client._stream is None
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("code", "kind", "error"),
    [
        (-4, RegistryError, r"answered error -4$"),
        (
            -102,
            RegistryRefused,
            r"answered error -102 \(NO_AUTH\): the ACL of /services/ratings or of a node above",
        ),
        (-125, RegistryRefused, r"QUOTA_EXCEEDED\): the quota"),
        (-8, RegistryRefused, r"BAD_ARGUMENTS\): the registry does not take the path"),
        (-114, RegistryRefused, r"does it have digest authentication"),
    ],
)
async def test_errors_of_the_registry_are_told_with_their_remedies(
    code: int, kind: type[PidoneError], error: str, nursery: trio.Nursery
) -> None:
    registry = make(await answering(nursery, begin(), answer(1, code)))
    with pytest.raises(RegistryError, match=error) as caught:
        await registry.register(Status.UP)
    assert type(caught.value) is kind
    nursery.cancel_scope.cancel()


async def test_a_server_without_digest_authentication_is_told(nursery: trio.Nursery) -> None:
    server = await answering(nursery, begin(), answer(wire.AUTH_XID, -115))
    registry = make(server, user="pidone", password="s3cret")
    with pytest.raises(RegistryRefused, match="remove user and password"):
        await registry.register(Status.UP)
    nursery.cancel_scope.cancel()


async def test_a_server_before_containers_gets_plain_parents(nursery: trio.Nursery) -> None:
    tree = FakeZooKeeper()
    tree.refused = frozenset({Operation.CREATE_CONTAINER})
    server = await FakeServer(tree).start(nursery)
    assert await make(f"127.0.0.1:{server.port}").register(Status.UP) == "UP"
    assert not tree.nodes["/services/ratings"].container
    nursery.cancel_scope.cancel()


async def test_watches_of_nobody_do_not_disturb(nursery: trio.Nursery) -> None:
    event = answer(wire.NOTIFICATION_XID, rest=wire.integer(3) + wire.integer(3) + wire.text("/x"))
    registry = make(await answering(nursery, begin(), event + answer(1, -102)))
    with pytest.raises(RegistryRefused, match="NO_AUTH"):
        await registry.register(Status.UP)
    nursery.cancel_scope.cancel()


@given(st.binary(max_size=200))
def test_no_frame_of_a_server_is_a_bug(data: bytes) -> None:
    for decode in (
        wire.connected,
        wire.reply,
        lambda data: wire.Records(data).stat(),
        lambda data: wire.Records(data).texts(),
        lambda data: wire.Records(data).buffer(),
    ):
        try:
            decode(data)
        except wire.MalformedError:
            pass


@given(st.text(max_size=40), st.binary(max_size=40), st.integers(-(1 << 63), (1 << 63) - 1))
def test_records_are_read_as_they_are_written(text: str, data: bytes, number: int) -> None:
    records = wire.Records(wire.text(text) + wire.buffer(data) + wire.long(number))
    assert (records.text(), records.buffer(), records.long()) == (text, data, number)


# Values


def test_two_drivers_of_one_ensemble_have_a_place_in_common() -> None:
    first = make("zk-0.zk:2181,zk-1.zk")
    assert first.places == {"zookeeper://zk-0.zk:2181/", "zookeeper://zk-1.zk:2181/"}
    second = make("ZK-1.zk.svc.cluster.local")
    assert second.succeeds(first)
    assert not make("zk-2.zk").succeeds(first)
    assert not make("zk-1.zk", service="other").succeeds(first)
    assert not make("zk-1.zk", layout="smartstack").succeeds(first)
    assert make("zk").places == {"zookeeper://zk.shop:2181/"}
    assert make("[fd00::1]:2182, [fd00:0::2]").places == {
        "zookeeper://[fd00::1]:2182/",
        "zookeeper://[fd00::2]:2181/",
    }
    assert make("[fd00::1]:2182").where == "[fd00::1]:2182"


def test_the_id_is_made_of_the_pods_name() -> None:
    config = {"zookeeper": {"servers": "zk", "service": "ratings", "port": 9080}}
    registry: Registry = build(Fields(config, "register"), POD, None)
    assert registry.instance == "/services/ratings/web-7d9c:ratings:9080"
    assert registry.address == "10.42.0.18"


def test_an_address_of_version_6_is_in_brackets_in_the_uri() -> None:
    registry = make("zk", address="fd00::18")
    document = json.loads(registry._instance.document(Status.UP, 0))
    assert document["address"] == "fd00::18"
    assert [part["value"] for part in document["uriSpec"]["parts"]] == [
        "scheme",
        "://[",
        "address",
        "]:",
        "port",
    ]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"servers": ""}, r"register\.zookeeper\.servers: an empty server"),
        ({"servers": "zk,,zk-1"}, "an empty server; write one, or several with one comma"),
        ({"servers": "http://zk:2181"}, 'servers: "http://zk:2181" is a URL; write host:port'),
        ({"servers": "zk:2181/app"}, 'has a path; write it in basePath, and here "zk:2181"'),
        ({"servers": "me:pass@zk"}, "a server has no user in it"),
        ({"servers": "zk:0"}, '"0" is no port'),
        ({"servers": "zk:\uff11"}, "is no port"),
        ({"servers": "z k"}, "is no server"),
        ({"servers": "fd00::1"}, "is no server"),
        ({"service": "shop/web"}, r'service: "shop/web" has a "/"'),
        ({"service": ".."}, "paths of ZooKeeper have no relative segments"),
        ({"service": "."}, "paths of ZooKeeper have no relative segments"),
        ({"service": ""}, "an empty name"),
        ({"service": "web "}, "begins or ends with a blank"),
        ({"service": "a\0b"}, "a character that ZooKeeper refuses"),
        ({"service": "a\ue000b"}, "a character that ZooKeeper refuses"),
        ({"service": "a" * 254}, "has 254 characters"),
        ({"id": ".."}, r"id: \"..\" is no node"),
        ({"basePath": "services"}, 'does not begin with "/"'),
        ({"basePath": "/services/"}, 'ends in "/"'),
        ({"basePath": "//"}, 'ends in "/"'),
        ({"basePath": "/a//b"}, "an empty segment"),
        ({"basePath": "/a/../b"}, '".." is no node'),
        ({"basePath": "/zookeeper/quota"}, "which ZooKeeper keeps for itself"),
        ({"layout": "netflix"}, 'expected spring or curator or smartstack, not "netflix"'),
        ({"metadata": {"instance_status": "UP"}}, '"instance_status" is set by pidone itself'),
        ({"password": "secret"}, "a password without a user; set user"),
        ({"user": "me", "password": "x", "passwordFile": "/x"}, "password or passwordFile, not both"),
        ({"weight": 3}, "weight: it does not go with layout: spring; remove it"),
        ({"layout": "smartstack", "uriSpec": "{port}"}, "uriSpec: it does not go with layout: smartstack"),
        ({"user": "me:you", "password": "x"}, 'user: a name without ":"'),
        ({"uriSpec": "{port"}, "is no template of a URI"),
        ({"port": 0}, "port: expected 1 to 65535"),
        ({"sessionTimeout": 0}, "sessionTimeout: expected 1 to 3600"),
        ({"prefix": "x"}, 'does not know "prefix"'),
    ],
)
def test_what_nobody_could_register_or_find_is_refused(fields: dict[str, Any], error: str) -> None:
    config = {"zookeeper": {"servers": "zk", "service": "ratings", "port": 9080} | fields}
    with pytest.raises(Refused, match=error) as caught:
        build(Fields(config, "register"), POD, None)
    assert "secret" not in str(caught.value)


def test_no_password_is_shown() -> None:
    registry = make("zk", user="pidone", password="s3cret")
    assert "s3cret" not in repr(registry._access) + registry.where + registry.endpoint + registry.instance
    assert "s3cret" not in repr(Session(1, b"s3cret", 30.0))
