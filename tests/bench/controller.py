"""``python -m tests.bench.controller``: measures the repo. Prints figures; exit code 1 if a goal is missed.

The repo is a process of its own, with 100,000 pods. The pods that send requests are sockets of this process, each at a
loopback address of its own, since the repo identifies pods by their addresses.
"""

import json
import resource
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from random import Random
from statistics import quantiles
from subprocess import PIPE, Popen
from time import monotonic
from typing import Any
from uuid import UUID

import psutil
import trio

from pidone.counters import Counters
from pidone.http.message import Held, Request, Response
from pidone.http.server import serve
from pidone.journal import Journal
from pidone.plan.report import Report
from pidone.repo.client import RepoClient
from pidone_controller.pods.model import Pool
from pidone_controller.pods.projection import project
from pidone_controller.repo.plans import Plans
from pidone_controller.repo.server import Repo
from tests.controller.factories import binding, rules, task_set

PODS = 100_000
HELD = 20_000  # requests; or the limit of open files
WATCHED = 1_000  # pods with a held request while pods change
CHANGES = 500
RESTARTED = 10_000
CHECKED = {"check": "yes"}


def address(index: int) -> str:
    return f"127.{1 + (index >> 16)}.{index >> 8 & 255}.{index & 255}"


def manifest(index: int, labels: dict[str, str]) -> dict[str, Any]:
    """Return a pod as the API server sends it, without fields that the controller drops.

    A Deployment has 20 pods, a namespace has 50 Deployments.
    """
    deployment = index // 20
    number = sha256(str(index).encode()).hexdigest()
    return {
        "metadata": {
            "name": f"web-{deployment}-7c9d5f8b6d-{index % 20:05x}",
            "namespace": f"team-{deployment // 50}",
            "uid": str(UUID(number[:32])),
            "labels": {
                "app": f"web-{deployment}",
                "pod-template-hash": "7c9d5f8b6d",
                "tier": "web",
                **labels,
            },
            "annotations": {"checksum/config": f"{deployment:064x}"},
        },
        "spec": {
            "nodeName": f"node-{index % 500}",
            "serviceAccountName": "web",
            "containers": [
                {
                    "name": "app",
                    "ports": [{"name": "http", "containerPort": 8080}],
                    "env": [{"name": f"OPTION_{number}", "value": str(deployment)} for number in range(10)],
                    "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
                }
            ],
        },
        "status": {
            "phase": "Running",
            "hostIP": f"10.0.{index % 500 >> 8}.{index % 500 & 255}",
            "podIP": address(index),
            "podIPs": [{"ip": address(index)}],
            "containerStatuses": [
                {
                    "name": "app",
                    "containerID": f"containerd://{number}",
                    "state": {"running": {}},
                }
            ],
        },
    }


# The repo, in a process of its own: ``serve PODS SELECTED PORT``


async def run_repo(pods: int, selected: int, port: int) -> None:
    """Serve. Each line of the input is the index of a pod to change, and is answered with the time of the change."""
    pool = Pool()
    values = (manifest(index, CHECKED if index < selected else {}) for index in range(pods))
    plans = Plans(no_log)
    repo = Repo(plans, no_log)
    began = monotonic()
    plans.rule(
        rules(
            task_set(), binding(),
            task_set("other", task="other"), binding("other", sets="other", labels="period: '9'"),
        )
    )  # fmt: skip
    plans.replace([project(value, pool) for value in values])
    arrivals: Counter[int] = Counter()

    async def handle(request: Request) -> Response | Held:
        if request.path == "/v1/bundle":
            arrivals[int(monotonic())] += 1
        return await repo.begin(request)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(plans.run)
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1", backlog=4096)
        await nursery.start(partial(serve, handle, listeners, max_connections=HELD + 1000))
        say(port=listeners[0].socket.getsockname()[1], seconds=monotonic() - began)

        rest = b""
        async for data in trio.lowlevel.FdStream(0):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line == b"?":
                    say(
                        held=plans.waiting.requests,
                        most=max(arrivals.values(), default=0),
                        all=sum(arrivals.values()),
                    )
                    continue
                # the new label gives the pod another plan
                pod = project(manifest(int(line), {**CHECKED, "period": "9"}), pool)
                began = monotonic()
                plans.put(pod)
                say(put=began)
        nursery.cancel_scope.cancel()


def no_log(event: str, **values: object) -> None:
    """Log nothing: the cost of the log is not measured."""


def say(**values: float) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


# The pods, in this process


class Server:
    """The process of the repo."""

    def __init__(self, pods: int, selected: int, port: int = 0) -> None:
        arguments = ["serve", str(pods), str(selected), str(port)]
        self.process = Popen(
            [sys.executable, "-m", "tests.bench.controller", *arguments], stdin=PIPE, stdout=PIPE
        )
        self.start = self.read()
        self.port = int(self.start["port"])

    def read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        values: dict[str, float] = json.loads(self.process.stdout.readline())
        return values

    def ask(self, line: object) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()
        return self.read()

    @property
    def memory(self) -> float:
        """Private memory in bytes."""
        return float(psutil.Process(self.process.pid).memory_full_info().uss)


@contextmanager
def server(*arguments: int) -> Iterator[Server]:
    running = Server(*arguments)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


