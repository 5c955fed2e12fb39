"""The installation and the demo on a real node, as people make them, and what is seen of them from outside.

Nothing is changed for tests: ``kubectl apply -k k3d``, then ``k3d/demo``, with the images that make builds. Process 1
of every pod is the image as it is, which finds its repo by name.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.cluster import dns, node
from tests.cluster.apiserver import OURS, Object, kubectl_words
from tests.cluster.node import NodeCluster
from tests.cluster.process import until
from tests.cri import images, messages
from tests.cri.conftest import BUILD, BUSYBOX, IMAGE
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
SYSTEM, NAMESPACE = "pidone-system", "demo"
CONTROLLER = "deployment/pidone-controller"
ARCHIVES = {"image": IMAGE, "controller-image": BUILD / "controller.oci.tar", "apps": BUILD / "apps.oci.tar"}
LABEL, VALUE = "pidone.dev/registry", "eureka"
TABLE = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}


def missing(*targets: str) -> str | None:
    """Why the images are not there, with the remedy; None where they are."""
    absent = [name for name in targets or ARCHIVES if not ARCHIVES[name].exists()]
    return f"no build/{ARCHIVES[absent[0]].name}: make {' '.join(absent)}" if absent else None


@contextmanager
def installed(cluster: NodeCluster) -> Iterator[None]:
    """The controller, of its image and by its manifests, with pidone as process 1 of it and of all that comes."""
    cluster.containerd.put(images.read(IMAGE))
    cluster.containerd.load(ARCHIVES["controller-image"])
    with dns.names(cluster, node.ADDRESS):
        cluster.kubectl("apply", "--server-side", "-k", ROOT / "k3d")
        cluster.kubectl("rollout", "status", CONTROLLER, "-n", SYSTEM, "--timeout=120s")
        yield
        cluster.kubectl("delete", CONTROLLER, "-n", SYSTEM)


@dataclass(frozen=True)
class Demo:
    """What ``k3d/demo`` made on a node."""

    cluster: NodeCluster
    folder: Path

    def script(self, *words: str) -> str:
        """What ``k3d/demo`` prints. A kubectl is on the PATH of those who run it."""
        kubectl = self.folder / "kubectl"
        kubectl.write_text(f'#!/bin/sh\nexec {" ".join(kubectl_words())} "$@"\n')
        kubectl.chmod(0o755)
        environment = os.environ | {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "KUBECONFIG": str(self.cluster.kubeconfig),
            "HOME": str(self.folder),
        }
        command = [str(ROOT / "k3d" / "demo"), *words]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def live(self, selector: str = LABEL) -> dict[str, Object]:
        """The pods of a selector by their names, without those that are being deleted."""
        words = ("get", "pods", "-n", NAMESPACE, "-l", selector, "--output=json")
        found = json.loads(self.cluster.kubectl(*words))["items"]
        return {one["metadata"]["name"]: one for one in found if "deletionTimestamp" not in one["metadata"]}

    def one(self, app: str) -> str:
        """The name of an application's only pod."""
        (name,) = self.live(f"app={app}")
        return name

    def eureka(self) -> dict[str, str]:
        """The state of each instance by application and address; nothing while Eureka does not answer."""
        (server,) = self.live("app=discovery-server").values()
        url = f"http://{server['status']['podIP']}:8761/eureka/apps"
        try:
            answer = httpx.get(url, headers={"Accept": "application/json"}, trust_env=False, timeout=5)
            apps = answer.raise_for_status().json()["applications"]["application"]
        except httpx.HTTPError:
            return {}
        return {f"{app['name']} {one['ipAddr']}": one["status"] for app in apps for one in app["instance"]}

    def binding(self) -> list[str]:
        """MATCHED, APPLIED, REJECTED and READY, as ``kubectl get taskbindings`` has them."""
        path = f"{OURS}/namespaces/{NAMESPACE}/taskbindings"
        table = self.cluster.http.get(path, headers=TABLE).raise_for_status().json()
        titles = [column["name"].upper() for column in table["columnDefinitions"]]
        (row,) = (dict(zip(titles, row["cells"], strict=True)) for row in table["rows"])
        return [str(row[title]) for title in ("MATCHED", "APPLIED", "REJECTED", "READY")]

    def settles(self, pods: int = 3, timeout: float = PATIENCE_SECONDS, **states: str) -> None:
        """Eureka has the labelled pods, so many, and no others, and the binding tells of as many.

        They are UP but for applications whose name is in ``states`` (``static_server="DOWN"``).

        Raises:
            AssertionError: not in time.
        """

        def expected() -> Mapping[str, str]:
            labels = {one["status"].get("podIP"): one["metadata"]["labels"] for one in self.live().values()}
            return {
                f"{of['app'].upper()} {ip}": states.get(of["app"].replace("-", "_"), "UP")
                for ip, of in labels.items()
            }

        def settled() -> bool:
            if self.eureka() != expected() or len(expected()) != pods:
                return False
            return self.binding() == [str(pods), str(pods), "0", "True"]

        def told() -> str:
            pods_there = self.cluster.kubectl("get", "pods", "-A", "-o", "wide")
            head = f"Eureka {self.eureka()}, not {expected()}; binding {self.binding()}"
            return f"{head}\n{pods_there}{self.views()}"

        until(settled, timeout, told)

    def views(self) -> str:
        """What each controller knows of the pods, asked from its own loopback."""
        said = []
        for pod in controllers(self.cluster):
            try:
                pid = application(self.cluster, SYSTEM, pod).pid
            except (
                psutil.NoSuchProcess,
                KeyError,
                ValueError,
            ) as error:  # its container has not started, or has ended
                said.append(f"{pod} does not run: {error!r}\n")
                continue
            for url in ("/v1/pods", *(f"/v1/pods/{NAMESPACE}/{name}" for name in self.live("app"))):
                words = ["nsenter", "-n", "-t", str(pid)]
                words += [BUSYBOX, "wget", "-q", "-T", "5", "-O", "-", f"http://127.0.0.1:6060{url}"]
                done = subprocess.run(
                    words, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
                )
                said.append(f"{pod} {url}: {done.stdout}{done.stderr}\n")
        return "".join(said)

    def label(self, pod: str, value: str | None) -> None:
        self.cluster.label(NAMESPACE, pod, {LABEL: value})

    @contextmanager
    def standing_still(self, pod: str) -> Iterator[None]:
        """The application's process is stopped in the block: it answers nothing."""
        process = application(self.cluster, NAMESPACE, pod)
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)


