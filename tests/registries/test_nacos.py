"""The Nacos driver: its rules against real servers and the fake, its errors against scripted servers."""

import itertools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pytest
import trio

from pidone.http.client import request
from pidone.http.message import Request, Response
from pidone.http.server import Handler
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Entry, Status, build
from pidone.registries.nacos import Nacos
from tests.http.serving import http_server
from tests.nacos.fake import VERSIONS, FakeNacos
from tests.nacos.real import NacosServers
from tests.patience import PATIENCE_SECONDS

POD = Pod("web-7d9c", "shop", "uid-1", "10.42.0.18", "node-1")
FORM = {"content-type": "application/x-www-form-urlencoded"}
SERVERS = [
    (kind, version, api) for kind in ("fake", "nacos") for version, apis in VERSIONS.items() for api in apis
]


def make(url: str, service: str = "ratings", *, pod: Pod = POD, **more: Any) -> Nacos:
    config = {"nacos": {"url": url, "serviceName": service, "port": 9080, **more}}
    registry = build(Fields(config, 'task "r".register'), pod, None)
    assert isinstance(registry, Nacos)
    return registry


def fake_nacos(fake: FakeNacos) -> Handler:
    async def handler(request: Request) -> Response:
        return fake.answer(request, time.time())

    return handler


@dataclass
class Bench:
    """A server, and a service of its own in it, seen from outside by one API."""

    url: str
    api: str
    service: str
    newest: str  # the newest API of the server
    fake: FakeNacos | None

    def driver(self, **more: Any) -> Nacos:
        return make(self.url, self.service, **({"api": self.api} | more))

    async def call(self, method: str, path: str = "", **values: str) -> Response:
        instance = "v3/client/ns/instance" if self.api == "v3" else f"{self.api}/ns/instance"
        given = {"serviceName": self.service, "ip": "10.42.0.18", "port": "9080", **values}
        if path == "/beat" or self.api == "v1":
            given["serviceName"] = f"{values.get('groupName', 'DEFAULT_GROUP')}@@{self.service}"
        form = urlencode(given)
        url = f"{self.url}/{instance}{path}"
        if method == "POST":
            return await request(method, url, timeout=PATIENCE_SECONDS, headers=FORM, body=form.encode())
        return await request(method, f"{url}?{form}", timeout=PATIENCE_SECONDS)

    async def hosts(self, cluster: str = "DEFAULT", **values: str) -> list[dict[str, Any]]:
        """The instances that clients get."""
        name = "clusters" if self.api == "v1" else "clusterName"
        answer = await self.call("GET", "/list", **{name: cluster}, **values)
        value = json.loads(answer.body)
        hosts: list[dict[str, Any]] = (
            value["hosts"]
            if self.api == "v1"
            else value["data"]
            if self.api == "v3"
            else value["data"]["hosts"]
        )
        return hosts

    async def shows(self, expected: Callable[[list[dict[str, Any]]], bool], **values: str) -> None:
        """Return when a list is as expected: lists are up to half a second old."""
        with trio.fail_after(PATIENCE_SECONDS):
            while not expected(await self.hosts(**values)):
                await trio.sleep(0.05)

    async def operate(self, *, enabled: bool) -> None:
        """Set ``enabled`` as the console does."""
        instance = "v3/admin/ns/instance" if self.newest == "v3" else f"{self.api}/ns/instance"
        values = {
            "serviceName": self.service,
            "ip": "10.42.0.18",
            "port": "9080",
            "enabled": str(enabled).lower(),
        }
        url = f"{self.url}/{instance}?{urlencode(values | {'groupName': 'DEFAULT_GROUP'})}"
        answer = await request("PUT", url, timeout=PATIENCE_SECONDS)
        assert answer.status == 200, answer.text

    async def delete(self) -> None:
        """Deregister the instance behind the driver's back."""
        assert (await self.call("DELETE")).status == 200


_names = (f"reviews{number}-{os.getpid()}" for number in itertools.count(1))


