"""Metrics of a pod beside the exporters of Debian: CPU, memory and bytes of a scrape.

``python -m tests.bench.metrics`` needs root, and ``apt-get install --no-install-recommends prometheus-node-exporter
prometheus-process-exporter``. Every exporter runs in the same PID namespace, and reads the same processes.
"""

import http.client
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import trio

from pidone.metrics import network
from pidone.metrics.containers import ContainerProcesses
from pidone.metrics.labels import Facts
from pidone.metrics.sampler import FRESH_SECONDS, Collector, Sampler
from pidone.pid1.reaper import Reaper
from tests import ports
from tests.bench.measure import new_address, until
from tests.bench.registering import PODS, ActivePod, Repo, pod_with, program

PROCESSES = (10, 100, 500)
CONTAINERS = 3
SCRAPES = 10
PORT = ports.free_port()  # another pod of this machine may listen on all addresses
START_SECONDS = 60.0
# the pod's own default, and what the same exporters would be asked for
GROUPED = "process_names:\n- name: '{{.Comm}}'\n  cmdline: ['.+']\n"


HOLDERS = 10
HOLDER = """
import socket, time
server = socket.create_server(('127.0.0.1', 0), backlog=4096)
held = []
for _ in range({}):
    held += [socket.create_connection(server.getsockname()), server.accept()[0]]
print('ready', flush=True)
time.sleep(1e6)
"""


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("the bench needs root, for PID namespaces and cgroups")
    with tempfile.TemporaryDirectory(prefix="pidone-metrics-") as folder, Repo() as repo:
        print(f"{os.cpu_count()} processors, Linux {platform.release()}, {program(Path(folder))[0]}")
        print(
            f"\nPrivate memory that the task adds, median of {PODS} pods after {SCRAPES} scrapes each",
            flush=True,
        )
        for line in memory(repo, Path(folder)):
            print(f"  {line}", flush=True)
        for count in PROCESSES:
            print(f"\n{count} processes in {CONTAINERS} containers, median of {SCRAPES} scrapes", flush=True)
            for line in scrapes(repo, Path(folder), count):
                print(f"  {line}", flush=True)
    print("\nThe longest time that a sample keeps other tasks waiting (CPU time between two turns)")
    for line in steps():
        print(f"  {line}", flush=True)


def memory(repo: Repo, folder: Path) -> Iterator[str]:
    """Return the private memory of pods with and without metrics, and with all collectors."""
    kinds = {
        "a probe": [repo.probe()],
        "a probe and metrics": [repo.probe(), metrics()],
        "a probe and metrics of processes, network and tasks": [
            repo.probe(),
            metrics("process", "network", "tasks"),
        ],
    }
    with pod_with(repo, folder, kinds["a probe and metrics"]) as pod:  # it compiles, which takes memory too
        pod.wait("metrics", "listening")
        scrape(pod.address)
    figures: dict[str, list[int]] = {}
    for name, tasks in kinds.items():
        with ExitStack() as stack:
            pods = [stack.enter_context(pod_with(repo, folder, tasks)) for _ in range(PODS)]
            for pod in pods:
                pod.wait(tasks[-1]["name"], "listening" if len(tasks) > 1 else "unhealthy")
            for _ in range(SCRAPES if len(tasks) > 1 else 1):
                for pod in pods if len(tasks) > 1 else ():
                    scrape(pod.address)
                time.sleep(FRESH_SECONDS * 1.2)
            time.sleep(2 * FRESH_SECONDS)  # until the last sample is given back
            figures[name] = [pod.private() for pod in pods]
    plain = median(figures["a probe"])
    for name, found in figures.items():
        yield f"{name}: {median(found) / 1024:.2f} MiB ({(median(found) - plain) / 1024:+.2f} MiB)"


def metrics(*collectors: str) -> dict[str, object]:
    fields: dict[str, object] = {"port": PORT}
    return {"name": "metrics", "metrics": {**fields, "collectors": [*collectors]} if collectors else fields}


def scrapes(repo: Repo, folder: Path, count: int) -> Iterator[str]:
    """Return what a scrape of each exporter costs."""
    with pod_with(repo, folder, [metrics()]) as pod, containers(pod, count):
        pod.wait("metrics", "listening")
        yield cost("pidone", pod.pid, pod.address, PORT)
        config = folder / "process-exporter.yaml"
        config.write_text(GROUPED)
        exporter = ["prometheus-process-exporter", "-config.path", str(config)]
        for name, command in {
            "process-exporter": exporter,
            "process-exporter, without threads and smaps": [
                *exporter,
                "-threads=false",
                "-gather-smaps=false",
            ],
            "node_exporter": ["prometheus-node-exporter"],
        }.items():
            if shutil.which(command[0]) is None:
                yield f"{name} is missing: apt-get install --no-install-recommends {command[0]}"
                continue
            with beside(pod, command) as (pid, address):
                yield cost(name, pid, address, PORT)


