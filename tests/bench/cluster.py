"""``python -m tests.bench.cluster``: measures registration, deregistration, start and memory of pods on a real node.

Controller, Eureka, kubelet and containerd are real ones (root; make image controller-image apps cluster). Prints one
table with medians, maxima, and ratios to pause in the same run. Nothing is asserted.
"""

import argparse
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
import psutil

from tests import folders
from tests.bench import candidates
from tests.cluster import network, node, scenario
from tests.cluster.apiserver import Object
from tests.cluster.node import NodeCluster
from tests.cluster.process import until
from tests.cri import images, messages
from tests.cri.conftest import BUILD, BUSYBOX, IMAGE, busybox

NAMESPACE = "bench"
TOGETHER = 20  # pods that start at once
EUREKA_PORT = 8761
BINDING = """
apiVersion: pidone.dev/v1alpha1
kind: TaskBinding
metadata: {name: eureka}
spec:
  podSelector: {matchLabels: {registry: eureka}}
  taskSets: [eureka]
  params: {eureka: "http://discovery-server.demo.svc:8761/eureka"}
"""
SERVE = f"{BUSYBOX} httpd -f -p 8080 -h /"
SLOW_END = f"trap 'sleep 1; exit 0' TERM; {SERVE} & wait"
QUICK_END = f"trap 'exit 0' TERM; {SERVE} & wait"

BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:5.0f} s  {text}", file=sys.stderr, flush=True)


def make(cluster: NodeCluster, name: str, script: str, **labels: str) -> None:
    container: Object = {
        "name": "app",
        "image": cluster.containerd.busybox,
        "imagePullPolicy": "Never",
        "command": [BUSYBOX, "sh", "-c", f"echo ok > /index.html; {script}"],
    }
    cluster.make_pod(*(NAMESPACE, name), node="", labels={"app": name, **labels}, containers=[container])


def when(condition: Callable[[], object], timeout: float = 60) -> float:
    """Return the time at which the condition holds."""
    until(condition, timeout)
    return time.monotonic()


class Eureka:
    """Reads the demo's Eureka."""

    def __init__(self, cluster: NodeCluster) -> None:
        words = ("get", "pods", "-n", "demo", "-l", "app=discovery-server", "-o")
        self.address = cluster.kubectl(*words, "jsonpath={.items[0].status.podIP}")
        self.http = httpx.Client(headers={"Accept": "application/json"}, trust_env=False, timeout=5)

    def has(self, app: str) -> bool:
        answer = self.http.get(f"http://{self.address}:{EUREKA_PORT}/eureka/apps/{app}")
        return answer.is_success and answer.json()["application"]["instance"][0]["status"] == "UP"


def address(cluster: NodeCluster, name: str) -> str:
    return str(cluster.pod(NAMESPACE, name)["status"].get("podIP", ""))


def answers(http: httpx.Client, ip: str) -> bool:
    try:
        return http.get(f"http://{ip}:8080/", timeout=1).is_success
    except httpx.HTTPError:
        return False


def registering(cluster: NodeCluster, eureka: Eureka, repeats: int) -> tuple[list[float], list[float]]:
    """Return the seconds from the first good answer, and from Running, until the pod is UP in Eureka."""
    from_answer, from_running = [], []
    for index in range(repeats):
        name = f"starts-{index}"
        # every second application starts late, after more than one probe period
        delay = 0.0 if index % 2 else random.uniform(3, 9)
        make(cluster, name, f"sleep {delay:.2f}; exec {SERVE}", registry="eureka")
        running = when(lambda: cluster.pod(NAMESPACE, name)["status"]["phase"] == "Running")  # noqa: B023
        ip = address(cluster, name)
        answered = when(lambda: answers(eureka.http, ip))  # noqa: B023
        registered = when(lambda: eureka.has(name.upper()))  # noqa: B023
        from_answer.append(registered - answered)
        if not delay:
            from_running.append(registered - running)
        cluster.delete_pod(NAMESPACE, name, seconds=0)
    return from_answer, from_running


def leaving(cluster: NodeCluster, eureka: Eureka, script: str, repeats: int) -> list[tuple[float, float]]:
    """Return the seconds from kubectl delete until the pod is out of Eureka, and until its application has ended."""
    times = []
    for index in range(repeats):
        name = f"ends-{index}"
        make(cluster, name, script, registry="eureka")
        until(lambda: eureka.has(name.upper()), 60)  # noqa: B023
        process = scenario.application(cluster, NAMESPACE, name)
        began = time.monotonic()
        cluster.delete_pod(NAMESPACE, name)
        out = ended = 0.0

        def both() -> bool:
            nonlocal out, ended
            now = time.monotonic()
            ended = ended or (0.0 if process.is_running() and process.status() != "zombie" else now)  # noqa: B023
            out = out or (0.0 if eureka.has(name.upper()) else time.monotonic())  # noqa: B023
            return bool(out and ended)

        until(both)
        times.append((out - began, ended - began))
        until(lambda: not exists(cluster, name), 60)  # noqa: B023
    return times


def exists(cluster: NodeCluster, name: str) -> bool:
    return bool(cluster.kubectl("get", "pod", name, "-n", NAMESPACE, "--ignore-not-found"))


