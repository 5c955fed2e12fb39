"""The protocol: time by MockClock on the handler, addresses on real sockets."""

import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone.http import client
from pidone.http.message import Held as HeldRequest
from pidone.http.message import Request, Response
from pidone.http.server import serve, waited
from pidone.language.binding import Rules
from pidone.plan.format import MEDIA_TYPE, decode_bundle
from pidone_controller.log import log
from pidone_controller.pods.model import Pod
from pidone_controller.repo.server import MAX_HELD, Repo
from tests.controller.samples import binding, pod, rules, task_set

CHECKED = {"check": "yes"}
RULES = rules(task_set(), binding())
DIGEST = "sha256-" + "1" * 64


def put(repo: Repo, *pods: Pod, found: Rules = RULES) -> None:
    """All pods there are, and the rules."""
    if found is not repo.rules:
        repo.rule(found)
    repo.replace(pods)


@pytest.fixture
def repo(nursery: trio.Nursery) -> Repo:
    repo = Repo(log)
    nursery.start_soon(repo.run)
    put(repo, pod(labels=CHECKED), pod("db", "127.0.0.3"))
    return repo


def get(path: str = "/v1/bundle", peer: str = "127.0.0.2", **headers: str) -> Request:
    return Request("GET", path, {name.replace("_", "-"): value for name, value in headers.items()}, b"", peer)


def post(report: object, peer: str = "127.0.0.2") -> Request:
    body = report if isinstance(report, bytes) else json.dumps(report).encode()
    return Request("POST", "/v1/status", {}, body, peer)


class Held:
    """A request in a task of its own."""

    def __init__(self, nursery: trio.Nursery, answering: Awaitable[Response]) -> None:
        self.response: Response | None = None
        self._done = trio.Event()
        nursery.start_soon(self._run, answering)

    async def _run(self, answering: Awaitable[Response]) -> None:
        self.response = await answering
        self._done.set()

    async def answer(self) -> Response:
        await self._done.wait()
        assert self.response is not None
        return self.response


async def test_a_bundle_is_what_the_pod_reads(repo: Repo) -> None:
    response = await repo.handle(get(accept=MEDIA_TYPE))
    bundle = decode_bundle(response.body, ["probe"])
    assert (response.status, response.headers["content-type"]) == (200, MEDIA_TYPE)
    assert (bundle.phase, bundle.pod.name, bundle.pod.namespace) == ("Running", "web", "shop")
    assert [task.name for task in bundle.plan.tasks] == ["ready"]
    assert decode_bundle((await repo.handle(get(peer="127.0.0.3"))).body, ["probe"]).plan.tasks == ()


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        (get(peer="127.0.0.9"), 404, "no live pod has the address 127.0.0.9"),
        (get(pidone_pod_uid="uid-db"), 409, "127.0.0.2 is shop/web"),
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


async def test_without_wait_the_answer_comes_at_once(repo: Repo) -> None:
    etag = (await repo.handle(get())).headers["etag"]
    unchanged = await repo.handle(get(if_none_match=etag))
    assert (unchanged.status, unchanged.body, unchanged.headers["etag"]) == (304, b"", etag)
    assert "preference-applied" not in unchanged.headers
    assert (await repo.handle(get(peer="127.0.0.9"))).headers["retry-after"] == "5"


async def test_a_request_is_held_as_long_as_it_asked(repo: Repo, autojump_clock: MockClock) -> None:
    etag = (await repo.handle(get())).headers["etag"]
    for asked, held in (("wait=55", 55), ("wait=3600", 60), ("wait=0", 0)):
        before = trio.current_time()
        response = await repo.handle(get(prefer=asked, if_none_match=f'"sha256-refused", {etag}'))
        assert response.status == 304
        assert response.headers["preference-applied"] == f"wait={held}"
        assert trio.current_time() - before == pytest.approx(held)
    assert repo.held == 0


