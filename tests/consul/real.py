"""A real Consul agent as a child process, and one that somebody else runs (CONSUL_HTTP_ADDR).

``make consul`` fetches Debian's package into the cache, verified by apt, and unpacks it there; nothing is installed.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

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
    """Return the program of the agent."""
    return CACHE / f"consul-{ARCH}" / "root/usr/bin/consul"


def fetch() -> None:
    """Bring it into the cache.

    Raises:
        Missing: this is no Debian, or the release lacks the package.
    """
    sys.path.insert(0, str(ROOT / "k3d/image"))
    builder = import_module("build")  # a program, in no package
    builder.unpack_packages(ARCH, ["consul"], suite=RELEASE, cache="consul")


def missing() -> str | None:
    """Return why no agent can be started here, with the remedy; None if one can."""
    return None if program().exists() else f"no Consul in the cache: {FETCH} (on Debian)"


def foreign() -> Agent | None:
    """Return the agent that somebody else runs for these tests; None if there is none."""
    address = os.environ.get(ADDRESS, "")
    if not address:
        return None
    url = address if "://" in address else f"http://{address}"
    return Agent(url.rstrip("/"), os.environ.get(TOKEN, ""))


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

    async def grant(self, token: str, service: str) -> None:
        """Make a token that may write a service."""
        agent, name = self.agent, f"{service}-{token[:8]}"
        rules = f'service "{service}" {{ policy = "write" }}'
        await agent.put("acl/policy", {"Name": name, "Rules": rules})
        await agent.put("acl/token", {"SecretID": token, "Policies": [{"Name": name}]})

    async def revoke(self, token: str) -> None:
        """Delete a token."""
        answer = await self.agent.call("GET", "acl/token/self", token=token)
        accessor = json.loads(answer.body)["AccessorID"]
        answer = await self.agent.call("DELETE", f"acl/token/{accessor}")
        assert answer.status == 200, answer

    @property
    def agent(self) -> Agent:
        return Agent(self.url, MANAGEMENT if self.acls else "")

    @property
    def log(self) -> Path:
        return self.folder / "agent.log"

    def start(self) -> None:
        """Start it with the data that is there, and wait until it answers and has a leader."""
        self.ports = self.ports or {name: free_port() for name in ("http", "server", "serf_lan", "serf_wan")}
        config = self.folder / "agent.json"
        config.write_text(json.dumps(self._config()))
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [program(), "agent", f"-config-file={config}"],
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
            subprocess.run(["rm", "-rf", self.folder / "data"], check=True)

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
            "log_level": "INFO",
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
    fetch()
