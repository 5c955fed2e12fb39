"""The Eureka driver: its rules against a real registry and the fake, its errors against scripted servers."""

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from pidone.errors import PidoneError, Refused, RegistryError, RegistryRefused, TransferTimeout
from pidone.http.client import request
from pidone.http.message import Request, Response
from pidone.http.server import Handler
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Entry, Status, build
from pidone.registries.eureka import MARK, Eureka
from tests.eureka.fake import FakeEureka
from tests.eureka.real import RealEureka, version
from tests.http.serving import http_server
from tests.patience import PATIENCE_SECONDS
from tests.registries.between import FOREIGN, Ingress, Network, Node, always, check_all_calls
from tests.results import FAKE, serve_with

POD = Pod("web-7d9c", "shop", "uid-1", "10.42.0.18", "node-1")


def make(url: str, app: str = "ratings", *, pod: Pod = POD, **more: Any) -> Eureka:
    config = {"eureka": {"url": url, "app": app, "port": 9080, **more}}
    registry = build(Fields(config, 'task "r".register'), pod, None)
    assert isinstance(registry, Eureka)
    return registry


def fake_eureka(registry: FakeEureka) -> Handler:
    async def handler(request: Request) -> Response:
        return Response(*registry.handle(request.method, request.target, request.body, time.time()))

    return handler


@dataclass
class Bench:
    """A registry, and an app of its own in it, seen from outside."""

    url: str
    app: str

    def driver(self, **more: Any) -> Eureka:
        return make(self.url, self.app, **more)

    async def call(self, method: str, suffix: str = "") -> Response:
        path = f"apps/{self.app.upper()}/web-7d9c:{self.app}:9080{suffix}"
        headers = {"accept": "application/json"}
        return await request(method, self.url + path, timeout=PATIENCE_SECONDS, headers=headers)

    async def read(self) -> dict[str, Any]:
        answer = await self.call("GET")
        assert answer.status == 200, answer
        document: dict[str, Any] = json.loads(answer.body)["instance"]
        return document

    async def status(self) -> str:
        return str((await self.read())["status"])

    async def dirty(self) -> int:
        return int((await self.read())["lastDirtyTimestamp"])

    async def override(self, status: str, query: str = "") -> None:
        assert (await self.call("PUT", f"/status?value={status}{query}")).status == 200


_names = (f"reviews{number}" for number in itertools.count(1))


@pytest.fixture(params=["fake", pytest.param("spring", marks=pytest.mark.eureka)])
def real(request: pytest.FixtureRequest) -> RealEureka | None:
    if request.param == "fake":
        serve_with(request, FAKE)
        return None
    server: RealEureka = request.getfixturevalue("spring")
    serve_with(request, version())
    return server


@pytest.fixture
async def bench(real: RealEureka | None, nursery: trio.Nursery) -> Bench:
    if real is not None:
        return Bench(real.url, next(_names))
    port = await http_server(nursery, fake_eureka(FakeEureka()), body=1 << 16)
    return Bench(f"http://127.0.0.1:{port}/eureka/", next(_names))


async def test_what_is_registered_is_read_back_whole(bench: Bench) -> None:
    registry = bench.driver(metadata={"zone": "a", "version": "1.2"}, leaseDuration=45, healthCheckPath="/up")
    assert await registry.register(Status.STARTING) == "STARTING"
    got = await bench.read()
    expected = {
        "instanceId": f"web-7d9c:{bench.app}:9080",
        "app": bench.app.upper(),
        "hostName": "10.42.0.18",
        "ipAddr": "10.42.0.18",
        "vipAddress": bench.app,
        "secureVipAddress": bench.app,
        "status": "STARTING",
        "port": {"$": 9080, "@enabled": "true"},
        "homePageUrl": "http://10.42.0.18:9080/",
        "healthCheckUrl": "http://10.42.0.18:9080/up",
    }
    assert {name: got[name] for name in expected} == expected
    assert got["metadata"] == {"zone": "a", "version": "1.2"}
    assert (got["leaseInfo"]["renewalIntervalInSecs"], got["leaseInfo"]["durationInSecs"]) == (30, 45)
    assert abs(int(got["lastDirtyTimestamp"]) - time.time() * 1000) < 60_000


async def test_a_heartbeat_renews_the_lease(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.UP)
    before = (await bench.read())["leaseInfo"]["lastRenewalTimestamp"]
    assert await registry.heartbeat()
    # a renewal stores now plus the lease's duration; that is the server's way
    assert (await bench.read())["leaseInfo"]["lastRenewalTimestamp"] >= before + 80_000


async def test_the_status_goes_down_and_up_again(bench: Bench) -> None:
    registry = bench.driver()
    for status in (Status.STARTING, Status.UP, Status.DOWN, Status.UP):
        assert await registry.register(status) == status
        assert await bench.status() == status
        assert await registry.heartbeat()
        assert await bench.status() == status


async def test_a_forgotten_instance_is_told_and_comes_back(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.DOWN)
    assert (await bench.call("DELETE")).status == 200
    assert not await registry.heartbeat()
    assert await registry.register(Status.DOWN) == "DOWN"
    assert await registry.heartbeat()