async def test_unknown_addresses_are_held_and_get_no_default(repo: Repo, autojump_clock: MockClock) -> None:
    before = trio.current_time()
    response = await repo.handle(get(peer="127.0.0.9", prefer="wait=30"))
    assert response.status == 404
    assert trio.current_time() - before == pytest.approx(30)
    assert response.headers["retry-after"] == "1"


async def test_an_unknown_address_is_served_when_its_pod_appears(repo: Repo, nursery: trio.Nursery) -> None:
    held = Held(nursery, repo.handle(get(peer="127.0.0.4", prefer="wait=55")))
    await wait_all_tasks_blocked()
    put(repo, pod("late", "127.0.0.4", labels=CHECKED))
    response = await held.answer()
    assert decode_bundle(response.body, ["probe"]).pod.name == "late"
    assert response.headers["preference-applied"] == "wait=55"


async def test_a_change_wakes_whom_it_is_for_and_nobody_else(repo: Repo, nursery: trio.Nursery) -> None:
    etags = {peer: (await repo.handle(get(peer=peer))).headers["etag"] for peer in ("127.0.0.2", "127.0.0.3")}
    web, db = (
        Held(nursery, repo.handle(get(peer=peer, prefer="wait=55", if_none_match=etag)))
        for peer, etag in etags.items()
    )
    await wait_all_tasks_blocked()
    put(repo, pod(labels=CHECKED), pod("db", "127.0.0.3", labels=CHECKED))
    response = await db.answer()
    assert len(decode_bundle(response.body, ["probe"]).plan.tasks) == 1
    await wait_all_tasks_blocked()
    assert web.response is None
    put(repo, pod(labels=CHECKED, terminating=True), pod("db", "127.0.0.3", labels=CHECKED))
    assert decode_bundle((await web.answer()).body, ["probe"]).phase == "Terminating"


async def test_a_refused_bundle_is_not_sent_again(repo: Repo, nursery: trio.Nursery) -> None:
    first = (await repo.handle(get())).headers["etag"]
    put(repo, pod(labels=CHECKED), found=rules(task_set(period=9), binding()))
    refused = (await repo.handle(get(if_none_match=first))).headers["etag"]
    held = Held(nursery, repo.handle(get(prefer="wait=55", if_none_match=f"{first}, {refused}")))
    await wait_all_tasks_blocked()
    assert held.response is None
    put(repo, pod(labels=CHECKED), found=RULES)  # back to the first, which it has
    await wait_all_tasks_blocked()
    assert held.response is None
    put(repo, pod(labels=CHECKED), found=rules(task_set(period=7), binding()))
    assert (await held.answer()).status == 200


async def test_a_held_request_never_gets_the_plan_of_the_address_s_next_pod(
    repo: Repo, nursery: trio.Nursery
) -> None:
    etag = (await repo.handle(get())).headers["etag"]
    held = Held(nursery, repo.handle(get(prefer="wait=55", if_none_match=etag)))
    claims = Held(nursery, repo.handle(get(prefer="wait=55", if_none_match=etag, pidone_pod_uid="uid-web")))
    await wait_all_tasks_blocked()
    put(repo, pod("next", "127.0.0.2", labels=CHECKED))
    assert (await held.answer()).status == (await claims.answer()).status == 409


async def test_an_address_without_a_pod_between_two_gives_nothing_of_the_second(
    repo: Repo, nursery: trio.Nursery
) -> None:
    etag = (await repo.handle(get())).headers["etag"]
    held = Held(nursery, repo.handle(get(prefer="wait=55", if_none_match=etag)))
    await wait_all_tasks_blocked()
    put(repo)
    await wait_all_tasks_blocked()
    assert held.response is None
    put(repo, pod("next", "127.0.0.2", labels=CHECKED))
    assert (await held.answer()).status == 409


async def test_two_pods_with_one_address_are_not_guessed_at(repo: Repo) -> None:
    put(repo, pod(labels=CHECKED), pod("twin", "127.0.0.2"))
    assert (await repo.handle(get())).status == 409
    response = await repo.handle(get(pidone_pod_uid="uid-twin"))
    assert decode_bundle(response.body, ["probe"]).pod.name == "twin"


