"""Bundle requests and doorbells: what answers them, and when. Time is MockClock's."""

import json
import socket
import struct
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone.http.message import Held, Request, Response
from pidone.http.server import serve, wait_for_answer
from pidone.plan.format import MEDIA_TYPE, decode_bundle
from pidone_controller.log import BURST, LimitedLog, log
from pidone_controller.repo.held import MAX_HELD
from pidone_controller.repo.plans import Plans
from pidone_controller.repo.server import Repo, Settings
from tests.controller.factories import binding, pod, rules, task_set
from tests.controller.repo.requests import CHECKED, RULES, Background, get, put, repo_of, served
from tests.patience import PATIENCE_SECONDS


@pytest.fixture
def repo(nursery: trio.Nursery) -> Repo:
    repo = Repo(Plans(log), log)
    nursery.start_soon(repo.plans.run)
    put(repo, pod(labels=CHECKED), pod("db", "127.0.0.3"))
    return repo


HOOK = """\
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: hook}
spec:
  tasks:
    - name: hook
      exec: {command: [/opt/pidone/hook]}
"""


async def test_a_bundle_is_what_the_pod_reads(repo: Repo) -> None:
    response = await repo.handle(get(accept=MEDIA_TYPE))
    bundle = decode_bundle(response.body, ["probe"])
    assert (response.status, response.headers["content-type"]) == (200, MEDIA_TYPE)
    assert (bundle.phase, bundle.pod.name, bundle.pod.namespace) == ("Running", "web", "shop")
    assert [task.name for task in bundle.plan.tasks] == ["ready"]
    assert decode_bundle((await repo.handle(get(peer="127.0.0.3"))).body, ["probe"]).plan.tasks == ()


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
    assert repo.plans.waiting.requests == 0