def cost(name: str, pid: int, address: str, port: int) -> str:
    """Scrape several times, and return CPU, bytes and memory."""
    if not until(lambda: answers(address, port), START_SECONDS):
        raise RuntimeError(f"{name} does not answer")
    scrape(address, port)
    spent = list[float]()
    for _ in range(SCRAPES):
        time.sleep(FRESH_SECONDS * 1.2)
        before = cpu(pid)
        size = scrape(address, port)
        time.sleep(0.1)  # for what is done behind the answer
        spent.append(cpu(pid) - before)
    return (
        f"{name}: {median(spent):.1f} ms of CPU ({min(spent):.1f} to {max(spent):.1f}), {size} bytes, "
        f"{resident(pid):.1f} MiB resident"
    )


def answers(address: str, port: int) -> bool:
    try:
        return scrape(address, port) > 0
    except OSError:
        return False


def scrape(address: str, port: int = PORT) -> int:
    """Return the size of a page."""
    connection = http.client.HTTPConnection(address, port, timeout=30)
    try:
        connection.request("GET", "/metrics")
        return len(connection.getresponse().read())
    finally:
        connection.close()


def cpu(pid: int) -> float:
    """Return the processor time of a process in milliseconds."""
    stats = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(stat.read_text().split()[0]) for stat in stats) / 1e6


def resident(pid: int) -> float:
    """Return the resident memory in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@contextmanager
def containers(pod: ActivePod, count: int) -> Iterator[None]:
    """Run processes in the pod's PID namespace, in cgroups of containers."""
    folder = Path(f"/sys/fs/cgroup/pids/pidone-bench-{os.getpid()}")
    if not folder.parent.exists():
        folder = Path(f"/sys/fs/cgroup/pidone-bench-{os.getpid()}")
    runtimes = []
    try:
        for number in range(CONTAINERS):
            place = folder / secrets.token_hex(32)
            place.mkdir(parents=True)
            share = count // CONTAINERS + (number < count % CONTAINERS)
            # the shell is one of them
            forks = f"i=1; while [ $i -lt {share} ]; do sleep 100000 & i=$((i+1)); done; wait"
            script = f"echo 0 > {place}/cgroup.procs && {{ {forks}; }}"
            enter = ["nsenter", f"--target={pod.pid}", "--pid", "--mount", "setsid", "sh", "-c", script]
            runtimes.append(subprocess.Popen(enter))
        listed = list(folder.glob("*/cgroup.procs"))
        until(lambda: sum(len(each.read_text().split()) for each in listed) >= count, START_SECONDS)
        yield
    finally:
        for procs in folder.glob("*/cgroup.procs"):
            for pid in procs.read_text().split():
                os.kill(int(pid), 9)
        for runtime in runtimes:
            runtime.wait()
        for place in folder.glob("*/"):
            until(lambda place=place: not (place / "cgroup.procs").read_text(), START_SECONDS)  # type: ignore[misc]
            place.rmdir()
        folder.rmdir()


@contextmanager
def beside(pod: ActivePod, command: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Start an exporter in the pod's PID namespace. Yield its pid outside of it, and its address."""
    address = new_address()
    option = "--web.listen-address" if "node" in command[0] else "-web.listen-address"
    enter = ["nsenter", f"--target={pod.pid}", "--pid", "--mount"]
    listen = [f"{option}={address}:{PORT}"]
    with subprocess.Popen(
        [*enter, *command, *listen], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as outer:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        until(children.read_text, START_SECONDS)
        pid = int(children.read_text().split()[0])
        try:
            yield pid, address
        finally:
            os.kill(pid, 9)


def steps() -> Iterator[str]:
    """Return the longest pieces of samples of many processes and of many sockets."""
    processes = ContainerProcesses(Reaper(), Facts("", dict))
    processes._labels._alone = True  # all of this machine
    yield longest("500 processes", lambda: forked(500), processes.collect)
    yield longest("10,000 connections", lambda: connected(5000), network.collect)


def longest(name: str, many: Callable[[], ExitStack], collector: Collector) -> str:
    """Sample several times, while another task notes how long it has waited for its turn."""
    worst = 0.0

    async def watch() -> None:
        nonlocal worst
        last = time.thread_time()
        while True:
            await trio.lowlevel.checkpoint()
            now = time.thread_time()
            worst, last = max(worst, now - last), now

    async def run() -> None:
        nonlocal worst
        sampler = Sampler({"it": collector})
        await sampler.families(["it"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            for _ in range(5):
                await trio.sleep(FRESH_SECONDS * 1.1)
                await sampler.families(["it"])
            nursery.cancel_scope.cancel()

    with many():
        trio.run(run)
    return f"{name}: {worst * 1000:.1f} ms"


def forked(count: int) -> ExitStack:
    stack = ExitStack()
    for _ in range(count):
        process = stack.enter_context(subprocess.Popen(["sleep", "100000"]))
        stack.callback(process.kill)
    return stack


def connected(count: int) -> ExitStack:
    """Hold ``count`` connections, whose ends are two sockets each, in processes of their own."""
    stack = ExitStack()
    for _ in range(HOLDERS):
        command = [sys.executable, "-c", HOLDER.format(count // HOLDERS)]
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        stack.callback(process.kill)
        assert process.stdout
        process.stdout.readline()
    return stack


if __name__ == "__main__":
    main()