async def test_leaving_twice_or_without_having_come_is_fine(bench: Bench) -> None:
    registry = bench.driver()
    await registry.deregister()
    await registry.register(Status.UP)
    await registry.deregister()
    assert (await bench.call("GET")).status == 404
    await registry.deregister()
    await registry.register(Status.UP)
    assert await bench.status() == "UP"


async def test_a_predecessor_with_a_clock_ahead_does_not_win(bench: Bench) -> None:
    before = bench.driver(ipAddr="10.42.0.9")
    before._clock = lambda: time.time() + 3600
    await before.register(Status.UP)
    assert await bench.driver().register(Status.DOWN) == "DOWN"
    got = await bench.read()
    assert (got["ipAddr"], got["status"]) == ("10.42.0.18", "DOWN")


async def test_a_clock_that_jumps_back_does_not_make_a_change_older(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.UP)
    first = await bench.dirty()
    registry._clock = lambda: time.time() - 86_400
    for number, status in enumerate((Status.DOWN, Status.UP), 1):
        assert await registry.register(status) == status
        assert await bench.dirty() == first + number
        assert await registry.heartbeat()


async def test_the_same_status_again_is_the_same_version(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.UP)
    first = await bench.dirty()
    registry._clock = lambda: time.time() + 60
    await registry.register(Status.UP)
    assert await bench.dirty() == first


async def test_an_operators_override_survives_and_is_told(bench: Bench) -> None:
    registry = bench.driver()
    assert await registry.register(Status.UP) == "UP"
    await bench.override("OUT_OF_SERVICE")
    assert await registry.heartbeat()
    assert await registry.register(Status.UP) == "OUT_OF_SERVICE"
    assert await registry.register(Status.DOWN) == "DOWN"  # the application's own word goes first
    assert await registry.register(Status.UP) == "OUT_OF_SERVICE"
    assert await bench.status() == "OUT_OF_SERVICE"


async def test_maintenance_is_an_override_that_is_lifted_again(bench: Bench) -> None:
    registry = bench.driver()
    assert await registry.register(Status.OUT_OF_SERVICE) == "OUT_OF_SERVICE"
    assert await registry.heartbeat()
    assert await bench.status() == "OUT_OF_SERVICE"
    assert await registry.register(Status.UP) == "UP"
    assert await registry.heartbeat()
    assert await bench.status() == "UP"


@pytest.mark.parametrize("health", [Status.UP, Status.DOWN, Status.STARTING])
async def test_at_the_end_of_a_maintenance_the_health_of_then_is_shown(health: Status, bench: Bench) -> None:
    registry = bench.driver(metadata={"zone": "a"})
    await registry.register(Status.UP)
    assert await registry.register(Status.OUT_OF_SERVICE) == "OUT_OF_SERVICE"
    got = await bench.read()
    assert (got["overriddenStatus"], got["metadata"]) == ("OUT_OF_SERVICE", {"zone": "a", MARK: "true"})
    assert await registry.register(health) == health
    for _ in range(2):
        assert await registry.heartbeat()
        got = await bench.read()
        assert (got["status"], got["overriddenStatus"]) == (health, "UNKNOWN")
    assert got["metadata"] == {"zone": "a"}


async def test_an_instance_in_maintenance_that_is_forgotten_comes_back_in_maintenance(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.OUT_OF_SERVICE)
    assert (await bench.call("DELETE")).status == 200
    assert not await registry.heartbeat()
    assert await registry.register(Status.OUT_OF_SERVICE) == "OUT_OF_SERVICE"
    assert await registry.register(Status.UP) == "UP"


async def test_a_maintenance_ends_with_the_instance(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.OUT_OF_SERVICE)
    await registry.deregister()
    assert await registry.register(Status.UP) == "UP"


@pytest.mark.parametrize("override", ["OUT_OF_SERVICE", "DOWN"])
async def test_a_maintenance_leaves_the_override_of_an_operator(override: str, bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.UP)
    await bench.override(override)
    assert await registry.register(Status.OUT_OF_SERVICE) == override
    assert MARK not in (await bench.read())["metadata"]
    assert await registry.register(Status.UP) == override
    assert await bench.status() == override


async def test_an_operator_who_changes_the_override_of_a_maintenance_has_the_last_word(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.OUT_OF_SERVICE)
    await bench.override("DOWN")
    assert await registry.register(Status.UP) == "DOWN"
    assert await registry.register(Status.OUT_OF_SERVICE) == "DOWN"


async def test_an_operator_may_end_a_maintenance(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.OUT_OF_SERVICE)
    assert (await bench.call("DELETE", "/status?value=UP")).status == 200
    assert await registry.heartbeat()
    assert await bench.status() == "UP"
    assert await registry.register(Status.UP) == "UP"


async def test_a_program_that_starts_again_in_a_maintenance_ends_it_too(bench: Bench) -> None:
    await bench.driver().register(Status.OUT_OF_SERVICE)
    registry = bench.driver()
    assert await registry.register(Status.OUT_OF_SERVICE) == "OUT_OF_SERVICE"
    assert await registry.register(Status.UP) == "UP"
    assert await bench.status() == "UP"


async def test_a_changed_registration_in_a_maintenance_ends_it_too(bench: Bench) -> None:
    before, after = bench.driver(), bench.driver(metadata={"version": "2"})
    await before.register(Status.OUT_OF_SERVICE)
    after.take_over(before)
    assert await after.register(Status.OUT_OF_SERVICE) == "OUT_OF_SERVICE"
    assert (await bench.read())["metadata"] == {"version": "2", MARK: "true"}
    assert await after.register(Status.UP) == "UP"


