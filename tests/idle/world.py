"""A pod in namespaces of its own, and the network of its node: real processes, packets and signals.

The node's side has three addresses: the node's own, from which probes come, and two of clients.
"""

import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests import pidns
from tests.patience import PATIENCE_SECONDS

HERE = Path(__file__).parent
POD, NODE, CLIENT = "10.66.0.2", "10.66.0.1", "10.66.0.9"
PORT = 8080
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> str | None:
    """Why there can be no such pod here, with the remedy; None where it can."""
    if os.geteuid() != 0:
        return "network namespaces and packets need root: sudo make test"
    if not shutil.which("ip") or not shutil.which("nsenter"):
        return "no ip or nsenter: apt-get install -y --no-install-recommends iproute2 util-linux"
    return pidns.blind()


def idle(**fields: Any) -> dict[str, Any]:
    """The task, as the controller renders it."""
    config = {"after": 0.3, "ports": [f"{PORT}/TCP"], "nodes": [NODE], "probeTimeout": 1, **fields}
    return {"name": "rest", "idle": config}


@dataclass
class World:
    """A pod whose process 1 has the plan, and the network beside it."""

    process: subprocess.Popen[bytes]
    pid: int  # of process 1, outside
    node: int  # of a process in the node's network
    log: Path
    _sockets: list[socket.socket] = field(default_factory=list)

    def made_in(self, pid: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Make a socket in the network of a process; it stays there wherever it is used."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        inner = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            assert _libc.setns(inner, CLONE_NEWNET) == 0
            made = socket.socket(socket.AF_INET, kind)
        finally:
            assert _libc.setns(before, CLONE_NEWNET) == 0
            os.close(inner)
            os.close(before)
        made.settimeout(PATIENCE_SECONDS)
        self._sockets.append(made)
        return made

    def close(self) -> None:
        for each in self._sockets:
            each.close()

    def connect(self, source: str = CLIENT) -> socket.socket:
        """Connect to the application from one of the node's addresses."""
        made = self.made_in(self.node)
        made.bind((source, 0))
        made.connect((POD, PORT))
        return made

    def ask(self, source: str = CLIENT, path: str = "/", agent: str = "curl/8") -> str:
        """Send one request on a connection of its own, and return the body of the answer."""
        connection = self.connect(source)
        try:
            return request(connection, path, agent, close=True)
        finally:
            connection.close()

    def probe(self, path: str = "/") -> str:
        """Ask as the kubelet does."""
        return self.ask(NODE, path, "kube-probe/1.36")

    def status(self) -> dict[str, Any]:
        """Read /status of process 1."""
        connection = self.made_in(self.pid)
        connection.connect(("127.0.0.1", 19101))
        with connection:
            return dict(json.loads(request(connection, "/status", "test", close=True)))

    def task(self) -> dict[str, Any]:
        return dict(self.status()["tasks"]["rest"])

    def wakes(self) -> int:
        """Return how often the task became active again."""
        return self.log.read_text().count("task=rest state=active") - 1

    def application(self) -> psutil.Process:
        """The application's process."""
        for child in psutil.Process(self.pid).children(recursive=True):
            if any("application.py" in word for word in child.cmdline()):
                return child
        raise AssertionError("the application has ended")

    def frozen(self) -> bool:
        """True if the application is stopped, and the look after that has found no traffic that undoes it."""
        return self.application().status() == psutil.STATUS_STOPPED and self.task()["state"] == "idle"

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.002)

    @contextmanager
    def inside(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a command in the pod from outside, as ``kubectl exec`` and exec probes are started."""
        enter = [sys.executable, "-S", str(HERE / "enter.py"), str(self.pid), *command]
        with subprocess.Popen(enter, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as started:
            try:
                yield started
            finally:
                if started.poll() is None:
                    for child in psutil.Process(started.pid).children(recursive=True):
                        child.kill()


def request(connection: socket.socket, path: str, agent: str, *, close: bool = False) -> str:
    """Send a request and return the body of its answer, which has a length."""
    end = "Connection: close\r\n" if close else ""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: web\r\nUser-Agent: {agent}\r\n{end}\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = connection.recv(65536)
        assert more, "the connection has ended"
        answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return body.decode()


@contextmanager
def world(
    folder: Path, *tasks: dict[str, Any], application: tuple[str, ...] = (), without: str = ""
) -> Iterator[World]:
    """Start the pod, and wait until the application answers. ``without``: a capability that process 1 lacks."""
    log = folder / "pod.log"
    node = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    app = application or (sys.executable, "-S", str(HERE / "application.py"), str(PORT))
    command = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if without:
        command += ["setpriv", f"--bounding-set=-{without}", f"--inh-caps=-{without}", "--"]
    plan = json.dumps(list(tasks) or [idle()])
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, sys.executable, "-m", "tests.idle.pod", plan, POD, *app],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=HERE.parents[1],
        )
    with ExitStack() as stack:
        for started in (process, node):
            stack.callback(started.wait)
            stack.callback(started.kill)
        pid = pidns.child(process).pid
        _wait_for_network(node.pid)
        _wait_for_network(pid)
        made = World(process, pid, node.pid, log)
        stack.callback(made.close)
        _connect(node.pid, pid)
        made.until(lambda: _answers(made.probe))
        made.until(lambda: _answers(made.status))
        yield made


def _wait_for_network(pid: int) -> None:
    """Wait until the process is in a network of its own."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _connect(node: int, pod: int) -> None:
    """Lay a wire between both networks, and set the addresses and the pod's route."""

    def ip(pid: int, *words: str) -> None:
        subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", *words], check=True)

    ip(node, "link", "add", "wire", "type", "veth", "peer", "name", "eth0", "netns", str(pod))
    for pid, device, addresses in ((node, "wire", (NODE, CLIENT)), (pod, "eth0", (POD,))):
        for address in addresses:
            ip(pid, "address", "add", f"{address}/24", "dev", device)
        for name in (device, "lo"):
            ip(pid, "link", "set", name, "up")
    ip(pod, "route", "add", "default", "via", NODE)


def _answers(question: Callable[[], object]) -> bool:
    try:
        return bool(question())
    except OSError:
        return False
