"""Versions and rollouts on a real API server, and the commands that people have for them."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from pidone.language.binding import BindingError, derive
from pidone.plan.report import Report
from pidone_controller.__main__ import main
from pidone_controller.kubernetes.client import Client, connect
from pidone_controller.kubernetes.config import kubeconfig
from pidone_controller.kubernetes.reflector import Reflector
from pidone_controller.kubernetes.resources import CONTROLLER_REVISIONS, TASK_BINDINGS
from pidone_controller.objects import revisions
from pidone_controller.objects.written import PIN, check
from pidone_controller.repo.selection import SelectedPod
from pidone_controller.rollout.catalog import Affected, Catalog
from pidone_controller.rollout.leader import Leader
from tests.cluster.apiserver import MERGE, OURS, Cluster
from tests.controller.factories import binding_spec, pod, set_spec
from tests.patience import PATIENCE_SECONDS

QUICK = {"canary": "10%", "step": "50%", "pause": "300ms", "maxRejected": 0}
SLOW = {**QUICK, "pause": "1h"}


class Running:
    """A controller as far as versions go: reflectors, and a leader that can be replaced."""

    def __init__(self, client: Client, home: str, nursery: trio.Nursery) -> None:
        self.client = client
        self.pods = [SelectedPod(f"shop/web-{number}", f"uid-{number}", "d", "e") for number in range(10)]
        self.catalog = Catalog(home, self._changed)
        self._nursery = nursery
        self._term: trio.CancelScope | None = None
        self._leader: Leader | None = None
        self._heard = trio.Event()

    def _changed(self, affected: Affected) -> None:
        self._heard.set()
        self._heard = trio.Event()
        self.look(affected)

    def look(self, affected: Affected | None = None) -> None:
        if self._leader is not None:
            self._leader.look(affected)

    def lead(self) -> None:
        """Begin a term; the one before ends where it stands."""
        if self._term is not None:
            self._term.cancel()
        self._leader = Leader(self.client, self.catalog, lambda _: self.pods, lambda *_, **__: None)
        self._nursery.start_soon(self._run, self._leader)

    async def _run(self, leader: Leader) -> None:
        with trio.CancelScope() as self._term:
            await leader.run()

    async def until(self, true: Callable[[], object]) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while not true():
                await self._heard.wait()

    def rollout(self, namespace: str, name: str = "web") -> dict[str, Any]:
        found = self.catalog.find_binding((False, namespace, name))
        return dict(found.rollout) if found else {}

    def served(self, namespace: str) -> list[object]:
        """The periods that the pods are served, sorted; for those without a plan None, or why."""
        self.catalog.update()
        rules = self.catalog.rules
        found: list[object] = []
        for one in self.pods:
            try:
                tasks = derive(pod(namespace=namespace, uid=one.uid, labels={"check": "yes"}), rules)
            except BindingError as error:
                found.append(str(error))
            else:
                found.append(tasks[0]["probe"]["periodSeconds"] if tasks else None)
        return sorted(found, key=str)


@asynccontextmanager
async def controller(cluster: Cluster, home: str) -> AsyncIterator[Running]:
    async with connect(kubeconfig([cluster.kubeconfig])) as client, trio.open_nursery() as nursery:
        running = Running(client, home, nursery)
        for resource, store in running.catalog.sinks.items():
            selector = revisions.SELECTOR if resource is CONTROLLER_REVISIONS else ""
            reflector: Reflector[Any] = Reflector(
                client, resource, store.project, store, label_selector=selector, log=lambda *_, **__: None
            )
            nursery.start_soon(reflector.run)
            await reflector.synced.wait()
        running.lead()
        yield running
        nursery.cancel_scope.cancel()


def written(kind: str, name: str, namespace: str, spec: object, **annotations: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "annotations": annotations}
    return {"apiVersion": "pidone.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def path(plural: str, namespace: str, name: str) -> str:
    return f"{OURS}/namespaces/{namespace}/{plural}/{name}"


@pytest.fixture
def command(
    cluster: Cluster, namespace: str, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Awaitable[tuple[int, str]]]:
    """``pidone-controller rollout ...``: its exit code, and all that it said."""

    async def call(*words: str, config: Path = cluster.kubeconfig) -> tuple[int, str]:
        more = ["--kubeconfig", str(config), "-n", namespace, "--controller-namespace", namespace]
        code = await trio.to_thread.run_sync(main, ["rollout", *words, *more])
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


Command = Callable[..., Awaitable[tuple[int, str]]]


async def test_versions_are_kept_shown_and_gone_back_to(
    cluster: Cluster, namespace: str, command: Command
) -> None:
    async with controller(cluster, namespace) as running:
        for period, cause in ((5, "first"), (7, "slower")):
            cluster.apply(
                written("TaskSet", "check", namespace, odd(period), **{"kubernetes.io/change-cause": cause})
            )
            await running.until(partial(_last_is, running, namespace, cause))
        first, second = (one.removeprefix("sha256-")[:12] for one in _digests(running, namespace))

        code, said = await command("history", "taskset/check")
        assert code == 0
        rows = [line.split() for line in said.splitlines()]
        assert rows[0] == ["taskset/check"]
        assert rows[1] == ["REVISION", "DIGEST", "CREATED", "CHANGE-CAUSE"]
        assert [(row[0], row[1], row[3]) for row in rows[2:]] == [
            ("1", first, "first"),
            ("2", second, "slower"),
        ]
        assert rows[3][-1] == "(present)"
        code, said = await command("history", "tasksets.pidone.dev/check", "--revision", "1")
        assert code == 0
        assert "periodSeconds: 5" in said

        code, said = await command("undo", "taskset/check")
        assert (code, said) == (0, f"taskset/check rolled back to revision 1, {first}\n")
        value = cluster.request("GET", path("tasksets", namespace, "check"))
        assert value["spec"] == odd(5)
        assert value["metadata"]["annotations"]["kubernetes.io/change-cause"] == "first"
        await running.until(lambda: _numbers(running, namespace) == [2, 3])
        assert _digests(running, namespace)[-1].removeprefix("sha256-").startswith(first)

        code, said = await command("undo", "taskset/check", "--to-revision", "3")
        assert (code, said) == (0, "taskset/check skipped: it is what revision 3 has already\n")
        code, said = await command("undo", "taskset/check", "--to-revision", "9")
        assert (code, said) == (1, "pidone-controller: taskset/check has no revision 9; there are: 2, 3\n")

    # as kubectl shows them, with their owner, which the garbage collector goes by
    kept = json.loads(cluster.kubectl("get", "controllerrevisions", "-n", namespace, "-o", "json"))["items"]
    assert {one["metadata"]["ownerReferences"][0]["uid"] for one in kept} == {value["metadata"]["uid"]}
    assert all(one["metadata"]["name"].startswith("check-") for one in kept)


def odd(period: int) -> dict[str, Any]:
    """With what JSON can be written in more than one way: a version's bytes are immutable."""
    text = '\u00e9 < \u2028 > & " \\ /'
    params = [{"name": "n", "description": text}]
    spec = set_spec(period)
    spec["tasks"][0]["backoff"] = {"jitter": 0.25, "factor": 2}
    return {"tasks": spec["tasks"], "params": params}