class SteppingClock(trio.abc.Clock):
    """A clock that goes on by a millisecond whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def start_clock(self) -> None: ...

    def current_time(self) -> float:
        self.now += 0.001
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return 0.0 if deadline <= self.now else PATIENCE_SECONDS


def test_a_bundle_whose_turn_comes_while_it_is_looked_for_is_sent_and_not_refused() -> None:
    async def look_at_each_moment() -> list[int]:
        repo = Repo(Plans(log), log, settings=Settings(plans=47, burst=1))
        put(repo, pod(labels=CHECKED))
        statuses = []
        for _ in range(20):
            held = await repo.begin(get(prefer="wait=10"))
            while not isinstance(held, Response):  # each look is at another moment before the turn
                held = held.look() or held
            statuses.append(held.status)
        return statuses

    assert trio.run(look_at_each_moment, clock=SteppingClock()) == [200] * 20


async def test_unknown_addresses_are_held_and_get_no_default(repo: Repo, autojump_clock: MockClock) -> None:
    before = trio.current_time()
    response = await repo.handle(get(peer="127.0.0.9", prefer="wait=30"))
    assert response.status == 404
    assert trio.current_time() - before == pytest.approx(30)
    assert response.headers["retry-after"] == "1"


async def test_an_unknown_address_is_served_when_its_pod_appears(repo: Repo, nursery: trio.Nursery) -> None:
    held = Background(nursery, repo.handle(get(peer="127.0.0.4", prefer="wait=55")))
    await wait_all_tasks_blocked()
    put(repo, pod("late", "127.0.0.4", labels=CHECKED))
    response = await held.answer()
    assert decode_bundle(response.body, ["probe"]).pod.name == "late"
    assert response.headers["preference-applied"] == "wait=55"


async def test_a_change_wakes_whom_it_is_for_and_nobody_else(repo: Repo, nursery: trio.Nursery) -> None:
    etags = {peer: (await repo.handle(get(peer=peer))).headers["etag"] for peer in ("127.0.0.2", "127.0.0.3")}
    web, db = (
        Background(nursery, repo.handle(get(peer=peer, prefer="wait=55", if_none_match=etag)))
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
    held = Background(nursery, repo.handle(get(prefer="wait=55", if_none_match=f"{first}, {refused}")))
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
    held = Background(nursery, repo.handle(get(prefer="wait=55", if_none_match=etag)))
    claims = Background(
        nursery, repo.handle(get(prefer="wait=55", if_none_match=etag, pidone_pod_uid="uid-web"))
    )
    await wait_all_tasks_blocked()
    put(repo, pod("next", "127.0.0.2", labels=CHECKED))
    assert (await held.answer()).status == (await claims.answer()).status == 409


async def test_an_address_without_a_pod_between_two_gives_nothing_of_the_second(
    repo: Repo, nursery: trio.Nursery
) -> None:
    etag = (await repo.handle(get())).headers["etag"]
    held = Background(nursery, repo.handle(get(prefer="wait=55", if_none_match=etag)))
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
        Background(nursery, repo.handle(get(prefer="wait=55", if_none_match=etag)))
    await wait_all_tasks_blocked()
    assert (await repo.handle(get(prefer="wait=55", if_none_match=etag))).status == 429
    assert (await repo.handle(get(peer="127.0.0.3"))).status == 200
    nursery.cancel_scope.cancel()


async def test_a_plan_that_was_never_good_leaves_what_the_pod_has(
    repo: Repo, autojump_clock: MockClock
) -> None:
    put(repo, pod(labels=CHECKED), found=rules(binding()))
    repo = Repo(Plans(log), log)  # another controller, which has never seen a good one
    put(repo, pod(labels=CHECKED), found=rules(binding()))
    held = await repo.handle(get(prefer="wait=5", if_none_match='"sha256-mine"'))
    assert (held.status, held.headers["etag"]) == (304, '"sha256-mine"')
    fresh = await repo.handle(get(prefer="wait=5"))
    assert decode_bundle(fresh.body, ["probe"]).plan.tasks == ()
    shown = json.loads((await repo.handle(get("/v1/pods/shop/web", peer="127.0.0.1"))).body)
    assert 'TaskBinding checked names TaskSet "check"' in shown["error"]


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
    assert isinstance(bell, Held)
    rung: list[bytes] = []

    async def wait() -> None:
        rung.append((await wait_for_answer(bell)).body)

    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    put(repo, pod(labels=CHECKED), pod("db", "127.0.0.3", labels={"other": "label"}))
    await wait_all_tasks_blocked()
    assert rung == []
    assert repo.plans.waiting.requests == 1
    put(repo, pod(labels=CHECKED), pod("db", "127.0.0.3", labels=CHECKED))
    await wait_all_tasks_blocked()
    assert rung == [b"!"]
    assert repo.plans.waiting.requests == 0


async def test_an_address_that_is_not_known_yet_has_a_bell_too(repo: Repo, nursery: trio.Nursery) -> None:
    bell = (await repo.handle(get("/v1/doorbell", peer="127.0.0.9"))).later
    assert isinstance(bell, Held)
    rung: list[bytes] = []

    async def wait() -> None:
        rung.append((await wait_for_answer(bell)).body)

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


async def test_last_words_are_one_line_of_bounded_length_at_a_bounded_rate(repo: Repo) -> None:
    lines = list[dict[str, Any]]()
    repo_log = LimitedLog(lambda event, **values: lines.append(values))
    limited = Repo(repo.plans, repo_log)
    for number in range(1000):
        await limited.handle(get("/v1/doorbell", f"10.7.0.{number % 250}", pidone_last_words="x" * 15_000))
    assert len(lines) <= BURST


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
        assert repo.plans.waiting.requests == 1
        if reset:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
        with trio.fail_after(PATIENCE_SECONDS):
            while repo.plans.waiting.requests:
                await trio.lowlevel.checkpoint()
    nursery.cancel_scope.cancel()


async def test_new_plans_go_out_at_a_bounded_rate_and_the_end_is_never_delayed(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    count = 50
    pods = [pod(f"pod-{index}", f"127.0.1.{index}", labels=CHECKED) for index in range(count)]
    repo = repo_of(*pods, settings=Settings(plans=10, burst=5))
    moments: list[float] = []

    async def ask(index: int, **headers: str) -> Response:
        response = await repo.handle(get(peer=f"127.0.1.{index}", **headers))
        moments.append(round(trio.current_time() - began, 3))
        return response

    began = trio.current_time()
    async with trio.open_nursery() as all_of_them:
        for index in range(count):
            all_of_them.start_soon(partial(ask, index, prefer="wait=55"))
    moments.sort()
    assert moments[:5] == [0] * 5
    assert all(later - earlier == pytest.approx(0.1) for earlier, later in pairwise(moments[5:]))
    # who does not wait is sent away, for as long as the queue is
    burst = [await ask(index) for index in range(count)]
    pauses = [int(one.headers["retry-after"]) for one in burst if one.status == 503]
    assert len(pauses) >= 40
    assert max(pauses) <= 6
    # what a pod has already is told at any rate, and so is its end
    etag = (await repo.handle(get(prefer="wait=55"))).headers.get("etag", "")
    assert etag == ""
    known = (await repo.handle(get(peer="127.0.1.0", prefer="wait=55"))).headers["etag"]
    began = trio.current_time()
    for _ in range(20):
        assert (await ask(0, if_none_match=known)).status == 304
    repo.plans.put(pod("pod-1", "127.0.1.1", labels=CHECKED, terminating=True))
    assert served(await ask(1)) == "pod-1"
    assert trio.current_time() == began


async def test_a_plan_with_exec_goes_over_https_alone_and_its_end_over_both(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    repo = repo_of(pod(labels=CHECKED))
    nursery.start_soon(repo.plans.run)
    etag = (await repo.handle(get())).headers["etag"]
    held = Background(nursery, repo.handle(get(prefer="wait=55", if_none_match=etag)))
    await wait_all_tasks_blocked()
    repo.plans.rule(rules(HOOK, binding(sets="hook")))
    response = await held.answer()
    assert (response.status, response.headers["preference-applied"]) == (426, "wait=55")
    assert 'task "hook": exec' in response.text
    assert repo.plans.withheld(pod(labels=CHECKED))
    shown = json.loads((await repo.handle(get("/v1/pods/shop/web", peer="127.0.0.1"))).body)
    assert "https only" in shown["error"]
    over_https = await repo.handle(get(if_none_match=etag), secure=True)
    assert decode_bundle(over_https.body, ["exec"]).plan.tasks[0].name == "hook"
    assert not repo.plans.withheld(pod(labels=CHECKED))
    # who has it already may go on asking over http
    known = {"if_none_match": over_https.headers["etag"]}
    assert (await repo.handle(get(**known))).status == 304
    repo.plans.put(pod(labels=CHECKED, terminating=True))
    assert decode_bundle((await repo.handle(get(**known))).body, ["exec"]).phase == "Terminating"
