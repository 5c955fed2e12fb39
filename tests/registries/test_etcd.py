"""The etcd driver: its fields and layouts, its errors against scripted servers; tests/etcd has the real ones."""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from pidone.errors import (
    ConnectError,
    PidoneError,
    Refused,
    RegistryError,
    RegistryRefused,
    TransferTimeout,
)
from pidone.http.message import Response
from pidone.language.checking import check_text
from pidone.language.schemas import registries as described
from pidone.plan.fields import Fields
from pidone.registries import Entry, Status, build
from pidone.registries._etcd_layouts import LAYOUTS
from pidone.registries._etcd_messages import number
from pidone.registries.etcd import Etcd
from tests.etcd.conftest import POD, make
from tests.registries.between import FOREIGN, check_all_calls

URL = "http://a:2379"


@dataclass
class Memory:
    """An etcd of one key space, in the words of its gateway, without time: leases end when a test says so."""

    keys: dict[str, tuple[str, str, int]] = field(default_factory=dict)  # value, lease, revision
    leases: set[str] = field(default_factory=set)
    revision: int = 1

    def answer(self, path: str, body: dict[str, Any]) -> Response:
        call = getattr(self, path.removeprefix("/v3/").replace("/", "_"))
        found: Response = call(body)
        return found

    def end(self, lease: str) -> None:
        self.leases.discard(lease)
        self.keys = {key: kv for key, kv in self.keys.items() if kv[1] != lease}

    def lease_grant(self, body: Mapping[str, Any]) -> Response:
        if body["ID"] in self.leases:
            return wrong(400, 9, "etcdserver: lease already exists")
        self.leases.add(body["ID"])
        return right(ID=body["ID"], TTL=body["TTL"])

    def lease_keepalive(self, body: Mapping[str, Any]) -> Response:
        more = {"TTL": "30"} if body["ID"] in self.leases else {}
        return Response(200, {}, json.dumps({"result": {**HEADER, "ID": body["ID"], **more}}).encode())

    def lease_timetolive(self, body: Mapping[str, Any]) -> Response:
        return right(ID=body["ID"], TTL="29" if body["ID"] in self.leases else "-1")

    def lease_revoke(self, body: Mapping[str, Any]) -> Response:
        if body["ID"] not in self.leases:
            return wrong(404, 5, "etcdserver: requested lease not found")
        self.end(body["ID"])
        return right()

    def auth_authenticate(self, _: Mapping[str, Any]) -> Response:
        return wrong(400, 9, "etcdserver: authentication is not enabled")

    def kv_put(self, body: Mapping[str, Any]) -> Response:
        if body["lease"] not in self.leases:
            return wrong(404, 5, "etcdserver: requested lease not found")
        self.revision += 1
        self.keys[body["key"]] = (body["value"], body["lease"], self.revision)
        return right()

    def kv_range(self, body: Mapping[str, Any]) -> Response:
        if body["key"] not in self.keys:
            return right()
        value, lease, revision = self.keys[body["key"]]
        return right(
            kvs=[{"key": body["key"], "value": value, "lease": lease, "mod_revision": str(revision)}]
        )

    def kv_txn(self, body: Mapping[str, Any]) -> Response:
        compare = body["compare"][0]
        _, lease, revision = self.keys.get(compare["key"], ("", "0", 0))
        wanted = compare.get("lease") or compare["mod_revision"]
        if (lease if compare["target"] == "LEASE" else str(revision)) == wanted:
            del self.keys[compare["key"]]
            return right(succeeded=True)
        found = json.loads(self.kv_range({"key": compare["key"]}).body)
        return right(responses=[{"response_range": found}])

    @property
    def values(self) -> list[str]:
        return [b64decode(value).decode() for value, _, _ in self.keys.values()]


HEADER = {
    "header": {"cluster_id": "14841639068965178418", "member_id": "10276657743932975437", "raft_term": "2"}
}


def right(**fields: Any) -> Response:
    return Response(200, {}, json.dumps({**HEADER, **fields}).encode())


def wrong(status: int, code: int, text: str) -> Response:
    return Response(status, {}, json.dumps({"error": text, "message": text, "code": code}).encode())


