"""The Nacos driver: its rules against real servers and the fake, its errors against scripted servers."""

import itertools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from pidone.errors import Refused, RegistryError, RegistryRefused, TransferTimeout
from pidone.http.client import request
from pidone.http.message import Request, Response
from pidone.http.server import Handler
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Entry, Status, _servers, build
from pidone.registries.nacos import Nacos
from tests.http.serving import http_server
from tests.nacos.fake import VERSIONS, FakeNacos
from tests.nacos.real import USER, USER_PASSWORD, NacosServers, RealNacos
from tests.patience import PATIENCE_SECONDS
from tests.registries.between import FOREIGN, Ingress, Network, Node, always, check_all_calls
from tests.results import FAKE, serve_with

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
    if kind == "fake":
        serve_with(request, FAKE)
    newest = VERSIONS[version][-1]
    if kind == "nacos":
        servers: NacosServers = request.getfixturevalue("real_nacos")
        serve_with(request, f"Nacos {version}")
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


async def test_an_operators_setting_cannot_keep_an_instance_visible_that_is_out(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.UP)
    await bench.operate(enabled=True)
    for status in (Status.OUT_OF_SERVICE, Status.DOWN, Status.STARTING):
        assert await registry.register(status) == status
        await bench.shows(lambda hosts: hosts == [])
        assert await registry.heartbeat()


async def test_a_late_registration_is_noticed_while_it_is_down(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.UP)
    await registry.register(Status.DOWN)
    assert await registry.heartbeat()
    await bench.driver().register(Status.UP)  # what a server has carried out late
    assert not await registry.heartbeat()
    await registry.register(Status.DOWN)
    await bench.shows(lambda hosts: hosts == [])


@pytest.fixture(params=VERSIONS)
def guarded(request: pytest.FixtureRequest, real_nacos: NacosServers) -> RealNacos:
    """A real server whose users log in, with tokens of a few seconds."""
    serve_with(request, f"Nacos {request.param}")
    return real_nacos.get(request.param, auth=True)


