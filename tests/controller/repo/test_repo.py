"""What the repo does beside answering one pod: many changes, many pods, people, Prometheus, https, its own end."""

import json
from collections.abc import Mapping
from functools import partial
from ipaddress import ip_network
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone.http.message import Held as HeldRequest
from pidone.http.message import Response
from pidone.http.server import waited
from pidone.language.binding import Rules, derive
from pidone.metrics.exposition import gauge
from pidone.plan.format import decode_bundle
from pidone_controller.log import log
from pidone_controller.pods.model import Pod
from pidone_controller.pods.reports import Pace, Report
from pidone_controller.repo.server import Repo, Settings
from tests.controller.repo.test_callers import CHECKED, RULES, TOKENS, repo_of, review, served
from tests.controller.repo.test_server import Held, get, post
from tests.controller.samples import binding, pod, rules, task_set

METRICS = """\
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: scraped}
spec:
  tasks:
    - name: metrics
      metrics: {port: 19200}
"""
HOOK = """\
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: hook}
spec:
  tasks:
    - name: hook
      exec: {command: [/opt/pidone/hook]}
"""


class Derivations:
    """Counts whose plan was derived, in order."""

    def __init__(self) -> None:
        self.of: list[str] = []

    def __call__(self, found: Pod, known: Rules) -> list[dict[str, Any]]:
        self.of.append(found.name)
        return derive(found, known)


async def test_a_plan_is_derived_for_whom_it_matters(nursery: trio.Nursery) -> None:
    derivations = Derivations()
    repo = repo_of(pod(labels=CHECKED), pod("db", "127.0.0.3"), derive=derivations)
    nursery.start_soon(repo.run)
    await wait_all_tasks_blocked()
    assert derivations.of == ["web"]  # nobody has asked; no binding chooses db
    await repo.handle(get())
    await repo.handle(get(peer="127.0.0.3"))
    repo.put(pod(labels=CHECKED))  # seen again, as in each list
    repo.put(pod("db", "127.0.0.3", labels={"other": "label"}))
    await wait_all_tasks_blocked()
    assert derivations.of == ["web"]
    repo.put(pod("db", "127.0.0.3", labels=CHECKED))
    await wait_all_tasks_blocked()
    assert derivations.of == ["web", "db"]


async def test_changes_without_a_pause_are_one_answer(nursery: trio.Nursery) -> None:
    derivations = Derivations()
    repo = repo_of(pod(labels=CHECKED), derive=derivations)
    nursery.start_soon(repo.run)
    etag = (await repo.handle(get())).headers["etag"]
    held = Held(nursery, repo.handle(get(prefer="wait=55", if_none_match=etag)))
    await wait_all_tasks_blocked()
    derivations.of.clear()
    repo.rule(rules(task_set(period=9), binding()))
    for turn in range(5):
        repo.put(pod(labels={**CHECKED, "turn": str(turn)}))
    repo.put(pod(labels={**CHECKED, "turn": "last"}, terminating=True))
    bundle = decode_bundle((await held.answer()).body, ["probe"])
    assert bundle.phase == "Terminating"
    assert derivations.of == ["web"]


async def test_new_rules_reach_those_who_wait_first_and_let_others_speak(nursery: trio.Nursery) -> None:
    derivations = Derivations()
    pods = [pod(f"pod-{index}", f"127.0.1.{index}", labels=CHECKED) for index in range(250)]
    repo = repo_of(*pods, derive=derivations)
    nursery.start_soon(repo.run)
    await wait_all_tasks_blocked()
    etag = (await repo.handle(get(peer="127.0.1.249"))).headers["etag"]
    held = Held(nursery, repo.handle(get(peer="127.0.1.249", prefer="wait=55", if_none_match=etag)))
    await wait_all_tasks_blocked()
    derivations.of.clear()
    repo.rule(rules(task_set(period=9), binding()))
    await held.answer()
    assert derivations.of[0] == "pod-249"
    assert len(derivations.of) < 250  # it had its answer long before all were derived
    await wait_all_tasks_blocked()
    assert sorted(derivations.of) == sorted(one.name for one in pods)


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
    repo.put(pod("pod-1", "127.0.1.1", labels=CHECKED, terminating=True))
    assert served(await ask(1)) == "pod-1"
    assert trio.current_time() == began