@dataclass
class Network:
    """In place of ``pidone.http.client.request``: members by host, all of one etcd, on a mock clock."""

    etcd: Memory = field(default_factory=Memory)
    # By host and path, "" for all: seconds until a member acts, until it answers, or the answer of somebody else
    acts: dict[tuple[str, str], float] = field(default_factory=dict)
    takes: dict[tuple[str, str], float] = field(default_factory=dict)
    foreign: dict[tuple[str, str], Response] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    async def request(
        self,
        method: str,
        url: str,
        *,
        timeout: float,
        answer_timeout: float = inf,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        **_options: Any,
    ) -> Response:
        assert method == "POST"
        host, _, path = url.rpartition("@")[2].removeprefix("http://").partition("/")
        host, path = host.partition(":")[0], f"/{path}"
        self.asked.append(f"{host} {path}")
        self.tokens.append((headers or {}).get("authorization", ""))
        if host in self.down:
            raise ConnectError(f"{url}: Connection refused")
        for key in ((host, path), (host, ""), ("", path)):
            if key in self.foreign:
                return self.foreign[key]

        async def act(answers: list[Response], acted: trio.Event) -> None:
            await trio.sleep(self._of(self.acts, host, path))
            answers.append(self.etcd.answer(path, json.loads(body)))
            acted.set()

        answers, acted = list[Response](), trio.Event()
        trio.lowlevel.spawn_system_task(act, answers, acted)
        with trio.move_on_after(min(timeout, answer_timeout)):
            until = trio.current_time() + self._of(self.takes, host, path)
            await acted.wait()
            await trio.sleep_until(until)
            return answers[0]
        raise TransferTimeout(f"{url}: no answer", sent=True)

    @staticmethod
    def _of(values: dict[tuple[str, str], float], host: str, path: str) -> float:
        return next(
            (values[key] for key in ((host, path), (host, ""), ("", path), ("", "")) if key in values), 0.0
        )

    def paths(self) -> list[str]:
        return [one.partition("/v3/")[2] for one in self.asked]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()
    monkeypatch.setattr("pidone.registries._servers.request", network.request)
    return network


# Calls


async def test_a_registration_is_a_grant_and_a_put_and_a_heartbeat_is_one_request(network: Network) -> None:
    registry = make(URL)
    assert await registry.register(Status.UP) == "UP"
    assert await registry.heartbeat()
    assert await registry.heartbeat()
    assert network.paths() == ["lease/grant", "kv/put", "lease/keepalive", "lease/keepalive"]
    assert (registry.interval, registry.lease) == (10, 30)
    assert (registry.where, registry.endpoint) == ("http://a:2379/", "http://a:2379/")


async def test_the_key_is_looked_at_once_in_a_lease(network: Network, autojump_clock: MockClock) -> None:
    registry = make(URL)
    await registry.register(Status.UP)
    for _ in range(9):
        await trio.sleep(10)
        assert await registry.heartbeat()
    assert network.paths().count("kv/range") == 3
    network.etcd.keys.clear()
    beats = [await _later(registry, 10) for _ in range(3)]
    assert beats == [True, True, False]


async def _later(registry: Etcd, seconds: float) -> bool:
    await trio.sleep(seconds)
    return await registry.heartbeat()


async def test_the_next_member_is_asked_and_kept(network: Network) -> None:
    registry = make("http://b:2379,http://c:2379,http://d:2379", pod=replace(POD, uid=""))
    network.down.add("b")
    network.foreign["c", ""] = wrong(503, 14, "etcdserver: leader changed")
    await registry.register(Status.UP)
    await registry.heartbeat()
    hosts = [one.partition(" ")[0] for one in network.asked]
    assert hosts == ["b", "c", "d", "d", "d"]
    assert registry.endpoint == "http://d:2379/"


async def test_pods_spread_again_over_the_members_in_time(
    network: Network, autojump_clock: MockClock
) -> None:
    registry = make("http://b:2379,http://c:2379,http://d:2379", ttl=600)
    await registry.register(Status.UP)
    for _ in range(100):
        await trio.sleep(120)
        assert await registry.heartbeat()
    beats = [host for host, _, path in (one.partition(" ") for one in network.asked) if "keepalive" in path]
    assert len(set(beats[:4])) == 1, "a member is used for ten minutes at least"
    assert len(set(beats)) > 1


