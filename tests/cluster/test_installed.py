"""The installation as people have it: kubectl apply -k k3d/ on a real node, and what pods there do then.

Controller, pods, sandboxes, addresses and Services are real ones; Eureka is a fake that is held to the real one.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster import node, scenario
from tests.cluster.apiserver import OURS
from tests.cluster.node import NodeCluster
from tests.cluster.process import Process, until
from tests.cluster.scenario import CONTROLLER, ROOT, SYSTEM
from tests.cri.conftest import BUSYBOX
from tests.cri.node import Sandbox
from tests.ports import free_port

BINDING = """
apiVersion: pidone.dev/v1alpha1
kind: TaskBinding
metadata: {name: registered}
spec:
  podSelector: {matchLabels: {registry: "true"}}
  taskSets: [eureka]
  params: {eureka: EUREKA, period: 1, renew: 1s}
"""
WHEN_STARTED = """
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: when-started}
spec:
  extends: [eureka]
  tasks: [{name: ready, override: merge, runOn: [pod.containersStarted]}]
---
""" + BINDING.replace("registered", "when-started").replace("[eureka]", "[when-started]").replace(
    "true", "started"
)


class Eureka:
    """A fake Eureka, at an address that pods reach."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"http://{node.ADDRESS}:{port}/eureka"
        words = [sys.executable, "-m", "tests.eureka", "--listen", f"{node.ADDRESS}:{port}"]
        self.process = Process(words, folder / "eureka.log", lambda: self.instances("none") == [])

    def instances(self, app: str) -> list[str]:
        """Addresses of those that are up."""
        try:
            answer = httpx.get(
                f"{self.url}/apps/{app}", headers={"accept": "application/json"}, trust_env=False
            )
        except httpx.TransportError:
            return ["nobody answers"]
        found = answer.json()["application"]["instance"] if answer.is_success else []
        return [one["ipAddr"] for one in found if one["status"] == "UP"]


@pytest.fixture(scope="module")
def eureka(real_node: NodeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Eureka]:
    found = Eureka(tmp_path_factory.mktemp("eureka"))
    found.process.start()
    try:
        yield found
    finally:
        found.process.kill()


@pytest.fixture(scope="module")
def installed(real_node: NodeCluster) -> Iterator[NodeCluster]:
    if reason := scenario.missing("image", "controller-image"):
        pytest.skip(reason)
    with scenario.installed(real_node):
        yield real_node


@pytest.fixture
def shop(installed: NodeCluster, eureka: Eureka) -> Iterator[str]:
    """A namespace whose pods are registered when they are labelled so."""
    with installed.namespace("shop") as name:
        for text in ((ROOT / "tasks" / "eureka.yaml").read_text(), BINDING.replace("EUREKA", eureka.url)):
            installed.kubectl("apply", "-n", name, "-f", "-", stdin=text)
        yield name


def run(cluster: NodeCluster, namespace: str, name: str, **labels: str) -> tuple[str, Sandbox]:
    """A pod with a web server that is no good for PID 1 and knows nothing of Eureka; its address and its sandbox."""
    server = {
        "name": "app",
        "image": cluster.containerd.busybox,
        "imagePullPolicy": "Never",
        "command": [BUSYBOX, "sh", "-c", f"echo ok > /index.html; exec {BUSYBOX} httpd -f -p 8080 -h /"],
    }
    cluster.make_pod(
        namespace,
        name,
        node="",
        labels={"app": name, **labels},
        containers=[server],
        terminationGracePeriodSeconds=2,
    )
    address = cluster.wait_running(namespace, name)["status"]["podIP"]
    return address, cluster.sandbox(namespace, name)


def binding(cluster: NodeCluster, namespace: str) -> dict[str, str]:
    """What kubectl get taskbindings says of it."""
    names, values = (
        line.split() for line in cluster.kubectl("get", "taskbindings", "-n", namespace).splitlines()
    )
    return dict(zip(names, values, strict=True))


def digests(cluster: NodeCluster, namespace: str) -> list[str]:
    """Of the plans that its pods are served."""
    path = f"{OURS}/namespaces/{namespace}/taskbindings/registered"
    status = cluster.request("GET", path).get("status", {})
    return [one["digest"] for one in status.get("digests", ())]


def test_a_label_registers_a_pod_and_its_removal_takes_it_out(
    installed: NodeCluster, shop: str, eureka: Eureka
) -> None:
    address, sandbox = run(installed, shop, "ratings")
    assert sandbox.program() == "/doze"
    assert eureka.instances("RATINGS") == []

    installed.label(shop, "ratings", {"registry": "true"})
    until(lambda: eureka.instances("RATINGS") == [address])
    installed.kubectl("wait", "--for=condition=Ready", "taskbinding/registered", "-n", shop, "--timeout=120s")
    told = binding(installed, shop)
    assert (told["MATCHED"], told["APPLIED"], told["REJECTED"], told["READY"]) == ("1", "1", "0", "True")
    assert sandbox.program() != "/doze"

    installed.label(shop, "ratings", {"registry": None})
    until(lambda: eureka.instances("RATINGS") == [])
    until(lambda: sandbox.program() == "/doze")
    assert sandbox.same()
    assert installed.pod(shop, "ratings")["status"]["containerStatuses"][0]["restartCount"] == 0


def test_a_task_runs_when_the_kubelet_has_started_all_containers(
    installed: NodeCluster, shop: str, eureka: Eureka
) -> None:
    installed.kubectl("apply", "-n", shop, "-f", "-", stdin=WHEN_STARTED.replace("EUREKA", eureka.url))
    address, _ = run(installed, shop, "reviews", registry="started")
    until(lambda: eureka.instances("REVIEWS") == [address])


@pytest.mark.parametrize("grace", [2, 0], ids=["with grace", "by force"])
def test_a_deleted_pod_is_out_of_eureka(
    installed: NodeCluster, shop: str, eureka: Eureka, grace: int
) -> None:
    address, sandbox = run(installed, shop, "details", registry="true")
    until(lambda: eureka.instances("DETAILS") == [address])
    # What a pod did in its last second it may not have told; of another plan it tells with all that it has by then.
    before = digests(installed, shop)
    installed.kubectl("annotate", "pod", "details", "-n", shop, "pidone.dev/probe-path=/index.html")
    until(lambda: digests(installed, shop) != before and binding(installed, shop)["APPLIED"] == "1")
    installed.delete_pod(shop, "details", seconds=grace)
    until(lambda: eureka.instances("DETAILS") == [])
    until(lambda: not sandbox.same())


def test_both_replicas_are_killed_and_pods_keep_what_they_have(
    installed: NodeCluster, shop: str, eureka: Eureka
) -> None:
    address, sandbox = run(installed, shop, "catalog", registry="true")
    until(lambda: eureka.instances("CATALOG") == [address])
    installed.kubectl("scale", CONTROLLER, "-n", SYSTEM, "--replicas=0")
    installed.kubectl(
        "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=pidone-controller", "-n", SYSTEM
    )
    assert eureka.instances("CATALOG") == [address]
    assert sandbox.program() != "/doze"
    installed.kubectl("scale", CONTROLLER, "-n", SYSTEM, "--replicas=2")
    installed.kubectl("rollout", "status", CONTROLLER, "-n", SYSTEM, "--timeout=120s")
    installed.label(shop, "catalog", {"registry": None})
    until(lambda: eureka.instances("CATALOG") == [])
    assert sandbox.same()
