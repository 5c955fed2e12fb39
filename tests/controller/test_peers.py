"""What replicas tell the leader: everything, once, only replicas, and the latest counts."""

import json
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone.errors import ConnectError, TransferError
from pidone.http.message import Request, Response
from pidone.http.server import serve
from pidone.language.binding import Rules
from pidone.plan.report import Report, TaskReport
from pidone.protocol import MAX_REPORT_BYTES
from pidone_controller.kubernetes.errors import Forbidden
from pidone_controller.log import log
from pidone_controller.peers import (
    MAX_BATCH_BYTES,
    PATH,
    UNKNOWN_SECONDS,
    Account,
    Peers,
    identity_of,
    post,
    url_of,
)
from pidone_controller.pods.model import Pod
from pidone_controller.repo import certificates
from pidone_controller.repo.listeners import Tls
from pidone_controller.repo.plans import Plans
from pidone_controller.repo.server import Repo
from tests.controller.factories import pod

ME = "system:serviceaccount:pidone-system:pidone-controller"
TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
DIGEST = "sha256-" + "1" * 64


class Lead:
    """One replica's view of the Lease."""

    def __init__(self, name: str) -> None:
        self.identity = identity_of(name, f"https://{name}:6443")
        self.holder = ""
        self._changed = trio.Event()

    def see(self, holder: str) -> None:
        self.holder = holder
        self._changed.set()
        self._changed = trio.Event()

    async def holder_after(self, previous: str) -> str:
        while self.holder == previous:
            await self._changed.wait()
        return self.holder


class Cluster(Account):
    """The API server: tokens are names, and good for peers where they end in "!"."""

    def __init__(self, name: str = ME) -> None:
        self.mine = name
        self.reviews = 0

    async def name(self) -> str:
        return self.mine

    async def token(self) -> str:
        return f"{self.mine}!"

    async def review(self, token: str) -> Mapping[str, Any]:
        self.reviews += 1
        return {"authenticated": True, "user": {"username": token[:-1]}} if token.endswith("!") else {}


class Replica:
    def __init__(self, world: "World", name: str) -> None:
        self.told: list[tuple[str, str]] = []
        self.lead = Lead(name)
        self.account = Cluster()
        self.plans = Plans(log, on_report=self._told, wall_clock=world.clock)
        self.plans.rule(Rules())
        self.repo = Repo(self.plans, log, routes={PATH: ("POST", self._peer, self._refuse)})
        self.peers = Peers(self.plans, self.lead, self.account, log, post=world.post, random=Random(1))
        self.peers.trust(TRUST)

    async def _peer(self, request: Request, *, secure: bool = False) -> Response:
        return await self.peers.handle(request, secure=secure)

    async def _refuse(self, request: Request, *, secure: bool = False) -> Response | None:
        return await self.peers.refuse(request, secure=secure)

    def _told(self, pod: Pod, report: Report) -> None:
        self.told.append((pod.name, report.version))
        self.peers.reported(pod)


class World:
    """Three replicas; what they post goes through ``post``, which notes it."""

    def __init__(self) -> None:
        self.began = trio.current_time()
        self.replicas = {name: Replica(self, name) for name in "abc"}
        self.posts: list[tuple[float, str, list[str]]] = []
        self.down = False
        self.takes = 0.01

    def clock(self) -> float:
        return 1_700_000_000 + trio.current_time() - self.began

    async def post(self, url: str, body: bytes, token: str, trust: ssl.SSLContext | None) -> Response:
        assert len(body) <= MAX_REPORT_BYTES
        names = [one["name"] for one in json.loads(body)["pods"]]
        self.posts.append((round(trio.current_time() - self.began, 2), url, names))
        assert trust is TRUST
        await trio.sleep(self.takes)
        if self.down:
            raise ConnectError("nobody there")
        name = url.removeprefix("https://").partition(":")[0]
        asked = Request("POST", PATH, {"authorization": f"Bearer {token}"}, body, "127.0.0.1")
        return await self.replicas[name].repo.handle(asked, secure=True)

    def lead(self, name: str) -> None:
        for replica in self.replicas.values():
            replica.lead.see(self.replicas[name].lead.identity)

    def put(self, *pods: Pod) -> None:
        for replica in self.replicas.values():
            replica.plans.replace(pods)