def test_pods_begin_with_different_members() -> None:
    urls = "http://a:2379,http://b:2379,http://c:2379"
    first = {make(urls, pod=replace(POD, uid=f"uid-{n}")).endpoint for n in range(9)}
    assert len(first) == 3
    assert {make(urls, pod=replace(POD, uid=f"uid-{n}")).where for n in range(9)} == {
        "http://a:2379/,http://b:2379/,http://c:2379/"
    }
    assert make(urls).places == {f"http://{host}.shop:2379/" for host in "abc"}


@pytest.mark.parametrize("answer", FOREIGN)
async def test_an_answer_of_somebody_else_is_an_error_and_changes_nothing(
    answer: str, network: Network
) -> None:
    registry = make(URL)
    await registry.register(Status.UP)
    network.foreign["a", ""] = FOREIGN[answer]
    for call in (registry.heartbeat, registry.read, registry.deregister):
        with pytest.raises(RegistryError) as raised:
            await call()
        assert not isinstance(raised.value, RegistryRefused)
    with pytest.raises(RegistryError):
        await registry.register(Status.DOWN)
    network.foreign.clear()
    assert network.etcd.values == ["http://10.42.0.18:9080"]
    assert await registry.heartbeat()


@pytest.mark.parametrize(
    "answer",
    [
        Response(200, {}, b"{}"),
        Response(200, {}, b'{"header": {}}'),
        Response(200, {}, b'{"result": {"ID": "1"}}'),
        Response(404, {}, b'{"code": 5, "message": "Not Found", "details": []}'),
    ],
)
async def test_json_of_somebody_else_is_no_answer_of_etcd(answer: Response, network: Network) -> None:
    registry = make(URL)
    network.foreign["a", ""] = answer
    for call in (registry.heartbeat, registry.read):
        with pytest.raises(RegistryError, match="is the URL right"):
            await call()


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        (wrong(400, 3, "etcdserver: user name is empty"), "set user, and password"),
        (wrong(401, 16, "etcdserver: invalid auth token"), "set user, and password"),
        (wrong(403, 7, "etcdserver: permission denied"), r'grant its role readwrite on "/services/ratings/'),
        (wrong(400, 3, "etcdserver: request is too large"), "etcd does not accept this"),
    ],
)
async def test_what_a_person_must_mend_is_refused_with_the_remedy(
    answer: Response, remedy: str, network: Network
) -> None:
    network.foreign["a", ""] = answer
    with pytest.raises(RegistryRefused, match=remedy):
        await make(URL).register(Status.UP)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (wrong(503, 14, "etcdserver: no leader"), "etcd cannot do this at present"),
        (wrong(503, 14, "etcdserver: request timed out"), "etcd cannot do this at present"),
        (wrong(429, 8, "etcdserver: mvcc: database space exceeded"), "compact and defragment"),
        (
            Response(503, {}, b'{"error": {"grpc_code": 14, "message": "etcdserver: no leader"}}'),
            "at present",
        ),
        (Response(502, {}, b"<html>"), "the server cannot answer at present"),
    ],
)
async def test_what_passes_is_tried_again(answer: Response, text: str, network: Network) -> None:
    network.foreign["a", ""] = answer
    with pytest.raises(RegistryError, match=text) as raised:
        await make(URL).register(Status.UP)
    assert not isinstance(raised.value, RegistryRefused)


# Slow members


@pytest.mark.parametrize("takes", [4.0, 7.5, 12.0, 25.0])
@pytest.mark.parametrize("late", [True, False])
async def test_a_member_that_acts_and_answers_late_has_done_it(
    takes: float, late: bool, network: Network, autojump_clock: MockClock
) -> None:
    registry = make(URL, ttl=120)
    network.takes["a", ""] = takes
    network.acts["a", ""] = takes if late else 0.0
    assert await registry.register(Status.UP) == "UP"
    assert await registry.register(Status.DOWN) == "DOWN"
    assert await registry.register(Status.UP) == "UP"
    await registry.deregister()
    assert network.etcd.values == []