async def test_an_address_may_not_hold_any_number(repo: Repo, nursery: trio.Nursery) -> None:
    etag = (await repo.handle(get())).headers["etag"]
    for _ in range(MAX_HELD):
        Held(nursery, repo.handle(get(prefer="wait=55", if_none_match=etag)))
    await wait_all_tasks_blocked()
    assert (await repo.handle(get(prefer="wait=55", if_none_match=etag))).status == 429
    assert (await repo.handle(get(peer="127.0.0.3"))).status == 200
    nursery.cancel_scope.cancel()


async def test_before_the_first_pods_nobody_is_called_unknown() -> None:
    repo = Repo(log)
    assert (await repo.handle(get("/livez"))).status == 200
    for request in (get(), get("/readyz"), post({"state": "applied"})):
        response = await repo.handle(request)
        assert (response.status, response.headers["retry-after"]) == (503, "1")


async def test_a_plan_that_was_never_good_leaves_what_the_pod_has(
    repo: Repo, autojump_clock: MockClock
) -> None:
    put(repo, pod(labels=CHECKED), found=rules(binding()))
    repo = Repo(log)  # another controller, which has never seen a good one
    put(repo, pod(labels=CHECKED), found=rules(binding()))
    held = await repo.handle(get(prefer="wait=5", if_none_match='"sha256-mine"'))
    assert (held.status, held.headers["etag"]) == (304, '"sha256-mine"')
    fresh = await repo.handle(get(prefer="wait=5"))
    assert decode_bundle(fresh.body, ["probe"]).plan.tasks == ()
    shown = json.loads((await repo.handle(get("/v1/pods/shop/web", peer="127.0.0.1"))).body)
    assert 'TaskBinding checked names TaskSet "check"' in shown["error"]


async def test_a_bug_in_one_pod_s_derivation_is_told_and_stops_no_other() -> None:
    def some(found: Any, _rules: Rules) -> list[dict[str, Any]]:
        if found.name == "web":
            raise KeyError("web")
        return []

    repo = Repo(log, derive=some)
    put(repo, pod(labels=CHECKED), pod("db", "127.0.0.3", labels=CHECKED))
    bad = await repo.handle(get())
    assert (bad.status, "internal error: KeyError" in bad.text) == (503, True)
    assert (await repo.handle(get(peer="127.0.0.3"))).status == 200


async def test_what_was_reported_is_shown_to_people(repo: Repo, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {"ready": {"state": "healthy", "runs": 4}}
    report: dict[str, Any] = {
        "state": "applied",
        "digest": DIGEST,
        "tasks": tasks,
        "logs": ["up"],
    }
    assert (await repo.handle(post(report))).status == 204
    assert (await repo.handle(post(report))).status == 204
    refused = {**report, "state": "rejected", "rejected": DIGEST, "error": "what is \x1b[1mthis"}
    assert (await repo.handle(post(refused))).status == 204
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[1] for line in lines if "applied" in line or "rejected" in line] == [
        "pod=shop/web event=applied digest=sha256-111111111111",
        'pod=shop/web event=rejected digest=sha256-111111111111 error="what is \\u001b[1mthis"',
    ]
    pods = json.loads((await repo.handle(get("/v1/pods", peer="127.0.0.1"))).body)["pods"]
    assert [(found["name"], found["reported"] and found["reported"]["state"]) for found in pods] == [
        ("db", None),
        ("web", "rejected"),
    ]
    web = json.loads((await repo.handle(get("/v1/pods/shop/web", peer="::ffff:127.0.0.1"))).body)
    assert web["expected"]["tasks"] == 1
    assert web["tasks"][0]["name"] == "ready"
    assert web["reported"]["tasks"]["ready"]["runs"] == 4
    assert web["reported"]["logs"] == ["up"]


async def test_reports_go_with_their_pod(repo: Repo) -> None:
    await repo.handle(post({"state": "applied", "digest": DIGEST}))
    put(repo)
    put(repo, pod(uid="uid-next"))
    web = json.loads((await repo.handle(get("/v1/pods/shop/web", peer="127.0.0.1"))).body)
    assert web["reported"] is None