def memory(pid: int) -> dict[str, float]:
    """Return the KiB charged to the pod of this process 1: all memory, and anonymous memory."""
    lines = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    if "memory" in lines:
        pod = Path("/sys/fs/cgroup/memory") / Path(lines["memory"]).parent.relative_to("/")
        usage, key = pod / "memory.usage_in_bytes", "total_rss"
    else:
        pod = Path("/sys/fs/cgroup") / Path(lines[""]).parent.relative_to("/")
        usage, key = pod / "memory.current", "anon"
    stat = dict(line.split() for line in (pod / "memory.stat").read_text().splitlines())
    return {"all": int(usage.read_text()) / 1024, "anonymous": int(stat[key]) / 1024}


def starting(cluster: NodeCluster) -> tuple[float, list[dict[str, float]]]:
    """Return the seconds until 20 pods that were created at once run, and then the memory of each."""
    names = [f"together-{index}" for index in range(TOGETHER)]
    began = time.monotonic()
    for name in names:
        make(cluster, name, "exec sleep 1000")

    def all_run() -> bool:
        pods = cluster.request("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
        return [pod["status"]["phase"] for pod in pods] == ["Running"] * TOGETHER

    seconds = when(all_run, 120) - began
    time.sleep(5)  # until each pod has the answer to its request for a plan, and dozes
    charged = [memory(cluster.sandbox(NAMESPACE, name).pid) for name in names]
    cluster.request("DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods?gracePeriodSeconds=0")
    until(lambda: not cluster.request("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")["items"], 60)
    until(lambda: not any(each["metadata"]["namespace"] == NAMESPACE for each in sandboxes(cluster)), 60)
    return seconds, charged


def sandboxes(cluster: NodeCluster) -> list[Object]:
    """Return all sandboxes, also those that are ending."""
    items: list[Object] = cluster.containerd.call(messages.LIST_SANDBOXES)["items"]
    return items


@contextmanager
def registry(cluster: NodeCluster) -> Iterator[Eureka]:
    """Install the demo's Eureka, and a binding of the ready-made set to pods with a label."""
    cluster.containerd.load(scenario.ARCHIVES["apps"])
    apps = scenario.ROOT / "k3d" / "apps"
    cluster.kubectl("apply", "-f", apps / "namespace.yaml")
    cluster.kubectl("apply", "-n", "demo", "-f", apps / "discovery.yaml")
    cluster.kubectl("rollout", "status", "deployment/discovery-server", "-n", "demo", "--timeout=110s")
    cluster.make_namespace(NAMESPACE)
    cluster.kubectl("apply", "-n", NAMESPACE, "-f", scenario.ROOT / "tasks" / "eureka.yaml")
    cluster.kubectl("apply", "-n", NAMESPACE, "-f", "-", stdin=BINDING)
    eureka = Eureka(cluster)
    yield eureka
    eureka.http.close()


def line(what: str, goal: str, figure: str) -> None:
    print(f"| {what} | {goal} | {figure} |", flush=True)


def spread(seconds: list[float]) -> str:
    return f"{median(seconds):.2f} s, at most {max(seconds):.2f} s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.cluster", description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="of 20 pods, with each image")
    arguments = parser.parse_args()
    if reason := node.missing() or scenario.missing():
        print(reason, file=sys.stderr)
        return 1
    with (
        network.private(),
        node.node(folders.reserve(BUILD / "node")) as cluster,
        scenario.installed(cluster),
        registry(cluster) as eureka,
    ):
        cluster.containerd.put(busybox(BUSYBOX, "sh"), cluster.containerd.busybox)
        print(f"{platform.machine()}, {psutil.cpu_count()} processors, load {psutil.getloadavg()[0]:.1f}\n")
        print("| | goal | |\n| --- | --- | --- |", flush=True)
        answered, running = registering(cluster, eureka, arguments.repeats)
        line("first good answer → UP in Eureka", "<= 1 s", spread(answered))
        line("Running → UP in Eureka, if it answers at once", "", spread(running))
        slow = leaving(cluster, eureka, SLOW_END, arguments.repeats // 2)
        before = sum(out < ended for out, ended in slow)
        figure = f"{spread([out for out, _ in slow])}; {before} of {len(slow)} before the end"
        line("delete → out of Eureka, application ends after 1 s", "before its end", figure)
        quick = leaving(cluster, eureka, QUICK_END, arguments.repeats // 2)
        line("delete → out of Eureka, application ends at once", "<= 2 s", spread([out for out, _ in quick]))

        candidates.build()
        pause = images.of_files({"pause": (candidates.BUILD / "pause").read_bytes()}, ["/pause"])
        times: dict[str, list[float]] = {"pidone": [], "pause": []}
        charged: dict[str, list[dict[str, float]]] = {"pidone": [], "pause": []}
        for index in range(2 * arguments.rounds):
            name = ("pidone", "pause", "pause", "pidone")[index % 4]
            cluster.containerd.put(images.read(IMAGE) if name == "pidone" else pause)
            seconds, each = starting(cluster)
            say(f"{name}: {TOGETHER} pods in {seconds:.2f} s")
            times[name].append(seconds)
            charged[name] += each
        ratio = median(times["pidone"]) / median(times["pause"])
        figure = f"{median(times['pidone']):.2f} s against {median(times['pause']):.2f} s: {ratio:.2f}x"
        line(f"{TOGETHER} pods created at once → all run, pidone against pause", "<= 1.1x", figure)
        for part in ("all", "anonymous"):
            ours, theirs = (median(pod[part] for pod in charged[name]) for name in ("pidone", "pause"))
            figure = f"{ours:.0f} KiB against {theirs:.0f} KiB: {ours / theirs:.2f}x"
            line(f"memory charged to a pod without tasks, {part}", "<= 1.0x", figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
