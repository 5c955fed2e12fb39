"""``python -m tests.bench.flood [TREE]``: floods the repo with 9,000 connections of strangers.

Measures, for each kind of flood, from one address and from 600, by how much the private memory of the repo grows, and
how many of ``PROBES`` requests for ``/livez`` and of a pod for its bundle are answered within a second meanwhile. TREE
is another checkout, to compare with. Exit code 1 if a goal is missed.
"""

import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from os import environ
from pathlib import Path
from subprocess import DEVNULL, Popen
from time import monotonic, sleep

import psutil

from tests.cluster.process import until
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
CONNECTIONS = 9_000
ADDRESSES = (1, 600)
PROBES = 20  # of each kind
MAX_GROWTH = 20.0  # MiB
POD = "127.8.0.1"
INVENTORY = f"""
apiVersion: v1
kind: PodList
items:
- apiVersion: v1
  kind: Pod
  metadata: {{name: web, namespace: shop, uid: 1-2-3}}
  status: {{phase: Running, podIP: {POD}}}
"""
FLOODS = {
    "silent": b"",
    "heads": b"GET /v1/bundle HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 15_000,
    "bodies": b"POST /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 65536\r\n\r\n" + b" " * 65_535,
    "doorbells": b"GET /v1/doorbell HTTP/1.1\r\nHost: x\r\n\r\n",
    "pipelines": b"GET /v1/doorbell HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 60_000,
    "tokens": b"GET /v1/bundle HTTP/1.1\r\nHost: x\r\nPrefer: wait=55\r\nAuthorization: Bearer "
    + b"x" * 10_000
    + b"\r\n\r\n",
}


def main(tree: Path) -> int:
    missed = False
    print(f"{'flood':12} {'addresses':>9} {'growth':>10} {'livez':>9} {'slowest':>9} {'bundle':>9}")
    for name, data in FLOODS.items():
        for addresses in ADDRESSES:
            with tempfile.TemporaryDirectory() as folder, repo(tree, Path(folder)) as (process, port):
                growth, livez, slowest, bundles = measure(process, port, data, addresses)
            print(
                f"{name:12} {addresses:9} {growth:6.1f} MiB {livez:6}/{PROBES} {slowest:6.2f} s {bundles:6}/{PROBES}",
                flush=True,
            )
            missed = missed or growth > MAX_GROWTH or livez < PROBES or bundles < PROBES
    return missed


@contextmanager
def repo(tree: Path, folder: Path) -> Iterator[tuple[psutil.Process, int]]:
    """Run the repo of a checkout with one pod and without tasks."""
    (folder / "tasks").mkdir()
    (folder / "pods.yaml").write_text(INVENTORY)
    port = free_port()
    command = [sys.executable, "-m", "pidone_controller", "standalone", "--tasks", str(folder / "tasks")]
    command += ["--inventory", str(folder / "pods.yaml"), "--listen", f"127.0.0.1:{port}"]
    paths = f"{tree}:{tree / 'controller'}"
    with Popen(command, cwd=folder, stderr=DEVNULL, env={**environ, "PYTHONPATH": paths}) as process:
        try:
            until(lambda: ask(port, "/readyz", "127.0.0.1"), 60)
            sleep(0.5)
            yield psutil.Process(process.pid), port
        finally:
            process.kill()


def measure(process: psutil.Process, port: int, data: bytes, addresses: int) -> tuple[float, int, float, int]:
    """Return the growth in MiB, the answers of ``/livez``, the slowest of them in seconds, and those of bundles."""
    before = process.memory_full_info().uss
    most, livez, slowest, bundles = before, 0, 0.0, 0
    with ExitStack() as stack:
        pending: list[tuple[socket.socket, memoryview]] = []
        for index in range(CONNECTIONS):
            stream = stack.enter_context(socket.socket())
            stream.setblocking(False)
            number = index % addresses
            with suppress(OSError):
                stream.bind((f"127.9.{number >> 8}.{number & 255}", 0))
                stream.connect(("127.0.0.1", port))
            pending.append((stream, memoryview(data)))
        for _ in range(PROBES):
            pending = [(stream, rest) for stream, rest in map(send, pending) if rest]
            most = max(most, process.memory_full_info().uss)
            began = monotonic()
            livez += ask(port, "/livez", "127.0.0.1")
            slowest = max(slowest, monotonic() - began)
            bundles += ask(port, "/v1/bundle", POD)
        sleep(1)
        most = max(most, process.memory_full_info().uss)
    return (most - before) / 2**20, livez, slowest, bundles


def send(item: tuple[socket.socket, memoryview]) -> tuple[socket.socket, memoryview]:
    """Send as much as the connection takes; nothing is left of one that was closed."""
    stream, rest = item
    try:
        while rest:
            rest = rest[stream.send(rest) :]
    except (BlockingIOError, InterruptedError):
        pass
    except OSError:
        rest = memoryview(b"")
    return stream, rest


def ask(port: int, path: str, source: str) -> bool:
    """Whether the repo answers with 200 or 304 within a second."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1, (source, 0)) as stream:
            stream.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return stream.recv(100)[9:12] in {b"200", b"304"}
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