async def test_a_pod_may_not_report_without_end(repo: Repo, autojump_clock: MockClock) -> None:
    statuses = [(await repo.handle(post({"state": "applied"}))).status for _ in range(11)]
    assert statuses == [204] * 10 + [429]
    assert (await repo.handle(post({"state": "applied"}, "127.0.0.3"))).status == 204
    await trio.sleep(1)
    assert (await repo.handle(post({"state": "applied"}))).status == 204


# On sockets

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
        return await client.request(method, url, source=source, timeout=5, **more)

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


# The doorbell


async def test_a_pod_with_tasks_is_sent_to_its_bundle_and_one_without_gets_a_bell(repo: Repo) -> None:
    web = await repo.handle(get("/v1/doorbell"))
    assert (web.status, web.headers["location"]) == (303, "/v1/bundle")
    db = await repo.handle(get("/v1/doorbell", peer="127.0.0.3"))
    assert db.status == 200
    assert db.later is not None


async def test_the_bell_rings_when_there_are_tasks_and_for_nothing_else(
    repo: Repo, nursery: trio.Nursery
) -> None:
    bell = (await repo.handle(get("/v1/doorbell", peer="127.0.0.3"))).later
    assert isinstance(bell, HeldRequest)
    rung: list[bytes] = []

    async def wait() -> None:
        rung.append((await waited(bell)).body)

    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    put(repo, pod(labels=CHECKED), pod("db", "127.0.0.3", labels={"other": "label"}))
    await wait_all_tasks_blocked()
    assert rung == []
    assert repo.held == 1
    put(repo, pod(labels=CHECKED), pod("db", "127.0.0.3", labels=CHECKED))
    await wait_all_tasks_blocked()
    assert rung == [b"!"]
    assert repo.held == 0


async def test_an_address_that_is_not_known_yet_has_a_bell_too(repo: Repo, nursery: trio.Nursery) -> None:
    bell = (await repo.handle(get("/v1/doorbell", peer="127.0.0.9"))).later
    assert isinstance(bell, HeldRequest)
    rung: list[bytes] = []

    async def wait() -> None:
        rung.append((await waited(bell)).body)

    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    put(repo, pod(labels=CHECKED), pod("new", "127.0.0.9", labels=CHECKED))
    await wait_all_tasks_blocked()
    assert rung == [b"!"]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/v1/doorbell", pidone_pod_uid="uid-db"), 409),
        (get("/v1/doorbell", peer="10.0.0.1"), 403),
    ],
)
async def test_who_is_refused_a_bundle_is_refused_a_bell(repo: Repo, request_: Request, status: int) -> None:
    assert (await repo.handle(request_)).status == status


async def test_a_terminating_pod_has_nothing_to_do_any_more(repo: Repo) -> None:
    put(repo, pod(labels=CHECKED, terminating=True))
    assert (await repo.handle(get("/v1/doorbell"))).status == 200


async def test_last_words_at_the_door_are_logged(capsys: pytest.CaptureFixture[str], repo: Repo) -> None:
    await repo.handle(get("/v1/doorbell", pidone_last_words="MemoryError: as if"))
    assert 'pod=shop/web event=failed error="MemoryError: as if"' in capsys.readouterr().err


async def test_a_pod_that_goes_away_takes_its_bell_with_it(repo: Repo, nursery: trio.Nursery) -> None:
    """Over a real socket, closed and reset alike; and the server goes on."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(
        lambda task_status: serve(repo.begin, listeners, max_connections=9, task_status=task_status)
    )
    port = listeners[0].socket.getsockname()[1]
    for reset in (False, True):
        stream = await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.3")
        await stream.send_all(b"GET /v1/doorbell HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        await wait_all_tasks_blocked()
        assert repo.held == 1
        if reset:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
        with trio.fail_after(5):
            while repo.held:
                await trio.lowlevel.checkpoint()
    nursery.cancel_scope.cancel()