async def test_three_members_that_are_slow_by_5_s_keep_the_instance(
    network: Network, autojump_clock: MockClock
) -> None:
    registry = make("http://b:2379,http://c:2379,http://d:2379", ttl=15)
    await registry.register(Status.UP)
    network.takes["", ""] = 5.0
    for _ in range(5):
        await trio.sleep(3)
        assert await registry.heartbeat()
    assert await registry.register(Status.DOWN) == "DOWN"
    assert await registry.heartbeat()
    assert await registry.register(Status.UP) == "UP"
    await registry.deregister()
    assert network.etcd.values == []


async def test_a_put_that_arrives_after_the_instance_is_down_is_refused(
    network: Network, autojump_clock: MockClock
) -> None:
    registry = make("http://b:2379,http://c:2379", pod=replace(POD, uid=""))
    await registry.register(Status.DOWN)
    network.acts["b", "/v3/kv/put"] = network.acts["c", "/v3/kv/put"] = 100.0
    with pytest.raises(TransferTimeout):
        await registry.register(Status.UP)
    assert await registry.register(Status.DOWN) == "DOWN"
    await trio.sleep(200)
    assert network.etcd.values == []
    assert await registry.heartbeat()


async def test_a_put_that_arrives_after_the_end_is_refused(
    network: Network, autojump_clock: MockClock
) -> None:
    registry = make(URL)
    network.acts["a", "/v3/kv/put"] = 100.0
    with pytest.raises(TransferTimeout):
        await registry.register(Status.UP)
    await registry.deregister()
    await trio.sleep(200)
    assert network.etcd.values == []


async def test_a_put_of_an_earlier_plan_that_arrives_late_changes_nothing(
    network: Network, autojump_clock: MockClock
) -> None:
    old, new = make(URL), make(URL, scheme="https")
    await old.register(Status.DOWN)
    network.acts["a", "/v3/kv/put"] = 100.0
    with pytest.raises(TransferTimeout):
        await old.register(Status.UP)
    del network.acts["a", "/v3/kv/put"]
    new.take_over(old)
    await new.register(Status.UP)
    await trio.sleep(200)
    assert network.etcd.values == ["https://10.42.0.18:9080"]


async def test_a_registration_that_was_cut_off_is_fenced_too(
    network: Network, autojump_clock: MockClock
) -> None:
    registry = make(URL)
    await registry.register(Status.DOWN)
    network.acts["a", "/v3/kv/put"] = 100.0
    with trio.move_on_after(1):
        await registry.register(Status.UP)
    await registry.register(Status.DOWN)
    await trio.sleep(200)
    assert network.etcd.values == []


async def test_a_cancelled_heartbeat_harms_nothing(network: Network, autojump_clock: MockClock) -> None:
    registry = make(URL)
    await registry.register(Status.UP)
    network.takes["a", "/v3/lease/keepalive"] = 5.0
    with trio.move_on_after(1):
        await registry.heartbeat()
    network.takes.clear()
    assert await registry.heartbeat()


async def test_a_call_takes_the_lease_at_most(network: Network, autojump_clock: MockClock) -> None:
    registry = make(URL, ttl=12)
    network.acts["a", ""] = inf
    for call in (registry.heartbeat, registry.read):
        began = trio.current_time()
        with pytest.raises(TransferTimeout):
            await call()
        assert trio.current_time() - began <= 24


# Authentication


async def test_requests_without_an_answer_cost_the_token(network: Network, autojump_clock: MockClock) -> None:
    """An etcd that was restored from a backup waits for the index in a token of later."""
    registry = make(URL, user="pods", password="s3cret")
    registry._token["authorization"] = "of.99999"
    await registry.register(Status.DOWN)
    network.acts["a", "/v3/kv/put"] = inf
    with pytest.raises(TransferTimeout):
        await registry.register(Status.UP)
    assert registry._token, "a question with it is answered"
    network.acts["a", "/v3/kv/range"] = inf
    with pytest.raises(TransferTimeout):
        await registry.register(Status.UP)
    assert registry._token == {}


