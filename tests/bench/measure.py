"""How each figure is measured. Nothing here asserts."""

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

SETTLE = 20.0  # seconds for active ones to come up, at most

_numbers = count(1)


@dataclass
class Running:
    """A process 1, by its pid outside, and the helper beside it that makes orphans."""

    candidate: Candidate
    pid: int
    address: str
    _orders: socket.socket | None = None

    def make_orphans(self, number: int) -> None:
        """Returns when all were made."""
        assert self._orders is not None
        self._orders.sendall(f"{number}\n".encode())
        assert self._orders.recv(16) == b"made\n", f"{self.candidate.name} has ended"

    def pids(self) -> list[int]:
        """Process 1 and its descendants: tini and dumb-init hold a sleep."""
        found = [self.pid]
        for pid in found:
            found += _children(pid)
        return found

    def cpu(self) -> int:
        """Nanoseconds on a processor, process 1 alone; an execve keeps them."""
        return sum(
            int(stat.read_text().split()[0]) for stat in Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        )

    def children_cpu(self) -> float:
        """Seconds of children that process 1 has collected, in steps of 10 ms."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    def zombies(self) -> int:
        return sum(map(_is_zombie, _children(self.pid)))

    def private(self) -> int:
        """KiB."""
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Private_"):
                    total += int(line.split()[1])
        return total

    def switches(self) -> int:
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
        env |= {"PIDONE_LINGER": "1"}  # 0 would let it doze before the plan has come
    return env


def new_address() -> str:
    number = next(_numbers)
    return f"127.1.{number >> 8 & 255}.{number & 255}"


@contextmanager
def running(candidate: Candidate, world: World, *, orphans: bool = False) -> Iterator[Running]:
    """One instance, in a PID namespace of its own; killed at the end of the block."""
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
        process.kill()  # and with it what it started
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


def at_work(one: Running, world: World, last: str = "beat") -> bool:
    """Wait until an active one has done each of its tasks, ``last`` at the end, and scrape it."""
    if not one.candidate.active:
        return True
    if one.address not in world.wanted:
        world.put(one.address, wanted=True)
    if not until(lambda: world.count(one.address, last) > 0, SETTLE):
        return False
    scrape = http.client.HTTPConnection(one.address, METRICS, timeout=5)
    try:
        scrape.request("GET", "/metrics")
        return scrape.getresponse().status == 200
    except OSError:
        return False
    finally:
        scrape.close()


@dataclass
class Idle:
    """Of all instances at once."""

    private: float
    wakeups: float  # in 5 s, of the median instance
    requests: float  # in the same 5 s
    instances: int
    failed: int  # instances that did not come up


def idle(candidates: list[Candidate], world: World, instances: int, seconds: float) -> dict[str, Idle]:
    found: dict[str, Idle] = {}
    with ExitStack() as stack:
        # all of all candidates at once, in turns: the pages they share are shared as on a node
        started = [
            stack.enter_context(running(candidate, world))
            for _ in range(instances)
            for candidate in candidates
        ]
        for one in started:
            if one.candidate.active:
                world.put(one.address, wanted=True)
        up = {one.address: at_work(one, world) for one in started}
        time.sleep(3)  # reports go out a second after the change that they tell of
        private = {one.address: one.private() for one in started}
        before = {one.address: one.switches() for one in started}
        kinds = ("probe", "beat", "report", "bundle", "doorbell")
        asked = {one.address: world.count(one.address, *kinds) for one in started}
        time.sleep(seconds)
        for candidate in candidates:
            mine = [one for one in started if one.candidate is candidate and up[one.address]]
            if not mine:
                continue
            share = 5 / seconds
            found[candidate.name] = Idle(
                private=median(private[one.address] for one in mine),
                wakeups=share * median(one.switches() - before[one.address] for one in mine),
                requests=share
                * median(world.count(one.address, *kinds) - asked[one.address] for one in mine),
                instances=len(mine),
                failed=instances - len(mine),
            )
    return found


def yardstick() -> float:
    """CPU milliseconds of the shape that goals for starting were measured with: other machines, other figures."""
    script = "import trio, h11, time; trio.run(trio.sleep, 0); print(time.process_time() * 1000)"
    done = subprocess.run([sys.executable, "-OO", "-c", script], stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


def starts(candidate: Candidate, world: World, repeats: int) -> list[tuple[int, int]]:
    """Microseconds from exec until TERM is blocked or handled, and of CPU in them."""
    output = _namespace(candidate, world, "start", str(repeats))
    return [(int(wall), int(cpu)) for wall, cpu in map(str.split, output.splitlines())]


def terms(
    candidate: Candidate, world: World, number: int, most: float, slots: int, limit: float
) -> tuple[int, list[int]]:
    """TERMs sent within ``most`` s after exec, and when those that were lost (it lived ``limit`` s later), in us."""
    address = new_address()
    if candidate.active:
        world.wanted.add(address)
    arguments = [str(number), str(int(most * 1e6)), str(slots), str(int(limit * 1000))]
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
    cpu: float  # microseconds each, of process 1
    most: int  # zombies at once, as sampled
    left: int  # a second after the last


def orphans(candidate: Candidate, world: World, number: int) -> Orphans | None:
    """None where it did not come up."""
    with running(candidate, world, orphans=True) as one:
        if not at_work(one, world, "register"):
            return None
        time.sleep(1.5 if candidate.active else 0.1)
        made = threading.Event()
        seen = [0]

        def sample() -> None:
            while not made.wait(0.003):
                seen.append(one.zombies())

        sampler = threading.Thread(target=sample)
        before = one.cpu()
        sampler.start()
        try:
            one.make_orphans(number)
        finally:
            made.set()
            sampler.join()
        until(lambda: not one.zombies(), 1.0)
        return Orphans((one.cpu() - before) / 1000 / number, max(seen), one.zombies())


@dataclass
class Wakes:
    """Of one pod that dozed and was woken several times. Milliseconds."""

    wall: list[float]
    cpu: list[float]  # of process 1, from the plan being there to its first probe at the application
    ask: float  # CPU of one ask, a child of doze; two in a cycle, one of them on the way to the engine


def wakes(candidate: Candidate, world: World, repeats: int) -> Wakes | None:
    result = Wakes([], [], 0.0)
    with running(candidate, world) as one:
        where = one.address
        for _ in range(repeats):
            asked = world.count(where, "doorbell")
            if not until(lambda: one.exe().startswith("doze") and not _children(one.pid), SETTLE):
                return None
            until(lambda: world.count(where, "doorbell") > asked, 0.2)  # noqa: B023
            time.sleep(random.uniform(0.1, 0.2))
            seen: list[tuple[float, int]] = []
            world.on_probe[where] = lambda: seen.append((time.perf_counter(), one.cpu()))  # noqa: B023
            before, began = one.cpu(), time.perf_counter()
            world.put(where, wanted=True)
            if not until(lambda: seen, SETTLE):  # noqa: B023
                return None
            result.wall.append((seen[0][0] - began) * 1000)
            result.cpu.append((seen[0][1] - before) / 1e6)
            until(lambda: world.count(where, "register") > len(result.wall), 5)
            world.put(where, wanted=False)
        until(lambda: one.exe().startswith("doze") and not _children(one.pid), SETTLE)
        result.ask = one.children_cpu() * 1000 / max(1, world.count(where, "doorbell"))
    return result
