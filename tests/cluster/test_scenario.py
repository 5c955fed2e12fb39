"""The demo on a real node with pidone under every pod: a real Eureka, and three applications that do not know it.

What people do to pods, what breaks around them, and images of other ages; after each, Eureka and ``kubectl get
taskbindings`` are right again, and no sandbox was made anew.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.bench import candidates
from tests.cluster import node, scenario
from tests.cluster.node import NodeCluster
from tests.cluster.process import Process, until
from tests.cluster.scenario import CONTROLLER, NAMESPACE, ROOT, SYSTEM, Demo, application, sandboxes
from tests.cri import images
from tests.cri.conftest import IMAGE
from tests.cri.images import Image
from tests.cri.node import Sandbox
from tests.patience import PATIENCE_SECONDS
from tests.ports import free_port

PAUSE = "pidone.test/pause:now"
OLD = ROOT / "build" / "old"  # the tree of the last commit before there was a controller for clusters
OLD_IMAGE = OLD / "build" / "image.oci.tar"
AGE = "PIDONE_TEST_AGE"


@pytest.fixture(scope="module")
def made(real_node: NodeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Demo, str]]:
    """And what the script said."""
    if reason := scenario.missing():
        pytest.skip(reason)
    with scenario.demo(real_node, tmp_path_factory.mktemp("demo")) as found:
        yield found


@pytest.fixture
def demo(made: tuple[Demo, str]) -> Iterator[Demo]:
    """As the script left it, after each test too; whatever pods live then that lived before have their sandboxes."""
    found, _ = made
    before = sandboxes(found.cluster)
    yield found
    found.settles()
    after = sandboxes(found.cluster)
    both = before.keys() & after.keys()
    assert len(both) >= 3
    assert {pod: after[pod] for pod in both} == {pod: before[pod] for pod in both}


def test_the_script_lists_all_three_and_no_application_registered_itself(made: tuple[Demo, str]) -> None:
    demo, said = made
    assert said.splitlines()[-1] == "in Eureka: BOOKINFO-RATINGS CONFIG-SERVICE STATIC-SERVER"
    assert said.splitlines()[-2].split()[1:6] == ['["eureka"]', "3", "3", "0", "True"]
    demo.settles()
    service = f"/api/v1/namespaces/{NAMESPACE}/services/http:ratings:8101/proxy"
    ratings = demo.cluster.http.get(f"{service}/ratings/7").json()
    assert ratings == {"id": 7, "ratings": {"Reviewer1": 5, "Reviewer2": 4}}  # the config server was asked


def test_process_1_of_every_pod_is_pidone(demo: Demo) -> None:
    words = {
        pod: " ".join(psutil.Process(pid).cmdline()) for pod, (_, pid, _) in sandboxes(demo.cluster).items()
    }
    assert [pod.split("-")[0] for pod in sorted(words)].count("pidone") == 2
    assert len(words) == 6
    assert [pod for pod, line in words.items() if "/pidone/__main__.pyc" not in line] == []
    asleep = sorted(pod.rsplit("-", 2)[0] for pod, line in words.items() if line.startswith("/doze"))
    assert asleep == [f"{NAMESPACE}/discovery-server", *[f"{SYSTEM}/pidone-controller"] * 2]


def test_without_its_label_a_pod_is_out_and_with_it_in_again(demo: Demo) -> None:
    pod = demo.one("bookinfo-ratings")
    demo.label(pod, None)
    demo.settles(pods=2)
    sandbox = demo.cluster.sandbox(NAMESPACE, pod)
    until(lambda: sandbox.program() == "/doze")
    demo.label(pod, scenario.VALUE)
    demo.settles()
    assert sandbox.program() != "/doze"


def test_what_does_not_answer_is_down_until_it_does(demo: Demo) -> None:
    with demo.standing_still(demo.one("static-server")):
        demo.settles(static_server="DOWN")
    demo.settles()


def test_eureka_follows_replicas_and_what_is_deleted(demo: Demo) -> None:
    kubectl = demo.cluster.kubectl
    kubectl("scale", "deployment/static-server", "-n", NAMESPACE, "--replicas=3")
    demo.settles(pods=5)
    kubectl("scale", "deployment/static-server", "-n", NAMESPACE, "--replicas=1")
    demo.settles(pods=3)
    kubectl("delete", "pod", demo.one("static-server"), "-n", NAMESPACE, "--wait=false")
    demo.settles(pods=3)
    kubectl("delete", "pod", demo.one("static-server"), "-n", NAMESPACE, "--force", "--grace-period=0")
    demo.settles(pods=3)
    kubectl("delete", "deployment/static-server", "-n", NAMESPACE)
    demo.settles(pods=2)
    kubectl("apply", "-k", ROOT / "k3d" / "apps")
    demo.settles(pods=3)


@contextmanager
def one_controller_down(demo: Demo) -> Iterator[None]:
    """Each replica in turn: its process is killed, and the kubelet starts another in the same sandbox."""
    for pod in scenario.controllers(demo.cluster):
        application(demo.cluster, SYSTEM, pod).kill()
        if pod == scenario.controllers(demo.cluster)[0]:
            yield
        demo.cluster.kubectl("wait", "--for=condition=Ready", f"pod/{pod}", "-n", SYSTEM, "--timeout=120s")


@contextmanager
def no_controller(demo: Demo) -> Iterator[None]:
    demo.cluster.kubectl("scale", CONTROLLER, "-n", SYSTEM, "--replicas=0")
    until(lambda: not scenario.controllers(demo.cluster))
    yield
    demo.cluster.kubectl("scale", CONTROLLER, "-n", SYSTEM, "--replicas=2")


@contextmanager
def eureka_killed(demo: Demo) -> Iterator[None]:
    """With all that it knew."""
    application(demo.cluster, NAMESPACE, demo.one("discovery-server")).kill()
    yield


@contextmanager
def kubelet_down(demo: Demo) -> Iterator[None]:
    demo.cluster.kubelet.kill()
    yield
    demo.cluster.kubelet.start()


@contextmanager
def containerd_down(demo: Demo) -> Iterator[None]:
    demo.cluster.containerd.end(signal.SIGKILL)
    yield
    demo.cluster.containerd.start()


@pytest.mark.parametrize(
    "broken", [one_controller_down, no_controller, eureka_killed, kubelet_down, containerd_down]
)
def test_a_change_while_something_is_broken_counts_and_nothing_else_changes(
    demo: Demo, broken: Callable[[Demo], AbstractContextManager[None]]
) -> None:
    pod = demo.one("bookinfo-ratings")
    with broken(demo):
        demo.label(pod, None)
    demo.settles(pods=2)
    demo.label(pod, scenario.VALUE)
    demo.settles()


# Images of other ages. The setting has one name; what was imported under it last, the next sandboxes are made of.


@pytest.fixture
def other_images(demo: Demo) -> Iterator[Demo]:
    """Afterwards sandboxes are of the present image again, and the pod that the test made anew, too."""
    yield demo
    demo.cluster.containerd.put(images.read(IMAGE))
    anew(demo)


def anew(demo: Demo) -> Sandbox:
    """The static server's pod made anew, and registered or in its turn; its new sandbox."""
    demo.cluster.kubectl("delete", "pod", demo.one("static-server"), "-n", NAMESPACE, "--timeout=120s")
    demo.cluster.kubectl("rollout", "status", "deployment/static-server", "-n", NAMESPACE, "--timeout=120s")
    return demo.cluster.sandbox(NAMESPACE, demo.one("static-server"))