async def test_a_dead_lease_costs_the_token(network: Network) -> None:
    registry = make(URL, user="pods", password="s3cret")
    await registry.register(Status.UP)
    registry._token["authorization"] = "of.99999"
    network.etcd.end(registry._lease)
    assert not await registry.heartbeat()
    assert registry._token == {}


async def test_it_authenticates_before_the_first_registration(network: Network) -> None:
    network.foreign["a", "/v3/auth/authenticate"] = right(token="abc.7")
    registry = make(URL, user="pods", password="s3cret")
    await registry.prepare()
    assert network.paths() == ["auth/authenticate"]
    await registry.register(Status.UP)
    assert network.paths()[1:] == ["lease/grant", "kv/put"]
    assert network.tokens[-1] == "abc.7"
    await make(URL).prepare()
    assert network.paths().count("auth/authenticate") == 1


async def test_a_token_that_is_refused_twice_is_an_error(network: Network) -> None:
    network.foreign["a", "/v3/kv/put"] = wrong(401, 16, "etcdserver: invalid auth token")
    network.foreign["a", "/v3/auth/authenticate"] = right(token="abc.7")
    registry = make(URL, user="pods", password="s3cret")
    with pytest.raises(RegistryError, match="does not take the token that it has just given"):
        await registry.register(Status.UP)
    assert network.paths().count("auth/authenticate") == 1
    assert network.tokens[-1] == "abc.7"


@pytest.mark.parametrize("token", ["", "a\nb", "\N{SNOWMAN}", "x" * 9000, 7, None, ["a"]])
async def test_a_token_that_no_header_carries_is_none(token: Any, network: Network) -> None:
    network.foreign["a", "/v3/kv/put"] = wrong(401, 16, "etcdserver: invalid auth token")
    network.foreign["a", "/v3/auth/authenticate"] = right(token=token)
    with pytest.raises(RegistryError):
        await make(URL, user="pods", password="s3cret").register(Status.UP)
    assert set(network.tokens) == {""}


async def test_the_password_is_in_no_error(network: Network) -> None:
    network.foreign["a", ""] = wrong(400, 3, "etcdserver: authentication failed, invalid user ID or password")
    for url in (URL, "http://me:s3cret@a:2379"):
        registry = make(url, user="pods", password="s3cret")
        with pytest.raises(PidoneError) as raised:
            await registry.register(Status.UP)
        assert "s3cret" not in f"{raised.value}{registry.where}{registry.endpoint}{registry.places}"


# Which instance


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"scheme": "https"}, True),
        ({"ttl": 60}, True),
        ({"endpoints": "http://A.:2379/"}, True),
        ({"endpoints": "http://new:2379,http://a:2379"}, True),
        ({"endpoints": "http://other:2379"}, False),
        ({"port": 9081}, False),
        ({"service": "other"}, False),
        ({"prefix": "/other"}, False),
        ({"instanceId": "other"}, False),
    ],
)
def test_which_instance_is_the_same(changes: dict[str, Any], same: bool) -> None:
    fields: dict[str, Any] = {"endpoints": URL, "layout": "go-kit", "service": "ratings", "port": 9080}
    old = build(Fields({"etcd": fields}, "r"), POD, None)
    assert build(Fields({"etcd": fields | changes}, "r"), POD, None).succeeds(old) is same


