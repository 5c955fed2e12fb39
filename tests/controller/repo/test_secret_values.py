"""Plans with values of Secrets: over which connection they are served, and what people see of them."""

import json
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pidone.language.binding import Rules
from pidone.language.model import Param
from pidone.language.secrets import NoSecrets, SecretError
from pidone_controller.repo.server import Repo
from tests.controller.factories import binding, pod, rules
from tests.controller.repo.requests import CHECKED, get, put, repo_of

SET = """\
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: check}
spec:
  params: [{name: token, valueFrom: {secretKeyRef: {name: hook, key: token}}}]
  tasks:
    - {name: ready, probe: {tcpSocket: {port: 80}}}
    - {name: tell, report: {webhook: {url: "http://hook", headers: {Authorization: Bearer $(params.token)}}}}
"""
PLAIN = """\
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: plain}
spec:
  tasks: [{name: open, probe: {tcpSocket: {port: 81}}}]
"""


class Source(NoSecrets):
    def __init__(self) -> None:
        self.value, self.pending = "s3cret-token", False

    def text(self, param: Param, namespace: str) -> str:
        if not self.value:
            raise SecretError("needs a grant", pending=self.pending)
        return self.value


def found(source: Source) -> Rules:
    texts = (SET, PLAIN, binding(), binding().replace("checked", "plain").replace("[check]", "[plain]"))
    return replace(rules(*texts), secrets=source)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def repo(source: Source, nursery: trio.Nursery) -> Repo:
    repo = repo_of()
    nursery.start_soon(repo.plans.run)
    put(repo, pod(labels=CHECKED), found=found(source))
    return repo


async def bundle(repo: Repo, **more: Any) -> tuple[int, bytes]:
    response = await repo.handle(get(**more), secure=True)
    return response.status, response.body


async def test_a_value_is_served_over_https_alone(repo: Repo) -> None:
    status, body = await bundle(repo)
    assert (status, b"Bearer s3cret-token" in body) == (200, True)
    plain = await repo.handle(get())
    assert plain.status == 426
    assert b"s3cret" not in plain.body
    assert plain.text == (
        'task "tell": a value of a Secret is served over https only, and shop/web asks over http\n'
    )


async def test_the_end_of_the_pod_comes_over_both_and_without_a_value(repo: Repo) -> None:
    before = json.loads((await bundle(repo))[1])
    put(repo, pod(labels=CHECKED, terminating=True), found=repo.plans.rules)
    for secure in (True, False):
        response = await repo.handle(get(), secure=secure)
        told = json.loads(response.body)
        assert (response.status, told["phase"], told["tasks"]) == (200, "Terminating", [])
        assert told["digest"] == before["digest"]
        again = await repo.handle(get(if_none_match=response.headers["etag"]), secure=secure)
        assert again.status == 304
    entry = repo.plans.entry(pod(labels=CHECKED, terminating=True))
    assert entry.bundle is not None
    assert [task["name"] for task in entry.bundle.tasks] == [
        "ready",
        "tell",
        "open",
    ]  # for its deregistration


async def test_people_see_neither_value_nor_salt(repo: Repo) -> None:
    for path in ("/v1/pods", "/v1/pods/shop/web"):
        response = await repo.handle(get(path, peer="127.0.0.1"))
        assert response.status == 200
        assert b"s3cret" not in response.body
        assert b"salt" not in response.body
    told = json.loads(response.body)["tasks"]
    assert told[1]["report"]["webhook"]["headers"] == {"Authorization": "Bearer ***"}


async def test_a_changed_secret_changes_one_task_and_wakes_the_pod(repo: Repo, source: Source) -> None:
    first = await repo.handle(get(), secure=True)
    other = "uid-db"
    source.value = "another-token"
    changed = repo.plans.secrets_changed("shop")
    assert [one.path for one in changed] == ["shop/web"]
    assert other not in repo.plans._outdated
    assert repo.plans.secrets_changed("elsewhere") == []
    second = await repo.handle(get(if_none_match=first.headers["etag"], prefer="wait=5"), secure=True)
    before, after = (
        {task["name"]: task for task in json.loads(one.body)["tasks"]} for one in (first, second)
    )
    assert [name for name in before if before[name] != after[name]] == ["tell"]


async def test_a_value_that_is_granted_no_more_is_not_sent_again(
    repo: Repo, source: Source, autojump_clock: MockClock
) -> None:
    first = await repo.handle(get(), secure=True)
    source.value = ""
    repo.plans.secrets_changed("shop")
    kept = await repo.handle(get(if_none_match=first.headers["etag"], prefer="wait=2"), secure=True)
    assert kept.status == 304, "a pod keeps the plan that it has"
    fresh = json.loads((await bundle(repo))[1])
    assert [task["name"] for task in fresh["tasks"]] == ["open"], "a new pod gets what the others bring"
    put(repo, pod(labels=CHECKED, terminating=True), found=repo.plans.rules)
    status, body = await bundle(repo, if_none_match=first.headers["etag"])
    assert (status, json.loads(body)["phase"], b"s3cret" in body) == (200, "Terminating", False)


async def test_a_secret_that_is_being_read_is_no_fault(repo: Repo, source: Source) -> None:
    source.value, source.pending = "", True
    repo.plans.secrets_changed("shop")
    (selected,) = repo.plans.inventory
    assert repo.plans.entry(selected).pending
