"""The Consul driver: its rules against a real agent and the fake, its errors against scripted servers."""

import contextlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from pidone.errors import PidoneError, Refused, RegistryError, RegistryRefused, TransferTimeout
from pidone.http.message import Request, Response
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Entry, Status, build
from pidone.registries._consul_messages import MAINTENANCE_REASON
from pidone.registries.consul import Consul
from tests.consul.agents import KINDS, Agent, agent_of, fake_agent, new_name
from tests.consul.fake import FakeConsul
from tests.consul.reader import Instance, Reader
from tests.consul.real import RealConsul
from tests.http.serving import http_server
from tests.patience import PATIENCE_SECONDS
from tests.registries.between import FOREIGN, Ingress, always, check_all_calls
from tests.results import serve_with

POD = Pod("web-7d9c", "shop", "uid-1", "10.42.0.18", "node-1")
CONSUL = pytest.param("consul", marks=pytest.mark.consul)


def make(url: str, name: str = "ratings", *, pod: Pod = POD, **more: Any) -> Consul:
    config = {"consul": {"url": url, "name": name, "port": 9080, **more}}
    registry = build(Fields(config, 'task "r".register'), pod, None)
    assert isinstance(registry, Consul)
    return registry


class Bench:
    """An agent, and a service of its own in it, seen from outside."""

    def __init__(self, agent: Agent, name: str) -> None:
        self.agent = agent
        self.name = name
        self.id = f"{name}-shop-web-7d9c-9080"

    def driver(self, **more: Any) -> Consul:
        return make(self.agent.url, self.name, **self.agent.credentials, **more)

    async def status(self) -> str:
        return await self.agent.status(self.id)

    async def maintain(self, reason: str = "upgrade", *, on: bool = True) -> None:
        path = f"agent/service/maintenance/{self.id}?enable={str(on).lower()}&reason={reason}"
        await self.agent.put(path)

    async def forget(self) -> None:
        await self.agent.put(f"agent/service/deregister/{self.id}")


@pytest.fixture(params=KINDS)
async def bench(request: pytest.FixtureRequest, nursery: trio.Nursery) -> Bench:
    return Bench(await agent_of(request, nursery), new_name())


async def test_what_is_registered_is_read_back_whole(bench: Bench) -> None:
    registry = bench.driver(
        tags=["v1", "a=b"], meta={"zone": "a"}, weights={"passing": 7, "warning": 2}, ttl=45.5
    )
    assert await registry.register(Status.UP) == "UP"
    got = await bench.agent.service(bench.id)
    assert got is not None
    expected = {
        "ID": bench.id, "Service": bench.name, "Address": "10.42.0.18", "Port": 9080, "Tags": ["v1", "a=b"],
        "Meta": {"zone": "a"}, "Weights": {"Passing": 7, "Warning": 2},
    }  # fmt: skip
    assert {key: got[key] for key in expected} == expected
    (check,) = (await bench.agent.checks(bench.id)).values()
    assert (check["CheckID"], check["Status"]) == (f"service:{bench.id}", "passing")
    await bench.agent.until(lambda: bench.agent.passing(bench.name), [bench.id])
    assert await registry.read() == Entry("UP", "10.42.0.18")


async def test_the_status_goes_down_and_up_again(bench: Bench) -> None:
    registry = bench.driver()
    for status in (Status.STARTING, Status.UP, Status.DOWN, Status.UP):
        assert await registry.register(status) == status
        shown = "passing" if status is Status.UP else "critical"
        assert await bench.status() == shown
        assert await registry.heartbeat()
        assert await bench.status() == shown, "a heartbeat keeps the status"


async def test_a_heartbeat_renews_the_lease(bench: Bench) -> None:
    registry = bench.driver(ttl=2)
    await registry.register(Status.UP)
    for _ in range(3):
        await bench.agent.pass_time(1.2)
        assert await registry.heartbeat()
        assert await bench.status() == "passing"
    await bench.agent.pass_time(2.5)
    assert await bench.status() == "critical"
    assert await registry.heartbeat()
    assert await bench.status() == "passing"