def relabelled(demo: Demo) -> None:
    """Eureka follows the label of the static server's pod."""
    demo.settles()
    demo.label(demo.one("static-server"), None)
    demo.settles(pods=2)
    demo.label(demo.one("static-server"), scenario.VALUE)
    demo.settles()


def age(sandbox: Sandbox) -> str:
    """What its image was marked with."""
    lines = sandbox.proc("environ").read_text().split("\0")
    return next((line.partition("=")[2] for line in lines if line.startswith(f"{AGE}=")), "")


def old_image() -> Image:
    if not OLD_IMAGE.exists():
        pytest.skip(f"no {OLD_IMAGE.relative_to(ROOT)}: make old")
    return images.read(OLD_IMAGE).with_env(**{AGE: "old"})


def test_pods_of_an_old_image_and_of_the_new_one_have_one_controller(other_images: Demo) -> None:
    demo = other_images
    others = demo.cluster.sandbox(NAMESPACE, demo.one("bookinfo-ratings"))
    demo.cluster.containerd.put(old_image())
    old = anew(demo)
    assert (age(old), age(others)) == ("old", "")
    relabelled(demo)
    # the node gets the new image: what runs stays as it is, what starts is new
    demo.cluster.containerd.put(images.read(IMAGE))
    assert old.same()
    relabelled(demo)
    assert age(anew(demo)) == ""
    relabelled(demo)