@pytest.mark.check("nacos", "token refresh")
async def test_a_token_is_renewed_before_it_ends_and_once_after_a_403(
    guarded: RealNacos, nursery: trio.Nursery, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text(USER_PASSWORD + "\n")
    ingress = await Ingress(guarded.url).start(nursery, connections=50)
    paths: list[tuple[str, int]] = []
    registry = make(ingress.url, next(_names), username=USER, passwordFile=str(password))
    exchange = registry._exchange

    async def watched(server: str, call: Any, until: float, patience: float = 8.0) -> Response:
        answer = await exchange(server, call, until, patience)
        paths.append((call.path.rpartition("/")[2], answer.status))
        return answer

    registry._exchange = watched  # type: ignore[method-assign]
    assert await registry.register(Status.UP) == "UP"
    assert paths.count(("login", 200)) == 1
    paths.clear()
    begin = trio.current_time()
    while trio.current_time() < begin + 2 * guarded.ttl:
        assert await registry.heartbeat()
        await trio.sleep(0.5)
    assert paths.count(("login", 200)) >= 2
    assert {status for _, status in paths} == {200}  # the token was always valid
    paths.clear()
    registry._servers.headers = {"authorization": "Bearer of-another-server"}
    assert await registry.heartbeat()
    assert [path for path, _ in paths].count("login") == 1
    await registry.deregister()


async def test_it_logs_in_before_the_first_registration(guarded: RealNacos) -> None:
    registry = make(guarded.url, next(_names), username=USER, password=USER_PASSWORD)
    exchange, calls = registry._exchange, list[tuple[str, str, int]]()

    async def watched(server: str, call: Any, until: float, patience: float = 8.0) -> Response:
        answer = await exchange(server, call, until, patience)
        calls.append((call.method, call.path.rpartition("/")[2], answer.status))
        return answer

    registry._exchange = watched  # type: ignore[method-assign]
    await registry.prepare()
    assert calls[-2:] == [("POST", "login", 200), ("GET", "list", 200)]
    assert {method for method, _, _ in calls[:-2]} == {"GET"}  # nothing is registered
    calls.clear()
    assert await registry.register(Status.UP) == "UP"
    assert calls == [("POST", "instance", 200), ("GET", "list", 200)]
    successor = make(guarded.url, registry._instance.service, username=USER, password=USER_PASSWORD)
    successor.take_over(registry)
    successor._exchange = watched  # type: ignore[method-assign]
    calls.clear()
    assert await successor.heartbeat()
    assert len(calls) == 1  # with the token of its predecessor
    await successor.deregister()


async def test_a_wrong_password_is_a_mistake_of_people(guarded: RealNacos) -> None:
    credentials: list[dict[str, Any]] = [
        {"username": USER, "password": "wrong"},
        {},
        {"username": USER, "passwordFile": "/no/such/file"},
    ]
    for more in credentials:
        registry = make(guarded.url, **more)
        with pytest.raises(RegistryError) as caught:
            await registry.register(Status.UP)
        # 3.1.0 answers a wrong password as it answers when something in it fails
        assert isinstance(caught.value, RegistryRefused) or guarded.version == "3.1.0"
        text = str(caught.value)
        assert "password" in text
        assert "wrong" not in text


async def test_a_user_without_rights_is_a_mistake_of_people(guarded: RealNacos) -> None:
    registry = make(guarded.url, username=USER, password=USER_PASSWORD, namespaceId="other")
    with pytest.raises(
        RegistryRefused, match='the user "pidone" has no right to write to the namespace "other"'
    ):
        await registry.register(Status.UP)


async def test_a_server_that_wants_no_user_gets_none(bench: Bench) -> None:
    registry = bench.driver(username="nobody", password="none")
    assert await registry.register(Status.UP) == "UP"
    if bench.fake:
        assert not any("login" in path for _, path in bench.fake.log)


@pytest.fixture(params=[server[1:] for server in SERVERS if server[0] == "fake"], ids="-".join)
async def fake_bench(request: pytest.FixtureRequest, nursery: trio.Nursery) -> Bench:
    version, api = request.param
    fake = FakeNacos(VERSIONS[version])
    port = await http_server(nursery, fake_nacos(fake), body=1 << 16)
    return Bench(f"http://127.0.0.1:{port}/nacos", api, next(_names), VERSIONS[version][-1], fake)


@pytest.mark.parametrize("name", FOREIGN)
async def test_an_answer_of_somebody_else_changes_nothing(
    fake_bench: Bench, nursery: trio.Nursery, name: str
) -> None:
    ingress = await Ingress(fake_bench.url).start(nursery, connections=50)
    registry = make(ingress.url, fake_bench.service)
    ingress.fault = always(FOREIGN[name])
    for call in (registry.register(Status.UP), registry.heartbeat(), registry.read(), registry.deregister()):
        with pytest.raises(RegistryError) as caught:
            await call
        assert not isinstance(caught.value, RegistryRefused)
    ingress.fault = lambda _: None
    assert await registry.register(Status.UP) == "UP"
    ingress.fault = always(FOREIGN[name])
    for call in (registry.register(Status.UP), registry.heartbeat(), registry.read(), registry.deregister()):
        with pytest.raises(RegistryError) as caught:
            await call
        assert not isinstance(caught.value, RegistryRefused)
    ingress.fault = lambda _: None
    assert await registry.heartbeat()
    await registry.deregister()
    assert await fake_bench.hosts() == []


async def test_ok_of_somebody_else_is_no_registration(nursery: trio.Nursery) -> None:
    fake = FakeNacos(VERSIONS["2.3.2"])
    port = await http_server(nursery, fake_nacos(fake), body=1 << 16)
    ingress = await Ingress(f"http://127.0.0.1:{port}/nacos").start(nursery)
    registry = make(ingress.url, api="v1")
    ingress.fault = always(Response(200, {}, b"ok"))
    with pytest.raises(RegistryError):
        await registry.register(Status.UP)
    with pytest.raises(RegistryError):
        await registry.deregister()


async def test_an_upgraded_server_is_asked_for_its_api_again(nursery: trio.Nursery) -> None:
    fake = FakeNacos(VERSIONS["2.3.2"])
    port = await http_server(nursery, fake_nacos(fake), body=1 << 16)
    registry = make(f"http://127.0.0.1:{port}/nacos")
    await registry.register(Status.UP)
    fake.apis = ("v3",)
    assert await registry.heartbeat()
    fake.clear()
    assert not await registry.heartbeat()
    assert await registry.register(Status.UP) == "UP"
    pinned = make(f"http://127.0.0.1:{port}/nacos", api="v2")
    with pytest.raises(RegistryRefused, match="does not have the API v2; remove api"):
        await pinned.register(Status.UP)


async def test_a_server_that_has_lost_the_service_gets_a_deregistration_first(nursery: trio.Nursery) -> None:
    fake = FakeNacos(VERSIONS["2.3.2"])
    port = await http_server(nursery, fake_nacos(fake), body=1 << 16)
    registry = make(f"http://127.0.0.1:{port}/nacos")
    await registry.register(Status.UP)
    fake.broken = True
    assert not await registry.heartbeat()
    fake.broken = False
    fake.log.clear()
    await registry.register(Status.UP)
    assert [method for method, path in fake.log if path == "v2/ns/instance"] == ["DELETE", "POST"]


async def test_a_dead_server_is_passed_over(nursery: trio.Nursery) -> None:
    fake = FakeNacos(VERSIONS["3.1.0"])
    port = await http_server(nursery, fake_nacos(fake), body=1 << 16)
    registry = make(f"http://127.0.0.1:1/nacos,http://127.0.0.1:{port}/nacos")
    assert await registry.register(Status.UP) == "UP"
    assert registry.endpoint == f"http://127.0.0.1:{port}/nacos/"
    await registry.deregister()


async def test_the_interval_is_the_servers_within_bounds(nursery: trio.Nursery) -> None:
    fake = FakeNacos(VERSIONS["2.3.2"])
    port = await http_server(nursery, fake_nacos(fake), body=1 << 16)
    registry = make(f"http://127.0.0.1:{port}/nacos")
    assert (registry.interval, registry.lease) == (5.0, 15.0)
    await registry.register(Status.UP)
    for said, expected in ((3000, 3.0), (1, 1.0), (3_600_000, 7.5), (0, 7.5), (-5, 7.5)):
        fake.beat_interval = said
        assert await registry.heartbeat()
        assert registry.interval == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"serviceName": "a b"}, "no name of a service in Nacos"),
        ({"serviceName": "shop@@web"}, "no name of a service in Nacos"),
        ({"serviceName": "web "}, "no name of a service in Nacos"),
        ({"groupName": "a/b"}, "no group in Nacos"),
        ({"namespaceId": "my namespace"}, "no identifier of a namespace"),
        ({"clusterName": "a.b"}, "no cluster in Nacos"),
        ({"metadata": {"a": "x" * 1024}}, "1025 characters, and Nacos takes 1024"),
        (
            {"metadata": {"preserved.heart.beat.interval": "1000"}},
            "is written by the field heartBeatInterval",
        ),
        ({"heartBeatInterval": 20}, "heartBeatInterval must be less than heartBeatTimeout"),
        ({"weight": 10_001}, "expected 0 to 10000"),
        ({"api": "v4"}, "expected v1, v2, v3"),
        ({"username": "u", "password": "p", "passwordFile": "/f"}, "password or passwordFile, not both"),
        ({"password": "p"}, "a password without a user; set username"),
        ({"url": "http://host/nacos?x"}, "has no [?]"),
    ],
)
def test_what_cannot_be_registered_is_refused_when_it_is_built(config: dict[str, Any], message: str) -> None:
    given = {"url": "http://127.0.0.1:1/nacos", "serviceName": "web", "port": 9080} | config
    with pytest.raises(Refused, match=message):
        build(Fields({"nacos": given}, 'task "r".register'), POD, None)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"weight": 3, "metadata": {"a": "b"}, "clusterName": "east"}, True),
        ({"groupName": "shop"}, False),
        ({"namespaceId": "dev"}, False),
        ({"ip": "10.42.0.19"}, False),
        ({"port": 9081}, False),
        ({"url": "http://other:8848/nacos"}, False),
        ({"url": "http://nacos.shop:8848/nacos,http://other:8848/nacos"}, True),
    ],
)
def test_which_instance_is_the_same(changes: dict[str, Any], *, same: bool) -> None:
    previous = make("http://nacos:8848/nacos")
    after = make(**({"url": "http://nacos.shop.svc:8848/nacos"} | changes))
    assert after.succeeds(previous) is same


