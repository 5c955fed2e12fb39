"""The controller's deregistration in each registry: only what the plan registers, and only at its servers."""

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone.errors import PidoneError, Refused
from pidone.http.message import Request, Response
from pidone.language.schemas import registries
from pidone.plan.digest import digest
from pidone.plan.report import Report, TaskReport
from pidone.registries import Connected
from pidone_controller.deregistration import NEW_POD_REPORT_SECONDS, Deregistration, build, outside
from tests.controller.factories import pod
from tests.controller.test_deregistration import FakeRegistries
from tests.http.serving import http_server
from tests.patience import PATIENCE_SECONDS

# Of each registry: fields that are enough, and fields with values that lead elsewhere
FIELDS: Mapping[str, dict[str, Any]] = {
    "eureka": {"app": "web", "port": 80, "instanceId": "web-0"},
    "etcd": {"layout": "go-kit", "service": "web", "port": 80, "instanceId": "web-0"},
    "consul": {"name": "web", "port": 80, "id": "web-0"},
    "nacos": {"serviceName": "web", "port": 80, "ip": "10.0.0.5"},
    "zookeeper": {"service": "web", "port": 80, "id": "web-0"},
}
PARTS: Mapping[str, tuple[str, ...]] = {
    "eureka": ("app", "instanceId"),
    "etcd": ("instanceId",),
    "consul": ("name", "id"),
    "nacos": ("serviceName", "groupName", "clusterName", "namespaceId"),
    "zookeeper": ("service", "id"),
}
NO_URLS = {"zookeeper"}  # their servers are host:port
NAMES = sorted(registries())


def config(name: str, servers: str, /, **more: Any) -> dict[str, Any]:
    if name in NO_URLS:
        servers = ",".join(urlsplit(url).netloc.rpartition("@")[2] for url in servers.split(","))
    return {name: {registries()[name].instance[0]: servers, **FIELDS[name], **more}}


def plan(name: str, servers: str, /, **more: Any) -> list[dict[str, Any]]:
    return [{"name": "web", "register": config(name, servers, **more)}]


