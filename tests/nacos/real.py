"""Real Nacos servers as child processes, and the official client that reads from them."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from tests.patience import PATIENCE_SECONDS
from tests.ports import free_ports

JAVA = Path(__file__).parent / "java"
BUILD = "make nacos"
VERSIONS = ("2.3.2", "3.1.0")
APIS = {"2.3.2": ("v1", "v2"), "3.1.0": ("v1", "v3")}
OFFSETS = (-1000, 0, 1000, 1001)  # of the ports on which a server listens: Raft, HTTP and gRPC
READERS = {"2.5.1": "reader", "3.1.0": "reader-3"}  # versions of the client, and their modules

# Quick to start and small
JAVA_OPTIONS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m", "-Xss512k")
TTL_SECONDS = 8  # of the tokens of servers whose users log in
ADMIN, PASSWORD = "nacos", "nacos"
USER, USER_PASSWORD, ROLE = "pidone", "pidone's password", "pidone-role"


@dataclass
class RealNacos:
    """A server. With ``user`` it wants that all log in."""

    version: str
    port: int
    home: Path
    auth: bool = False
    ttl: int = 18_000  # seconds that a token is valid
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/nacos"

    @property
    def apis(self) -> Sequence[str]:
        return APIS[self.version]

    @property
    def log(self) -> Path:
        return self.home / "server.log"

    def start(self) -> None:
        """Start the server, which has its users of before. It need not answer yet."""
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.home,
            )

    def command(self) -> list[str]:
        return ["java", *JAVA_OPTIONS, *self._settings(), *_program(self.version)]

    def wait_ready(self, timeout: float = 3 * PATIENCE_SECONDS) -> None:
        """Block until the server answers. Raises ``RuntimeError``. A start takes 30 s of processor time."""
        path = "v3/client/ns/instance/list" if "v3" in self.apis else "v2/ns/instance/list"
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.process is not None and self.process.poll() is None:
            if self.call("GET", path, {"serviceName": "x"})[0] in {200, 403}:
                return
            time.sleep(0.1)
        raise RuntimeError(
            f"Nacos {self.version} is not ready; its log ends with\n{self.log.read_text()[-3000:]}"
        )

    def end(self) -> None:
        if self.process is None:
            return
        self.process.kill()  # its data are on the disk, or are to be forgotten
        self.process.wait(PATIENCE_SECONDS)
        self.process = None

    def call(self, method: str, path: str, parameters: Mapping[str, str], token: str = "") -> tuple[int, str]:
        """Return status and body of an answer; status 0 if there is none."""
        form = urlencode(parameters)
        body = form.encode() if method == "POST" else None
        url = f"{self.url}/{path}" + ("" if body else f"?{form}")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            with urlopen(Request(url, body, headers, method=method), timeout=10) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()
        except (URLError, OSError, HTTPException):
            return 0, ""

    def add_user(self) -> None:
        """Let ``USER`` read and write in the namespace public. Raises ``RuntimeError``."""
        v3 = "v3" in self.apis
        if v3:
            self.call("POST", "v3/auth/user/admin", {"password": PASSWORD})
        users, roles = ("v3/auth/user", "v3/auth/role") if v3 else ("v1/auth/users", "v1/auth/roles")
        token = self.token(ADMIN, PASSWORD)
        for path, values in (
            (users, {"username": USER, "password": USER_PASSWORD}),
            (roles, {"role": ROLE, "username": USER}),
        ):
            status, text = self.call("POST", path, values, token)
            if status != 200:
                raise RuntimeError(f"{path}: {status} {text}")
        self.grant()

    def token(self, user: str, password: str) -> str:
        """Log a user in. Raises ``RuntimeError``."""
        path = "v3/auth/user/login" if "v3" in self.apis else "v1/auth/login"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:  # the server reads its users now and then, and knows none at first
            status, text = self.call("POST", path, {"username": user, "password": password})
            if status == 200:
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"{path}: {status} {text}")
            time.sleep(0.5)
        return str(json.loads(text)["accessToken"])

    def grant(self) -> None:
        """Give ``USER`` its rights, if it has none. Returns when the server knows of it, which takes up to 15 s."""
        if not self._user_may():
            self._permission("POST", may=True)

    def revoke(self) -> None:
        """Take the rights of ``USER``, in the same way."""
        self._permission("DELETE", may=False)

    def signal(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def _permission(self, method: str, *, may: bool) -> None:
        path = "v3/auth/permission" if "v3" in self.apis else "v1/auth/permissions"
        # in permissions of 2.3.2 the namespace public has no name
        resource = "public:*:*" if "v3" in self.apis else ":*:*"
        values = {"role": ROLE, "resource": resource, "action": "rw"}
        status, text = self.call(method, path, values, self.token(ADMIN, PASSWORD))
        if status != 200:
            raise RuntimeError(f"{method} {path}: {status} {text}")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._user_may() is not may:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{method} {path} has no effect")
            time.sleep(0.2)

    def _user_may(self) -> bool:
        path = "v3/client/ns/instance/list" if "v3" in self.apis else "v1/ns/instance/list"
        values = {"serviceName": "x", "namespaceId": "public"}
        return self.call("GET", path, values, self.token(USER, USER_PASSWORD))[0] == 200

    def _settings(self) -> Iterator[str]:
        auth = str(self.auth).lower()
        settings = {
            "nacos.standalone": "true",
            "nacos.home": str(self.home),
            "nacos.server.ip": "127.0.0.1",
            "server.address": "127.0.0.1",
            "nacos.server.main.port" if "v3" in self.apis else "server.port": str(self.port),
            # for its database to open: by default 3 s, which is not enough on a busy machine
            "db.pool.config.connectionTimeout": str(int(PATIENCE_SECONDS * 1000)),
            "nacos.core.auth.enabled": auth,
            "nacos.core.auth.admin.enabled": auth,
            "nacos.core.auth.system.type": "nacos" if self.auth or "v3" in self.apis else "",
            "nacos.core.auth.server.identity.key": "tests",
            "nacos.core.auth.server.identity.value": "tests",
            "nacos.core.auth.plugin.nacos.token.secret.key": "b25seS1mb3ItdGVzdHMtb2YtcGlkb25lLTAxMjM0NTY3ODk=",
            "nacos.core.auth.plugin.nacos.token.expire.seconds": str(self.ttl),
        }
        yield from (f"-D{name}={value}" for name, value in settings.items())


def missing() -> str | None:
    """Why the servers cannot be started here, with the remedy; None where they can."""
    if shutil.which("java") is None:
        return "no java: apt-get install openjdk-17-jre-headless"
    if not all(
        (JAVA / module / "target/lib").is_dir() for module in ("server", "server-3", *READERS.values())
    ):
        return f"{JAVA}/*/target/lib is not there: {BUILD}"
    return None


@contextmanager
def nacos(
    version: str, port: int, home: Path, *, auth: bool = False, ttl: int = 18_000
) -> Iterator[RealNacos]:
    """Start a server, and end it with the block. Call ``wait_ready`` before the first use.

    The ports beside ``port`` by ``OFFSETS`` must be free too.
    """
    server = RealNacos(version, port, home, auth, ttl)
    server.start()
    try:
        yield server
    finally:
        server.end()


class NacosServers:
    """Servers that are started at their first use."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._servers: dict[tuple[str, bool], RealNacos] = {}
        self._readers: dict[tuple[str, bool, str], Reader] = {}

    def get(self, version: str, *, auth: bool = False) -> RealNacos:
        """Return the server of this version, ready; with ``auth`` one that has ``USER`` and short tokens."""
        key = version, auth
        if key not in self._servers:
            home = self._folder / f"{version}-{'auth' if auth else 'open'}"
            server = self._stack.enter_context(
                nacos(version, free_ports(OFFSETS), home, auth=auth, ttl=TTL_SECONDS if auth else 18_000)
            )
            server.wait_ready()
            if auth:
                server.add_user()
            self._servers[key] = server
        return self._servers[key]

    def reader(self, version: str, client: str = "2.5.1") -> "Reader":
        """Return the official client of that version at the server of this version."""
        key = version, False, client
        if key not in self._readers:
            log = self._folder / f"reader-{client}-of-{version}.log"
            reader = Reader(self.get(version), client, log)
            self._stack.callback(reader.end)
            self._readers[key] = reader
        return self._readers[key]