async def test_nobody_sees_an_instance_up_that_is_registered_in_maintenance(nursery: trio.Nursery) -> None:
    url, registry = await start_registry(nursery)
    driver = make(url)
    await driver.register(Status.OUT_OF_SERVICE)
    registry.clear()
    assert not await driver.heartbeat()
    await driver.register(Status.OUT_OF_SERVICE)
    posts = [json.loads(entry.body)["instance"]["status"] for entry in registry.log if entry.method == "POST"]
    assert posts == ["STARTING", "STARTING"]
    nursery.cancel_scope.cancel()


async def test_what_somebody_in_between_answers_neither_begins_nor_ends_a_maintenance(
    bench: Bench, ingress: Ingress
) -> None:
    registry = make(ingress.url, bench.app)
    await registry.register(Status.UP)
    for status, shown in ((Status.OUT_OF_SERVICE, "UP"), (Status.UP, "OUT_OF_SERVICE")):
        for name, answer in FOREIGN.items():
            for methods in (("GET",), ("PUT", "DELETE")):
                if name == "200 with text" and methods != ("GET",):
                    continue  # which a proxy may say in Eureka's name
                ingress.fault = always(answer, *methods)
                with pytest.raises(RegistryError):
                    await registry.register(status)
                # STARTING, which no client gets, from the first POST of a maintenance on
                assert await bench.status() in {shown, "STARTING"}
        ingress.fault = lambda _: None
        assert await registry.register(status) == status
        assert await bench.status() == status


async def test_an_override_with_a_clock_ahead_does_not_make_us_deaf(bench: Bench) -> None:
    registry = bench.driver()
    await registry.register(Status.UP)
    ahead = int(time.time() * 1000) + 3_600_000
    await bench.override("OUT_OF_SERVICE", f"&lastDirtyTimestamp={ahead}")
    assert await registry.register(Status.DOWN) == "DOWN"
    assert await bench.status() == "DOWN"


class Scripted:
    """A server that answers what it is told, and remembers what it was asked."""

    def __init__(self, *answers: Response) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def handle(self, request: Request) -> Response:
        self.asked.append(f"{request.method} {request.target.partition('?')[0]}")
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def start(self, nursery: trio.Nursery) -> str:
        return f"http://127.0.0.1:{await http_server(nursery, self.handle, body=1 << 16)}/eureka/"


APPS, INSTANCE = "/eureka/apps/RATINGS", "/eureka/apps/RATINGS/web-7d9c%3Aratings%3A9080"
REGISTERING = [f"POST {APPS}", f"GET {INSTANCE}"]


async def start_registry(nursery: trio.Nursery) -> tuple[str, FakeEureka]:
    registry = FakeEureka()
    port = await http_server(nursery, fake_eureka(registry), body=1 << 16)
    return f"http://127.0.0.1:{port}/eureka", registry


async def test_a_dead_server_is_passed_over_and_the_one_that_answers_is_kept(
    nursery: trio.Nursery, free_port: Callable[[], int]
) -> None:
    second, held = await start_registry(nursery)
    third = Scripted(Response(500))
    registry = make(f"http://127.0.0.1:{free_port()}/eureka, {second},{await third.start(nursery)}")
    await registry.register(Status.UP)
    assert registry._servers.current == f"{second}/"
    assert await registry.heartbeat()
    await registry.deregister()
    assert [entry.method for entry in held.log] == ["POST", "GET", "PUT", "DELETE"]
    assert third.asked == []
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_a_server_in_trouble_is_passed_over_and_asked_again_in_turn(
    status: int, nursery: trio.Nursery
) -> None:
    ill = Scripted(Response(status, {}, b"not now"))
    second, held = await start_registry(nursery)
    registry = make(f"{await ill.start(nursery)},{second}")
    assert await registry.register(Status.UP) == "UP"
    assert ill.asked == [f"POST {APPS}"]
    assert len(held.log) == 2
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_when_all_are_in_trouble_it_is_said_and_may_be_tried_again(
    status: int, nursery: trio.Nursery
) -> None:
    ill = Scripted(Response(status, {}, b"not now"))
    url = await ill.start(nursery)
    registry = make(",".join([url] * 5))
    with pytest.raises(RegistryError, match=f'answered {status} "not now"') as raised:
        await registry.heartbeat()
    assert not isinstance(raised.value, RegistryRefused)
    assert len(ill.asked) == 3  # as the Java client: three servers for one call
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer", [Response(403), Response(503), Response(200, {}, b"<html>"), Response(200, {}, b"[]")]
)
async def test_a_registry_that_does_not_read_back_yet_has_registered_all_the_same(
    answer: Response, nursery: trio.Nursery
) -> None:
    server = Scripted(Response(204), answer)
    registry = make(await server.start(nursery))
    assert await registry.register(Status.UP) == "UP"
    assert server.asked == REGISTERING
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("absolute", [True, False])
async def test_a_redirect_to_the_same_resource_is_followed_with_method_and_body(
    absolute: bool, nursery: trio.Nursery
) -> None:
    registry = FakeEureka()
    answer = fake_eureka(registry)

    async def handler(request: Request) -> Response:
        if request.target.startswith("/old/"):
            host = f"http://{request.headers['host']}" if absolute else ""
            return Response(
                302, {"location": host + request.target.replace("/old/", "/eureka/").partition("?")[0]}
            )
        return await answer(request)

    port = await http_server(nursery, handler, body=1 << 16)
    driver = make(f"http://127.0.0.1:{port}/old/")
    assert await driver.register(Status.UP) == "UP"
    assert await driver.heartbeat()
    await driver.deregister()
    assert [(entry.method, entry.status) for entry in registry.log] == [
        ("POST", 204), ("GET", 200), ("PUT", 200), ("DELETE", 200),
    ]  # fmt: skip
    assert "lastDirtyTimestamp=" in registry.log[2].target
    nursery.cancel_scope.cancel()