class FakePod:
    """One connection of a pod, which fetches its bundle or holds a request."""

    def __init__(self, port: int, index: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((address(index), 0))
        self.socket.connect(("127.0.0.1", port))
        self.etag = ""

    def fetch(self) -> None:
        """Fetch the bundle, and wait for a turn: together these pods ask faster than the repo sends new plans."""
        self._send("Prefer: wait=10\r\n")
        self.receive()

    def hold(self) -> None:
        """Send a request that the repo holds; ``receive`` waits for its answer."""
        self._send(f"If-None-Match: {self.etag}\r\nPrefer: wait=55\r\n")

    def receive(self) -> None:
        data = self.socket.recv(65536)
        head = data.partition(b"\r\n\r\n")[0].decode()
        assert head.startswith("HTTP/1.1 200"), head
        self.etag = next(line.partition(": ")[2] for line in head.split("\r\n") if line.startswith("etag"))

    def _send(self, headers: str) -> None:
        self.socket.sendall(f"GET /v1/bundle HTTP/1.1\r\nHost: repo\r\n{headers}\r\n".encode())


def holding_pods(repo: Server, number: int) -> list[FakePod]:
    """Return pods with a held request. As real pods they use one connection for the first request, and a second one."""
    pods = []
    for index in range(number):
        first = FakePod(repo.port, index)
        first.fetch()
        first.socket.close()
        pod = FakePod(repo.port, index)
        pod.etag = first.etag
        pod.hold()
        pods.append(pod)
    return pods


def memory() -> list[tuple[str, float, float]]:
    """Measure the memory of pods and of held requests."""
    with server(1, 0) as served:
        empty = served.memory
    with server(PODS, 0) as served:
        full = served.memory
        print(f"  {PODS} pods added in {served.start['seconds']:.1f} s")
        most = min(HELD, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100)
        pods = holding_pods(served, most)
        number = served.ask("?")["held"]
        held = served.memory
        assert number >= 0.9 * most, f"{number} of {most} are held; the others were answered after 55 s"
        for pod in pods:
            pod.socket.close()
    return [
        ("KB a watched pod", (full - empty) / PODS / 1024, 0.5),
        (f"MB in total with {PODS} pods", full / 2**20, 200),
        (f"KB a held request, {number:.0f} held", (held - full) / number / 1024, 6),
    ]


def latency() -> list[tuple[str, float, float]]:
    """Measure the time from the change of a pod in the repo until the pod has the answer."""
    times = []
    with server(WATCHED, WATCHED) as served:
        pods = holding_pods(served, WATCHED)
        for index, pod in enumerate(pods[:CHANGES]):
            put = served.ask(index)["put"]
            pod.receive()
            times.append((monotonic() - put) * 1000)
    cuts = quantiles(times, n=100)
    return [("ms from change to pod, p50", cuts[49], 5), ("ms from change to pod, p99", cuts[98], 50)]


class IdleConsumer:
    """Accepts every bundle and runs nothing."""

    def apply(self, data: bytes, *, trusted: bool) -> None:
        pass

    def status(self) -> Report:
        return Report()

    def look_at_files(self) -> bool:
        return False

    def repo_away(self) -> None:
        """Nothing to do."""

    def details(self) -> dict[str, Any]:
        return {}


async def restart() -> list[tuple[str, float, float]]:
    """Kill the repo of 10,000 pods, start it again on its port, and measure how its pods come back."""
    counters = [Counters() for _ in range(RESTARTED)]
    served = await trio.to_thread.run_sync(Server, RESTARTED, RESTARTED)
    async with trio.open_nursery() as nursery:
        for index, pod_counters in enumerate(counters):
            client = RepoClient(
                [f"http://127.0.0.1:{served.port}"], IdleConsumer(), Journal(echo=lambda _: None), pod_counters,
                claims={}, source=address(index), random=Random(index),
            )  # fmt: skip
            nursery.start_soon(client.poll)
            if index % 20 == 0:
                await trio.sleep(0.02)
        while served.ask("?")["held"] < RESTARTED:
            await trio.sleep(0.1)
        served.process.kill()
        killed = trio.current_time()
        served.process.wait()
        served = await trio.to_thread.run_sync(Server, RESTARTED, RESTARTED, served.port)
        ready = trio.current_time() - killed
        while (after := served.ask("?"))["held"] < RESTARTED:
            await trio.sleep(0.2)
        all_back = trio.current_time() - killed
        nursery.cancel_scope.cancel()
    served.process.kill()
    served.process.wait()
    print(f"  restart: ready after {ready:.1f} s, {after['all']:.0f} requests until all were held")
    return [
        (f"s until all of {RESTARTED} pods are held again", all_back, 60),
        ("requests in the worst second", after["most"], 2000),
    ]


def main() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if sys.argv[1:2] == ["serve"]:
        pods, selected, port = map(int, sys.argv[2:])
        trio.run(run_repo, pods, selected, port)
        return 0
    figures = [*memory(), *latency(), *trio.run(restart)]
    for what, figure, goal in figures:
        print(f"{figure:10.2f} {what} (goal {goal:g}){'' if figure <= goal else '  MISSED'}")
    return any(figure > goal for _, figure, goal in figures)


if __name__ == "__main__":
    sys.exit(main())
