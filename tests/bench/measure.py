"""Measures the figures of ``tests.bench.pid1``."""

import http.client
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median

from tests.bench.candidates import BUILD, Candidate
from tests.bench.world import METRICS, World

START_SECONDS = 20.0  # in which an active candidate must run its tasks

_numbers = count(1)


@dataclass
class Running:
    """A process 1, by its pid outside of its namespace, and the helper that makes orphans in the namespace."""

    candidate: Candidate
    pid: int
    address: str
    _orders: socket.socket | None = None

    def make_orphans(self, number: int) -> None:
        """Make orphans, and return when all were made."""
        assert self._orders is not None
        self._orders.sendall(f"{number}\n".encode())
        assert self._orders.recv(16) == b"made\n", f"{self.candidate.name} has ended"

    def pids(self) -> list[int]:
        """Return process 1 and its descendants: tini and dumb-init have a child, sleep."""
        pids = [self.pid]
        for pid in pids:
            pids += _children(pid)
        return pids

    def cpu(self) -> int:
        """Return the processor time of process 1 without children, in nanoseconds; execve does not reset it."""
        return sum(
            int(stat.read_text().split()[0]) for stat in Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        )

    def children_cpu(self) -> float:
        """Return the processor time of reaped children in seconds, in steps of 10 ms."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    def zombies(self) -> int:
        return sum(map(_is_zombie, _children(self.pid)))

    def private(self) -> int:
        """Return the private memory of all processes in KiB."""
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Private_"):
                    total += int(line.split()[1])
        return total

    def switches(self) -> int:
        """Return the number of voluntary context switches of all threads."""
        total = 0
        for pid in self.pids():
            for status in Path(f"/proc/{pid}/task").glob("*/status"):
                for line in status.read_text().splitlines():
                    if line.startswith("voluntary"):
                        total += int(line.split()[1])
        return total

    def exe(self) -> str:
        return Path(f"/proc/{self.pid}/exe").readlink().name


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2][1:2] == b"Z"
    except OSError:
        return False


def environment(candidate: Candidate, world: World, address: str) -> dict[str, str]:
    env = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", **candidate.env}
    if candidate.active:
        env |= {"PIDONE_REPO": world.url, "PIDONE_POD_IP": address, "PIDONE_POD_UID": f"u{address}"}
        env |= {"PIDONE_LINGER": "1"}  # with 0 it would doze before the plan comes
    return env


def new_address() -> str:
    number = next(_numbers)
    return f"127.1.{number >> 8 & 255}.{number & 255}"


@contextmanager
def running(candidate: Candidate, world: World, *, orphans: bool = False) -> Iterator[Running]:
    """Start one instance in a PID namespace of its own; it is killed at the end of the block."""
    address = new_address()
    ours, theirs = socket.socketpair() if orphans else (None, None)
    number = theirs.fileno() if theirs else 0
    if ours:
        ours.settimeout(30)
    process = subprocess.Popen(
        [BUILD / "namespace", "run", *candidate.options(), str(number), *candidate.command],
        env=environment(candidate, world, address),
        pass_fds=[number] if theirs else [],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    if theirs:
        theirs.close()
    try:
        assert process.stdout is not None
        yield Running(candidate, int(process.stdout.readline()), address, ours)
    finally:
        process.kill()  # which ends the namespace
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        if ours:
            ours.close()


def until(good: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not good():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def wait_active(instance: Running, world: World, last: str = "beat") -> bool:
    """Wait until an active instance has run its tasks, of which ``last`` runs last, and scrape it; True if it works."""
    if not instance.candidate.active:
        return True
    if instance.address not in world.with_plan:
        world.put(instance.address, with_plan=True)
    if not until(lambda: world.count(instance.address, last) > 0, START_SECONDS):
        return False
    scrape = http.client.HTTPConnection(instance.address, METRICS, timeout=5)
    try:
        scrape.request("GET", "/metrics")
        return scrape.getresponse().status == 200
    except OSError:
        return False
    finally:
        scrape.close()


@dataclass
class Idle:
    """The figures of idle instances, while all run."""

    private: float  # KiB, of the median instance
    wakeups: float  # in 5 s, of the median instance
    requests: float  # in the same 5 s
    instances: int
    failed: int  # instances that did not start


def idle(candidates: list[Candidate], world: World, instances: int, seconds: float) -> dict[str, Idle]:
    figures: dict[str, Idle] = {}
    with ExitStack() as stack:
        # all instances of all candidates run at once, so that they share pages as on a node
        started = [
            stack.enter_context(running(candidate, world))
            for _ in range(instances)
            for candidate in candidates
        ]
        for instance in started:
            if instance.candidate.active:
                world.put(instance.address, with_plan=True)
        up = {instance.address: wait_active(instance, world) for instance in started}
        time.sleep(3)  # a report is sent up to a second after the change

        private = {instance.address: instance.private() for instance in started}
        switches = {instance.address: instance.switches() for instance in started}
        kinds = ("probe", "beat", "report", "bundle", "doorbell")
        requests = {instance.address: world.count(instance.address, *kinds) for instance in started}
        time.sleep(seconds)

        for candidate in candidates:
            group = [
                instance for instance in started if instance.candidate is candidate and up[instance.address]
            ]
            if not group:
                continue
            share = 5 / seconds
            new_switches = [each.switches() - switches[each.address] for each in group]
            new_requests = [world.count(each.address, *kinds) - requests[each.address] for each in group]
            figures[candidate.name] = Idle(
                private=median(private[each.address] for each in group),
                wakeups=share * median(new_switches),
                requests=share * median(new_requests),
                instances=len(group),
                failed=instances - len(group),
            )
    return figures


def yardstick() -> float:
    """Return the CPU milliseconds of a fixed program: figures of different machines are compared by it."""
    script = "import trio, h11, time; trio.run(trio.sleep, 0); print(time.process_time() * 1000)"
    done = subprocess.run([sys.executable, "-OO", "-c", script], stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


def starts(candidate: Candidate, world: World, repeats: int) -> list[tuple[int, int]]:
    """Return the microseconds from exec until SIGTERM is blocked or handled, and the CPU microseconds in them."""
    output = _namespace(candidate, world, "start", str(repeats))
    return [(int(wall), int(cpu)) for wall, cpu in map(str.split, output.splitlines())]


def terms(
    candidate: Candidate, world: World, number: int, latest: float, slots: int, limit: float
) -> tuple[int, list[int]]:
    """Send SIGTERM to ``number`` instances, each at a random time within ``latest`` seconds after exec.

    Return how many were sent, and the times (us after exec) of those that were lost: the instance still lived ``limit``
    seconds later. ``slots`` instances run at a time.
    """
    address = new_address()
    if candidate.active:
        world.with_plan.add(address)
    arguments = [str(number), str(int(latest * 1e6)), str(slots), str(int(limit * 1000))]
    output = _namespace(candidate, world, "term", *arguments, address=address)
    sent = [tuple(map(int, line.split())) for line in output.splitlines()]
    return len(sent), sorted(when for when, ended in sent if ended < 0)


def _namespace(candidate: Candidate, world: World, *order: str, address: str = "127.0.0.1") -> str:
    done = subprocess.run(
        [BUILD / "namespace", *order, *candidate.options(), *candidate.command],
        env=environment(candidate, world, address),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        text=True,
    )
    return done.stdout


@dataclass
class Orphans:
    """The figures of reaping."""

    cpu: float  # microseconds of process 1 for each orphan
    most: int  # zombies at one time, sampled
    left: int  # zombies a second after the last orphan


def orphans(candidate: Candidate, world: World, number: int) -> Orphans | None:
    """Measure the reaping of ``number`` orphans; None if the candidate does not start."""
    with running(candidate, world, orphans=True) as instance:
        if not wait_active(instance, world, "register"):
            return None
        time.sleep(1.5 if candidate.active else 0.1)

        finished = threading.Event()
        samples = [0]

        def sample() -> None:
            while not finished.wait(0.003):
                samples.append(instance.zombies())

        sampler = threading.Thread(target=sample)
        before = instance.cpu()
        sampler.start()
        try:
            instance.make_orphans(number)
        finally:
            finished.set()
            sampler.join()
        until(lambda: not instance.zombies(), 1.0)
        return Orphans((instance.cpu() - before) / 1000 / number, max(samples), instance.zombies())


@dataclass
class Wakes:
    """The figures of a dozing pod that got a plan several times. Milliseconds."""

    wall: list[float]  # from the plan to the first probe
    cpu: list[float]  # of process 1 in that time
    ask: float  # CPU of one ask, the child of doze; there are two for each plan


def wakes(candidate: Candidate, world: World, repeats: int) -> Wakes | None:
    result = Wakes([], [], 0.0)
    with running(candidate, world) as instance:
        address = instance.address

        def dozes() -> bool:
            return instance.exe().startswith("doze") and not _children(instance.pid)

        for _ in range(repeats):
            doorbells = world.count(address, "doorbell")
            if not until(dozes, START_SECONDS):
                return None
            until(lambda: world.count(address, "doorbell") > doorbells, 0.2)  # noqa: B023
            time.sleep(random.uniform(0.1, 0.2))

            probes: list[tuple[float, int]] = []
            world.on_probe[address] = lambda: probes.append((time.perf_counter(), instance.cpu()))  # noqa: B023
            before, began = instance.cpu(), time.perf_counter()
            world.put(address, with_plan=True)
            if not until(lambda: probes, START_SECONDS):  # noqa: B023
                return None
            result.wall.append((probes[0][0] - began) * 1000)
            result.cpu.append((probes[0][1] - before) / 1e6)

            until(lambda: world.count(address, "register") > len(result.wall), 5)
            world.put(address, with_plan=False)
        until(dozes, START_SECONDS)
        result.ask = instance.children_cpu() * 1000 / max(1, world.count(address, "doorbell"))
    return result
