"""A real Consul agent as a child process, and one that somebody else runs (CONSUL_HTTP_ADDR).

``make consul`` fetches Debian's package into the cache, verified by apt, and unpacks it there; nothing is installed.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import httpx

from tests import golang
from tests.consul import reader
from tests.consul.agents import Agent
from tests.patience import PATIENCE_SECONDS
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
CACHE = Path.home() / ".cache" / "pidone" / "image"
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
ADDRESS, TOKEN = "CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN"
RELEASE = "bullseye"  # the last release of Debian with Consul, 1.8.7
FETCH = "make consul"
MANAGEMENT = "5b7c0b0e-3f0d-4a52-9a73-2d1a62f0a9c1"  # the token that may do everything, where there are ACLs


def program() -> Path:
    """Return the program of the agent: that of ``PIDONE_CONSUL``, or else Debian's."""
    if other := os.environ.get("PIDONE_CONSUL"):
        return Path(other)
    return CACHE / f"consul-{ARCH}" / "root/usr/bin/consul"


def fetch() -> None:
    """Bring it into the cache, and build its client, which reads what was registered.

    Raises:
        Missing: this is no Debian, or the release lacks the package.
        NoGo: there is no Go, or its modules cannot be fetched.
    """
    sys.path.insert(0, str(ROOT / "k3d/image"))
    builder = import_module("build")  # a program, in no package
    builder.unpack_packages(ARCH, ["consul"], suite=RELEASE, cache="consul")
    print(reader.build())


@cache
def version() -> str:
    """Return the version of the program."""
    said = subprocess.run([program(), "version"], capture_output=True, text=True, check=True).stdout
    return said.split()[1].removeprefix("v")


def missing() -> str | None:
    """Return why no agent can be started here, with the remedy; None if one can."""
    return None if program().exists() else f"no Consul in the cache: {FETCH} (on Debian)"


def foreign() -> Agent | None:
    """Return the agent that somebody else runs for these tests; None if there is none."""
    address = os.environ.get(ADDRESS, "")
    if not address:
        return None
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    token = os.environ.get(TOKEN, "")
    answer = httpx.get(f"{url}/v1/agent/self", headers={"x-consul-token": token}, timeout=PATIENCE_SECONDS)
    found = answer.json()["Config"]["Version"] if answer.status_code == 200 else "of an unknown version"
    return Agent(url, token, server=f"Consul {found}")


def leave(agent: Agent, prefix: str) -> None:
    """Deregister all services of an agent whose names begin so."""
    with httpx.Client(base_url=f"{agent.url}/v1/agent/", headers={"x-consul-token": agent.token}) as client:
        for key, service in client.get("services").json().items():
            if service["Service"].startswith(prefix):
                client.put(f"service/deregister/{key}")


@dataclass
class RealConsul:
    """A server and agent in one, on this machine alone."""

    folder: Path
    acls: bool = False
    ports: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['http']}"

    def grant(self, token: str, service: str, *, anew: bool = True) -> None:
        """Make a token that may write a service, or all if it is empty. Without ``anew`` it may be there already."""
        if not anew and self._ask("GET", "acl/token/self", token=token):
            return
        name = f"{service or 'all'}-{uuid.uuid4()}"
        kind = "service" if service else "service_prefix"
        rules = f'{kind} "{service}" {{ policy = "write" }}'
        made = self._ask("PUT", "acl/policy", {"Name": name, "Rules": rules})
        made = made and self._ask("PUT", "acl/token", {"SecretID": token, "Policies": [{"Name": name}]})
        if not made:
            raise RuntimeError("the Consul agent does not make a token")

    def revoke(self, token: str) -> None:
        """Delete a token."""
        accessor = self._ask("GET", "acl/token/self", token=token)["AccessorID"]
        self._ask("DELETE", f"acl/token/{accessor}")

    def _ask(self, method: str, path: str, body: object = None, token: str = MANAGEMENT) -> Any:
        """Return the answer, which is JSON; None if the token is unknown."""
        answer = httpx.request(
            method,
            f"{self.url}/v1/{path}",
            json=body,
            headers={"x-consul-token": token},
            timeout=PATIENCE_SECONDS,
        )
        return answer.json() if answer.status_code == 200 else None

    @property
    def agent(self) -> Agent:
        return Agent(self.url, MANAGEMENT if self.acls else "", server=f"Consul {version()}")

    @property
    def log(self) -> Path:
        return self.folder / "agent.log"

    def command(self, log_level: str = "INFO") -> list[str]:
        """Write its configuration, and return the words that start it."""
        self.ports = self.ports or {name: free_port() for name in ("http", "server", "serf_lan", "serf_wan")}
        config = self.folder / "agent.json"
        config.write_text(json.dumps(self._config() | {"log_level": log_level}))
        return [str(program()), "agent", f"-config-file={config}"]

    def start(self) -> None:
        """Start it with the data that is there, and wait until it answers and has a leader."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command(),
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._wait_ready()

    def stop(self, *, empty: bool = False) -> None:
        """Kill it; it has no time to say goodbye. ``empty`` removes its data."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        if empty:
            self.wipe()

    def wipe(self) -> None:
        """Remove its data."""
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def pause(self) -> None:
        """Stop it by SIGSTOP."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on, if it is paused."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    def _config(self) -> dict[str, Any]:
        acls = {
            "enabled": True,
            "default_policy": "deny",
            "tokens": {"master": MANAGEMENT, "agent": MANAGEMENT},
        }
        return {
            "server": True,
            "bootstrap_expect": 1,
            "node_name": "node-1",
            "data_dir": str(self.folder / "data"),
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "disable_update_check": True,
            "performance": {"raft_multiplier": 1},
            "ports": {**self.ports, "dns": -1},
            **({"acl": acls} if self.acls else {}),
        }

    def _wait_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urlopen(
                    f"{self.url}/v1/health/service/consul?token={self.agent.token}", timeout=5
                ) as answer:
                    if json.load(answer):  # the server's own entry is in the catalog
                        return
            except (HTTPError, URLError, OSError):
                pass
            time.sleep(0.05)
        raise RuntimeError(
            f"the Consul agent gave no answer; its log ends with\n{self.log.read_text()[-2000:]}"
        )


@contextmanager
def real_consul(folder: Path, *, acls: bool = False) -> Iterator[RealConsul]:
    """Start an agent without data, and end it with the block."""
    consul = RealConsul(folder, acls)
    try:
        consul.start()
        yield consul
    finally:
        consul.stop()


if __name__ == "__main__":
    try:
        fetch()
    except golang.NoGo as error:
        sys.exit(str(error))
