"""Routes, reports, health and the end; addresses on real sockets."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone.http import client
from pidone.http.message import Held, Request, Response
from pidone.http.server import serve, wait_for_answer
from pidone.metrics.exposition import gauge
from pidone.plan.format import MEDIA_TYPE, decode_bundle
from pidone_controller.log import log
from pidone_controller.repo.plans import Plans
from pidone_controller.repo.server import Repo
from tests.controller.factories import pod
from tests.controller.repo.requests import CHECKED, Background, get, post, put, repo_of, served
from tests.patience import PATIENCE_SECONDS


@pytest.fixture
def repo(nursery: trio.Nursery) -> Repo:
    repo = Repo(Plans(log), log)
    nursery.start_soon(repo.plans.run)
    put(repo, pod(labels=CHECKED), pod("db", "127.0.0.3"))
    return repo


Ask = Callable[..., Awaitable[Response]]


@pytest.fixture
async def ask(repo: Repo, nursery: trio.Nursery) -> AsyncIterator[Ask]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(lambda task_status: serve(
        repo.begin, listeners, max_connections=100, task_status=task_status
    ))  # fmt: skip
    port = listeners[0].socket.getsockname()[1]

    async def ask(path: str, source: str, method: str = "GET", **more: Any) -> Response:
        url = f"http://127.0.0.1:{port}{path}"
        return await client.request(method, url, source=source, timeout=PATIENCE_SECONDS, **more)

    yield ask
    nursery.cancel_scope.cancel()


FORGED = [
    {"Pidone-Pod-UID": "uid-web"},
    {"Pidone-Hostname": "web", "Pidone-Namespace": "shop"},
    {"X-Forwarded-For": "127.0.0.2"},
    {"Forwarded": "for=127.0.0.2"},
    {"X-Real-IP": "127.0.0.2"},
    {"Host": "127.0.0.2"},
    {"Authorization": "Bearer uid-web"},
]


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        (get(peer="127.0.0.9"), 404, "no live pod has the address 127.0.0.9"),
        (get(pidone_pod_uid="uid-db"), 409, "127.0.0.2 is not one of a pod with uid uid-db"),
        (get(peer="10.0.0.1"), 403, "10.0.0.1 is a node's address"),
        (get(accept="application/vnd.pidone.bundle.v9+json"), 406, MEDIA_TYPE),
        (get("/v2/bundle"), 404, "there is no /v2/bundle"),
        (post({}, "127.0.0.9"), 404, "no live pod"),
        (Request("POST", "/v1/bundle", {}, b"", "127.0.0.2"), 405, "takes GET, not POST"),
        (Request("GET", "/v1/status", {}, b"", "127.0.0.2"), 405, "takes POST, not GET"),
        (post(b"{"), 400, "not JSON"),
        (post({"state": "fine"}), 400, "expected applied, rejected, applying"),
        (get("/v1/pods"), 403, "127.0.0.1"),  # a pod
        (get("/v1/pods/shop/web", peer="10.0.0.7"), 403, "127.0.0.1"),
        (get("/v1/pods/shop/gone", peer="127.0.0.1"), 404, "shop/gone"),
        (get("/livez", peer="10.0.0.7"), 200, "ok"),
        (get("/readyz", peer="10.0.0.7"), 200, "ok"),
    ],
)
async def test_answers_say_what_was_expected(repo: Repo, request_: Request, status: int, said: str) -> None:
    response = await repo.handle(request_)
    assert response.status == status
    assert said in response.text


async def test_before_the_first_pods_nobody_is_called_unknown() -> None:
    repo = Repo(Plans(log), log)
    assert (await repo.handle(get("/livez"))).status == 200
    for request in (get(), get("/readyz"), post({"state": "applied"})):
        response = await repo.handle(request)
        assert (response.status, response.headers["retry-after"]) == (503, "1")


async def test_a_pod_may_not_report_without_end(repo: Repo, autojump_clock: MockClock) -> None:
    statuses = [(await repo.handle(post({"state": "applied"}))).status for _ in range(11)]
    assert statuses == [204] * 10 + [429]
    assert (await repo.handle(post({"state": "applied"}, "127.0.0.3"))).status == 204
    await trio.sleep(1)
    assert (await repo.handle(post({"state": "applied"}))).status == 204


@pytest.mark.parametrize("headers", FORGED, ids=lambda headers: next(iter(headers)))
@pytest.mark.parametrize("source", ["127.0.0.3", "127.0.0.9"])
async def test_no_header_gets_another_pod_s_plan(ask: Ask, source: str, headers: dict[str, str]) -> None:
    mine = (await ask("/v1/bundle", "127.0.0.2")).body
    response = await ask("/v1/bundle", source, headers=headers)
    assert response.status in {200, 404, 409}
    assert response.body != mine
    if response.status == 200:
        assert decode_bundle(response.body, ["probe"]).pod.name == "db"


async def test_each_address_gets_its_own(ask: Ask) -> None:
    for source, name in (("127.0.0.2", "web"), ("127.0.0.3", "db")):
        response = await ask("/v1/bundle", source)
        assert decode_bundle(response.body, ["probe"]).pod.name == name
    assert (await ask("/v1/pods", "127.0.0.1")).status == 200
    assert (await ask("/v1/pods", "127.0.0.2")).status == 403


async def test_a_report_too_large_is_refused(ask: Ask) -> None:
    response = await ask("/v1/status", "127.0.0.2", "POST", body=b" " * (64 * 1024 + 1))
    assert response.status == 413


async def test_pods_see_which_instance_answers() -> None:
    one, other = repo_of(pod()), repo_of(pod())
    first = [(await one.handle(get())).headers["pidone-repo"] for _ in range(2)]
    assert first == [one.id] * 2
    assert (await other.handle(get())).headers["pidone-repo"] == other.id != one.id


async def test_metrics_count_what_was_served_and_refused(nursery: trio.Nursery) -> None:
    repo = repo_of(
        pod(labels=CHECKED),
        pod("db", "127.0.0.3"),
        families=lambda: [gauge("other_parts", "Said by them.", 7)],
    )
    etag = (await repo.handle(get())).headers["etag"]
    await repo.handle(get(if_none_match=etag))
    await repo.handle(get(peer="127.0.0.9"))
    await repo.handle(get(pidone_pod_uid="uid-db"))
    await repo.handle(get(peer="10.0.0.1"))
    await repo.handle(post({"state": "applied"}))
    Background(nursery, repo.handle(get(prefer="wait=55", if_none_match=etag)))
    await wait_all_tasks_blocked()
    lines = (await repo.handle(get("/metrics", peer="10.7.0.1"))).text.splitlines()
    for line in (
        "pidone_controller_pods 2",
        "pidone_controller_bound_pods 1",
        "pidone_controller_held_requests 1",
        'pidone_controller_bundles_served_total{result="new"} 1',
        'pidone_controller_bundles_served_total{result="unchanged"} 1',
        'pidone_controller_identity_refusals_total{reason="unknown"} 1',
        'pidone_controller_identity_refusals_total{reason="contradiction"} 1',
        'pidone_controller_identity_refusals_total{reason="node-address"} 1',
        'pidone_controller_reports_total{state="applied"} 1',
        "pidone_controller_derivations_total 1",
        "other_parts 7",
    ):
        assert line in lines
    nursery.cancel_scope.cancel()


async def test_a_silent_feed_fails_livez_and_nothing_else() -> None:
    trouble = ""
    repo = repo_of(pod(), alive=lambda: trouble)
    assert (await repo.handle(get("/livez"))).status == 200
    trouble = "pods: neither heard of nor asked about for 300 s"
    response = await repo.handle(get("/livez"))
    assert (response.status, trouble in response.text) == (500, True)
    assert (await repo.handle(get("/readyz"))).status == 200
    assert served(await repo.handle(get())) == "web"


async def test_an_end_sends_the_pods_to_another_replica_one_after_the_other(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    count = 20
    pods = [pod(f"pod-{index}", f"127.0.1.{index}", labels=CHECKED) for index in range(count)]
    repo = repo_of(*pods)
    ends: list[tuple[float, int]] = []
    bells: list[bytes] = []

    async def hold(peer: str) -> None:
        etag = (await repo.handle(get(peer=peer))).headers["etag"]
        response = await repo.handle(get(peer=peer, prefer="wait=55", if_none_match=etag))
        ends.append((trio.current_time() - began, response.status))

    async def listen() -> None:
        bell = (await repo.handle(get("/v1/doorbell", peer="127.0.0.9"))).later
        assert isinstance(bell, Held)
        bells.append((await wait_for_answer(bell)).body)

    for one in pods:
        nursery.start_soon(hold, one.ips[0])
    nursery.start_soon(listen)
    await wait_all_tasks_blocked()
    began = trio.current_time()
    nursery.start_soon(repo.drain, 5)
    await wait_all_tasks_blocked()
    assert (await repo.handle(get("/readyz"))).status == 503
    assert (
        served(await repo.handle(get(peer="127.0.1.3"))) == "pod-3"
    )  # what is at hand is served to the last
    await trio.sleep(5)
    assert [status for _, status in ends] == [503] * count
    assert len({round(moment, 1) for moment, _ in ends}) >= count - 1
    assert bells == [b""]  # the connection ends without a ring
    assert (
        await repo.handle(get(peer="127.0.0.9", prefer="wait=55"))
    ).status == 503  # nothing is held any more


async def test_other_parts_have_routes_of_their_own() -> None:
    async def heard(request: Any, *, secure: bool = False) -> Response:
        return Response(204)

    async def refuse(request: Any, *, secure: bool = False) -> Response | None:
        return None if request.peer == "10.1.1.1" else Response(403)

    repo = repo_of(pod(), routes={"/v1/peers/reports": ("POST", heard, refuse)})
    assert (await repo.handle(get("/v1/peers/reports"))).status == 405
    request = get("/v1/peers/reports")
    assert (await repo.handle(Request("POST", request.target, {}, b"", "10.1.1.1"))).status == 204
    assert await repo.refuse(Request("POST", request.target, {}, b"", "10.1.1.1")) is None
    assert await repo.refuse(Request("POST", request.target, {}, b"", "10.1.1.2")) == Response(403)


@pytest.mark.parametrize(
    ("method", "path", "peer", "status"),
    [
        ("POST", "/v1/status", "127.0.0.9", 404),
        ("POST", "/v1/status", "10.0.0.1", 403),
        ("POST", "/v1/status", "127.0.0.2", None),
        ("POST", "/v1/bundle", "127.0.0.2", 405),
        ("PUT", "/v1/status", "127.0.0.2", 405),
        ("POST", "/v9", "127.0.0.2", 404),
        ("GET", "/v1/bundle", "127.0.0.2", 413),
        ("GET", "/livez", "127.0.0.9", 413),
        ("GET", "/v1/pods/shop/web", "127.0.0.1", 413),
    ],
)
async def test_a_body_is_read_only_if_a_pod_reports(
    repo: Repo, method: str, path: str, peer: str, status: int | None
) -> None:
    answer = await repo.refuse(Request(method, path, {"content-length": "9"}, b"", peer))
    assert (answer and answer.status) == status


async def test_a_body_is_read_only_when_another_report_is_due(repo: Repo, autojump_clock: MockClock) -> None:
    head = Request("POST", "/v1/status", {"content-length": "9"}, b"", "127.0.0.2")
    for _ in range(10):
        assert await repo.refuse(head) is None
        assert (await repo.handle(post({"state": "applied"}))).status == 204
    refused = await repo.refuse(head)
    assert refused
    assert (refused.status, "retry-after" in refused.headers) == (429, True)
    await trio.sleep(1)
    assert await repo.refuse(head) is None