@contextmanager
def demo(cluster: NodeCluster, folder: Path) -> Iterator[tuple[Demo, str]]:
    """Installation and demo, and what ``k3d/demo`` said."""
    cluster.containerd.load(ARCHIVES["apps"])
    with installed(cluster):
        found = Demo(cluster, folder)
        said = found.script()
        yield found, said
        found.script("delete")


def controllers(cluster: NodeCluster) -> list[str]:
    names = cluster.kubectl(
        *("get", "pods", "-n", SYSTEM, "-l", "app.kubernetes.io/name=pidone-controller"), "-o", "name"
    )
    return [name.removeprefix("pod/") for name in names.split()]


def application(cluster: NodeCluster, namespace: str, pod: str) -> psutil.Process:
    """The first process of the pod's only container."""
    (status,) = cluster.pod(namespace, pod)["status"]["containerStatuses"]
    identity = status["containerID"].removeprefix("containerd://")
    return psutil.Process(cluster.containerd.pid(messages.CONTAINER_STATUS_OF, container_id=identity))


def sandboxes(cluster: NodeCluster) -> dict[str, tuple[str, int, float]]:
    """Of each pod that has one that is ready: its id, and of its process 1 pid and time of start."""
    found = {}
    for one in cluster.containerd.call(messages.LIST_SANDBOXES)["items"]:
        if one["state"] == messages.SandboxState.READY:
            about = one["metadata"]
            pid = cluster.containerd.pid(messages.SANDBOX_STATUS, pod_sandbox_id=one["id"])
            key = f"{about['namespace']}/{about['name']}"
            assert key not in found, f"{key} has two"
            found[key] = (one["id"], pid, psutil.Process(pid).create_time())
    return found