def said(version: str = "1", **more: Any) -> Report:
    return Report("applied", version=version, digest=DIGEST, **more)


PODS = [pod(f"web-{number}", f"10.0.0.{number}") for number in range(1, 4)]


@pytest.fixture
async def world(autojump_clock: MockClock, nursery: trio.Nursery) -> World:
    world = World()
    for replica in world.replicas.values():
        nursery.start_soon(replica.peers.run)
    world.put(*PODS)
    world.lead("a")
    await wait_all_tasks_blocked()
    return world


async def test_a_report_is_with_the_leader_at_once(autojump_clock: MockClock, world: World) -> None:
    task = TaskReport("healthy", 1.5, runs=3, failures=1, error="once")
    report = said(tasks={"ready": task}, left=("old",), logs=("a line",), rejected=DIGEST, error="no")
    world.replicas["b"].plans.receive(PODS[0], report)
    await trio.sleep(0.05)
    found = world.replicas["a"].plans.report(PODS[0])
    assert found is not None
    assert (found.tasks, found.left, found.rejected, found.error) == ({"ready": task}, ("old",), DIGEST, "no")
    assert found.logs == ()  # nobody aggregates lines
    assert world.replicas["a"].told == [("web-1", "1")]
    assert world.replicas["c"].plans.report(PODS[0]) is None
    # the leader's own go nowhere
    world.replicas["a"].plans.receive(PODS[1], said())
    await trio.sleep(5)
    assert [names for _, _, names in world.posts] == [["web-1"]]


async def test_what_comes_while_a_request_is_under_way_goes_in_one(
    autojump_clock: MockClock, world: World
) -> None:
    world.takes = 1
    replica = world.replicas["b"]
    replica.plans.receive(PODS[0], said())
    await trio.sleep(0.1)
    for version in ("2", "3", "4"):
        for one in PODS:
            replica.plans.receive(one, said(version))
            await trio.sleep(0.01)
    await trio.sleep(5)
    assert [(at, names) for at, _, names in world.posts] == [
        (0.0, ["web-1"]),
        (1.0, ["web-1", "web-2", "web-3"]),
    ]
    assert {found.version for one in PODS if (found := world.replicas["a"].plans.report(one))} == {"4"}


async def test_another_leader_is_told_everything(autojump_clock: MockClock, world: World) -> None:
    world.replicas["b"].plans.receive(PODS[0], said())
    world.replicas["a"].plans.receive(PODS[1], said())
    world.replicas["c"].plans.receive(PODS[2], said())
    await trio.sleep(1)
    world.lead("c")
    await trio.sleep(1)
    for one in PODS:
        assert world.replicas["c"].plans.report(one) is not None
    assert sorted(world.replicas["c"].told) == [("web-1", "1"), ("web-2", "1"), ("web-3", "1")]
    # nobody leads: nothing is sent, and nothing is lost
    for replica in world.replicas.values():
        replica.lead.see("")
    await wait_all_tasks_blocked()
    world.replicas["b"].plans.receive(PODS[0], said("2"))
    before = len(world.posts)
    await trio.sleep(20)
    assert len(world.posts) == before
    world.lead("a")
    await trio.sleep(1)
    assert world.replicas["a"].told[-1] == ("web-1", "2")


async def test_the_latest_report_counts_whoever_tells_it_last(
    autojump_clock: MockClock, world: World
) -> None:
    world.replicas["b"].plans.receive(PODS[0], said("old"))
    await trio.sleep(10)
    world.replicas["c"].plans.receive(PODS[0], said("new"))  # the pod went to another replica
    await trio.sleep(1)
    world.lead("c")
    await trio.sleep(1)
    world.lead("a")
    await trio.sleep(1)
    for name in "ac":
        found = world.replicas[name].plans.report(PODS[0])
        assert found is not None
        assert found.version == "new"