async def test_redirects_in_a_circle_end(nursery: trio.Nursery) -> None:
    server = Scripted(Response(307, {"location": APPS}))
    with pytest.raises(RegistryError, match="more than 3 redirects"):
        await make(await server.start(nursery)).register(Status.UP)
    assert len(server.asked) == 3
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        (
            Response(400, {}, b"Missing hostname"),
            'answered 400 "Missing hostname": the registry does not accept',
        ),
        (
            Response(400, {}, b'{"error": "cannot parse request body"}'),
            "answered 400 .*: the registry does not accept",
        ),
    ],
)
async def test_what_a_person_must_mend_is_refused_with_the_remedy(
    answer: Response, remedy: str, nursery: trio.Nursery
) -> None:
    server = Scripted(answer)
    with pytest.raises(RegistryRefused, match=remedy):
        await make(await server.start(nursery)).register(Status.UP)
    assert server.asked == [f"POST {APPS}"]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        (Response(401), r"answered 401: it wants a user \(http://user:password@host\)"),
        (Response(403), "its CSRF protection covers the Eureka paths"),
        (Response(404, {}, b"<html>no page</html>"), "answered 404: .* is the URL right"),
        (Response(405), "answered 405: .* is the URL right"),
        (Response(400, {}, b"<html>nginx</html>"), "answered 400: .* is the URL right"),
        (Response(200, {}, b"<html>welcome</html>"), "answered 200: this is not an answer of Eureka"),
        (Response(302, {"location": "/login"}), "redirected to /login; .* does it need a user"),
        (Response(302, {"location": "http://[::1"}), r"redirected to http://\[::1; is the URL right"),
        (Response(302, {"location": "http://h:99999/"}), "redirected to http://h:99999/; is the URL right"),
        (
            Response(301, {"location": "https://127.0.0.1/eureka/apps/RATINGS"}),
            "redirected to https://127.0.0.1/eureka/apps/RATINGS; .* if that is the registry, write its URL",
        ),
        (Response(307), "answered 307: a server that is starting or out of service"),
        (Response(500, {}, b"\x1b]52;c;eA==\x07 no\nlines"), r'answered 500 "\]52;c;eA== no lines"'),
    ],
)
async def test_what_somebody_in_between_may_have_said_is_tried_again(
    answer: Response, remedy: str, nursery: trio.Nursery
) -> None:
    server = Scripted(answer)
    with pytest.raises(RegistryError, match=remedy) as raised:
        await make(await server.start(nursery)).register(Status.UP)
    assert not isinstance(raised.value, RegistryRefused)
    assert str(raised.value).isprintable()
    nursery.cancel_scope.cancel()


async def test_a_url_that_ends_in_apps_is_told_how_to_be_written(bench: Bench) -> None:
    registry = make(bench.url + "apps/", bench.app)
    with pytest.raises(RegistryError, match=rf'the URL ends in "apps".*; write {bench.url.rstrip("/")}$'):
        await registry.register(Status.UP)


# In between


@pytest.fixture
async def ingress(bench: Bench, nursery: trio.Nursery) -> Ingress:
    return await Ingress(bench.url).start(nursery)


@pytest.mark.parametrize("answer", FOREIGN)
async def test_an_answer_that_is_not_the_registrys_is_asked_elsewhere(
    answer: str, bench: Bench, ingress: Ingress
) -> None:
    ingress.fault = always(FOREIGN[answer])
    registry = make(f"{ingress.url},{bench.url}", bench.app)
    assert await registry.register(Status.UP) == "UP"
    assert await registry.heartbeat()
    assert ingress.asked == ["POST"], "the one that answers is kept"
    assert await bench.status() == "UP"


@pytest.mark.parametrize("answer", FOREIGN)
async def test_a_registered_instance_stays_when_one_of_two_servers_is_hidden(
    answer: str, bench: Bench, ingress: Ingress
) -> None:
    registry = make(f"{ingress.url},{bench.url}", bench.app)
    await registry.register(Status.UP)
    before = (await bench.read())["leaseInfo"]["lastRenewalTimestamp"]
    ingress.fault = always(FOREIGN[answer])
    if not await registry.heartbeat():  # a 404 may be Eureka's
        await registry.register(Status.UP)
    assert await registry.heartbeat()
    assert (await bench.read())["leaseInfo"]["lastRenewalTimestamp"] >= before
    ingress.fault = always(Response(500))
    await registry.deregister()
    assert (await bench.call("GET")).status == 404


