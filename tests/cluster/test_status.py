"""Statuses on the real API server: what kubectl shows and waits for, and whose fields are whose."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.to_thread import run_sync

from pidone.plan.report import Report
from pidone_controller.kubernetes.client import Client, connect
from pidone_controller.kubernetes.config import kubeconfig
from pidone_controller.kubernetes.errors import Unauthorized
from pidone_controller.kubernetes.resources import TASK_BINDINGS, TASK_SETS, ObjectRef
from pidone_controller.log import log
from pidone_controller.peers import Account
from pidone_controller.repo.selection import SelectedPod
from pidone_controller.status.compose import binding_status, set_status
from pidone_controller.status.conditions import Status
from pidone_controller.status.writer import StatusWriter
from tests.cluster.apiserver import Cluster
from tests.cluster.replicas import ACCOUNT, HOME, allowed, conditions, written
from tests.patience import PATIENCE_SECONDS

NOW = "2026-01-02T03:04:05Z"
OBJECTS = """
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: web}
spec:
  tasks:
    - name: ready
      probe: {tcpSocket: {port: 80}}
---
apiVersion: pidone.dev/v1alpha1
kind: TaskBinding
metadata: {name: web}
spec:
  podSelector: {matchLabels: {web: "yes"}}
  taskSets: [web, other]
