"""What the repo costs: ``python -m tests.bench.controller``. Prints figures, and ends with 1 where a goal is missed.

The repo is a process of its own, with 100,000 pods; the pods that ask are sockets here, each at a loopback
address of its own, so that the repo sees as many addresses as there are pods.
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
HELD = 20_000  # or as many as there may be open files
WATCHED = 1_000  # pods of which one changes
CHANGES = 500
RESTARTED = 10_000
CHECKED = {"check": "yes"}


def address(index: int) -> str:
    return f"127.{1 + (index >> 16)}.{index >> 8 & 255}.{index & 255}"


def manifest(index: int, labels: dict[str, str]) -> dict[str, Any]:
    """As an API server sends it, with what is dropped left out; 20 pods a Deployment, 50 Deployments a namespace."""
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


# The repo, in a process of its own: ``serve PODS CHOSEN PORT``


async def repo(pods: int, chosen: int, port: int) -> None:
    """Serve; each line that comes in is the index of a pod to change, and one with the time goes out."""
    pool = Pool()
    values = (manifest(index, CHECKED if index < chosen else {}) for index in range(pods))
    plans = Plans(no_log)
    found = Repo(plans, no_log)
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
        return await found.begin(request)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(plans.run)
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1", backlog=4096)
        await nursery.start(partial(serve, handle, listeners, max_connections=HELD + 1000))
        say(port=listeners[0].socket.getsockname()[1], seconds=monotonic() - began)
        told = trio.lowlevel.FdStream(0)
        rest = b""
        async for data in told:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line == b"?":
                    say(
                        held=plans.waiting.requests,
                        most=max(arrivals.values(), default=0),
                        all=sum(arrivals.values()),
                    )
                    continue
                # the other phase is another envelope; a label that no binding asks for would be no news
                # its labels make another plan of it
                pod = project(manifest(int(line), {**CHECKED, "period": "9"}), pool)
                began = monotonic()
                plans.put(pod)
                say(put=began)
        nursery.cancel_scope.cancel()


def no_log(event: str, **values: object) -> None:
    """A log is not what is measured."""


def say(**values: float) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


# The pods, here


class Server:
    """The process of the repo."""

    def __init__(self, pods: int, chosen: int, port: int = 0) -> None:
        arguments = ["serve", str(pods), str(chosen), str(port)]
        self.process = Popen(
            [sys.executable, "-m", "tests.bench.controller", *arguments], stdin=PIPE, stdout=PIPE
        )
        self.began = self.read()
        self.port = int(self.began["port"])

    def read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        read: dict[str, float] = json.loads(self.process.stdout.readline())
        return read

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


class Asking:
    """One pod's connection: asks for its bundle, and then holds."""

    def __init__(self, port: int, index: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((address(index), 0))
        self.socket.connect(("127.0.0.1", port))
        self.known = ""

    def hold(self) -> None:
        self._send(f"If-None-Match: {self.known}\r\nPrefer: wait=55\r\n")

    def first(self) -> None:
        self._send("")
        self.answer()

    def answer(self) -> None:
        data = self.socket.recv(65536)
        head = data.partition(b"\r\n\r\n")[0].decode()
        assert head.startswith("HTTP/1.1 200"), head
        self.known = next(line.partition(": ")[2] for line in head.split("\r\n") if line.startswith("etag"))

    def _send(self, more: str) -> None:
        self.socket.sendall(f"GET /v1/bundle HTTP/1.1\r\nHost: repo\r\n{more}\r\n".encode())


def holding(served: Server, number: int) -> list[Asking]:
    """As pods do: one connection for the first question, and another for the one that is held."""
    asking = []
    for index in range(number):
        first = Asking(served.port, index)
        first.first()
        first.socket.close()
        one = Asking(served.port, index)
        one.known = first.known
        one.hold()
        asking.append(one)
    return asking


def memory() -> list[tuple[str, float, float]]:
    """Of pods, and of held requests."""
    with server(1, 0) as served:
        empty = served.memory
    with server(PODS, 0) as served:
        full = served.memory
        print(f"  {PODS} pods read and put in {served.began['seconds']:.1f} s")
        most = min(HELD, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100)
        asking = holding(served, most)
        counted = served.ask("?")["held"]
        held = served.memory
        assert counted >= 0.9 * most, f"{counted} of {most} are held; the others were answered after 55 s"
        for one in asking:
            one.socket.close()
    return [
        ("KB a watched pod", (full - empty) / PODS / 1024, 0.5),
        (f"MB in all with {PODS} pods", full / 2**20, 200),
        (f"KB a held request, {counted:.0f} held", (held - full) / counted / 1024, 6),
    ]


def latency() -> list[tuple[str, float, float]]:
    """From the change of a pod in the repo to the answer in the pod's hand."""
    took = []
    with server(WATCHED, WATCHED) as served:
        asking = holding(served, WATCHED)
        for index, one in enumerate(asking[:CHANGES]):
            put = served.ask(index)["put"]
            one.answer()
            took.append((monotonic() - put) * 1000)
    cuts = quantiles(took, n=100)
    return [("ms from change to pod, p50", cuts[49], 5), ("ms from change to pod, p99", cuts[98], 50)]


class Quiet:
    """A pod that takes every bundle and does nothing with it."""

    def apply(self, data: bytes, *, trusted: bool) -> None:
        pass

    def status(self) -> Report:
        return Report()

    def details(self) -> dict[str, Any]:
        return {}


async def restart() -> list[tuple[str, float, float]]:
    """The repo of 10,000 pods is killed, and begun anew on its port."""
    counters = [Counters() for _ in range(RESTARTED)]
    served = await trio.to_thread.run_sync(Server, RESTARTED, RESTARTED)
    async with trio.open_nursery() as nursery:
        for index, each in enumerate(counters):
            client = RepoClient(
                [f"http://127.0.0.1:{served.port}"], Quiet(), Journal(echo=lambda _: None), each,
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
    print(f"  restart: there again after {ready:.1f} s, {after['all']:.0f} requests until all were held")
    return [
        (f"s until all of {RESTARTED} pods are held again", all_back, 60),
        ("requests in the worst second", after["most"], 2000),
    ]


def main() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if sys.argv[1:2] == ["serve"]:
        pods, chosen, port = map(int, sys.argv[2:])
        trio.run(repo, pods, chosen, port)
        return 0
    figures = [*memory(), *latency(), *trio.run(restart)]
    for what, figure, goal in figures:
        print(f"{figure:10.2f} {what} (goal {goal:g}){'' if figure <= goal else '  MISSED'}")
    return any(figure > goal for _, figure, goal in figures)


if __name__ == "__main__":
    sys.exit(main())