@pytest.mark.parametrize(
    "answer", sorted(set(FOREIGN) - {"200 with text"})
)  # which a proxy may say in Eureka's name
async def test_an_answer_of_somebody_else_is_no_deregistration(
    answer: str, bench: Bench, ingress: Ingress
) -> None:
    registry = make(ingress.url, bench.app)
    await registry.register(Status.UP)
    for methods in (("DELETE",), ()):
        ingress.fault = always(FOREIGN[answer], *methods)
        with pytest.raises(RegistryError) as raised:
            await registry.deregister()
        assert not isinstance(raised.value, RegistryRefused), "it has accepted us before"
    assert await bench.status() == "UP"
    ingress.fault = lambda _: None
    await registry.deregister()
    assert (await bench.call("GET")).status == 404


async def test_a_404_to_a_delete_is_believed_from_an_eureka_alone(bench: Bench, ingress: Ingress) -> None:
    registry = make(ingress.url, bench.app)
    await registry.register(Status.UP)
    await bench.call("DELETE")
    ingress.asked.clear()
    await registry.deregister()
    assert ingress.asked == ["DELETE", "GET", "GET"]
    assert await registry.read() is None
    # an ingress that loses its route in the middle of it
    answers = iter([None, Response(404)])
    ingress.fault = lambda _: next(answers, Response(404))
    with pytest.raises(RegistryError, match="not the registry's word"):
        await registry.read()


async def test_of_two_servers_the_hidden_one_is_not_asked_for_the_last_word(
    bench: Bench, ingress: Ingress
) -> None:
    registry = make(f"{ingress.url},{bench.url}", bench.app)
    await registry.register(Status.UP)
    ingress.fault = always(Response(404))
    await registry.deregister()
    assert (await bench.call("GET")).status == 404


async def test_what_the_registry_has_is_read(bench: Bench, ingress: Ingress) -> None:
    registry = make(ingress.url, bench.app)
    assert await registry.read() is None
    await registry.register(Status.UP)
    await bench.override("OUT_OF_SERVICE")
    assert await registry.read() == Entry("OUT_OF_SERVICE", "10.42.0.18")
    assert registry.address == "10.42.0.18"
    for answer in FOREIGN.values():
        ingress.fault = always(answer)
        with pytest.raises(RegistryError):
            await registry.read()


@pytest.mark.parametrize("lead", ["", "/x/..", "/eureka/%2e%2e"])
async def test_a_redirect_is_followed_within_its_origin_alone(
    lead: str, bench: Bench, ingress: Ingress, nursery: trio.Nursery
) -> None:
    other = Scripted(Response(204))
    elsewhere = (await other.start(nursery)).removesuffix("/eureka/")
    if lead:
        elsewhere = bench.url.removesuffix("/eureka/") + lead

    def fault(asked: Request) -> Response:
        return Response(307, {"location": elsewhere + asked.target})

    ingress.fault = fault
    with pytest.raises(RegistryError, match="redirected to"):
        await make(ingress.url, bench.app).register(Status.UP)
    assert other.asked == []
    assert (await bench.call("GET")).status == 404


async def test_a_password_goes_with_a_redirect_of_the_same_origin(nursery: trio.Nursery) -> None:
    seen: list[str] = []

    async def handler(request: Request) -> Response:
        seen.append(request.headers.get("authorization", ""))
        if request.target.startswith("/old/"):
            target = request.target.replace("/old/", "/eureka/")
            return Response(302, {"location": f"http://{request.headers['host'].upper()}{target}"})
        return Response(204)

    port = await http_server(nursery, handler, body=1 << 16)
    await make(f"http://me:s3cret@127.0.0.1:{port}/old/").register(Status.UP)
    assert set(seen[:2]) == {"Basic bWU6czNjcmV0"}
    nursery.cancel_scope.cancel()


# Slow servers, on a mock clock


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Network]:
    def build_network(**nodes: Node) -> Network:
        network = Network(**nodes)
        monkeypatch.setattr("pidone.registries._servers.request", network.request)
        return network

    return build_network


URL_A, URL_B = "http://a/eureka", "http://b/eureka"


@pytest.mark.parametrize("takes", [4.0, 7.5, 9.0, 12.0, 25.0])
@pytest.mark.parametrize("late", [True, False])
async def test_a_server_that_acts_and_answers_late_has_registered_renewed_and_deregistered(
    takes: float, late: bool, network: Callable[..., Network], autojump_clock: MockClock
) -> None:
    slow = Node(takes=takes, acts=takes if late else 0.0)
    net, registry = network(a=slow), make(URL_A)
    assert await registry.register(Status.UP) == "UP"
    assert net.methods().count("POST") == 1
    assert await registry.heartbeat()
    await trio.sleep(60)
    assert await registry.heartbeat(), "renewed anew"
    await registry.deregister()
    slow.takes = slow.acts = 0
    assert await registry.read() is None


async def test_a_server_that_acts_only_later_is_not_believed_to_have_acted(
    network: Callable[..., Network],
    autojump_clock: MockClock,
) -> None:
    slow = Node(takes=60, acts=60)
    network(a=slow)
    with pytest.raises(TransferTimeout):
        await make(URL_A).register(Status.UP)
    assert trio.current_time() == pytest.approx(8 + 30), "one more look, with more patience"