@pytest.mark.check("consul", "pass before register")
async def test_a_heartbeat_before_the_registration_says_that_it_is_not_there(bench: Bench) -> None:
    assert not await bench.driver().heartbeat()
    assert await bench.status() == "", "it registers nothing"


async def test_a_forgotten_instance_is_told_and_comes_back(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.DOWN)
    await bench.forget()
    assert not await registry.heartbeat()
    assert await registry.read() is None
    assert await registry.register(Status.DOWN) == "DOWN"
    assert await bench.status() == "critical"
    assert await registry.heartbeat()


@pytest.mark.check("consul", "reaped → register again")
async def test_what_the_agent_has_taken_out_is_registered_again(bench: Bench) -> None:
    registry = bench.driver(ttl=2, deregisterCriticalServiceAfter=60)
    await registry.register(Status.UP)
    await bench.agent.pass_time(50)
    assert await bench.status() == "critical", "not before the minute"
    await bench.agent.pass_time(2 + 10 + 31)  # the agent looks every 30 s
    await bench.agent.until(bench.status, "")
    assert not await registry.heartbeat()
    assert await registry.register(Status.UP) == "UP"
    assert await bench.status() == "passing"


async def test_leaving_twice_or_without_having_come_is_fine(bench: Bench) -> None:
    registry = bench.driver()
    await registry.deregister()
    await registry.register(Status.UP)
    await registry.deregister()
    assert await bench.agent.service(bench.id) is None
    await registry.deregister()
    assert not await registry.heartbeat()
    await registry.register(Status.UP)
    assert await bench.status() == "passing"


async def test_checks_of_a_predecessor_are_replaced(bench: Bench) -> None:
    """Of another client with the same identifier: nobody would ever renew them."""
    checks = [{"TTL": "30s"}, {"TTL": "30s"}]
    document = {"ID": bench.id, "Name": bench.name, "Port": 1, "Address": "10.42.0.9", "Checks": checks}
    await bench.agent.put("agent/service/register", document)
    assert await bench.driver().register(Status.UP) == "UP"
    assert set(await bench.agent.checks(bench.id)) == {f"service:{bench.id}"}
    got = await bench.agent.service(bench.id)
    assert got is not None
    assert (got["Address"], got["Port"]) == ("10.42.0.18", 9080)


async def test_a_check_that_an_operator_adds_stays_and_its_status_is_told(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.UP)
    check = {"ID": f"extra-{bench.id}", "Name": "extra", "ServiceID": bench.id, "TTL": "1h"}
    await bench.agent.put("agent/check/register", check)
    assert await registry.register(Status.UP) == "DOWN"
    assert set(await bench.agent.checks(bench.id)) == {f"service:{bench.id}", f"extra-{bench.id}"}


@pytest.mark.consul
async def test_consuls_own_client_reads_what_is_registered(consul: Agent, consul_reader: Reader) -> None:
    bench = Bench(consul, new_name())
    registry = bench.driver(tags=["v1"], meta={"zone": "a"})

    async def read() -> list[Instance]:
        return consul_reader.read(bench.name)

    for status, shown in (
        (Status.UP, "passing"),
        (Status.DOWN, "critical"),
        (Status.OUT_OF_SERVICE, "maintenance"),
        (Status.UP, "passing"),
    ):
        await registry.register(status)
        expected = Instance(bench.id, "10.42.0.18", 9080, shown, ["v1"], {"zone": "a"})
        await consul.until(read, [expected])
    await registry.deregister()
    await consul.until(read, [])


# Maintenance