class Handled:
    """The fake on a mock clock."""

    def __init__(self) -> None:
        self.fake = FakeNacos(VERSIONS["2.3.2"])

    def handle(self, method: str, target: str, body: bytes, now: float) -> tuple[int, dict[str, str], bytes]:
        answer = self.fake.answer(Request(method, target, FORM, body, ""), now)
        return answer.status, dict(answer.headers), answer.body


async def test_a_server_that_acts_and_answers_late_has_registered_and_deregistered(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled = Handled()
    network = Network(nacos=Node(registry=handled))
    monkeypatch.setattr(_servers, "request", network.request)
    registry = make("http://nacos:8848/nacos", metadata={"version": "2"})
    await registry.read()
    network.nodes["nacos"].takes = 10.0  # the driver waits for 8 s, and then looks with more patience
    assert await registry.register(Status.UP) == "UP"
    assert len(handled.fake.instances) == 1
    await registry.deregister()
    assert not handled.fake.instances


async def test_a_server_that_acts_only_later_is_not_believed_to_have_acted(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled = Handled()
    network = Network(nacos=Node(registry=handled))
    monkeypatch.setattr(_servers, "request", network.request)
    registry = make("http://nacos:8848/nacos")
    await registry.read()
    network.nodes["nacos"].acts = 40.0
    with pytest.raises(TransferTimeout):
        await registry.register(Status.UP)


async def test_a_registration_that_a_server_carries_out_late_does_not_outlive_the_deregistration(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled = Handled()
    network = Network(slow=Node(registry=handled), quick=Node(registry=handled))
    monkeypatch.setattr(_servers, "request", network.request)
    registry = make("http://slow:8848/nacos,http://quick:8848/nacos")
    await registry.read()
    network.nodes["slow"].acts = 40.0
    assert await registry.register(Status.UP) == "UP"
    network.nodes["slow"].acts = 0.0
    network.calls.clear()
    await registry.deregister()
    assert "DELETE" in network.methods("slow")
    assert "DELETE" in network.methods("quick")


CLUSTER = "http://a:8848/nacos,http://b:8848/nacos,http://c:8848/nacos"


@pytest.fixture
async def cluster(monkeypatch: pytest.MonkeyPatch) -> Network:
    """Three servers with the same instances."""
    handled = Handled()
    network = Network(**{name: Node(registry=handled) for name in "abc"})
    monkeypatch.setattr(_servers, "request", network.request)
    return network


async def test_pods_begin_with_different_servers(cluster: Network, autojump_clock: MockClock) -> None:
    registries = [make(CLUSTER, pod=replace(POD, uid=f"uid-{number}")) for number in range(9)]
    for registry in registries:
        await registry.register(Status.UP)
    assert {host for _, host, _ in cluster.calls} == {*"abc"}
    assert {registry.where for registry in registries} == {CLUSTER.replace(",", "/,") + "/"}


async def test_the_next_server_is_asked_and_kept(cluster: Network, autojump_clock: MockClock) -> None:
    registry = make(CLUSTER, pod=replace(POD, uid=""))
    await registry.register(Status.UP)
    cluster.nodes["a"].up = False
    assert await registry.heartbeat()
    assert registry.endpoint == "http://b:8848/nacos/"
    cluster.nodes["a"].up = True
    cluster.calls.clear()
    assert await registry.heartbeat()
    assert [host for _, host, _ in cluster.calls] == ["b"]


async def test_pods_spread_again_over_the_servers_in_time(
    cluster: Network, autojump_clock: MockClock
) -> None:
    registry = make(CLUSTER, heartBeatTimeout=300, ipDeleteTimeout=600)
    await registry.register(Status.UP)
    await registry.heartbeat()
    hosts = list[str]()
    for _ in range(1000):
        await trio.sleep(120)
        cluster.calls.clear()
        assert await registry.heartbeat()
        hosts.append(cluster.calls[-1][1])
    changes = sum(before != after for before, after in itertools.pairwise(hosts))
    assert len(set(hosts[:4])) == 1, "a server is used for ten minutes at least"
    assert set(hosts) == {*"abc"}
    assert 1 <= changes <= 1000 / 5


async def test_a_token_is_renewed_after_90_percent_of_its_time(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeNacos(VERSIONS["3.1.0"], {"pods": "secret"}, ttl=1000)
    epoch = time.time()

    async def answer(method: str, url: str, *, headers: dict[str, str], body: bytes, **_: Any) -> Response:
        await trio.lowlevel.checkpoint()
        where = urlsplit(url)
        target = where.path + (f"?{where.query}" if where.query else "")
        return fake.answer(Request(method, target, headers, body, ""), epoch + trio.current_time())

    monkeypatch.setattr(_servers, "request", answer)
    registry = make("http://nacos:8848/nacos", username="pods", password="secret")
    await registry.register(Status.UP)
    logins: list[float] = []
    seen = 0
    for _ in range(600):
        await trio.sleep(5)
        assert await registry.heartbeat()
        now = sum(path.endswith("login") for _, path in fake.log)
        if now > seen:
            logins.append(trio.current_time())
            seen = now
    assert [round(later - earlier, -1) for earlier, later in itertools.pairwise(logins)] == [900.0] * 3


_odd = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.just([]), st.just({})
)
_hosts: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "ip": st.just("10.42.0.18") | _odd,
        "port": st.just(9080) | _odd,
        "healthy": st.booleans() | _odd,
        "weight": st.just(1.0) | _odd,
        "metadata": st.just({}) | _odd,
    },
)
_documents = st.fixed_dictionaries(
    {},
    optional={
        "code": st.sampled_from([0, 10_200, 20_404, 21_003, 30_000]) | _odd,
        "message": _odd,
        "data": st.one_of(
            st.just("ok"), st.lists(_hosts | _odd), st.fixed_dictionaries({"hosts": _odd}), _odd
        ),
        "hosts": st.lists(_hosts | _odd, max_size=3) | _odd,
        "clientBeatInterval": st.integers() | _odd,
        "accessToken": st.text(max_size=9) | _odd,
        "tokenTtl": st.integers() | _odd,
    },
)
_answers = st.builds(
    Response,
    st.sampled_from([200, 201, 302, 400, 401, 403, 404, 405, 410, 429, 500, 501, 503]),
    st.just({}),
    st.one_of(_documents.map(json.dumps), st.sampled_from(["ok", "caused: x", "<html>", ""])).map(str.encode),
)


@given(st.lists(_answers, min_size=12, max_size=12), st.sampled_from([None, "v1", "v2", "v3"]))
def test_whatever_a_server_answers_is_a_result_or_the_registrys_error(
    answers: list[Response], api: str | None
) -> None:
    pinned: dict[str, Any] = {"api": api} if api else {}
    check_all_calls(
        make("http://a/nacos,http://b/nacos", username="pods", password="secret", **pinned), answers
    )