def test_turns_are_a_rate_apart_and_none_is_taken_that_comes_too_late() -> None:
    pace = Pace(10, 3)
    assert [pace.turn(100, 100) for _ in range(3)] == pytest.approx([99.8, 99.9, 100])
    assert pace.turn(100, 100) is None
    assert pace.turn(100, 101) == pytest.approx(100.1)
    assert pace.turn(100, 100.15) is None
    assert pace.behind(100) == pytest.approx(0.2)
    assert [pace.turn(200, 200) is not None for _ in range(4)] == [True, True, True, False]


# https


async def test_a_plan_with_exec_goes_over_https_alone_and_its_end_over_both(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    repo = repo_of(pod(labels=CHECKED))
    nursery.start_soon(repo.run)
    etag = (await repo.handle(get())).headers["etag"]
    held = Held(nursery, repo.handle(get(prefer="wait=55", if_none_match=etag)))
    await wait_all_tasks_blocked()
    repo.rule(rules(HOOK, binding(sets="hook")))
    response = await held.answer()
    assert (response.status, response.headers["preference-applied"]) == (426, "wait=55")
    assert 'task "hook": exec' in response.text
    assert repo.withheld(pod(labels=CHECKED))
    shown = json.loads((await repo.handle(get("/v1/pods/shop/web", peer="127.0.0.1"))).body)
    assert "https only" in shown["error"]
    over_https = await repo.handle(get(if_none_match=etag), secure=True)
    assert decode_bundle(over_https.body, ["exec"]).plan.tasks[0].name == "hook"
    assert not repo.withheld(pod(labels=CHECKED))
    # who has it already may go on asking over http
    known = {"if_none_match": over_https.headers["etag"]}
    assert (await repo.handle(get(**known))).status == 304
    repo.put(pod(labels=CHECKED, terminating=True))
    assert decode_bundle((await repo.handle(get(**known))).body, ["exec"]).phase == "Terminating"


# What others are told


async def test_reports_and_ends_are_passed_on() -> None:
    told: list[tuple[str, str]] = []
    gone: list[tuple[str, str | None]] = []

    def end(found: Pod, report: Report | None) -> None:
        gone.append((found.name, report.state if report else None))

    repo = repo_of(
        pod(labels=CHECKED), pod("db", "127.0.0.3"), pod("job", "127.0.0.4"),
        told=lambda found, report: told.append((found.name, report.state)), gone=end,
    )  # fmt: skip
    await repo.handle(post({"state": "applied"}))
    repo.hear(pod("db", "127.0.0.3"), Report("rejected"))  # as another replica got it
    assert told == [("web", "applied"), ("db", "rejected")]
    repo.put(pod("job", "127.0.0.4", phase="Succeeded"))
    repo.drop(("shop", "job"))
    repo.put(pod(labels=CHECKED, terminating=True))
    assert gone == [("job", None)]
    repo.drop(("shop", "web"))
    repo.drop(("shop", "web"))
    repo.replace([])
    assert gone == [("job", None), ("web", "applied"), ("db", "rejected")]


async def test_pods_see_which_instance_answers() -> None:
    one, other = repo_of(pod()), repo_of(pod())
    first = [(await one.handle(get())).headers["pidone-repo"] for _ in range(2)]
    assert first == [one.id] * 2
    assert (await other.handle(get())).headers["pidone-repo"] == other.id != one.id


# People and Prometheus


async def may_read(user: Mapping[str, Any], namespace: str, name: str) -> bool:
    await trio.lowlevel.checkpoint()
    return user["username"] == "jane" and namespace == "shop" and name != "secret"


@pytest.mark.parametrize(
    ("path", "peer", "token", "status"),
    [
        ("/v1/pods", "127.0.0.1", "", 200),
        ("/v1/pods/shop", "127.0.0.1", "", 200),
        ("/v1/pods/shop/web", "10.7.0.1", "", 403),
        ("/v1/pods/shop/web", "10.7.0.1", "person", 200),
        ("/v1/pods/shop", "10.7.0.1", "person", 200),
        ("/v1/pods/bank/web", "10.7.0.1", "person", 403),
        ("/v1/pods/shop/secret", "10.7.0.1", "person", 403),
        ("/v1/pods", "10.7.0.1", "person", 403),
        ("/v1/prometheus/targets", "10.7.0.1", "person", 403),
        ("/v1/pods/shop/web", "10.7.0.1", "job", 403),
        ("/v1/pods/shop/web", "10.7.0.1", "forged", 401),
        ("/v1/pods/shop/web", "10.7.0.1", "broken", 503),
        ("/v1/pods/shop/web", "10.9.9.9", "", 200),  # an API server's address, by the settings
        ("/v1/pods/shop/web", "127.0.0.2", "", 403),  # a pod
        ("/v1/prometheus/targets", "127.0.0.2", "", 403),
    ],
)
async def test_who_may_read_what_pods_are_served(path: str, peer: str, token: str, status: int) -> None:
    repo = repo_of(
        pod(labels=CHECKED), settings=Settings(people=(ip_network("10.9.9.0/24"),)),
        review=review(**TOKENS), may_read=may_read,
    )  # fmt: skip
    headers = {"authorization": f"Bearer {token}"} if token else {}
    assert (await repo.handle(get(path, peer=peer, **headers))).status == status


async def test_the_pods_of_a_namespace_are_listed() -> None:
    repo = repo_of(pod(), pod("web", "127.0.0.3", namespace="bank", uid="uid-bank"))
    listed = json.loads((await repo.handle(get("/v1/pods/bank", peer="127.0.0.1"))).body)["pods"]
    assert [(one["namespace"], one["name"]) for one in listed] == [("bank", "web")]


async def test_prometheus_is_told_of_every_pod_that_is_to_be_scraped() -> None:
    repo = Repo(log)
    repo.rule(rules(METRICS, binding(sets="scraped"), task_set(), binding("other", labels="probe: 'yes'")))
    repo.replace(
        [
            pod("v4", "10.1.0.2", labels=CHECKED),
            pod("v6", "fd00::3", labels=CHECKED),
            pod("ends", "10.1.0.4", labels=CHECKED, terminating=True),
            pod("probed", "10.1.0.5", labels={"probe": "yes"}),
            pod("idle", "10.1.0.6"),
        ]
    )
    response = await repo.handle(get("/v1/prometheus/targets", peer="127.0.0.1"))
    assert response.headers["content-type"] == "application/json"
    common = {"namespace": "shop", "node": "node-1"}
    assert json.loads(response.body) == [
        {"targets": ["10.1.0.2:19200"], "labels": common | {"pod": "v4", "uid": "uid-v4"}},
        {"targets": ["[fd00::3]:19200"], "labels": common | {"pod": "v6", "uid": "uid-v6"}},
    ]


# Its own health, and its end


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
    Held(nursery, repo.handle(get(prefer="wait=55", if_none_match=etag)))
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
        assert isinstance(bell, HeldRequest)
        bells.append((await waited(bell)).body)

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
    async def heard(request: Any) -> Response:
        return Response(204)

    repo = repo_of(pod(), routes={"/v1/peers/reports": ("POST", heard)})
    assert (await repo.handle(get("/v1/peers/reports"))).status == 405
    request = get("/v1/peers/reports")
    assert (await repo.handle(type(request)("POST", request.target, {}, b"", "10.1.1.1"))).status == 204


def test_any_order_of_pods_and_rules_is_ready_at_last() -> None:
    repo = Repo(log, random=Random(1))
    assert not repo.ready
    repo.replace([pod(labels=CHECKED)])
    assert not repo.ready
    repo.rule(RULES)
    assert repo.ready