def test_a_pod_of_the_new_image_takes_the_plan_of_an_old_controller(
    other_images: Demo, tmp_path: Path
) -> None:
    """Its repo is the one without a cluster, which is what there was."""
    demo, cluster = other_images, other_images.cluster
    old_image()
    port = free_port()
    inventory = tmp_path / "pods.json"
    inventory.write_text('{"apiVersion": "v1", "kind": "List", "items": []}')
    binding = {
        "apiVersion": "pidone.dev/v1alpha1",
        "kind": "TaskBinding",
        "metadata": {"name": "old"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "of-old"}},
            "taskSets": ["eureka"],
            "params": {"eureka": "http://discovery-server.demo.svc:8761/eureka"},
        },
    }
    (tmp_path / "bindings").mkdir()
    (tmp_path / "bindings" / "old.yaml").write_text(json.dumps(binding))
    words = ["standalone", "--listen", f"{node.ADDRESS}:{port}", "--inventory", str(inventory)]
    words += ["--tasks", str(OLD / "tasks"), "--tasks", str(tmp_path / "bindings")]
    controller = Process(
        [sys.executable, "-P", "-m", "pidone_controller", *words],
        tmp_path / "old.log",
        lambda: answers(f"http://{node.ADDRESS}:{port}/readyz"),
        {"PYTHONPATH": f"{OLD}:{OLD / 'controller'}"},
    )
    cluster.containerd.put(images.read(IMAGE).with_env(PIDONE_REPO=f"http://{node.ADDRESS}:{port}"))
    controller.start()
    try:
        with cluster.namespace("old") as namespace:
            container = {"name": "app", "image": "localhost/pidone-static-server:0.1.0"}
            cluster.make_pod(namespace, "of-old", node="", labels={"app": "of-old"}, containers=[container])
            address = cluster.wait_running(namespace, "of-old")["status"]["podIP"]
            sandbox = cluster.sandbox(namespace, "of-old")
            instance = f"OF-OLD {address}"
            inventory.write_text(cluster.kubectl("get", "pods", "-n", namespace, "-o", "json"))
            until(lambda: demo.eureka().get(instance) == "UP", PATIENCE_SECONDS, controller.told)
            cluster.label(namespace, "of-old", {"app": "of-nobody"})
            inventory.write_text(cluster.kubectl("get", "pods", "-n", namespace, "-o", "json"))
            until(lambda: instance not in demo.eureka(), PATIENCE_SECONDS, controller.told)
            assert sandbox.same()
    finally:
        controller.kill()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


def test_back_to_pause_and_on_again(demo: Demo) -> None:
    if not shutil.which(os.environ.get("CC", "gcc")):
        pytest.skip("no C compiler for pause: apt-get install gcc libc6-dev")
    cluster = demo.cluster
    pause = (candidates.build() / "pause").read_bytes()
    cluster.containerd.put(images.of_files({"pause": pause}, ["/pause"]), PAUSE)
    with cluster.containerd.sandboxes_of(PAUSE):
        sandbox = anew(demo)
        assert sandbox.program() == "/pause"
        # those of before go on, with one that has no process of ours among what is chosen
        demo.label(demo.one("static-server"), None)
        demo.settles(pods=2)
    assert sandbox.program() == "/pause"
    assert anew(demo).program() != "/pause"
    demo.settles()