@contextmanager
def nacos_servers(folder: Path) -> Iterator[NacosServers]:
    """End with the block what ``NacosServers`` has started."""
    with ExitStack() as stack:
        yield NacosServers(folder, stack)


class Reader:
    """The official Java client of a server, in one of its versions."""

    def __init__(
        self, server: RealNacos, version: str, log: Path, *, user: tuple[str, str] | None = None
    ) -> None:
        classes = JAVA / "reader/target/classes"
        path = f"{classes}:{JAVA / READERS[version]}/target/lib/*"
        address = f"127.0.0.1:{server.port}"
        settings = [f"-Duser.home={log.parent}", f"-DJM.LOG.PATH={log.parent}", "-Xmx128m"]
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [
                    "java",
                    *JAVA_OPTIONS,
                    *settings,
                    "-cp",
                    path,
                    "dev.pidone.nacos.Reader",
                    address,
                    *(user or ()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ,
            )

    def instances(
        self, service: str, *, group: str = "DEFAULT_GROUP", namespace: str = "public"
    ) -> list[dict[str, Any]] | None:
        """Return what the client gets of a service; None if the server does not answer it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{namespace} {group} {service}\n")
        self._process.stdin.flush()
        for line in self._process.stdout:  # between the answers are lines of the client's log
            if line.startswith("= "):
                answer: list[dict[str, Any]] | None = json.loads(line[2:])
                return answer
        raise RuntimeError("the reader has ended; see its log")

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()  # closes the pipes


def _program(version: str) -> Sequence[str]:
    """Return the class path and the main class of a server."""
    target = JAVA / ("server" if version == "2.3.2" else "server-3") / "target"
    # of the two jars of Hessian, the server wants this one first
    hessian = next((target / "lib").glob("hessian-4.*.jar"))
    path = f"{target}/classes:{hessian}:{target}/lib/*"
    main = "com.alibaba.nacos.Nacos" if version == "2.3.2" else "dev.pidone.nacos.Server"
    return ["--add-opens", "java.base/java.lang=ALL-UNNAMED", "-cp", path, main]