class World:
    """A deregistration with drivers that record their calls."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.registries, self.events, self.errors = FakeRegistries(), list[str](), list[str]()
        self.left: list[tuple[str, str]] = []
        self.deregistration = Deregistration(
            self._log,
            self.registries.build,
            Random(1),
            namespace="pidone",
            left=lambda pod, text: self.left.append((pod.path, text)),
        )
        nursery.start_soon(self.deregistration.run)

    def _log(self, event: str, **values: Any) -> None:
        self.events.append(event)
        self.errors.append(str(values.get("error", "")))

    def hears(self, address: str, uid: str, tasks: list[dict[str, Any]]) -> str:
        """A pod web-0 reports this plan. Returns its key."""
        reported = Report("applied", digest=digest(tasks), tasks={"web": TaskReport("registered", runs=1)})
        web = pod("web-0", address, uid=uid)
        self.deregistration.reported(web, reported, digest(tasks), lambda: tasks)
        return web.key


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    world = World(nursery)
    await wait_all_tasks_blocked()
    return world


def test_every_registry_is_here() -> None:
    assert set(NAMES) <= FIELDS.keys() & PARTS.keys()


@pytest.mark.parametrize("name", NAMES)
async def test_the_instance_of_a_pod_that_is_gone_is_taken_out(
    name: str, world: World, autojump_clock: MockClock
) -> None:
    key = world.hears("10.0.0.5", "1", plan(name, "http://registry:1234"))
    world.deregistration.gone(key)
    await trio.sleep(1)
    assert (world.events, len(world.registries.calls)) == (["deregistered"], 1)


@pytest.mark.parametrize(
    "servers",
    [
        "http://registry:1234",
        "http://REGISTRY.shop:1234",
        "http://registry.shop.svc:1234",
        "http://registry.shop.svc.cluster.local.:1234",
        "http://other:1234,http://registry:1234",
    ],
)
@pytest.mark.parametrize("name", NAMES)
async def test_the_instance_of_a_live_pod_stays_however_it_spells_the_servers(
    name: str, servers: str, world: World, autojump_clock: MockClock
) -> None:
    if name == "consul" and "," in servers:
        return  # it has one server, the agent
    key = world.hears("10.0.0.5", "1", plan(name, "http://registry:1234"))
    world.deregistration.gone(key, namesake=True)
    world.hears("10.0.0.99", "2", plan(name, servers))
    await trio.sleep(NEW_POD_REPORT_SECONDS + 1)
    assert (world.events, world.registries.calls) == (["registered-anew"], [])


@pytest.mark.parametrize("name", NAMES)
async def test_a_live_pod_with_the_same_address_keeps_it_at_any_alias(
    name: str, world: World, autojump_clock: MockClock
) -> None:
    key = world.hears("10.0.0.5", "1", plan(name, "http://registry:1234"))
    world.deregistration.gone(key, namesake=True)
    world.hears("10.0.0.5", "2", plan(name, "http://alias.infra:99"))
    await trio.sleep(NEW_POD_REPORT_SECONDS + 1)
    assert (world.events, world.registries.calls) == (["registered-anew"], [])


@pytest.mark.parametrize("value", ["..", ".", "%2e%2e", "a/../b", "../web", "a\\..\\b", ".. ", "..;x"])
@pytest.mark.parametrize("name", NAMES)
def test_no_value_leads_to_another_path(name: str, value: str) -> None:
    web = pod("web-0", "10.0.0.5")
    for field in PARTS[name]:
        try:
            driver = build(config(name, "http://registry:1234", **{field: value}), web)
        except Refused:
            continue
        # ZooKeeper's own protocol decodes no path: what only a URL means otherwise is a name there
        literal = name == "zookeeper" and value in {"%2e%2e", "a\\..\\b", "..;x"}
        assert literal or name in {"nacos", "etcd"}, (
            f"{field}: taken, and {driver.instance} is a part of a path"
        )


@pytest.mark.parametrize("name", sorted(set(NAMES) - NO_URLS))
@pytest.mark.parametrize("path", ["/x/../y", "/%2e%2e/y", "/x?y", "/x#y", "/..;a/y"])
def test_no_url_leads_to_another_path(name: str, path: str) -> None:
    with pytest.raises(Refused):
        build(config(name, f"http://registry:1234{path}"), pod("web-0", "10.0.0.5"))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("name", sorted(set(NAMES) - NO_URLS))
async def test_a_redirect_to_another_server_is_not_followed(
    name: str, status: int, nursery: trio.Nursery
) -> None:
    asked = list[str]()

    async def other(request: Request) -> Response:
        asked.append(request.target)
        return Response(200, {}, b"{}")

    elsewhere = await http_server(nursery, other, body=1 << 16)

    async def redirect(request: Request) -> Response:
        return Response(status, {"location": f"http://127.0.0.1:{elsewhere}{request.target}"})

    port = await http_server(nursery, redirect, body=1 << 16)
    driver = build(config(name, f"http://127.0.0.1:{port}"), pod("web-0", "10.0.0.5"))
    with trio.fail_after(PATIENCE_SECONDS):
        with pytest.raises(PidoneError, match="redirect"):
            await driver.read()
        with pytest.raises(PidoneError, match="redirect"):
            await driver.deregister()
        if isinstance(driver, Connected):
            await driver.close()
    assert asked == []
    nursery.cancel_scope.cancel()


FILES = {"etcd": "passwordFile", "consul": "tokenFile", "nacos": "passwordFile", "zookeeper": "passwordFile"}
USERS = {"etcd": "user", "nacos": "username", "zookeeper": "user"}


@pytest.mark.parametrize("name", sorted(FILES.keys() & set(NAMES)))
async def test_a_file_that_the_plan_names_is_not_read(
    name: str, tmp_path: Path, world: World, autojump_clock: MockClock
) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret")
    more = {FILES[name]: str(file), **({USERS[name]: "me"} if name in USERS else {})}
    written = config(name, "http://registry:1234", **more)
    assert str(file) not in str(outside(written, "shop", "pidone"))
    build(written, pod("web-0", "10.0.0.5"))  # as the pod does, which may read it
    key = world.hears("10.0.0.5", "1", [{"name": "web", "register": written}])
    world.deregistration.gone(key)
    await trio.sleep(1)
    assert world.events in (["deregistered"], ["left-registered"])
    if world.events == ["left-registered"]:
        assert f"without {FILES[name]} {file}: the controller reads no file" in world.errors[0]


async def test_a_value_in_a_file_that_only_the_pod_reads_is_named(
    world: World, autojump_clock: MockClock
) -> None:
    written = config("etcd", "http://registry:1234", user="me", password="pidone-file-0123456789abcdef")
    secrets = {"salt": "", "values": [], "files": {"pidone-file-0123456789abcdef": "etcd/password"}}
    key = world.hears("10.0.0.5", "1", [{"name": "web", "register": written, "secrets": secrets}])
    world.deregistration.gone(key)
    await trio.sleep(1)
    assert world.events == ["left-registered"]
    assert world.errors[0] == (
        "a value is in the file etcd/password of the pod, which only the pod reads; the registry's own lease ends it"
    )
    text = f'"/services/web/web-0" of task "web" at http://registry:1234/ was not deregistered: {world.errors[0]}'
    assert world.left == [("shop/web-0", text)]