# Layouts


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (
            {"layout": "grpc", "service": "shop/ratings"},
            "shop/ratings/10.42.0.18:9080",
            {"Op": 0, "Addr": "10.42.0.18:9080", "Metadata": None},
        ),
        (
            {"layout": "go-micro", "service": "shop/ratings", "version": "1.2"},
            "/micro/registry/shop-ratings/shop-ratings-web-7d9c-9080",
            {
                "name": "shop/ratings",
                "version": "1.2",
                "metadata": {},
                "endpoints": [],
                "nodes": [{"id": "shop/ratings-web-7d9c-9080", "address": "10.42.0.18:9080", "metadata": {}}],
            },
        ),
        (
            {"layout": "skydns", "domain": "Ratings.shop.skydns.local.", "instanceId": "x1"},
            "/skydns/local/skydns/shop/ratings/x1",
            {"host": "10.42.0.18", "port": 9080, "ttl": 30},
        ),
        (
            {"layout": "skydns", "domain": "a.b", "metadata": {"weight": "7", "group": "g"}, "ttl": 7.5},
            "/skydns/b/a/web-7d9c-9080",
            {"host": "10.42.0.18", "port": 9080, "ttl": 8, "weight": 7, "group": "g"},
        ),
        (
            {"layout": "registrator", "service": "ratings"},
            "/services/ratings/web-7d9c:ratings:9080",
            "10.42.0.18:9080",
        ),
        (
            {
                "layout": "go-kit",
                "service": "ratings",
                "prefix": "/p/q",
                "instanceId": "i",
                "scheme": "https",
            },
            "/p/q/ratings/i",
            "https://10.42.0.18:9080",
        ),
        (
            {"key": "/k/{authority}", "value": "{address} {port} {x}"},
            "/k/10.42.0.18:9080",
            "10.42.0.18 9080 {x}",
        ),
    ],
)
async def test_a_layout_is_a_key_and_a_value(
    config: dict[str, Any], key: str, value: object, network: Network
) -> None:
    registry = build(Fields({"etcd": {"endpoints": URL, "port": 9080, **config}}, "r"), POD, None)
    assert registry.instance == key
    await registry.register(Status.UP)
    assert list(network.etcd.keys) == [b64encode(key.encode()).decode()]
    (text,) = network.etcd.values
    assert (json.loads(text) if isinstance(value, dict) else text) == value
    assert await registry.read() == Entry("UP", "10.42.0.18")


@pytest.mark.parametrize(
    ("layout", "value", "address"),
    [
        ("grpc", '{"Op":0,"Addr":"[fd00::9]:80"}', "fd00::9"),
        ("go-kit", "10.1.1.1:80", "10.1.1.1"),
        ("registrator", "10.1.1.1:80", "10.1.1.1"),
        ("go-micro", '{"nodes":[{"address":"10.1.1.1:80"}]}', "10.1.1.1"),
        ("grpc", "nonsense", "nonsense"),
        ("grpc", "[" * 100_000, "[" * 120),
        ("go-micro", '{"nodes":[]}', '{"nodes":[]}'),
        ("go-kit", "http://[::1", "http://[::1"),
        ("grpc", '{"Addr":7}', '{"Addr":7}'),
    ],
)
async def test_the_address_of_another_instance_is_read_from_its_value(
    layout: str, value: str, address: str, network: Network
) -> None:
    registry = make(URL, layout=layout)
    key = b64encode(registry.instance.encode()).decode()
    network.etcd.keys[key] = (b64encode(value.encode()).decode(), "1", 2)
    assert await registry.read() == Entry("UP", address)
    await registry.deregister()
    assert network.etcd.values == [value], "it is not ours"


def test_checker_and_driver_know_the_same_forms() -> None:
    forms = described()["etcd"].forms["layout"]
    assert {name: (form.needs, form.takes) for name, form in forms.items()} == {
        name: (layout.needs, layout.takes) for name, layout in LAYOUTS.items()
    }