def _digests(running: Running, namespace: str) -> list[str]:
    return [one.digest for one in running.catalog.history.kept((False, namespace, "check"))]


def _last_is(running: Running, namespace: str, cause: str) -> bool:
    kept = running.catalog.history.kept((False, namespace, "check"))
    return bool(kept) and kept[-1].cause == cause


def _differs(running: Running, namespace: str, before: dict[str, Any]) -> bool:
    return running.rollout(namespace) != before


def _numbers(running: Running, namespace: str) -> list[int]:
    return [one.number for one in running.catalog.history.kept((False, namespace, "check"))]


async def test_a_rollout_is_waited_for_and_its_status_is_nobody_else_s(
    cluster: Cluster, namespace: str, command: Command
) -> None:
    async with controller(cluster, namespace) as running:
        cluster.apply(written("TaskSet", "check", namespace, set_spec(5)))
        cluster.apply(written("TaskBinding", "web", namespace, binding_spec(rollout=QUICK)))
        code, said = await command("status", "taskset/check", "--timeout", "20s")
        assert (code, said.splitlines()[-1]) == (0, "taskset/check is complete")
        assert running.served(namespace) == [5] * 10

        # Who writes conditions by server-side apply leaves the rollout alone, and the other way round.
        more = {"reason": "Tested", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"}
        conditions = [{"type": "Ready", "status": "True", **more}]
        status = written("TaskBinding", "web", namespace, None) | {"status": {"conditions": conditions}}
        del status["spec"]
        async with connect(kubeconfig([cluster.kubeconfig])) as client:
            for matched in (1, 2):
                status["status"] = {"conditions": conditions} | ({"matched": 1} if matched == 1 else {})
                await client.apply(TASK_BINDINGS, status, subresource="status")
        value = cluster.request("GET", path("taskbindings", namespace, "web"))
        assert value["status"].keys() == {"conditions", "rollout"}

        cluster.apply(written("TaskBinding", "web", namespace, binding_spec(rollout=SLOW)))
        cluster.apply(written("TaskSet", "check", namespace, set_spec(9)))
        await running.until(lambda: running.rollout(namespace).get("phase") == "Progressing")
        assert running.served(namespace) == [5] * 9 + [9]
        code, said = await command("status", "taskbinding/web", "--timeout", "500ms")
        assert code == 1
        assert "Waiting for TaskBinding" in said
        assert "10% of the pods have version" in said
        assert "not complete after 0.5 seconds" in said
        cluster.apply(written("TaskBinding", "web", namespace, binding_spec(rollout=QUICK)))
        code, said = await command("status", "taskbinding/web", "--timeout", "20s")
        assert (code, running.served(namespace)) == (0, [9] * 10)
        value = cluster.request("GET", path("taskbindings", namespace, "web"))
        assert value["status"]["conditions"] == conditions
        assert value["status"]["rollout"].keys() == {"phase", "since", "current"}


async def test_halted_resumed_undone(cluster: Cluster, namespace: str, command: Command) -> None:
    async with controller(cluster, namespace) as running:
        cluster.apply(written("TaskSet", "check", namespace, set_spec(5)))
        cluster.apply(written("TaskBinding", "web", namespace, binding_spec()))
        await running.until(lambda: running.rollout(namespace))
        cluster.apply(written("TaskBinding", "web", namespace, binding_spec(rollout=SLOW)))
        cluster.apply(written("TaskSet", "check", namespace, set_spec(9)))
        await running.until(lambda: running.rollout(namespace)["phase"] == "Progressing")
        running.pods = [
            SelectedPod(
                one.pod, one.uid, "d", "e", report=Report("rejected", rejected="e", error="no such action")
            )
            for one in running.pods
        ]
        running.look()
        await running.until(lambda: running.rollout(namespace)["phase"] == "Halted")
        assert running.served(namespace) == [5] * 10
        code, said = await command("status", "taskset/check")
        assert code == 1
        for text in ("is halted: 1 pod refused it", "no such action", "rollout resume taskbinding/web"):
            assert text in said

        running.pods = [
            SelectedPod(one.pod, one.uid, "d", "e", report=Report("applied", digest="d"))
            for one in running.pods
        ]
        assert await command("resume", "taskbinding/web") == (0, "taskbinding/web resumed\n")
        await running.until(lambda: running.rollout(namespace)["phase"] == "Progressing")
        assert running.served(namespace) == [5] * 9 + [9]
        code, said = await command("resume", "taskbinding/web")
        assert (code, "taskbinding/web is not halted: 10% of the pods" in said) == (1, True)

        code, _ = await command("undo", "taskset/check")
        assert code == 0
        code, said = await command("status", "taskset/check", "--timeout", "20s")
        assert (code, said.splitlines()[-1]) == (0, "taskset/check is complete")
        assert running.served(namespace) == [5] * 10


# httpcore leaves a socket to the garbage collector where a TLS handshake is cancelled.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_leader_that_is_replaced_at_every_step(cluster: Cluster, namespace: str) -> None:
    async with controller(cluster, namespace) as running:
        cluster.apply(written("TaskSet", "check", namespace, set_spec(5)))
        cluster.apply(written("TaskBinding", "web", namespace, binding_spec(rollout=QUICK)))
        seen = []
        with trio.fail_after(PATIENCE_SECONDS):
            while running.rollout(namespace).get("phase") != "Complete":
                before = running.rollout(namespace)
                running.lead()
                await running.until(partial(_differs, running, namespace, before))
                seen.append(running.rollout(namespace).get("percent"))
        assert seen == [10, 60, 100, None]
        assert running.served(namespace) == [5] * 10
        assert _numbers(running, namespace) == [1]


async def test_a_pin_counts_without_a_leader(cluster: Cluster, namespace: str) -> None:
    async with controller(cluster, namespace) as running:
        cluster.apply(written("TaskSet", "check", namespace, set_spec(5)))
        cluster.apply(written("TaskBinding", "web", namespace, binding_spec()))
        await running.until(lambda: running.rollout(namespace))
        cluster.apply(written("TaskSet", "check", namespace, set_spec(9)))
        await running.until(lambda: _numbers(running, namespace) == [1, 2])
        first, second = _digests(running, namespace)
        assert running._term is not None
        running._term.cancel()
        cluster.apply(written("TaskBinding", "web", namespace, binding_spec(), **{PIN: first[7:15]}))
        await running.until(lambda: running.served(namespace) == [5] * 10)
        patch = {"metadata": {"annotations": {PIN: second}}}
        cluster.request("PATCH", path("taskbindings", namespace, "web"), patch, kind=MERGE)
        await running.until(lambda: running.served(namespace) == [9] * 10)


async def test_a_cluster_s_set_has_its_versions_where_the_controller_is(
    cluster: Cluster, namespace: str, command: Command
) -> None:
    name = f"base-{namespace}"
    value = written("ClusterTaskSet", name, namespace, set_spec(5))
    del value["metadata"]["namespace"]
    async with controller(cluster, namespace) as running:
        try:
            cluster.apply(value)
            await running.until(lambda: running.catalog.history.kept((True, "", name)))
            code, said = await command("history", f"clustertaskset/{name}")
            assert (code, said.splitlines()[2].split()[0]) == (0, "1")
            (kept,) = running.catalog.history.kept((True, "", name))
            assert kept.namespace == namespace
        finally:
            cluster.request("DELETE", f"{OURS}/clustertasksets/{name}")


async def test_who_may_read_a_namespace_alone_waits_as_well(
    cluster: Cluster, namespace: str, command: Command
) -> None:
    rules = [
        {
            "apiGroups": ["pidone.dev"],
            "resources": ["tasksets", "taskbindings"],
            "verbs": ["get", "list", "watch"],
        },
        {"apiGroups": ["apps"], "resources": ["controllerrevisions"], "verbs": ["get", "list", "watch"]},
    ]
    config = cluster.account(namespace, "reader", *rules)
    base = f"base-{namespace}"
    value = written("ClusterTaskSet", base, namespace, set_spec(1, task="base"))
    del value["metadata"]["namespace"]
    async with controller(cluster, namespace) as running:
        try:
            cluster.apply(value)
            cluster.apply(written("TaskSet", "check", namespace, set_spec(5, extends=[base])))
            cluster.apply(written("TaskBinding", "web", namespace, binding_spec(rollout=QUICK)))
            for _ in range(2):
                code, said = await command("status", "taskset/check", "--timeout", "20s", config=config)
                assert (code, said.splitlines()[-1]) == (0, "taskset/check is complete")
            assert running.rollout(namespace)["phase"] == "Complete"
            cluster.apply(written("TaskBinding", "web", namespace, binding_spec(rollout=SLOW)))
            cluster.apply(written("TaskSet", "check", namespace, set_spec(9, extends=[base])))
            code, said = await command("status", "taskbinding/web", "--timeout", "2s", config=config)
            assert (code, "10% of the pods have version" in said) == (1, True)
            code, said = await command("status", f"clustertaskset/{base}", config=config)
            assert (code, "forbidden" in said) == (1, True)
        finally:
            cluster.request("DELETE", f"{OURS}/clustertasksets/{base}")


async def test_what_cannot_be_done_is_said_in_one_line(
    cluster: Cluster, namespace: str, command: Command
) -> None:
    cluster.apply(written("TaskSet", "check", namespace, set_spec(5)))
    cluster.apply(written("TaskBinding", "web", namespace, binding_spec("check gone")))
    nobody = cluster.account(namespace, "nobody")
    for words, text in (
        (["history", "taskset/gone"], '"gone" not found'),
        (["history", "taskbinding/web"], "taskbinding/web is a binding; versions are kept of sets"),
        (["resume", "taskset/check"], "taskset/check is a set; rollouts are those of bindings"),
        (["resume", "taskbinding/web"], "taskbinding/web is not halted"),
        (["undo", "deployment/web"], '"deployment/web" is no set and no binding; write taskset/NAME'),
        (["undo", "taskset"], '"taskset" is no set and no binding'),
        (["undo", "taskset/check"], "taskset/check has no version before the present one to go back to"),
        (["status", "taskset/check"], 'the set "gone" is not there'),
        (["status", "taskbinding/gone"], "not found"),
    ):
        code, said = await command(*words)
        assert code == 1, words
        assert text in said
        assert said.count("\n") == 1
    code, said = await command("history", "taskset/check")
    assert code == 0
    assert "is not kept: no controller has seen it yet" in said
    for verb in ("history", "status"):
        code, said = await command(verb, "taskset/check", config=nobody)
        assert (code, "forbidden" in said) == (1, True)


async def test_nobody_s_change_is_overwritten_by_going_back(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    async with controller(cluster, namespace) as running:
        for period in (5, 7):
            cause = f"{period} seconds"
            cluster.apply(
                written(
                    "TaskSet", "check", namespace, set_spec(period), **{"kubernetes.io/change-cause": cause}
                )
            )
            await running.until(partial(_last_is, running, namespace, cause))

        def change_meanwhile(*arguments: Any) -> Any:
            cluster.apply(written("TaskSet", "check", namespace, set_spec(8)))
            return check(*arguments)

        monkeypatch.setattr("pidone_controller.rollout.commands.check", change_meanwhile)
        code, said = await command("undo", "taskset/check")
        assert (code, said) == (
            1, "pidone-controller: taskset/check was changed by somebody else meanwhile; look, and try again\n"
        )  # fmt: skip
        assert cluster.request("GET", path("tasksets", namespace, "check"))["spec"] == set_spec(8)