"""


def applied(name: str, **more: Any) -> SelectedPod:
    return SelectedPod(name, "", "sha256-1", "sha256-e", 1, Report("applied", digest="sha256-1", **more))


def refused(name: str) -> SelectedPod:
    return SelectedPod(
        name, "", "sha256-1", "sha256-e", 1, Report("rejected", rejected="sha256-e", error="no such program")
    )


def waiting(name: str) -> SelectedPod:
    return SelectedPod(name, "", "sha256-1", "sha256-e", 1)


class Written:
    """One binding and one set of a namespace, and a writer for their statuses."""

    def __init__(self, cluster: Cluster, client: Client, namespace: str) -> None:
        self.cluster, self.client, self.namespace = cluster, client, namespace
        self.pods: list[SelectedPod] = []
        self.binding, self.set = (
            ObjectRef(resource, namespace, "web", self.get(resource.plural)["metadata"]["uid"])
            for resource in (TASK_BINDINGS, TASK_SETS)
        )
        self.writer = StatusWriter(client, self.compose, log)

    def get(self, plural: str = "taskbindings") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.kubectl("get", plural, "web", "--output=json", "--show-managed-fields")
        )
        return found

    def kubectl(self, *words: str) -> str:
        return self.cluster.kubectl(*words, "--namespace", self.namespace)

    def compose(self, target: ObjectRef, previous: Mapping[str, Any]) -> Status | None:
        generation = self.get(target.resource.plural)["metadata"]["generation"]
        if target == self.set:
            return set_status(generation, previous=previous, now=NOW, tasks=1, bindings=1)
        return binding_status(str(target), generation, self.pods, previous=previous, now=NOW)

    async def tell(self, *pods: SelectedPod, holds: Callable[[dict[str, Any]], object]) -> None:
        """Have the status written, and wait until it holds."""
        self.pods = list(pods)
        self.writer.mark(self.binding)
        self.writer.mark(self.set)
        with trio.fail_after(PATIENCE_SECONDS):
            while not holds((await run_sync(self.get)).get("status", {})):
                await trio.sleep(0.05)  # somebody else's process has no event


@asynccontextmanager
async def writing(cluster: Cluster, namespace: str) -> AsyncIterator[Written]:
    """With the rights that the manifests give the controller, and no others."""
    cluster.apply(*written(OBJECTS, namespace))
    async with connect(kubeconfig([allowed(cluster)])) as client, trio.open_nursery() as nursery:
        found = Written(cluster, client, namespace)
        nursery.start_soon(found.writer.run)
        yield found
        nursery.cancel_scope.cancel()


async def test_kubectl_shows_what_became_of_it_in_columns(cluster: Cluster, namespace: str) -> None:
    async with writing(cluster, namespace) as it:
        await it.tell(
            applied("a"),
            applied("b", maintenance=True),
            refused("c"),
            holds=lambda status: status.get("matched") == 3,
        )
        head, row = it.kubectl("get", "taskbindings").splitlines()
        assert head.split() == ["NAME", "TASKSETS", "MATCHED", "APPLIED", "REJECTED", "READY", "AGE"]
        assert row.split()[:-1] == ["web", '["web","other"]', "3", "2", "1", "False"]
        assert row.split()[-1][-1] in "sm"
        head, row = it.kubectl("get", "taskbindings", "--output=wide").splitlines()
        assert {"MAINTENANCE", "REASON"} <= {*head.split()}
        assert row.split()[head.split().index("MAINTENANCE")] == "1"
        assert " PlanRefused " in row
        head, row = it.kubectl("get", "tasksets").splitlines()
        assert head.split() == ["NAME", "TASKS", "BINDINGS", "READY", "AGE"]
        assert row.split()[:-1] == ["web", "1", "1", "True"]
        assert "the first pods that refused" in it.kubectl("explain", "taskbinding.status.rejections").lower()
        assert it.get()["status"]["rejections"] == [
            {"pod": "c", "digest": "sha256-1", "message": "no such program"}
        ]


async def test_kubectl_wait_is_a_gate_for_the_newest_generation(cluster: Cluster, namespace: str) -> None:
    def wait(seconds: int) -> bool:
        words = ("wait", "--for=condition=Ready", "taskbinding/web", f"--timeout={seconds}s")
        return cluster.try_kubectl(*words, "--namespace", namespace).returncode == 0

    async with writing(cluster, namespace) as it:
        await it.tell(waiting("a"), holds=lambda status: status.get("conditions"))
        assert conditions(cluster, "taskbinding", "web", namespace)["Reconciling"] == ("True", "Applying")
        assert not await run_sync(wait, 1)
        opened = trio.Event()

        async def gate() -> None:
            assert await run_sync(wait, 120)
            opened.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(gate)
            await it.tell(applied("a"), holds=lambda status: status["applied"] == 1)
            with trio.fail_after(PATIENCE_SECONDS):
                await opened.wait()
        # what is Ready of the generation before opens no gate for this one
        cluster.apply(*written(OBJECTS.replace("[web, other]", "[web]"), namespace))
        assert not await run_sync(wait, 1)
        await it.tell(applied("a"), holds=lambda status: status["observedGeneration"] == 2)
        assert await run_sync(wait, 120)


async def test_the_rollouts_part_of_a_status_is_not_the_writers(cluster: Cluster, namespace: str) -> None:
    async with writing(cluster, namespace) as it:
        await it.tell(refused("a"), holds=lambda status: status.get("rejected") == 1)
        patch = {
            "status": {"rollout": {"phase": "Complete", "since": NOW, "current": {"digest": "sha256-1"}}}
        }
        await it.client.merge(TASK_BINDINGS, "web", patch, namespace=namespace, subresource="status")
        await it.tell(applied("a"), holds=lambda status: status["rejected"] == 0)
        found = it.get()
        assert found["status"]["rollout"] == patch["status"]["rollout"]
        assert "rejections" not in found["status"], "a field that is applied no more is removed"
        owners = {
            (one["operation"], field.removeprefix("f:"))
            for one in found["metadata"]["managedFields"]
            if one["manager"] == "pidone-controller" and one.get("subresource") == "status"
            for field in one["fieldsV1"]["f:status"]
        }
        assert {field for operation, field in owners if operation == "Update"} == {"rollout"}
        assert ("Apply", "conditions") in owners
        assert ("Apply", "rollout") not in owners
        # and the other way around
        gone = {"status": {"rollout": None}}
        await it.client.merge(TASK_BINDINGS, "web", gone, namespace=namespace, subresource="status")
        assert it.get()["status"].keys() >= {"conditions", "matched", "applied"}


async def test_a_status_that_a_person_has_changed_is_the_controllers_again(
    cluster: Cluster, namespace: str
) -> None:
    async with writing(cluster, namespace) as it:
        await it.tell(applied("a"), holds=lambda status: status.get("applied") == 1)
        edit = (
            "patch",
            "taskbinding",
            "web",
            "--subresource=status",
            "--type=merge",
            '--patch={"status":{"applied":9}}',
        )
        it.kubectl(*edit)
        await it.tell(applied("a"), applied("b"), holds=lambda status: status["applied"] == 2)


async def test_a_replica_proves_who_it_is_by_a_token_for_that_alone(cluster: Cluster, tmp_path: Path) -> None:
    async with connect(kubeconfig([await run_sync(allowed, cluster)])) as client:
        account = Account(client)
        assert await account.name() == f"system:serviceaccount:{HOME}:{ACCOUNT}"
        token = await account.token()
        assert await account.token() == token, "one token for its life"
        assert (await account.review(token))["user"]["username"] == await account.name()
        # neither is the API server's own token good for peers, nor that of somebody else's making
        for other in (cluster.token(HOME, ACCOUNT), token[:-3] + "abc", "x"):
            assert (await account.review(other)).get("authenticated") is not True
        foreign = await run_sync(partial(cluster.token, "default", "default", audience="pidone-peers"))
        assert (await account.review(foreign))["user"]["username"] == "system:serviceaccount:default:default"
        # and the token for peers does not open the API server
        async with connect(kubeconfig([cluster.kubeconfig_of(token)])) as thief:
            with pytest.raises(Unauthorized):
                await thief.list(TASK_SETS)