# What nobody could find

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"service": "/ratings"}, 'begins with "/"'),
    ({"service": "ratings/"}, "empty segment"),
    ({"service": "ratings "}, "begins or ends with a blank"),
    ({"service": "a//b"}, "empty segment"),
    ({"service": "a/../b"}, 'segment "." or ".."'),
    ({"prefix": "/a/.."}, 'segment "." or ".."'),
    ({"prefix": "/a/"}, "empty segment"),
    ({"instanceId": ".."}, "segment"),
    ({"layout": "skydns", "service": None, "domain": "a b"}, "is no name in DNS"),
    ({"layout": "skydns", "service": None, "domain": "a..b"}, "is no name in DNS"),
    ({"layout": "grpc", "prefix": "/a"}, 'layout grpc has no "prefix"; remove it'),
    ({"layout": "grpc", "service": None}, 'layout grpc needs "service"'),
    ({"layout": "skydns"}, 'layout skydns needs "domain"'),
    ({"layout": None}, 'etcd without layout needs "key"'),
    ({"layout": None, "service": None, "key": "/a/../b", "value": "x"}, 'segment "." or ".."'),
    ({"layout": None, "service": None, "key": "/a ", "value": "x"}, "begins or ends with a blank"),
    ({"layout": "go-kit", "key": "/a"}, 'layout go-kit has no "key"; remove it'),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_nobody_could_find_is_found_by_the_checker_and_refused_by_the_driver(
    changes: dict[str, Any], message: str
) -> None:
    config = {"endpoints": URL, "layout": "go-kit", "service": "ratings", "port": 9080, **changes}
    config = {name: value for name, value in config.items() if value is not None}
    with pytest.raises(Refused) as raised:
        build(Fields({"etcd": config}, 'task "r".register'), POD, None)
    task = {"name": "r", "register": {"etcd": config}, "stopTimeout": "3s"}
    text = json.dumps(
        {
            "apiVersion": "pidone.dev/v1alpha1",
            "kind": "TaskSet",
            "metadata": {"name": "x"},
            "spec": {"tasks": [task]},
        }
    )
    findings = [one.message for one in check_text(text, "x.json").findings]
    assert any(message in found for found in findings), findings
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoints": ""}, r"endpoints: expected http:// or https:// URLs that end before /v3"),
        ({"endpoints": "a:2379"}, "expected http:// or https:// URLs"),
        ({"endpoints": "http://a/../b"}, 'a path without "." and ".."'),
        ({"layout": "other"}, "expected one of grpc, go-kit"),
        ({"ttl": 1}, "expected 2 to 86400"),
        ({"scheme": "ftp"}, "expected http or https"),
        ({"instanceId": "a/b"}, "one segment of the key"),
        ({"user": "pods", "password": "a", "passwordFile": "/b"}, "password or passwordFile, not both"),
        ({"password": "a"}, "a password without a user"),
        ({"layout": "skydns", "service": None, "domain": "a.b", "instanceId": "a.b"}, 'without "."'),
        (
            {"layout": "skydns", "service": None, "domain": "a.b", "metadata": {"zone": "a"}},
            'SkyDNS has no field "zone"',
        ),
        (
            {"layout": "skydns", "service": None, "domain": "a.b", "metadata": {"weight": "x"}},
            "is no number",
        ),
        ({"layout": None, "service": None, "port": None, "key": "/{port}", "value": "x"}, 'needs "port"'),
    ],
)
def test_what_cannot_be_registered_is_refused_when_it_is_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        make(changes.pop("endpoints", URL), **changes)


# Whatever a server answers


@pytest.mark.parametrize("value", ["9" * 4300, "-5", "x", "\u0661", 1e300, None, [], {}, True, 1 << 70, -1])
def test_a_number_of_no_use_is_zero(value: object) -> None:
    assert number(value) == 0


_odd: st.SearchStrategy[Any] = st.sampled_from(
    ["9" * 4300, (1 << 63) - 1, 10**400, "\ud800", "\x1b[2J", "1" * 19, "", None, True, [], {}, -1, "MQ=="]
)
_fields = st.dictionaries(
    st.sampled_from(["ID", "TTL", "kvs", "responses", "succeeded", "token", "error", "message", "code"]),
    _odd
    | st.lists(st.dictionaries(st.sampled_from(["value", "lease", "mod_revision"]), _odd) | _odd, max_size=2),
)
_bodies: st.SearchStrategy[bytes] = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"[" * 100_000, b'{"result":' * 30_000, b"NaN", b"<a/>"]),
    _fields.map(lambda fields: json.dumps({**HEADER, **fields}).encode()),
    _fields.map(lambda fields: json.dumps({"result": {**HEADER, **fields}}).encode()),
    _fields.map(lambda fields: json.dumps({"error": fields}).encode()),
)
_answers = st.builds(
    Response,
    st.sampled_from([200, 200, 200, 204, 302, 400, 401, 403, 404, 429, 500, 503]),
    st.just({}),
    _bodies,
)


@given(st.lists(_answers, min_size=12, max_size=12))
def test_whatever_a_server_answers_is_a_result_or_the_registrys_error(answers: list[Response]) -> None:
    check_all_calls(make("http://a,http://b", user="pods", password="s3cret"), answers)