async def test_maintenance_begins_stays_and_ends(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.UP)
    assert await registry.register(Status.OUT_OF_SERVICE) == "OUT_OF_SERVICE"
    assert await bench.status() == "maintenance"
    await bench.agent.until(lambda: bench.agent.passing(bench.name), [])
    assert await registry.heartbeat()
    assert await registry.register(Status.OUT_OF_SERVICE) == "OUT_OF_SERVICE"
    assert await registry.read() == Entry("OUT_OF_SERVICE", "10.42.0.18")
    checks = await bench.agent.checks(bench.id)
    assert checks[f"_service_maintenance:{bench.id}"]["Notes"] == MAINTENANCE_REASON
    assert await registry.register(Status.DOWN) == "DOWN"
    assert await bench.status() == "critical"
    assert await registry.register(Status.OUT_OF_SERVICE) == "OUT_OF_SERVICE"
    assert await registry.register(Status.UP) == "UP"
    assert await bench.status() == "passing"


async def test_what_is_registered_in_maintenance_never_passes(bench: Bench) -> None:
    registry = bench.driver()
    assert await registry.register(Status.OUT_OF_SERVICE) == "OUT_OF_SERVICE"
    assert await bench.status() == "maintenance"
    if bench.agent.fake is not None:
        bodies = [json.loads(asked.body) for asked in bench.agent.fake.log if asked.body]
        assert [body["Check"]["Status"] for body in bodies] == ["critical"]
    await bench.forget()
    assert not await registry.heartbeat()
    assert await registry.register(Status.OUT_OF_SERVICE) == "OUT_OF_SERVICE"
    assert await bench.status() == "maintenance"


@pytest.mark.check("consul", "maintenance survives heartbeats, lost by replace-existing-checks")
@pytest.mark.check("consul", "maintenance survives heartbeats, lost by replace-existing-checks")
async def test_an_operators_maintenance_is_told_and_survives_all_that_we_do(bench: Bench) -> None:
    registry = bench.driver()
    assert await registry.register(Status.UP) == "UP"
    await bench.maintain()
    assert await registry.heartbeat()
    for status in (Status.UP, Status.DOWN, Status.OUT_OF_SERVICE, Status.UP):
        assert await registry.register(status) == "OUT_OF_SERVICE"
        assert await bench.status() == "maintenance"
    restarted = bench.driver()
    assert await restarted.register(Status.UP) == "OUT_OF_SERVICE", "also of a process that knows of nothing"
    assert await restarted.register(Status.UP) == "OUT_OF_SERVICE"
    checks = await bench.agent.checks(bench.id)
    assert checks[f"_service_maintenance:{bench.id}"]["Notes"] == "upgrade"
    await bench.maintain(on=False)
    assert await restarted.register(Status.UP) == "UP"


async def test_maintenance_that_a_predecessor_has_set_ends_with_it(bench: Bench) -> None:
    await bench.driver().register(Status.OUT_OF_SERVICE)
    assert await bench.driver().register(Status.UP) == "UP"
    assert await bench.status() == "passing"


# Agents that begin again, and agents with ACLs


class TestRestart:
    @pytest.fixture(params=["fake", CONSUL])
    async def restarted(
        self, request: pytest.FixtureRequest, nursery: trio.Nursery
    ) -> tuple[Bench, Callable[..., None]]:
        if request.param == "consul":
            real: RealConsul = request.getfixturevalue("own_consul")

            def restart(*, empty: bool) -> None:
                real.stop(empty=empty)
                real.start()

            serve_with(request, real.agent.server)
            return Bench(real.agent, new_name()), restart
        agent = await fake_agent(nursery)
        serve_with(request, agent.server)
        fake = agent.fake
        assert fake is not None
        return Bench(agent, new_name()), lambda *, empty: fake.restart(agent.clock.now(), empty=empty)

    @pytest.mark.check("consul", "restart with data keeps passing")
    async def test_with_its_data_the_next_heartbeat_renews(self, restarted: Any) -> None:
        bench, restart = restarted
        registry = bench.driver()
        await registry.register(Status.UP)
        restart(empty=False)
        assert await bench.status() == "passing"
        assert await registry.heartbeat()

    @pytest.mark.check("consul", "restart with data keeps passing")
    async def test_a_status_that_the_agent_has_saved_is_not_taken_for_ours(self, restarted: Any) -> None:
        bench, restart = restarted
        await bench.driver().register(Status.UP)
        restart(empty=False)
        assert await bench.driver().register(Status.DOWN) == "DOWN"
        assert await bench.status() == "critical"

    @pytest.mark.check("consul", "wiped agent → register again")
    async def test_without_its_data_the_next_heartbeat_says_so(self, restarted: Any) -> None:
        bench, restart = restarted
        registry = bench.driver()
        await registry.register(Status.UP)
        restart(empty=True)
        assert not await registry.heartbeat()
        assert await registry.register(Status.UP) == "UP"
        assert await bench.status() == "passing"


