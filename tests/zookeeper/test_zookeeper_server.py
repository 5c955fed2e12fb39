"""What real ZooKeeper servers and Curator make of what pidone writes."""

import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from pidone.errors import RegistryRefused, TransferError
from pidone.registries import Entry, Status
from pidone.registries.zookeeper import ZooKeeper
from tests.patience import PATIENCE_SECONDS
from tests.registries.test_zookeeper import ID, make, session_id
from tests.results import serve_with
from tests.zookeeper.real import (
    SUPER,
    Ensemble,
    Reader,
    ReaderError,
    ensemble,
    missing,
    reader,
    reader_version,
    version,
)

pytestmark = pytest.mark.zookeeper

_names = (f"orders{number}" for number in itertools.count(1))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ensemble]:
    """An ensemble of three servers."""
    if reason := missing():
        pytest.skip(reason)
    with ensemble(tmp_path_factory.mktemp("ensemble"), 3) as servers:
        yield servers


@pytest.fixture(scope="module")
def curator(three: Ensemble, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    with reader(three.address, Path(tmp_path_factory.mktemp("curator")) / "reader.log") as running:
        yield running


@pytest.fixture
def service(three: Ensemble, request: pytest.FixtureRequest) -> str:
    three.mend()
    serve_with(request, f"ZooKeeper {version()}, an ensemble of three; read by Curator {reader_version()}")
    return next(_names)


@pytest.fixture
async def driver(three: Ensemble, service: str) -> AsyncIterator[Callable[..., ZooKeeper]]:
    """Makes drivers of the service, and lets them leave at the end."""
    made: list[ZooKeeper] = []

    def one(**more: Any) -> ZooKeeper:
        made.append(make(three.address, service, **more))
        return made[-1]

    yield one
    for registry in made:
        with trio.move_on_after(PATIENCE_SECONDS):
            await registry.deregister()


async def until(read: Callable[[], Any], expected: Any) -> None:
    """Wait until the reader, which asks a server of its own, has the value."""
    seen = None
    with trio.move_on_after(PATIENCE_SECONDS):
        while (seen := await trio.to_thread.run_sync(read)) != expected:
            await trio.sleep(0.05)
        return
    assert seen == expected


@pytest.mark.check("zookeeper", "payload read by real Curator")
async def test_spring_clouds_classes_read_the_instance(
    driver: Callable[..., ZooKeeper], curator: Reader, service: str
) -> None:
    registry = driver(metadata={"zone": "a"}, sslPort=9443)
    await registry.register(Status.UP)
    expected = {
        "host": "10.42.0.18",
        "port": 9443,
        "secure": True,
        "uri": "https://10.42.0.18:9443",
        "uriHost": "10.42.0.18",
        "metadata": {"zone": "a", "instance_status": "UP"},
        "status": "UP",
        "type": "DYNAMIC",
    }
    await until(lambda: curator.ask("spring", "/services", service), {ID: expected})
    await registry.register(Status.OUT_OF_SERVICE)
    hidden = {"metadata": {"zone": "a", "instance_status": "OUT_OF_SERVICE"}, "status": "OUT_OF_SERVICE"}
    await until(lambda: curator.ask("spring", "/services", service), {ID: expected | hidden})
    await registry.register(Status.DOWN)
    await until(lambda: curator.ask("spring", "/services", service), {})


@pytest.mark.check("zookeeper", "payload read by real Curator")
async def test_curator_alone_reads_the_instance(
    driver: Callable[..., ZooKeeper], curator: Reader, service: str
) -> None:
    registry = driver(layout="curator")
    await registry.register(Status.UP)
    expected = {
        "name": service,
        "address": "10.42.0.18",
        "port": 9080,
        "sslPort": None,
        "uri": "http://10.42.0.18:9080",
        "enabled": True,
        "payload": None,
    }
    await until(lambda: curator.ask("curator", "/services", service), {ID: expected})
    await until(lambda: curator.ask("provider", "/services", service), [ID])
    await registry.register(Status.OUT_OF_SERVICE)
    await until(lambda: curator.ask("curator", "/services", service), {ID: expected | {"enabled": False}})
    await until(lambda: curator.ask("provider", "/services", service), [])
    await registry.register(Status.UP)
    await until(lambda: curator.ask("provider", "/services", service), [ID])


@pytest.mark.check("zookeeper", "payload read by real Curator")
async def test_a_payload_of_metadata_is_read_as_a_map(
    driver: Callable[..., ZooKeeper], curator: Reader, service: str
) -> None:
    await driver(layout="curator", metadata={"zone": "a", "версия": "ä"}).register(Status.UP)
    await until(
        lambda: [one["payload"] for one in curator.ask("curator", "/services", service).values()],
        [{"zone": "a", "версия": "ä"}],
    )


@pytest.mark.check("zookeeper", "payload read by real Curator")
async def test_an_address_of_version_6_makes_a_uri(
    driver: Callable[..., ZooKeeper], curator: Reader, service: str
) -> None:
    await driver(address="fd00::18").register(Status.UP)
    await until(
        lambda: [one["uri"] for one in curator.ask("spring", "/services", service).values()],
        ["http://[fd00::18]:9080"],
    )


async def test_a_payload_without_a_class_blinds_readers(
    driver: Callable[..., ZooKeeper], curator: Reader, service: str
) -> None:
    """Why the payload has one."""
    await driver().register(Status.UP)
    curator.ask(
        "create", f"/services/{service}/bad", json.dumps({"name": service, "id": "bad", "payload": {}})
    )
    with pytest.raises(ReaderError, match=r"ClassCastException|Mismatched|Invalid"):
        curator.ask("spring", "/services", service)
    curator.ask("delete", f"/services/{service}/bad")


async def test_an_instance_of_curator_is_read_by_the_driver(
    driver: Callable[..., ZooKeeper], curator: Reader, service: str
) -> None:
    curator.ask("register", "/services", service, "theirs", "10.42.0.77", "80")
    registry = driver(id="theirs")
    assert await registry.read() == Entry("UP", "10.42.0.77")
    await registry.close()
    await registry.register(Status.UP)  # it has the same id, and takes the place
    assert await registry.read() == Entry("UP", "10.42.0.18")


@pytest.mark.check("zookeeper", "session re-attach")
@pytest.mark.parametrize("fault", ["killed", "paused"])
async def test_the_session_goes_on_at_another_server_of_the_ensemble(
    driver: Callable[..., ZooKeeper], three: Ensemble, curator: Reader, service: str, fault: str
) -> None:
    registry = driver(sessionTimeout=12)
    await registry.register(Status.UP)
    number = session_id(registry)
    before = (await trio.to_thread.run_sync(curator.ask, "tree", f"/services/{service}/{ID}")).popitem()[1]
    ill = next(server for server in three.servers if server.address == registry.endpoint)
    ill.kill() if fault == "killed" else ill.pause()
    # also without a leader for a while, if it was that one
    with trio.fail_after(PATIENCE_SECONDS):
        while not await beats(registry):
            await trio.sleep(0.1)
    assert registry.endpoint != ill.address
    assert session_id(registry) == number
    await trio.to_thread.run_sync(three.mend)

    async def now() -> Any:
        tree = await trio.to_thread.run_sync(curator.ask, "tree", f"/services/{service}/{ID}")
        return tree.popitem()[1]

    assert await now() == before


async def beats(registry: ZooKeeper) -> bool:
    try:
        assert await registry.heartbeat()
    except TransferError:
        return False
    return True


async def test_a_registration_outlives_a_new_leader(
    driver: Callable[..., ZooKeeper], three: Ensemble, service: str
) -> None:
    registry = driver()
    await registry.register(Status.UP)
    number, leader = session_id(registry), await trio.to_thread.run_sync(three.leader)
    leader.kill()
    await trio.to_thread.run_sync(three.leader)
    with trio.fail_after(PATIENCE_SECONDS):
        while not await beats(registry):
            await trio.sleep(0.1)
    assert session_id(registry) == number
    await trio.to_thread.run_sync(three.mend)


async def test_an_acl_that_a_registry_administrator_has_changed_is_told(
    driver: Callable[..., ZooKeeper], three: Ensemble, service: str, tmp_path: Path
) -> None:
    registry = driver(basePath=f"/guarded/{service}", user="pidone", password="right")
    await registry.register(Status.UP)
    with reader(three.address, tmp_path / "super.log", ":".join(SUPER)) as admin:
        folder = f"/guarded/{service}/{service}"
        (node,) = [one for path, one in admin.ask("tree", folder).items() if path != folder]
        assert [entry.partition(":")[0] for entry in node["acl"]] == ["31 digest pidone", "1 world anyone"]
        admin.ask("acl", folder, "31", "digest", "other:x")
        with pytest.raises(RegistryRefused, match='does not permit it to the user "pidone"'):
            await driver(basePath=f"/guarded/{service}", user="pidone", password="right", id="x").register(
                Status.UP
            )
        await registry.deregister()  # the end of the session deletes the node all the same
        assert admin.ask("tree", folder).keys() <= {folder}
