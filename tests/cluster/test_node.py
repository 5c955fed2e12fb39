"""A whole node: pods that the scheduler placed run on it, with pidone's image under each of them."""

import json
from collections.abc import Iterator

import pytest

from tests.cluster import node
from tests.cluster.apiserver import Object
from tests.cluster.node import NodeCluster
from tests.cluster.process import until
from tests.cri import images
from tests.cri.conftest import BUSYBOX, IMAGE, doze

NOWHERE = "http://127.0.0.1:9"  # where no repo listens


@pytest.fixture(params=["doze alone", "image"])
def sandboxes(request: pytest.FixtureRequest, real_node: NodeCluster) -> str:
    """Of which image they are: what is pause, or all of pidone without a repo."""
    if request.param == "image" and not IMAGE.exists():
        pytest.skip(f"no build/{IMAGE.name}: make image")
    image = images.read(IMAGE) if request.param == "image" else images.of_files({"doze": doze()}, ["/doze"])
    real_node.containerd.put(image.with_env(PIDONE_REPO=NOWHERE))
    return str(request.param)


@pytest.fixture
def shop(real_node: NodeCluster, sandboxes: str) -> Iterator[str]:
    with real_node.namespace("shop") as name:
        yield name


def app(cluster: NodeCluster, *command: str) -> Object:
    return {
        "name": "app",
        "image": cluster.containerd.busybox,
        "imagePullPolicy": "Never",
        "command": [BUSYBOX, *command],
    }


def sleeper(cluster: NodeCluster, namespace: str, name: str) -> None:
    container = app(cluster, "sh", "-c", "trap 'exit 0' TERM; echo hello; sleep 1000 & wait")
    cluster.make_pod(namespace, name, node="", containers=[container])


def test_a_pod_runs_in_a_sandbox_of_ours_and_is_deleted(real_node: NodeCluster, shop: str) -> None:
    sleeper(real_node, shop, "web-0")
    found = real_node.wait_running(shop, "web-0")
    assert found["spec"]["nodeName"] == node.NAME
    assert found["status"]["podIP"].startswith("10.78.")
    line = real_node.kubectl("get", "pods", "-n", shop, "--no-headers").split()
    assert line[:3] == ["web-0", "1/1", "Running"]

    sandbox = real_node.sandbox(shop, "web-0")
    assert sandbox.program() == "/doze"
    assert real_node.kubectl("logs", "web-0", "-n", shop) == "hello\n"
    ask = ("exec", "web-0", "-n", shop, "--", BUSYBOX, "hostname")
    until(lambda: real_node.try_kubectl(*ask).stdout == "web-0\n")

    real_node.kubectl("delete", "pod", "web-0", "-n", shop, "--timeout=120s")
    until(lambda: not sandbox.same())


def test_a_service_reaches_the_pods_of_a_deployment(real_node: NodeCluster, shop: str) -> None:
    serve = app(
        real_node, "sh", "-c", f"{BUSYBOX} hostname > /index.html; exec {BUSYBOX} httpd -f -p 8080 -h /"
    )
    labels = {"app": "web"}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [serve], "terminationGracePeriodSeconds": 0},
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": template},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    items = json.dumps({"apiVersion": "v1", "kind": "List", "items": [deployment, service]})
    real_node.kubectl("apply", "-n", shop, "-f", "-", stdin=items)
    real_node.kubectl("rollout", "status", "deployment/web", "-n", shop, "--timeout=120s")
    sleeper(real_node, shop, "client")
    real_node.wait_running(shop, "client")

    names = set(real_node.kubectl("get", "pods", "-n", shop, "-l", "app=web", "-o", "name").split())
    address = real_node.request("GET", f"/api/v1/namespaces/{shop}/services/web")["spec"]["clusterIP"]
    # Debian's static wget falls over names
    fetch = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | {BUSYBOX} nc -w 2 {address} 80"
    answered: set[str] = set()

    def all_answered() -> bool:
        done = real_node.try_kubectl("exec", "client", "-n", shop, "--", BUSYBOX, "sh", "-c", fetch)
        if done.returncode == 0 and done.stdout:  # else kube-proxy has not set the Service up yet
            answered.add(f"pod/{done.stdout.splitlines()[-1]}")
        return names <= answered

    until(all_answered)
    assert answered == names


def test_sandboxes_stay_when_kubelet_and_containerd_are_killed(real_node: NodeCluster, shop: str) -> None:
    sleeper(real_node, shop, "web-0")
    real_node.wait_running(shop, "web-0")
    sandbox = real_node.sandbox(shop, "web-0")

    real_node.kubelet.kill()
    real_node.kubelet.start()
    real_node.containerd.end()
    assert sandbox.same()
    real_node.containerd.start()
    real_node.apiserver.kill()
    real_node.apiserver.start()
    sleeper(real_node, shop, "web-1")
    real_node.wait_running(shop, "web-1")

    assert sandbox.same()
    assert real_node.sandbox(shop, "web-0").id == sandbox.id
    status = real_node.pod(shop, "web-0")["status"]["containerStatuses"][0]
    assert (status["ready"], status["restartCount"]) == (True, 0)
