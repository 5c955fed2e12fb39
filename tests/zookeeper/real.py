"""Real ZooKeeper servers as child processes, one or an ensemble, and Curator's reader."""

import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE_SECONDS
from tests.ports import free_port

JARS = Path("/usr/share/java")
BUILT = Path(__file__).parent / "java/target"
BUILD = "make zookeeper"
TICK_MS = 200
# Quick to start and small.
JAVA = ("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx96m", "-Xss512k")
SERVER = "org.apache.zookeeper.server.quorum.QuorumPeerMain"


SUPER = ("super", "secret")  # a user whom no ACL holds up


def digest(user: str, password: str) -> str:
    """Return the id of a user in ACLs (org.apache.zookeeper.server.auth.DigestAuthenticationProvider)."""
    hashed = hashlib.sha1(f"{user}:{password}".encode()).digest()
    return f"{user}:{base64.b64encode(hashed).decode()}"


def version() -> str:
    """Return the version of Debian's server."""
    return next(
        (file.stem.removeprefix("zookeeper-") for file in JARS.glob("zookeeper-[0-9]*.jar")), "unknown"
    )


def reader_version() -> str:
    """Return the version of Curator."""
    return next(file.stem for file in (BUILT / "lib").glob("curator-x-discovery-*")).rpartition("-")[2]


def missing() -> str | None:
    """Why the servers and Curator cannot be started here, with the remedy; None where they can."""
    if not (BUILT / "zookeeper-1.jar").is_file():
        return f"{BUILT}/zookeeper-1.jar is not there: {BUILD}"
    return server_missing()


def server_missing() -> str | None:
    """Why the servers cannot be started here, with the remedy; None where they can."""
    if shutil.which("java") is None:
        return "no java: apt-get install openjdk-17-jre-headless"
    if not (JARS / "zookeeper.jar").is_file() or not (JARS / "slf4j-simple.jar").is_file():
        return "no ZooKeeper: apt-get install --no-install-recommends libzookeeper-java libslf4j-java"
    return None


class Server:
    """One server. Its data stays in ``folder`` until ``wipe``."""

    def __init__(self, folder: Path, port: int, number: int = 1, members: Sequence[str] = ()) -> None:
        self.folder, self.port, self.number = folder, port, number
        self.address = f"127.0.0.1:{port}"
        self._members = members
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start with the data of the last run. It answers later, see ``wait_ready``."""
        words = self.prepare()
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                words, env=dict(os.environ), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def prepare(self) -> list[str]:
        """Write the configuration, and return the command that starts the server."""
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        (self.folder / "data/myid").write_text(f"{self.number}\n", "utf-8")
        settings = {
            "tickTime": TICK_MS,
            "initLimit": 100,
            "syncLimit": 50,
            "dataDir": self.folder / "data",
            "clientPort": self.port,
            "clientPortAddress": "127.0.0.1",
            "minSessionTimeout": 2 * TICK_MS,
            "maxSessionTimeout": 40_000,
            "maxClientCnxns": 0,
            "admin.enableServer": "false",
            "4lw.commands.whitelist": "srvr,cons",
        }
        lines = [f"{name}={value}" for name, value in settings.items()] + list(self._members)
        config = self.folder / "zoo.cfg"
        config.write_text("\n".join(lines) + "\n", "utf-8")
        # empty containers are looked for once a minute by default; and no fsync for each transaction
        properties = (
            "-Dznode.container.checkIntervalMs=500",
            "-Dzookeeper.forceSync=no",
            f"-Dzookeeper.DigestAuthenticationProvider.superDigest={digest(*SUPER)}",
        )
        return [*JAVA, *properties, "-cp", _server_classes(), SERVER, str(config)]

    def wait_ready(self) -> None:
        """Wait until the server serves clients. Raises ``RuntimeError`` with the end of its log."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.running and time.monotonic() < deadline:
            if self.mode():
                return
            time.sleep(0.05)
        log = (self.folder / "server.log").read_text("utf-8", "replace")
        raise RuntimeError(f"the ZooKeeper server does not answer; its log ends with\n{log[-3000:]}")

    def mode(self) -> str:
        """Return ``standalone``, ``leader`` or ``follower``; empty if the server serves no clients."""
        answer = self.ask("srvr")
        return next(
            (line.partition(": ")[2] for line in answer.splitlines() if line.startswith("Mode: ")), ""
        )

    def ask(self, word: str) -> str:
        """Return the answer to a command of four letters; empty without one."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(word.encode())
                received = b""
                while data := connection.recv(4096):
                    received += data
        except OSError:
            return ""
        return received.decode("utf-8", "replace")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def wipe(self) -> None:
        """Forget all data. The server does not run."""
        shutil.rmtree(self.folder / "data")
        (self.folder / "data").mkdir()
        (self.folder / "data/myid").write_text(f"{self.number}\n", "utf-8")


class Ensemble:
    """One server, or several that elect a leader."""

    def __init__(self, folder: Path, size: int = 1) -> None:
        ports = [free_port() for _ in range(size)]
        members = [f"server.{number}=127.0.0.1:{free_port()}:{free_port()}" for number in range(1, size + 1)]
        self.servers = [
            Server(folder / f"server-{number}", port, number, members if size > 1 else ())
            for number, port in enumerate(ports, 1)
        ]

    @property
    def address(self) -> str:
        """All servers as clients write them."""
        return ",".join(server.address for server in self.servers)

    def mend(self) -> None:
        """End all faults, and wait until all servers serve clients."""
        for server in self.servers:
            if server.running:
                server.resume()
            else:
                server.start()
        for server in self.servers:
            server.wait_ready()

    def leader(self) -> Server:
        """Wait for a leader and return it. One server is its own leader."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            for server in self.servers:
                if server.running and server.mode() in {"leader", "standalone"}:
                    return server
            time.sleep(0.05)
        raise RuntimeError("the ensemble elects no leader")

    def close(self) -> None:
        for server in self.servers:
            server.kill()


@contextmanager
def ensemble(folder: Path, size: int = 1) -> Iterator[Ensemble]:
    """Start the servers, wait until they serve clients, and end them with the block."""
    servers = Ensemble(folder, size)
    try:
        servers.mend()
        yield servers
    finally:
        servers.close()


class ReaderError(Exception):
    """An exception in the reader, as Java shows it."""


class Reader:
    """Curator, Spring Cloud's classes and ZooKeeper's own client, in one process; see the Java source for its words."""

    def __init__(self, address: str, log: Path, user: str = "") -> None:
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [
                    *JAVA,
                    "-cp",
                    f"{BUILT}/zookeeper-1.jar:{BUILT}/lib/*",
                    "dev.pidone.zookeeper.Reader",
                    address,
                    *([user] if user else []),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ask(self, *words: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("Curator's reader has ended; see its log")
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise ReaderError(answer["error"])
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def reader(address: str, log: Path, user: str = "") -> Iterator[Reader]:
    running = Reader(address, log, user)
    try:
        yield running
    finally:
        running.close()


def _server_classes() -> str:
    """The class path of Debian's server, as its own script has it."""
    return f"{JARS}/zookeeper.jar:{JARS}/slf4j-simple.jar"