@pytest.fixture(params=SERVERS, ids="-".join)
async def bench(request: pytest.FixtureRequest, nursery: trio.Nursery) -> Bench:
    kind, version, api = request.param
    newest = VERSIONS[version][-1]
    if kind == "nacos":
        servers: NacosServers = request.getfixturevalue("real_nacos")
        return Bench(servers.get(version).url, api, next(_names), newest, None)
    fake = FakeNacos(VERSIONS[version])
    port = await http_server(nursery, fake_nacos(fake), body=1 << 16)
    return Bench(f"http://127.0.0.1:{port}/nacos", api, next(_names), newest, fake)


async def test_what_is_registered_is_read_back_whole(bench: Bench) -> None:
    registry = bench.driver(
        metadata={"zone": "a", "version": "1 & 2=ü"}, weight=2.5, groupName="shop", clusterName="east"
    )
    assert await registry.register(Status.UP) == "UP"
    await bench.shows(lambda hosts: len(hosts) == 1, cluster="east", groupName="shop")
    got = (await bench.hosts("east", groupName="shop"))[0]
    expected = {
        "ip": "10.42.0.18",
        "port": 9080,
        "weight": 2.5,
        "healthy": True,
        "enabled": True,
        "ephemeral": True,
        "clusterName": "east",
        "metadata": {"zone": "a", "version": "1 & 2=ü"},
        "instanceHeartBeatTimeOut": 15_000,
        "ipDeleteTimeout": 30_000,
    }
    assert {name: got[name] for name in expected} == expected
    assert await registry.read() == Entry("UP", "10.42.0.18")


async def test_the_api_is_found_out(bench: Bench) -> None:
    registry = make(bench.url, bench.service)
    assert await registry.register(Status.UP) == "UP"
    assert [*registry._apis.values()] == [bench.newest]
    assert await registry.heartbeat()
    await registry.deregister()
    await bench.shows(lambda hosts: hosts == [])


@pytest.mark.check("nacos", "20404 and 21003 inside HTTP 200")
async def test_a_forgotten_instance_is_told_and_comes_back(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.UP)
    assert await registry.heartbeat()
    await bench.delete()
    assert not await registry.heartbeat()
    assert not await registry.heartbeat()  # a heartbeat registers nothing
    assert await registry.register(Status.UP) == "UP"
    assert await registry.heartbeat()


@pytest.mark.check("nacos", "grouped names in beats")
async def test_an_instance_of_a_group_is_renewed_and_is_one(bench: Bench) -> None:
    registry = bench.driver(groupName="shop")
    await registry.register(Status.UP)
    for _ in range(3):
        assert await registry.heartbeat()
    await bench.shows(lambda hosts: len(hosts) == 1, groupName="shop")
    assert await bench.hosts() == []  # none of the group DEFAULT_GROUP


async def test_the_status_follows(bench: Bench) -> None:
    registry = bench.driver()
    for status, visible in (
        (Status.STARTING, False),
        (Status.UP, True),
        (Status.DOWN, False),
        (Status.UP, True),
        (Status.OUT_OF_SERVICE, False),
        (Status.UP, True),
        (Status.OUT_OF_SERVICE, False),
        (Status.DOWN, False),
    ):
        assert await registry.register(status) == status
        await bench.shows(lambda hosts, visible=visible: bool(hosts) is visible)  # type: ignore[misc]
        assert await registry.heartbeat()
    entry = await registry.read()
    assert entry is None or entry.status == "OUT_OF_SERVICE"  # a detail is half a second old too


async def test_leaving_twice_or_without_having_come_is_fine(bench: Bench) -> None:
    registry = bench.driver()
    await registry.deregister()
    await registry.register(Status.UP)
    await registry.deregister()
    assert await registry.heartbeat()  # gone, as it should be
    await bench.shows(lambda hosts: hosts == [])
    await registry.deregister()
    await registry.register(Status.UP)
    await bench.shows(lambda hosts: len(hosts) == 1)


async def test_an_operators_setting_survives_and_is_told(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.UP)
    await bench.operate(enabled=False)
    await bench.shows(lambda hosts: hosts == [])
    assert await registry.register(Status.UP) == "OUT_OF_SERVICE"
    assert await registry.heartbeat()
