"""Consul: Debian's agent of ``make consul``, alone and without ACLs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.consul import real
from tests.demo.registries import APP, BEAT_SECONDS, Instance
from tests.demo.service import Service


def missing() -> str | None:
    return real.missing()


class Consul:
    title = "Consul"
    unhealthy = "critical"

    def __init__(self, folder: Path) -> None:
        self._agent = real.RealConsul(folder)
        self._agent.wipe()
        # at this level it logs each heartbeat, of which its API shows nothing
        command = self._agent.command("DEBUG")
        self._log = folder / "consul.log"
        self.service = Service("Consul", command, {}, self._log)
        self.kind = f"Consul {real.version()}"
        self.url = self._agent.url
        port = self._agent.ports["http"]
        self.params: Mapping[str, str] = {
            "agent": "127.0.0.1",
            "agentPort": str(port),
            "ttl": f"{BEAT_SECONDS * 3 // 2}s",
        }
        self._http = httpx.Client(timeout=5)

    def empty(self) -> None:
        self._agent.wipe()

    def answers(self) -> bool:
        return bool(self._get("health/service/consul"))

    def instance(self) -> Instance | None:
        found = self._get(f"health/service/{APP}")
        if not found:
            return None
        (entry,) = found
        service = entry["Service"]
        passes = {check["Status"] for check in entry["Checks"]} == {"passing"}
        return Instance(
            name=service["ID"],
            address=service["Address"],
            port=service["Port"],
            status="UP" if passes else self.unhealthy,
            registered=service["CreateIndex"],
            renewed=self._log.read_text().count(f"Check status updated: check=service:{service['ID']}"),
        )

    def _get(self, path: str) -> list[dict[str, Any]] | None:
        try:
            answer = self._http.get(f"{self.url}/v1/{path}")
        except httpx.TransportError:
            return None
        found: list[dict[str, Any]] | None = answer.json() if answer.status_code == 200 else None
        return found


def build(folder: Path) -> Consul:
    return Consul(folder)