async def test_a_leader_that_is_away_gets_all_when_it_is_back(
    autojump_clock: MockClock, world: World
) -> None:
    world.down = True
    world.replicas["b"].plans.receive(PODS[0], said())
    await trio.sleep(1)
    world.replicas["b"].plans.receive(PODS[1], said())
    await trio.sleep(60)
    assert 6 < len(world.posts) < 60
    world.down = False
    await trio.sleep(11)
    assert world.replicas["a"].told == [("web-1", "1"), ("web-2", "1")]
    assert world.replicas["b"].peers.pending == 0


async def test_a_pod_that_the_leader_does_not_know_yet_is_told_again_until_it_is_gone(
    autojump_clock: MockClock, world: World
) -> None:
    new, other = pod("new", "10.0.0.9"), pod("other", "10.0.0.8", uid="uid-2")
    world.replicas["b"].plans.put(new)
    world.replicas["b"].plans.put(other)
    world.replicas["a"].plans.put(pod("other", "10.0.0.8", uid="uid-1"))
    world.replicas["b"].plans.receive(new, said())
    world.replicas["b"].plans.receive(other, said())
    await trio.sleep(3 * UNKNOWN_SECONDS)
    assert world.replicas["a"].told == []
    world.replicas["a"].plans.put(new)
    await trio.sleep(2 * UNKNOWN_SECONDS)
    assert world.replicas["a"].told == [("new", "1")]
    world.replicas["b"].plans.drop(("shop", "other"))
    await trio.sleep(2 * UNKNOWN_SECONDS)
    before = len(world.posts)
    await trio.sleep(20)
    assert len(world.posts) == before


async def test_many_and_large_reports_go_in_requests_that_are_read(
    autojump_clock: MockClock, world: World
) -> None:
    pods = [pod(f"big-{number}", f"10.0.1.{number}") for number in range(20)]
    world.put(*pods)
    task = TaskReport("failing", 1.5, 10, 10, "\N{SNOWMAN}" * 400)
    for one in pods[:-2]:
        world.replicas["b"].plans.receive(one, said(tasks={f"task-{number}": task for number in range(10)}))
    world.replicas["b"].plans.receive(
        pods[-2], said(tasks={f"task-{number}": task for number in range(1000)})
    )
    wide = {f"{number}-{'x' * 240}": task for number in range(1000)}
    world.replicas["b"].plans.receive(pods[-1], said(tasks=wide))
    await trio.sleep(5)
    assert sum(len(names) for _, _, names in world.posts) == 20
    assert len(world.posts) > 3
    tasks = [found.tasks for one in pods if (found := world.replicas["a"].plans.report(one))]
    assert [len(one) for one in tasks] == [10] * 18 + [1000, 0]
    last = world.replicas["a"].plans.report(pods[-1])
    assert last is not None
    assert last.omitted == 1000, "tasks that are not forwarded are not taken for undone ones"
    assert tasks[0]["task-1"] == task
    assert tasks[18]["task-1"] == TaskReport("failing", runs=10)


@pytest.mark.parametrize(
    ("token", "status"),
    [
        ("", 401),
        ("Basic x", 401),
        (f"Bearer {ME}", 403),  # good for the API server, and not for peers
        ("Bearer system:serviceaccount:shop:pidone-controller!", 403),
        ("Bearer system:serviceaccount:pidone-system:default!", 403),
        (f"Bearer {ME}!", 200),
    ],
)
async def test_only_the_controllers_own_account_is_heard(
    autojump_clock: MockClock, world: World, token: str, status: int
) -> None:
    told = {
        "namespace": "shop",
        "name": "web-1",
        "uid": "uid-web-1",
        "received": 1.0,
        "report": {"state": "applied"},
    }
    body = json.dumps({"pods": [told]}).encode()
    asked = Request("POST", PATH, {"authorization": token} if token else {}, body, "10.0.0.1")
    answer = await world.replicas["a"].repo.handle(asked, secure=True)
    assert answer.status == status
    assert (world.replicas["a"].plans.report(PODS[0]) is not None) == (status == 200)
    if status == 200:
        assert (await world.replicas["b"].repo.handle(asked, secure=True)).status == 409  # it does not lead
        assert world.replicas["a"].account.reviews == 1


