"""The controller against a real API server: what people apply reaches pods, and what pods say reaches people."""

from collections.abc import Iterator

import pytest
import trio

from tests.cluster.apiserver import Cluster
from tests.cluster.pods import Asking, asking
from tests.cluster.replicas import Replicas, address, replicas, written

SET = """
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: web}
spec:
  params:
    - {name: port, type: integer, default: 8080, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['port']"}}}
  tasks:
    - name: ready
      probe: {httpGet: {path: /, port: $(params.port)}}
---
apiVersion: pidone.dev/v1alpha1
kind: TaskBinding
metadata: {name: web}
spec:
  podSelector: {matchLabels: {web: "yes"}}
  taskSets: [web]
"""


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
            "--timeout=20s",
        )
        await trio.to_thread.run_sync(lambda: cluster.kubectl(*ready))
        cluster.delete_pod(namespace, "web-0")
        await pod.until(lambda pod: pod.terminating)
