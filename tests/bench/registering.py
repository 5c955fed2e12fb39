"""Real pods with a probe and a registration that follows it: their memory, and the time until they are registered."""

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from pidone.http.message import Request, Response
from pidone.plan.digest import canonical
from pidone.plan.format import encode_bundle
from pidone.plan.model import Phase, Pod
from tests import pidns
from tests.bench import world as servers
from tests.bench.candidates import LAZY
from tests.bench.measure import new_address, until
from tests.registries.world import World

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "build/image-root"
OPTIONS = ("-S", "-s", "-P", "-B", *LAZY)  # as in the image, see k3d/image/build.py
PODS = 5  # with a registration, and as many without
LEASE_SECONDS = 4
BEATS = 2  # before memory is read
START_SECONDS = 40.0  # for a pod to be registered, on a busy machine


class Repo(servers.World):
    """Gives each pod tasks of its own. Its application answers probes with 503 until the pod is in ``ready``."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: dict[str, list[dict[str, Any]]] = {}
        self.ready: set[str] = set()
        self.first: dict[str, float] = {}  # the time of the first probe that passed, by pod

    async def _handle(self, request: Request) -> Response:
        if request.path == "/":
            if request.peer not in self.ready:
                return Response(503)
            self.first.setdefault(request.peer, time.time())
        return await super()._handle(request)

    def _bundle(self, address: str) -> bytes:
        pod = Pod(f"pod-{address.replace('.', '-')}", "bench", f"uid-{address}", address)
        return canonical(encode_bundle(self.tasks[address], phase=Phase.RUNNING, pod=pod))

    def probe(self) -> dict[str, Any]:
        get = {"host": "127.0.0.1", "port": int(self.url.rpartition(":")[2]), "path": "/"}
        return {"name": "ready", "probe": {"httpGet": get, "periodSeconds": 1}}


class ActivePod:
    """A process 1 with tasks."""

    def __init__(self, address: str, process: pidns.ProcessOne, log: Path) -> None:
        self.address = address
        self.pid, self._log = process.pid, log

    def time_of(self, task: str, state: str) -> float | None:
        """Return when a task has first had a state, from the pod's log; None if it has not."""
        for line in self._log.read_text(errors="replace").splitlines():
            if re.search(rf"\btask={task}\b.*\bstate={state}\b", line):
                return datetime.fromisoformat(line.partition(" ")[0]).timestamp()
        return None

    def wait(self, task: str, state: str) -> float:
        """Return when a task has first had a state. Raises ``RuntimeError`` if it does not get it."""
        if not until(partial(self.time_of, task, state), START_SECONDS):
            raise RuntimeError(f"{task} is not {state}; the log ends with\n{self._log.read_text()[-1500:]}")
        return self.time_of(task, state) or 0.0

    def private(self) -> int:
        """Return the private memory in KiB."""
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))


def program(cache: Path) -> tuple[str, list[str], dict[str, str]]:
    """Return the program of a pod for people, its command and its environment: that of the image, if it is built."""
    python = next(IMAGE.glob("usr/bin/python3.*"), None)
    chroot = shutil.which("chroot")
    if python is not None and chroot is not None and os.geteuid() == 0:
        (IMAGE / "proc").mkdir(exist_ok=True)
        enter = ["/bin/sh", "-c", 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"', str(IMAGE)]
        words = [*enter, f"/usr/bin/{python.name}", *OPTIONS, "/pidone"]
        return f"the image's {python.name}", words, {}
    command = [sys.executable, *LAZY[:3], "-X", f"pycache_prefix={cache}", "-m", "pidone"]
    return "this clone's Python", command, {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}


@contextmanager
def active(repo: Repo, folder: Path, register: Mapping[str, Any] | None) -> Iterator[ActivePod]:
    """Start a pod with a probe, and with a registration if there is one. It is killed at the end of the block."""
    tasks = [repo.probe()]
    if register is not None:
        follow = {"register": {**register, "follow": "ready"}, "needs": ["ready.healthy"]}
        tasks.append({"name": "registration", **follow})
    with pod_with(repo, folder, tasks) as pod:
        yield pod


@contextmanager
def pod_with(repo: Repo, folder: Path, tasks: list[dict[str, Any]]) -> Iterator[ActivePod]:
    """Start a pod with these tasks. It is killed at the end of the block."""
    address = new_address()
    repo.tasks[address] = tasks
    repo.with_plan.add(address)
    log = folder / f"pod-{address}.log"
    _, command, env = program(folder / "cache")
    env |= {"PIDONE_REPO": repo.url, "PIDONE_POD_IP": address, "PIDONE_POD_UID": f"uid-{address}"}
    env |= {"PIDONE_LINGER": "1"}
    with log.open("wb") as output, pidns.process_one(command, env=env, output=output) as process:
        yield ActivePod(address, process, log)


def of_pods(world: World, folder: Path) -> Iterator[str]:
    """Return the time from the first probe that passes until a pod knows that it is registered, and its memory.

    All pods run at once, as on a node. Half of them have no registration.
    """
    numbers = iter(range(300, 400))

    def register() -> dict[str, Any]:
        return {world.name: world.config("pods", next(numbers), world.addresses, LEASE_SECONDS)}

    with Repo() as repo, ExitStack() as stack:
        with active(repo, folder, register()) as pod:  # it may compile, and so may the server
            repo.ready.add(pod.address)
            pod.wait("registration", "registered")

        with_it = [stack.enter_context(active(repo, folder, register())) for _ in range(PODS)]
        without = [stack.enter_context(active(repo, folder, None)) for _ in range(PODS)]
        for pod in (*with_it, *without):
            pod.wait("ready", "unhealthy")
        times = list[float]()
        for pod in with_it:
            repo.ready.add(pod.address)
            times.append(1000 * (pod.wait("registration", "registered") - repo.first[pod.address]))
        repo.ready |= {pod.address for pod in without}
        for pod in without:
            pod.wait("ready", "healthy")

        time.sleep(BEATS * LEASE_SECONDS * 2 / 3)  # the longest interval is two thirds of a lease
        plain, full = ([pod.private() for pod in pods] for pods in (without, with_it))
    yield f"from the first passed probe until registered: {median(times):.0f} ms ({min(times):.0f}-{max(times):.0f} ms)"
    added = median(full) - median(plain)
    yield (
        f"private memory with {program(folder)[0]}: {median(full) / 1024:.2f} MiB with a probe and a registration, "
        f"{median(plain) / 1024:.2f} MiB with a probe; it adds {added / 1024:.2f} MiB "
        f"({min(full) - max(plain)} to {max(full) - min(plain)} KiB)"
    )
