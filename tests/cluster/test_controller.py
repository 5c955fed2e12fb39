"""The controller against a real API server: what people apply reaches pods, and what pods say reaches people."""

from collections.abc import Iterator

import pytest
import trio

from pidone.plan.model import Bundle
from tests.cluster.apiserver import Cluster
from tests.cluster.pods import Asking, asking
from tests.cluster.replicas import SET, Replicas, address, replicas, told, written


@pytest.fixture(scope="module")
def controllers(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Two replicas, as the manifests have it."""
    with replicas(cluster, tmp_path_factory.mktemp("controllers")) as found:
        for name in ("a", "b"):
            found.add(name)
        yield found


async def test_what_is_applied_and_labelled_runs(
    cluster: Cluster, namespace: str, controllers: Replicas
) -> None:
    at = address()
    cluster.run_pod(namespace, "web-0", labels={"app": "web"}, ips=[at])
    pod = Asking(controllers.urls, at)
    async with asking(pod):
        await pod.until(lambda pod: bool(pod.history))
        assert pod.tasks == []
        cluster.apply(*written(SET, namespace))
        cluster.label(namespace, "web-0", {"web": "yes"})
        await pod.until(lambda pod: pod.tasks == ["ready"])
        cluster.label(namespace, "web-0", {"web": None})
        await pod.until(lambda pod: pod.tasks == [])
        cluster.label(namespace, "web-0", {"web": "yes"})
        await pod.until(lambda pod: pod.tasks == ["ready"])
        ready = (
            "wait",
            "--for=condition=Ready",
            "taskbinding/web",
            "--namespace",
            namespace,
            "--timeout=120s",
        )
        await trio.to_thread.run_sync(lambda: cluster.kubectl(*ready))
        cluster.delete_pod(namespace, "web-0")
        await pod.until(lambda pod: pod.terminating)


SECOND = """
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: other}
spec:
  tasks:
    - name: ready
      probe: {tcpSocket: {port: 9}}
---
apiVersion: pidone.dev/v1alpha1
kind: TaskBinding
metadata: {name: other}
spec:
  podSelector: {matchLabels: {web: "yes"}}
  taskSets: [other]
"""


async def test_a_conflict_is_told_on_both_bindings_and_takes_nothing_away(
    cluster: Cluster, namespace: str, controllers: Replicas
) -> None:
    first, second = address(), address()
    cluster.apply(*written(SET, namespace))
    cluster.run_pod(namespace, "web-0", labels={"web": "yes"}, ips=[first])
    had, fresh = Asking(controllers.urls, first), Asking(controllers.urls, second)
    async with asking(had, fresh):
        await had.until(lambda pod: pod.tasks == ["ready"])
        await told(cluster, namespace, "web", Ready=("True", "AllApplied"))
        taken = len(had.history)
        cluster.apply(*written(SECOND, namespace))
        for name in ("web", "other"):
            await told(cluster, namespace, name, Stalled=("True", "Conflict"), Ready=("False", "Conflict"))
        # a pod that had nothing gets nothing of either, and the other keeps what it has
        cluster.run_pod(namespace, "web-1", labels={"web": "yes"}, ips=[second])
        await fresh.until(lambda pod: bool(pod.history))
        assert (had.tasks, fresh.tasks) == (["ready"], [])
        cluster.kubectl("delete", "taskbinding", "other", "--namespace", namespace)
        await fresh.until(lambda pod: pod.tasks == ["ready"])
        await told(cluster, namespace, "web", Ready=("True", "AllApplied"))
        assert len(had.history) == taken


async def test_a_refusal_is_told_and_mended_by_the_next_version(
    cluster: Cluster, namespace: str, controllers: Replicas
) -> None:
    at = address()
    cluster.apply(*written(SET, namespace))
    cluster.run_pod(namespace, "web-0", labels={"web": "yes"}, annotations={"port": "81"}, ips=[at])
    pod = Asking(controllers.urls, at, refuses=lambda bundle: "" if port(bundle) == 80 else "no port but 80")
    async with asking(pod):
        await told(cluster, namespace, "web", Stalled=("True", "PlanRefused"))
        table = cluster.kubectl("get", "taskbindings", "--namespace", namespace)
        assert table.split() == [
            *("NAME", "TASKSETS", "MATCHED", "APPLIED", "REJECTED", "READY", "AGE"),
            *("web", '["web"]', "1", "0", "1", "False", table.split()[-1]),
        ]
        cluster.request(
            "PATCH",
            f"/api/v1/namespaces/{namespace}/pods/web-0",
            {"metadata": {"annotations": {"port": "80"}}},
            kind="application/merge-patch+json",
        )
        await pod.until(lambda pod: pod.tasks == ["ready"])
        await told(cluster, namespace, "web", Ready=("True", "AllApplied"))


async def test_a_broken_set_is_told_and_the_version_before_stays(
    cluster: Cluster, namespace: str, controllers: Replicas
) -> None:
    at, later = address(), address()
    cluster.apply(*written(SET, namespace))
    cluster.run_pod(namespace, "web-0", labels={"web": "yes"}, ips=[at])
    pod, another = Asking(controllers.urls, at), Asking(controllers.urls, later)
    async with asking(pod, another):
        await pod.until(lambda pod: pod.tasks == ["ready"])
        await told(cluster, namespace, "web", kind="taskset", Ready=("True", "Accepted"))
        taken = len(pod.history)
        cluster.apply(*written(SET.replace("name: ready", "name: ready\n      needs: [nobody]"), namespace))
        await told(cluster, namespace, "web", kind="taskset", Stalled=("True", "Refused"))
        cluster.run_pod(namespace, "web-1", labels={"web": "yes"}, ips=[later])
        await another.until(lambda pod: pod.tasks == ["ready"])
        assert len(pod.history) == taken


def port(bundle: Bundle) -> int:
    """Of the probe that the plan has; 80 where it has none."""
    return next((task.config["httpGet"]["port"] for task in bundle.plan.tasks), 80)
