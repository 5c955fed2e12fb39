"""What people and Prometheus may read."""

import json
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

import pytest
import trio

from pidone_controller.log import log
from pidone_controller.repo.inspection import TARGETS_FRESH_SECONDS
from pidone_controller.repo.plans import Plans
from pidone_controller.repo.server import Repo, Settings
from tests.controller.factories import binding, pod, rules, task_set
from tests.controller.fakes import TOKENS, fake_review
from tests.controller.repo.requests import CHECKED, get, post, put, repo_of

DIGEST = "sha256-" + "1" * 64


@pytest.fixture
def repo(nursery: trio.Nursery) -> Repo:
    repo = Repo(Plans(log), log)
    nursery.start_soon(repo.plans.run)
    put(repo, pod(labels=CHECKED), pod("db", "127.0.0.3"))
    return repo


METRICS = """\
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: scraped}
spec:
  tasks:
    - name: metrics
      metrics: {port: 19200}
"""


async def may_read(user: Mapping[str, Any], namespace: str, name: str) -> bool:
    await trio.lowlevel.checkpoint()
    return user["username"] == "jane" and namespace == "shop" and name != "secret"


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
        'pod=shop/web event=rejected etag=sha256-111111111111 error="what is \N{REPLACEMENT CHARACTER}[1mthis"',
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
        ("/v1/prometheus/targets/shop", "10.7.0.1", "person", 200),
        ("/v1/prometheus/targets/bank", "10.7.0.1", "person", 403),
        ("/v1/prometheus/targets", "10.9.9.9", "", 200),
        ("/v1/prometheus/targets/shop/web", "127.0.0.1", "", 404),
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
        review=fake_review(**TOKENS), may_read=may_read,
    )  # fmt: skip
    headers = {"authorization": f"Bearer {token}"} if token else {}
    assert (await repo.handle(get(path, peer=peer, **headers), secure=bool(token))).status == status


async def test_the_pods_of_a_namespace_are_listed() -> None:
    repo = repo_of(pod(), pod("web", "127.0.0.3", namespace="bank", uid="uid-bank"))
    listed = json.loads((await repo.handle(get("/v1/pods/bank", peer="127.0.0.1"))).body)["pods"]
    assert [(one["namespace"], one["name"]) for one in listed] == [("bank", "web")]


async def test_prometheus_is_told_of_every_pod_that_is_to_be_scraped() -> None:
    repo = Repo(Plans(log), log)
    repo.plans.rule(
        rules(METRICS, binding(sets="scraped"), task_set(), binding("other", labels="probe: 'yes'"))
    )
    repo.plans.replace(
        [
            pod("v4", "10.1.0.2", labels=CHECKED | {"app.kubernetes.io/name": "v"}),
            pod("bank", "10.1.0.9", namespace="bank", labels=CHECKED),
            pod("v6", "fd00::3", labels=CHECKED),
            pod("ends", "10.1.0.4", labels=CHECKED, terminating=True),
            pod("probed", "10.1.0.5", labels={"probe": "yes"}),
            pod("idle", "10.1.0.6"),
        ]
    )
    response = await repo.handle(get("/v1/prometheus/targets", peer="127.0.0.1"))
    assert response.headers["content-type"] == "application/json"
    common = {
        "namespace": "shop",
        "node": "node-1",
        "__meta_pidone_pod_label_check": "yes",
        "__meta_pidone_pod_phase": "Running",
    }

    def target(name: str, ip: str, **more: str) -> dict[str, Any]:
        own = {"pod": name, "__meta_pidone_pod_uid": f"uid-{name}", "__meta_pidone_pod_ip": ip}
        return {"targets": [f"{f'[{ip}]' if ':' in ip else ip}:19200"], "labels": common | own | more}

    v4 = target("v4", "10.1.0.2", __meta_pidone_pod_label_app_kubernetes_io_name="v")
    bank = target("bank", "10.1.0.9", namespace="bank")
    assert json.loads(response.body) == [bank, v4, target("v6", "fd00::3")]
    one = await repo.handle(get("/v1/prometheus/targets/bank", peer="127.0.0.1"))
    assert json.loads(one.body) == [bank]

    etag = response.headers["etag"]
    assert one.headers["etag"] != etag
    same = await repo.handle(get("/v1/prometheus/targets", peer="127.0.0.1", if_none_match=etag))
    assert (same.status, same.body, same.headers["etag"]) == (304, b"", etag)


async def test_the_list_of_targets_is_made_anew_after_some_seconds(autojump_clock: Any) -> None:
    repo = Repo(Plans(log), log)
    repo.plans.rule(rules(METRICS, binding(sets="scraped")))
    repo.plans.replace([pod("one", "10.1.0.2", labels=CHECKED)])

    async def names() -> list[str]:
        response = await repo.handle(get("/v1/prometheus/targets", peer="127.0.0.1"))
        return [target["labels"]["pod"] for target in json.loads(response.body)]

    assert await names() == ["one"]
    repo.plans.put(pod("two", "10.1.0.3", labels=CHECKED))
    assert await names() == ["one"], "servers share one list"
    await trio.sleep(TARGETS_FRESH_SECONDS)
    assert await names() == ["one", "two"]