@pytest.mark.parametrize("call", ["register", "heartbeat"])
async def test_a_server_that_hangs_does_not_take_the_time_of_the_next_one(
    call: str, network: Callable[..., Network], autojump_clock: MockClock
) -> None:
    hanging = Node(takes=1000, acts=1000)
    net, registry = network(a=Node(), b=Node()), make(f"{URL_A},{URL_B}")
    await registry.register(Status.UP)
    await make(URL_B).register(Status.UP)  # as replicated
    net.nodes["a"] = hanging
    began = trio.current_time()
    assert await (registry.register(Status.DOWN) if call == "register" else registry.heartbeat())
    assert trio.current_time() - began == pytest.approx(8)
    net.calls.clear()
    assert await registry.heartbeat()
    assert net.calls == [(trio.current_time(), "b", "PUT")]


async def test_pods_spread_again_over_the_servers_in_time(
    network: Callable[..., Network], autojump_clock: MockClock
) -> None:
    net = network(a=(node := Node()), b=node)
    registry = make(f"{URL_A},{URL_B}", leaseDuration=600)
    await registry.register(Status.UP)
    net.calls.clear()
    for _ in range(1000):
        await trio.sleep(120)
        assert await registry.heartbeat()
    hosts = [host for _, host, _ in net.calls]
    changes = sum(before != after for before, after in pairwise(hosts))
    assert set(hosts[:4]) == {"a"}, "a session has ten minutes at least"
    assert 1 <= changes <= 1000 / 5
    assert net.methods() == ["PUT"] * 1000


async def test_all_servers_together_have_no_more_than_the_lease(
    network: Callable[..., Network], autojump_clock: MockClock
) -> None:
    network(a=Node(takes=1000), b=Node(takes=1000), c=Node(takes=1000))
    registry = make("http://a/eureka,http://b/eureka,http://c/eureka", leaseDuration=6)
    with pytest.raises(TransferTimeout):
        await registry._servers.ask("PUT", "apps/A/b", registry._judge_heartbeat, within=registry.lease)
    assert trio.current_time() == pytest.approx(6)


async def test_a_deregistration_shares_the_time_there_is_among_the_servers(
    network: Callable[..., Network],
    autojump_clock: MockClock,
) -> None:
    net, registry = network(a=Node(), b=Node()), make(f"{URL_A},{URL_B}")
    await registry.register(Status.UP)
    await make(URL_B).register(Status.UP)
    net.nodes["a"] = Node(takes=1000, acts=1000)
    with trio.move_on_after(3) as scope:
        await registry.deregister()
    assert not scope.cancelled_caught
    assert net.calls[-1][0] == pytest.approx(1.5)
    assert net.calls[-1][1:] == ("b", "DELETE")


@pytest.mark.parametrize("recovers", [True, False])
async def test_a_registration_that_a_server_carries_out_late_does_not_outlive_the_deregistration(
    recovers: bool, network: Callable[..., Network], autojump_clock: MockClock
) -> None:
    slow = Node(takes=1000, acts=40)
    net, registry = network(a=slow, b=Node()), make(f"{URL_A},{URL_B}")
    await registry.register(Status.UP)  # a has it, and has not said so
    if recovers:
        await trio.sleep(60)
        slow.takes = slow.acts = 0
        await registry.deregister()
    else:
        with pytest.raises(
            RegistryError, match="may carry out later a registration that it has not answered"
        ):
            await registry.deregister()
    await trio.sleep(100)
    slow.takes = slow.acts = 0
    for url in (URL_A, URL_B):
        assert await make(url).read() is None
    net.calls.clear()
    await registry.register(Status.UP)
    await registry.deregister()
    assert net.methods("a") == ([] if recovers else ["DELETE"])


async def test_the_confirmation_of_a_deregistration_does_not_take_the_time_of_the_next_server(
    network: Callable[..., Network], autojump_clock: MockClock
) -> None:
    net, registry = network(a=Node(), b=Node()), make(f"{URL_A},{URL_B}")
    await make(URL_B).register(Status.UP)
    net.nodes["a"] = Node(takes=1000, acts=1000, foreign=Response(404), methods=("DELETE",))
    with trio.move_on_after(4) as scope:
        await registry.deregister()
    assert not scope.cancelled_caught
    assert await make(URL_B).read() is None


# Another document of the same instance


async def test_what_takes_over_sends_one_document_and_keeps_an_operators_word(
    bench: Bench, ingress: Ingress
) -> None:
    old = make(ingress.url, bench.app)
    await old.register(Status.UP)
    await bench.override("OUT_OF_SERVICE")
    ingress.asked.clear()
    new = make(ingress.url, bench.app, metadata={"version": "2"})
    assert new.succeeds(old)
    new.take_over(old)
    new._clock = lambda: time.time() - 3600  # whatever the clock does, it is newer
    assert await new.register(Status.UP) == "OUT_OF_SERVICE"
    assert ingress.asked == ["POST", "GET"]
    got = await bench.read()
    assert (got["metadata"], got["overriddenStatus"]) == ({"version": "2"}, "OUT_OF_SERVICE")
    assert await new.heartbeat()


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"metadata": {"a": "b"}}, True),
        ({"ipAddr": "10.1.1.1"}, True),
        ({"url": "http://Eureka.:80//eureka"}, True),
        ({"url": "http://new/eureka,http://eureka/eureka"}, True),
        ({"url": "http://me:s3cret@eureka/eureka"}, True),
        ({"url": "http://other/eureka"}, False),
        ({"url": "http://eureka:8761/eureka"}, False),
        ({"url": "http://eureka/"}, False),
        ({"instanceId": "other"}, False),
        ({"port": 9081}, False),
        ({"app": "other"}, False),
    ],
)
def test_which_instance_is_the_same(changes: dict[str, Any], same: bool) -> None:
    fields: dict[str, Any] = {"url": "http://eureka/eureka/", "app": "ratings", "port": 9080}
    old = build(Fields({"eureka": fields}, "r"), POD, None)
    assert build(Fields({"eureka": fields | changes}, "r"), POD, None).succeeds(old) is same


