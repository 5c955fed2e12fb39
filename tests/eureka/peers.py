"""Two stock Eureka servers of Netflix that replicate to each other, and its official client, as child processes."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tests.patience import PATIENCE_SECONDS
from tests.ports import free_port
from tests.registries.lines import Fault, Line

BUILT = Path(__file__).parent / "java/target"
BUILD = "make peers"
HOSTS = ("localhost", "127.0.0.1")  # a server takes a URL with its own host for itself

JAVA = (
    "java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "--add-opens=java.base/java.lang=ALL-UNNAMED", "--add-opens=java.base/java.util=ALL-UNNAMED",
    "-cp", f"{BUILT}/peers-1.jar:{BUILT}/lib/*",
)  # fmt: skip

NO_CLIENT = {"registration.enabled": "false", "shouldFetchRegistry": "false", "shouldUseDns": "false"}
# A change is seen at once, and a lease that has ended is looked for twice a second, also where many end together.
SERVER = NO_CLIENT | {
    "waitTimeInMsWhenSyncEmpty": "0",
    "numberRegistrySyncRetries": "0",
    "shouldUseReadOnlyResponseCache": "false",
    # A list that is read while it changes may be kept as it was; by default for three minutes.
    "responseCacheAutoExpirationInSeconds": "1",
    "evictionIntervalTimerInMs": "500",
    "enableSelfPreservation": "false",
}
READER = NO_CLIENT | {
    "shouldFetchRegistry": "true",
    "shouldFilterOnlyUpInstances": "false",
    "disableDelta": "true",
    "client.refresh.interval": "1",
    "eurekaServer.connectTimeout": "1",
    "eurekaServer.readTimeout": "2",
}


def missing() -> str | None:
    """Why the servers cannot be started here, with the remedy; None where they can."""
    if shutil.which("java") is None:
        return "no java: apt-get install openjdk-17-jre-headless"
    if not (BUILT / "peers-1.jar").is_file():
        return f"{BUILT}/peers-1.jar is not there: {BUILD}"
    return None


def version() -> str:
    """Return the version of the servers and of the client."""
    (library,) = (BUILT / "lib").glob("eureka-core-*.jar")
    return library.stem.removeprefix("eureka-core-")


class Peer:
    """One of the two servers. With ``users``, a password by name, it wants one of them."""

    def __init__(self, host: str, log: Path, users: Mapping[str, str]) -> None:
        self.host = host
        self.port = free_port()
        self.users = dict(users)
        self.url = f"http://{self.login}{host}:{self.port}/eureka/v2/"
        self.other = ""  # the URL of the other one
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    @property
    def login(self) -> str:
        """The beginning of a URL's host for peers and reader: the first user."""
        return "".join(f"{name}:{password}@" for name, password in list(self.users.items())[:1])

    def start(self) -> None:
        """Start with an empty registry, which the other peer then fills if it runs."""
        users = ",".join(f"{name}:{password}" for name, password in self.users.items())
        settings = SERVER | {"port": str(self.port), "hostname": self.host, "serviceUrl.default": self.other}
        settings |= {"users": users}
        self._process = _start("Peer", settings, (), self._log)

    def wait_ready(self) -> None:
        """Wait until the server answers. Raises ``RuntimeError`` with the end of its log."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._running.poll() is None and time.monotonic() < deadline:
            try:
                with urlopen(f"http://{self.host}:{self.port}/eureka/v2/apps", timeout=5):
                    return
            except HTTPError as error:
                if error.code == 401:
                    return
                time.sleep(0.05)
            except (URLError, OSError):
                time.sleep(0.05)
        raise RuntimeError(f"the peer does not answer; its log ends with\n{self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        _kill(self._running)

    def pause(self) -> None:
        self._running.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running.send_signal(signal.SIGCONT)

    @property
    def runs(self) -> bool:
        return self._running.poll() is None

    def set_password(self, user: str, password: str) -> None:
        """Change the password of a user, also for later starts."""
        self.users[user] = password
        if self.runs:
            _ask(self._running, f"user {user} {password}")

    def say(self, status: str) -> None:
        """Give the server itself a status. With any other than UP it answers 307 to everything."""
        _ask(self._running, status)

    @property
    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process


class Peers:
    """The two servers, the lines between them, and a client of each."""

    def __init__(self, folder: Path, users: Mapping[str, str]) -> None:
        self.all = tuple(Peer(host, folder / f"peer-{host}.log", users) for host in HOSTS)
        self.between = tuple(Line(free_port(), peer.port).start() for peer in self.all)
        for peer, line, other in zip(self.all, reversed(self.between), reversed(self.all), strict=True):
            peer.other = f"http://{other.login}{other.host}:{line.port}/eureka/v2/"
        self._log = folder / "reader.log"
        self._reader: subprocess.Popen[str] | None = None

    def start(self) -> None:
        for peer in self.all:
            peer.start()
        for peer in self.all:
            peer.wait_ready()
        self._reader = _start("Reader", READER, [peer.url for peer in self.all], self._log)

    def close(self) -> None:
        for process in (*(peer._process for peer in self.all), self._reader):
            if process is not None and process.poll() is None:
                _kill(process)
        for line in self.between:
            line.close()

    def mend(self) -> None:
        """End all faults."""
        for line in self.between:
            line.fault = Fault.NONE
        for peer in self.all:
            if peer.runs:
                peer.resume()
            else:
                peer.start()
        for peer in self.all:
            peer.say("UP")
            peer.wait_ready()

    def read(self, number: int, app: str, *, by_consumer: bool = False) -> dict[str, dict[str, Any]] | None:
        """Return the instances of an application by their ids, read from a server by the official client.

        None if the server does not answer. ``by_consumer``: as a program has them that looks the application up.
        """
        assert self._reader is not None
        question = f"{number} {app}" + (" consumer" if by_consumer else "")
        found: dict[str, dict[str, Any]] | None = json.loads(_ask(self._reader, question))
        return found


@contextmanager
def running_peers(folder: Path, users: Mapping[str, str] = MappingProxyType({})) -> Iterator[Peers]:
    with ExitStack() as closing:
        peers = Peers(folder, users)
        closing.callback(peers.close)
        peers.start()
        yield peers


def _start(
    program: str, settings: Mapping[str, str], arguments: Sequence[str], log: Path
) -> subprocess.Popen[str]:
    properties = [f"-Deureka.{name}={value}" for name, value in settings.items()]
    with log.open("ab") as errors:
        return subprocess.Popen(
            [*JAVA, *properties, f"dev.pidone.peers.{program}", *arguments],
            env=dict(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def _ask(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return process.stdout.readline()