async def test_a_token_is_not_taken_over_plain_http(world: World) -> None:
    replica = world.replicas["a"]
    request = Request("POST", PATH, {"authorization": f"Bearer {ME}!"}, b"{}", "10.0.0.1")
    answer = await replica.repo.handle(request)
    assert (answer.status, answer.text) == (403, "tokens are taken over https alone\n")
    assert (await replica.repo.refuse(request)) == answer
    assert replica.account.reviews == 0


async def test_a_token_is_sent_to_a_replica_of_the_same_authority_alone() -> None:
    now, tokens = datetime.now(UTC), list[str | None]()
    ours, theirs = certificates.make_ca(now), certificates.make_ca(now)

    async def note(request: Request) -> Response:
        tokens.append(request.headers.get("authorization"))
        return Response(200)

    tls = Tls(certificates.issue(ours, ["127.0.0.1"], now))
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(partial(serve, note, [listener], max_connections=9, secure=tls.secure))
        url = f"https://127.0.0.1:{listener.socket.getsockname()[1]}{PATH}"
        with pytest.raises(TransferError, match="certificate verify failed"):
            await post(url, b"{}", "secret", certificates.trusting(theirs.certificate))
        assert tokens == []
        both = certificates.trusting(theirs.certificate + ours.certificate)
        assert (await post(url, b"{}", "secret", both)).status == 200
        nursery.cancel_scope.cancel()
    assert tokens == ["Bearer secret"]


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[]", b'{"pods": 1}', b'{"pods": [1]}', b'{"pods": [{"namespace": "shop"}]}', b"[" * 9999,
        b'{"pods": [{"namespace": "shop", "name": "web-1", "uid": "u", "received": 1, "report": {"state": "fine"}}]}',
    ],
)  # fmt: skip
async def test_what_is_no_report_is_refused_in_words(
    autojump_clock: MockClock, world: World, body: bytes
) -> None:
    asked = Request("POST", PATH, {"authorization": f"Bearer {ME}!"}, body, "10.0.0.1")
    answer = await world.replicas["a"].repo.handle(asked, secure=True)
    assert answer.status == 400
    assert answer.body.strip()
    assert (await world.replicas["a"].repo.handle(Request("GET", PATH, {}, b"", "10.0.0.1"))).status == 405


async def test_an_api_server_that_says_no_is_told_and_tried_again(
    autojump_clock: MockClock, world: World
) -> None:
    replica = world.replicas["b"]
    token, asked = replica.account.token, 0

    async def refused() -> str:
        nonlocal asked
        asked += 1
        raise Forbidden("serviceaccounts/token: no")

    replica.account.token = refused  # type: ignore[method-assign] # a test's
    replica.plans.receive(PODS[0], said())
    await trio.sleep(60)
    assert 6 < asked < 60
    replica.account.token = token  # type: ignore[method-assign] # a test's
    await trio.sleep(11)
    assert world.replicas["a"].told == [("web-1", "1")]


def test_the_address_of_the_leader_is_in_its_identity() -> None:
    for url in ("http://10.0.0.1:6060", "https://[fd00::1]:6443"):
        assert url_of(identity_of("pidone-controller-7d9c-x1", url)) == url
    assert identity_of("a", "http://a:1") != identity_of("a", "http://a:1")
    for holder in ("", "a", "a_b", "a_b_c", "a_ftp://x_c", "a_http://_c"):
        assert url_of(holder) == ""
    assert MAX_BATCH_BYTES < MAX_REPORT_BYTES