@pytest.mark.check("consul", "ACL texts")
class TestTokens:
    RIGHT, OTHER = "11111111-2222-4333-8444-555555555555", "66666666-7777-4888-8999-000000000000"

    @pytest.fixture(params=["fake", "old fake", CONSUL])
    async def guarded(self, request: pytest.FixtureRequest, nursery: trio.Nursery) -> Bench:
        name = new_name()
        if request.param == "consul":
            real: RealConsul = request.getfixturevalue("own_guarded_consul")
            real.grant(self.RIGHT, name)
            real.grant(self.OTHER, "another")
            serve_with(request, real.agent.server)
            return Bench(Agent(real.url), name)
        tokens = {self.RIGHT: {name}, self.OTHER: {"another"}}
        agent = await fake_agent(nursery, old=request.param == "old fake", tokens=tokens)
        serve_with(request, agent.server)
        return Bench(agent, name)

    async def test_with_the_right_token_all_calls_work(self, guarded: Bench) -> None:
        registry = guarded.driver(token=self.RIGHT)
        assert not await registry.heartbeat()
        assert await registry.register(Status.UP) == "UP"
        assert await registry.heartbeat()
        assert await registry.register(Status.OUT_OF_SERVICE) == "OUT_OF_SERVICE"
        assert await registry.register(Status.DOWN) == "DOWN"
        await registry.deregister()
        assert await registry.read() is None
        await registry.deregister()

    @pytest.mark.parametrize(
        ("token", "words"),
        [
            ("", 'Permission denied.*": set token or tokenFile to a token with service:write on "NAME"'),
            (OTHER, 'Permission denied.*": the token is unknown, or it has no service:write on "NAME"'),
            ("99999999-0000-4000-8000-000000000000", 'ACL not found": the token is unknown'),
        ],
    )
    async def test_any_other_is_refused_with_the_remedy(self, token: str, words: str, guarded: Bench) -> None:
        await guarded.driver(token=self.RIGHT).register(Status.UP)
        registry = guarded.driver(**({"token": token} if token else {}))
        for call in (
            lambda: registry.register(Status.DOWN),
            registry.heartbeat,
            registry.read,
            registry.deregister,
        ):
            with pytest.raises(RegistryRefused, match=words.replace("NAME", guarded.name)) as raised:
                await call()
            assert token not in str(raised.value) or not token
        guarded.agent.token = self.RIGHT
        assert await guarded.status() == "passing"

    async def test_a_file_is_read_for_each_request(self, guarded: Bench, tmp_path: Path) -> None:
        file = tmp_path / "token"
        registry = guarded.driver(tokenFile=str(file))
        with pytest.raises(RegistryError, match=f"{file}: No such file"):
            await registry.register(Status.UP)
        file.write_text(f"{self.OTHER}\n")
        with pytest.raises(RegistryRefused, match="Permission denied"):
            await registry.register(Status.UP)
        file.write_text(f"{self.RIGHT}\n")
        assert await registry.register(Status.UP) == "UP"
        assert await registry.heartbeat()

    async def test_a_token_that_is_revoked_is_told_and_a_new_one_goes_on(
        self, guarded: Bench, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        file = tmp_path / "token"
        file.write_text(self.RIGHT)
        newer = str(uuid.uuid4())
        registry = guarded.driver(tokenFile=str(file))
        await registry.register(Status.UP)
        if guarded.agent.fake is None:
            real: RealConsul = request.getfixturevalue("own_guarded_consul")
            real.revoke(self.RIGHT)
            real.grant(newer, guarded.name)
        else:
            assert guarded.agent.fake.tokens is not None
            del guarded.agent.fake.tokens[self.RIGHT]
            guarded.agent.fake.tokens[newer] = {guarded.name}

        async def refused() -> bool:
            try:
                return not await registry.heartbeat()
            except RegistryRefused as error:
                return "ACL not found" in str(error)

        with trio.fail_after(PATIENCE_SECONDS):  # an agent keeps a token for a while
            while not await refused():
                await trio.sleep(0.05)
        file.write_text(newer)
        assert await registry.heartbeat()


@pytest.mark.parametrize(
    "content", ["", " \n", "a\nb", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "x" * 9000, None]
)
async def test_a_file_without_a_token_is_told_without_its_content(
    content: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    os.mkfifo(file) if content is None else file.write_text(content)
    with pytest.raises(RegistryError, match=f"{file}: expected") as raised:
        await make("http://127.0.0.1:9", tokenFile=str(file)).heartbeat()
    assert "xxx" not in str(raised.value)


# In between


@pytest.fixture
async def ingress(bench: Bench, nursery: trio.Nursery) -> Ingress:
    return await Ingress(bench.agent.url).start(nursery)


@pytest.mark.parametrize("answer", FOREIGN)
async def test_an_answer_of_somebody_else_is_an_error_and_no_word_of_the_registry(
    answer: str, bench: Bench, ingress: Ingress
) -> None:
    registry = make(ingress.url, bench.name, **bench.agent.credentials)
    ingress.fault = always(FOREIGN[answer])
    with pytest.raises(RegistryError) as raised:
        await registry.register(Status.UP)
    assert not isinstance(raised.value, RegistryRefused)
    assert await bench.agent.service(bench.id) is None
    ingress.fault = lambda _: None
    assert await registry.register(Status.UP) == "UP"
    for methods in ((), ("PUT",), ("GET",)):
        ingress.fault = always(FOREIGN[answer], *methods)
        for call in (registry.heartbeat, registry.deregister, registry.read):
            if (call == registry.heartbeat and methods == ("GET",)) or (
                call == registry.read and methods == ("PUT",)
            ):
                continue
            if call == registry.deregister and methods == ("GET",):
                continue
            with pytest.raises(RegistryError) as raised:
                await call()
            assert not isinstance(raised.value, RegistryRefused), "it has accepted us before"
    assert await bench.status() == "passing"
    ingress.fault = lambda _: None
    await registry.deregister()
    assert await bench.agent.service(bench.id) is None


async def test_a_deregistration_is_believed_from_consul_alone(bench: Bench, ingress: Ingress) -> None:
    registry = make(ingress.url, bench.name, **bench.agent.credentials)
    await registry.register(Status.UP)
    ingress.fault = lambda asked: Response(404) if "deregister" in asked.target else None
    with pytest.raises(RegistryError, match="still has it"):
        await registry.deregister()
    ingress.fault = lambda asked: Response(404) if asked.method == "GET" else None
    with pytest.raises(RegistryError, match="not the registry's answer"):
        await registry.deregister()
    ingress.fault = lambda _: None
    await registry.deregister()


async def test_a_registration_that_nobody_got_is_no_success(bench: Bench, ingress: Ingress) -> None:
    ingress.fault = lambda asked: Response(200) if asked.method == "PUT" else None
    with pytest.raises(RegistryError, match="does not have it; is this one agent"):
        await make(ingress.url, bench.name, **bench.agent.credentials).register(Status.UP)


# Errors of scripted servers


class Scripted:
    """A server that answers what it is told, and remembers what it was asked."""

    def __init__(self, *answers: Response) -> None:
        self.answers = list(answers)
        self.asked: list[Request] = []

    async def handle(self, request: Request) -> Response:
        self.asked.append(request)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def start(self, nursery: trio.Nursery) -> str:
        return f"http://127.0.0.1:{await http_server(nursery, self.handle, body=1 << 16)}"


@pytest.mark.parametrize(
    ("answer", "remedy", "lasts"),
    [
        (Response(404), "not an answer of a Consul agent; is the URL right", False),
        (Response(200, {}, b"<html>welcome</html>"), "not an answer of a Consul agent", False),
        (Response(401), "does a proxy want a user", False),
        (Response(403, {}, b"RBAC: access denied"), "this is not Consul's refusal", False),
        (Response(403, {}, b"Permission denied"), "set token or tokenFile", True),
        (
            Response(400, {}, b"Client sent an HTTP request to an HTTPS server.\n"),
            "write https:// in the URL",
            True,
        ),
        (Response(500, {}, b"\x1b]52;c;eA==\x07 no\nlines"), r'answered 500 "\]52;c;eA== no lines"', False),
        (Response(302, {"location": "/login"}), "redirected to /login", False),
    ],
)
async def test_the_remedy_is_in_the_error(
    answer: Response, remedy: str, lasts: bool, nursery: trio.Nursery
) -> None:
    with pytest.raises(RegistryError, match=remedy) as raised:
        await make(await Scripted(answer).start(nursery)).register(Status.UP)
    assert isinstance(raised.value, RegistryRefused) is lasts
    assert str(raised.value).isprintable()
    nursery.cancel_scope.cancel()


async def test_a_document_that_the_agent_refuses_is_told_in_its_words(nursery: trio.Nursery) -> None:
    absent, unknown = Response(404, {}, b"{}"), Response(404, {}, b"unknown service ID: x")
    refusal = Response(400, {}, b'Request decode failed: json: unknown field "X"')
    url = await Scripted(absent, unknown, refusal).start(nursery)
    with pytest.raises(RegistryRefused, match=r"unknown field.*the registry does not accept the document"):
        await make(url).register(Status.UP)
    nursery.cancel_scope.cancel()


async def test_a_password_and_a_token_are_sent_and_are_in_no_error(nursery: trio.Nursery) -> None:
    server = Scripted(Response(500))
    url = (await server.start(nursery)).replace("//", "//me:s3cret@")
    registry = make(url, token="t0ken")
    for text in (registry.where, registry.endpoint, *registry.places):
        assert "s3cret" not in text
    with pytest.raises(PidoneError) as raised:
        await registry.register(Status.UP)
    assert "s3cret" not in str(raised.value)
    assert "t0ken" not in str(raised.value)
    assert server.asked[0].headers["x-consul-token"] == "t0ken"
    assert server.asked[0].headers["authorization"].startswith("Basic ")
    nursery.cancel_scope.cancel()


# Slow agents, on a mock clock


class Slow:
    """In place of ``pidone.http.client.request``: a fake agent that takes a while, and acts all the same."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake, self.takes, self.methods = FakeConsul(), 0.0, {"PUT", "GET"}
        self.asked: list[str] = []
        monkeypatch.setattr("pidone.registries._servers.request", self.request)

    async def request(
        self,
        method: str,
        url: str,
        *,
        timeout: float,
        answer_timeout: float,
        body: bytes,
        headers: Any,
        **_: Any,
    ) -> Response:
        target = url.removeprefix("http://a:8500")
        self.asked.append(f"{method} {target}")
        answer = Response(*self.fake.handle(method, target, headers, body, 1e9 + trio.current_time()))
        patience = min(timeout, answer_timeout)
        if method in self.methods and self.takes > patience:
            await trio.sleep(patience)
            raise TransferTimeout(f"{method} {url}: no answer within {patience:g} s", sent=True)
        await trio.sleep(self.takes if method in self.methods else 0)
        return answer


async def test_a_registration_or_deregistration_without_an_answer_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    slow, registry = Slow(monkeypatch), make("http://a:8500", tags=["x"], meta={"a": "b"})
    slow.takes, slow.methods = 100, {"PUT"}
    with pytest.raises(TransferTimeout):  # the document is there, and the check cannot be set
        await registry.register(Status.UP)
    assert any("check/pass" in asked for asked in slow.asked)
    slow.takes = 0
    assert await registry.register(Status.UP) == "UP"
    slow.takes = 100
    await registry.deregister()
    assert slow.fake.log[-1].status == 404
    slow.takes, slow.methods = 100, {"PUT", "GET"}
    with pytest.raises(TransferTimeout):
        await registry.deregister()


@pytest.mark.parametrize("ttl", [2, 5, 30])
async def test_a_call_takes_no_longer_than_the_lease(
    ttl: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    slow, registry = Slow(monkeypatch), make("http://a:8500", ttl=ttl)
    await registry.register(Status.UP)
    slow.takes = 0.7 * min(ttl, 8)
    for call in (registry.heartbeat, registry.read, lambda: registry.register(Status.DOWN)):
        began = trio.current_time()
        with contextlib.suppress(PidoneError):
            await call()
        assert trio.current_time() - began <= 2 * ttl


# Identity, times and bad input


@pytest.mark.parametrize(
    ("ttl", "interval"), [(30, 20.0), (2, 1.0), (2.5, 1.5), (3, 2.0), (90, 60.0), (86400, 57600.0)]
)
def test_heartbeats_come_after_two_thirds_of_the_ttl(ttl: float, interval: float) -> None:
    registry = make("http://a:8500", ttl=ttl)
    assert (registry.interval, registry.lease) == (interval, ttl)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"meta": {"a": "b"}}, True),
        ({"address": "10.1.1.1"}, True),
        ({"url": "http://Agent.:8500//"}, True),
        ({"url": "http://me:s3cret@agent:8500"}, True),
        ({"token": "x"}, True),
        ({"url": "http://other:8500"}, False),
        ({"url": "http://agent:8501"}, False),
        ({"id": "other"}, False),
        ({"port": 9081}, False),
        ({"name": "other"}, False),
    ],
)
def test_which_instance_is_the_same(changes: dict[str, Any], same: bool) -> None:
    fields: dict[str, Any] = {"url": "http://agent:8500/", "name": "ratings", "port": 9080}
    old = build(Fields({"consul": fields}, "r"), POD, None)
    assert build(Fields({"consul": fields | changes}, "r"), POD, None).succeeds(old) is same


async def test_what_takes_over_replaces_the_document_and_keeps_maintenance(bench: Bench) -> None:
    old = bench.driver()
    await old.register(Status.OUT_OF_SERVICE)
    new = bench.driver(tags=["v2"])
    assert new.succeeds(old)
    new.take_over(old)
    assert await new.register(Status.OUT_OF_SERVICE) == "OUT_OF_SERVICE"
    got = await bench.agent.service(bench.id)
    assert got is not None
    assert got["Tags"] == ["v2"]
    assert await new.register(Status.UP) == "UP"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        *(({"name": name}, r"consul\.name: .* is no name that DNS can find; use letters") for name in
          ("shop/web", "a.b", "a_b", "web ", " web", "-a", "a-", "", "a" * 64, "caf\u00e9")),
        *(({"id": key}, r"consul\.id: .*is no identifier") for key in
          ("..", ".", "a/b", "a%2f", "a b", "a ", "", "a\nb", "a?b", "a#b", "..;x")),
        ({"tags": ["a", "b "]}, r"consul\.tags\[1\]: \"b \" begins or ends with a blank"),
        ({"tags": [""]}, r"consul\.tags\[0\]: an empty word"),
        ({"tags": ["a\tb"]}, r"consul\.tags\[0\]: .* control character"),
        ({"tags": [1]}, r"consul\.tags\[0\]: expected a string"),
        ({"meta": {"a b": "c"}}, r"consul\.meta\.a b: .* no key that Consul takes"),
        ({"meta": {"consul-x": "c"}}, r"consul\.meta\.consul-x: .* keeps for itself"),
        ({"meta": {"a": "x" * 513}}, r"consul\.meta\.a: .* has 513 bytes"),
        ({"meta": {"a": 1}}, r"consul\.meta\.a: expected a string"),
        ({"meta": {f"k{number}": "" for number in range(65)}}, "Consul takes 64 pairs, not 65"),
        ({"weights": {"passing": 0}}, r"consul\.weights\.passing: expected 1 to 65535"),
        ({"weights": {"passing": 1, "failing": 1}}, 'does not know "failing"'),
        ({"ttl": 1}, r"consul\.ttl: expected 2 to 86400"),
        ({"ttl": "30s"}, r"consul\.ttl: expected a number of seconds"),
        ({"deregisterCriticalServiceAfter": 30}, r"consul\.deregisterCriticalServiceAfter: expected 60 to"),
        ({"url": "http://a:8500,http://b:8500"}, r"consul\.url: one URL; a registration belongs to its agent"),
        ({"url": "a:8500"}, r"consul\.url: expected http:// or https:// URLs"),
        ({"url": "http://a/../b"}, r'consul\.url: a path without "\."'),
        ({"token": "x", "tokenFile": "/y"}, "token or tokenFile, not both"),
        ({"token": "a\r\nX: y"}, r"consul\.token: expected one line of printable ASCII"),
        ({"tokenFile": "token"}, r"consul\.tokenFile: expected an absolute path"),
        ({"checkId": "x"}, 'does not know "checkId"'),
    ],
)  # fmt: skip
def test_what_cannot_be_registered_is_refused_when_it_is_built(config: dict[str, Any], message: str) -> None:
    fields = {"url": "http://agent:8500", "name": "ratings", "port": 9080} | config
    with pytest.raises(Refused, match=message) as raised:
        build(Fields({"consul": fields}, 'task "r".register'), POD, None)
    assert "X: y" not in str(raised.value)


# Whatever a server answers

_odd: st.SearchStrategy[Any] = st.sampled_from(
    ["9" * 4300, 10**400, 1e308, "\ud800", "\x1b[2J", "", None, True, [], {}, -1, "passing", "x" * 999]
)
_services = st.fixed_dictionaries(
    {"ID": st.just("ratings-shop-web-7d9c-9080") | _odd},
    optional={"Address": _odd, "Tags": _odd, "Meta": _odd, "Service": _odd},
)
_check_documents = st.fixed_dictionaries({}, optional={"CheckID": _odd, "Status": _odd, "Notes": _odd})
_bodies = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"[" * 100_000, b'{"Service":' * 30_000, b"unknown service ID", b"Unknown check", b"NaN"]),
    st.builds(
        lambda service, status, checks: json.dumps(
            {"Service": service, "AggregatedStatus": status, "Checks": checks}
        ).encode(),
        _services | _odd, _odd, st.lists(_check_documents | _odd, max_size=3) | _odd,
    ),
    st.builds(lambda service: json.dumps(service).encode(), _services),
)  # fmt: skip
_answers = st.builds(
    Response,
    st.sampled_from([200, 201, 204, 301, 302, 400, 401, 403, 404, 405, 429, 500, 503, 599]),
    st.fixed_dictionaries({}, optional={"location": st.sampled_from(["/login", "http://[::1", "?"])}),
    _bodies,
)


@given(st.lists(_answers, min_size=12, max_size=12))
def test_whatever_a_server_answers_is_a_result_or_the_registrys_error(answers: list[Response]) -> None:
    check_all_calls(make("http://a:8500"), answers)