# Nonsense


@pytest.mark.parametrize(
    "dirty", ["9" * 4300, str((1 << 63) - 1), str(1 << 62), "-5", "x", 1e300, None, [], {}]
)
async def test_a_version_that_no_clock_made_harms_nothing(dirty: Any, nursery: trio.Nursery) -> None:
    registry, sent = FakeEureka(), list[dict[str, Any]]()
    answer = fake_eureka(registry)

    async def handler(asked: Request) -> Response:
        if asked.method == "POST":
            sent.append(json.loads(asked.body)["instance"])
        found = await answer(asked)
        if asked.method == "GET" and len(sent) == 1 and "instance" in (document := json.loads(found.body)):
            document["instance"]["lastDirtyTimestamp"] = dirty
            return Response(200, {}, json.dumps(document).encode())
        return found

    port = await http_server(nursery, handler, body=1 << 16)
    driver = make(f"http://127.0.0.1:{port}/eureka")
    assert await driver.register(Status.UP) == "UP"
    assert await driver.register(Status.DOWN) == "DOWN"
    assert await driver.heartbeat()
    assert all(abs(int(document["lastDirtyTimestamp"]) - time.time() * 1000) < 60_000 for document in sent)
    nursery.cancel_scope.cancel()


async def test_a_predecessor_whose_version_is_out_of_reach_is_replaced(bench: Bench) -> None:
    before = bench.driver(ipAddr="10.42.0.9")
    before._clock = lambda: ((1 << 63) - 1) / 1000 - 1e6
    await before.register(Status.UP)
    registry = bench.driver()
    assert await registry.register(Status.DOWN) == "DOWN"
    assert await registry.register(Status.UP) == "UP"
    assert (await bench.read())["ipAddr"] == "10.42.0.18"
    assert abs(await bench.dirty() - time.time() * 1000) < 60_000


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"instance": ' * 50_000,
        b'{"instance": []}',
        b'{"instance": {"leaseInfo": 7}}',
        b"null",
        b"\xff",
    ],
)
async def test_a_body_that_is_no_document_harms_nothing(body: bytes, nursery: trio.Nursery) -> None:
    server = Scripted(Response(204), Response(200, {}, body))
    assert await make(await server.start(nursery)).register(Status.UP) == "UP"
    nursery.cancel_scope.cancel()


# Ports


@pytest.mark.parametrize(
    ("fields", "ports", "home"),
    [
        ({}, ((9080, "true"), (443, "false")), "http://10.42.0.18:9080/"),
        ({"securePort": 9443}, ((9080, "false"), (9443, "true")), "https://10.42.0.18:9443/"),
        ({"securePort": 9443, "portEnabled": True}, ((9080, "true"), (9443, "true")), "http://10.42.0.18:9080/"),
        ({"securePort": 9443, "portEnabled": True, "securePortEnabled": False}, ((9080, "true"), (9443, "false")), "http://10.42.0.18:9080/"),
        ({"hostName": "fd00::27"}, ((9080, "true"), (443, "false")), "http://[fd00::27]:9080/"),
    ],
)  # fmt: skip
async def test_either_port_or_both_are_offered(
    fields: dict[str, Any], ports: tuple[tuple[int, str], ...], home: str, bench: Bench
) -> None:
    await bench.driver(**fields).register(Status.UP)
    got = await bench.read()
    assert tuple((got[name]["$"], got[name]["@enabled"]) for name in ("port", "securePort")) == ports
    assert got["homePageUrl"] == home
    secure = f"https://10.42.0.18:{ports[1][0]}/health" if ports[1][1] == "true" else None
    assert got.get("secureHealthCheckUrl") == secure


async def test_the_password_is_sent_and_is_in_no_error(
    nursery: trio.Nursery, free_port: Callable[[], int]
) -> None:
    for answer in (401, 404, 500, 302, None):
        headers = {"location": "http://me:s3cret@elsewhere/login"} if answer == 302 else {}
        seen: list[str] = []

        async def handler(
            request: Request, seen: list[str] = seen, answer: int | None = answer, headers: Any = headers
        ) -> Response:
            seen.append(request.headers.get("authorization", ""))
            return Response(answer or 200, headers)

        port = await http_server(nursery, handler, body=1 << 16) if answer else free_port()
        with pytest.raises(PidoneError) as raised:
            await make(f"http://me:s3cret@127.0.0.1:{port}/eureka").register(Status.UP)
        error: BaseException | None = raised.value
        while error is not None:
            assert "s3cret" not in str(error)
            error = error.__cause__
        assert set(seen) <= {"Basic bWU6czNjcmV0"}
        assert bool(seen) is bool(answer)
    nursery.cancel_scope.cancel()


