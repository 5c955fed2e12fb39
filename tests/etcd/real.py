"""Real etcd servers as child processes: Debian's etcd 3.4, or etcd 3.6 of ``make etcd``; one member or several."""

import json
import os
import shutil
import signal
import ssl
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from tests.etcd import program
from tests.patience import PATIENCE_SECONDS
from tests.ports import free_port

DEBIAN, MODULE = "debian", "module"
SERVERS = (DEBIAN, MODULE)


def missing(server: str) -> str | None:
    """Why this server cannot be started here, with the remedy; None where it can."""
    if server == MODULE:
        return program.missing()
    return None if shutil.which("etcd") else "no etcd: apt-get install etcd-server"


def command(server: str) -> list[str]:
    return ["etcd"] if server == DEBIAN else [str(program.find()), "server"]


@cache
def version(server: str) -> str:
    """Return the version, such as 3.4.23."""
    words = [*command(server), "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return done.stdout.split()[2]


class Member:
    """One server of a cluster."""

    def __init__(self, server: str, name: str, folder: Path, certificate: Path | None) -> None:
        self.server, self.name = server, name
        self.port, self.peer_port = free_port(), free_port()
        self.peers = ""  # of all members
        self.log = folder / f"{name}.log"
        self.data = folder / f"{name}.data"
        self.environment: dict[str, str] = {}
        self._certificate = certificate
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self._certificate else 'http'}://127.0.0.1:{self.port}"

    @property
    def peer_url(self) -> str:
        return f"http://127.0.0.1:{self.peer_port}"

    @property
    def words(self) -> list[str]:
        words = [
            *command(self.server), "--name", self.name, "--data-dir", str(self.data),
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url,
            "--initial-cluster", self.peers or f"{self.name}={self.peer_url}",
            "--log-level", "warn", "--logger", "zap", "--bcrypt-cost", "4",
        ]  # fmt: skip
        if self._certificate:
            words += ["--cert-file", str(self._certificate), "--key-file", str(self._certificate)]
        return words

    def start(self) -> None:
        """Start with the data that is there."""
        # etcd 3.4 has no --unsafe-no-fsync; what a test writes need not outlive the machine
        fast = ["--unsafe-no-fsync"] if self.server == MODULE else []
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.words, *fast],
                env=os.environ | {"GOMAXPROCS": "1"} | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Delete the data of a member that does not run."""
        shutil.rmtree(self.data, ignore_errors=True)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Cluster:
    """Members that have started, asked in the way of people: by curl, as root if authentication is on."""

    def __init__(self, members: Sequence[Member], certificate: Path | None = None) -> None:
        self.members = members
        self.password = ""  # of root; empty: authentication is off
        self._http = httpx.Client(timeout=10, verify=ssl.create_default_context(cafile=certificate))

    @property
    def endpoints(self) -> str:
        return ",".join(member.url for member in self.members)

    def wait_ready(self) -> None:
        """Wait until all members that run answer. Raises ``RuntimeError`` with the end of a log."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        for member in (member for member in self.members if member.running):
            while True:
                try:
                    self._ask(member, "kv/range", {"key": "AA=="})
                    break
                except (httpx.HTTPError, AssertionError):
                    if time.monotonic() > deadline or not member.running:
                        log = member.log.read_text(errors="replace")[-2000:]
                        raise RuntimeError(f"etcd does not answer; its log ends with\n{log}") from None
                    time.sleep(0.05)

    def ask(self, path: str, body: Mapping[str, Any] | None = None, member: int = 0) -> dict[str, Any]:
        """Return the answer to ``POST /v3/PATH``. Raises ``AssertionError`` for an error."""
        return self._ask(self.members[member], path, body or {})

    def _ask(self, member: Member, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {}
        if self.password and path != "auth/authenticate":
            root = {"name": "root", "password": self.password}
            headers["authorization"] = self._ask(member, "auth/authenticate", root)["token"]
        answer = self._http.post(f"{member.url}/v3/{path}", content=json.dumps(body), headers=headers)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        found: dict[str, Any] = answer.json()
        return found

    def leader(self) -> int:
        """Return the number of the member that leads."""
        for number, member in enumerate(self.members):
            if member.running:
                status = self._ask(member, "maintenance/status", {})
                if status.get("leader") == status["header"]["member_id"]:
                    return number
        raise RuntimeError("no leader")

    def enable_authentication(self, user: str, password: str, prefix: str) -> None:
        """Let ``user`` read and write the keys that begin with ``prefix``, and nobody else anything."""
        root = "root-s3cret"
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else "\0"
        first, last = (b64encode(text.encode()).decode() for text in (prefix or "\0", end))
        for name, secret in (("root", root), (user, password)):
            self.ask("auth/user/add", {"name": name, "password": secret})
        self.ask("auth/role/add", {"name": "root"})
        self.ask("auth/role/add", {"name": "pods"})
        permission = {"permType": "READWRITE", "key": first, "range_end": last}
        self.ask("auth/role/grant", {"name": "pods", "perm": permission})
        self.ask("auth/user/grant", {"user": "root", "role": "root"})
        self.ask("auth/user/grant", {"user": user, "role": "pods"})
        self.ask("auth/enable")
        self.password = root

    def close(self) -> None:
        self._http.close()
        for member in self.members:
            if member.running:
                member.resume()
                member.kill()


@contextmanager
def running(
    server: str, folder: Path, *, size: int = 1, certificate: Path | None = None
) -> Iterator[Cluster]:
    """Start a cluster of etcd on loopback, and end it with the block. Raises as ``Cluster.wait_ready``."""
    members = [Member(server, f"etcd-{number}", folder, certificate) for number in range(size)]
    peers = ",".join(f"{member.name}={member.peer_url}" for member in members)
    cluster = Cluster(members, certificate)
    try:
        for member in members:
            member.peers = peers
            member.start()
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.close()


class Reader:
    """The libraries that define the layouts, as one child process of ``make etcd``."""

    def __init__(self, endpoints: str, log: Path, *credentials: str) -> None:
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [str(program.find()), "read", endpoints, *credentials],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._log = log

    def read(self, library: str, name: str = "") -> list[dict[str, Any]]:
        """Return the instances of a service as a library has them. Raises ``RuntimeError`` with its error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{library} {name}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the reader has ended: {self._log.read_text()[-2000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["instances"] or []

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def reading(endpoints: str, log: Path, *credentials: str) -> Iterator[Reader]:
    reader = Reader(endpoints, log, *credentials)
    try:
        yield reader
    finally:
        reader.close()