async def test_names_are_encoded_in_the_path(nursery: trio.Nursery) -> None:
    server = Scripted(Response(200))
    await make(await server.start(nursery), instanceId="a b%\N{SNOWMAN}").heartbeat()
    assert server.asked == ["PUT /eureka/apps/RATINGS/a%20b%25%E2%98%83"]
    nursery.cancel_scope.cancel()


async def test_a_server_that_insists_on_gzip_is_understood(nursery: trio.Nursery) -> None:
    asked: list[str] = []

    async def handler(request: Request) -> Response:
        asked.append(request.headers["accept-encoding"])
        return Response(204)

    port = await http_server(nursery, handler, body=1 << 16)
    await make(f"http://127.0.0.1:{port}/eureka").register(Status.UP)
    assert set(asked) == {"gzip"}
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"instanceId": "web/1"},
            r'register\.eureka\.instanceId: "web/1" cannot be a segment of a path, so that Eureka cannot address it',
        ),
        *(
            ({name: value}, rf"register\.eureka\.{name}: .*so that Eureka cannot address it")
            for name in ("app", "instanceId")
            for value in ("..", ".", " .. ", "%2e%2E", "..;x", "a/b", "a\\b", "%2f", "", " ", "a\nb")
        ),
        *(
            ({"url": f"http://a/{path}/eureka"}, r'register\.eureka\.url: a path without "." and ".."')
            for path in ("..", ".", "%2e%2e", "a%2f..", "..;b")
        ),
        ({"url": "http://a:99999/"}, r"register\.eureka\.url: not a URL"),
        ({"url": "http://:80/"}, r"register\.eureka\.url: not a URL"),
        ({"portEnabled": False}, "without a port nobody can call it"),
        ({"url": ""}, r"register\.eureka\.url: expected http:// or https:// URLs"),
        ({"url": "http://a/,b/"}, r"register\.eureka\.url: expected http:// or https:// URLs"),
        ({"port": "9080"}, r"register\.eureka\.port: expected an integer"),
        ({"leaseDuration": 0}, r"register\.eureka\.leaseDuration: expected 1 to 86400"),
        ({"metadata": {"a": {"b": "c"}}}, r"register\.eureka\.metadata\.a: expected a string"),
        ({"lease": 90}, 'does not know "lease"'),
    ],
)
def test_what_cannot_be_registered_is_refused_when_it_is_built(config: dict[str, Any], message: str) -> None:
    fields = {"url": "http://eureka:8761/eureka", "app": "ratings", "port": 9080} | config
    with pytest.raises(Refused, match=message):
        build(Fields({"eureka": fields}, 'task "r".register'), POD, None)


@pytest.mark.parametrize("name", ["polaris", "_private", "os.path", "..eureka", "Eureka"])
def test_a_registry_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="registry"):
        build(Fields({name: {}}, 'task "r".register'), POD, None)


def test_one_registry_is_named_and_no_more() -> None:
    both: dict[str, Any] = {"eureka": {}, "consul": {}}
    for config in ({}, both):
        with pytest.raises(Refused, match="expected exactly one variant"):
            build(Fields(config, 'task "r".register'), POD, None)


# Whatever a server answers

_odd: st.SearchStrategy[Any] = st.sampled_from(
    [
        "9" * 4300,
        (1 << 63) - 1,
        10**400,
        1e308,
        "\ud800",
        "\x1b[2J",
        "1" * 19,
        "\u0661",
        "",
        None,
        True,
        [],
        {},
        -1,
    ]
)
_instances: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {},
    optional={
        "lastDirtyTimestamp": _odd,
        "status": _odd,
        "ipAddr": _odd,
        "leaseInfo": _odd | st.fixed_dictionaries({"lastRenewalTimestamp": _odd}),
    },
)
_bodies = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"[" * 100_000, b'{"instance":' * 30_000, b"NaN", b'{"instance": 1e999}', b"<a/>", b"\x1f\x8b"]
    ),
    st.builds(
        lambda key, value: json.dumps({key: value}).encode(),
        st.sampled_from(["instance", "applications"]),
        _instances | _odd,
    ),
)
_locations = st.one_of(
    st.sampled_from(
        ["http://[::1", "//", "http://a:b/", "\\\\a", "http://h:99999/", "?", "#", "javascript:x", "a" * 9000]
    ),
    st.text(st.characters(max_codepoint=255), max_size=30),
)
_answers = st.builds(
    Response,
    st.sampled_from([200, 201, 204, 301, 302, 307, 308, 400, 401, 403, 404, 405, 429, 500, 503, 599]),
    st.fixed_dictionaries({}, optional={"location": _locations, "content-type": st.just("text/html")}),
    _bodies,
)


@given(st.lists(_answers, min_size=12, max_size=12))
def test_whatever_a_server_answers_is_a_result_or_the_registrys_error(answers: list[Response]) -> None:
    registry = make("http://a/eureka,http://b/eureka")
    check_all_calls(registry, answers)
    assert registry._dirty < time.time() * 1000 + 11 * 365 * 86_400_000
