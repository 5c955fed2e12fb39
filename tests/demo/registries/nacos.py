"""Nacos: the server 2.3.2 of ``make nacos``, without users."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.demo.registries import APP, BEAT_SECONDS, Instance
from tests.demo.service import Service
from tests.nacos import real
from tests.ports import free_ports

VERSION = "2.3.2"


def missing() -> str | None:
    return real.missing()


class Nacos:
    title = "Nacos"
    unhealthy = "not registered"
    # the set has no field for the pace of heartbeats; the server's answers set it
    params: Mapping[str, str]

    def __init__(self, folder: Path) -> None:
        self._server = real.RealNacos(VERSION, free_ports(real.OFFSETS), folder / "nacos")
        self.empty()
        self.kind = f"Nacos {VERSION}"
        self.url = self._server.url
        self.params = {"nacos": self.url, "renew": f"{BEAT_SECONDS}s"}
        self.service = Service("Nacos", self._server.command(), {}, folder / "nacos.log")
        self._http = httpx.Client(timeout=5)
        self._shown, self._appearances = False, 0

    def empty(self) -> None:
        shutil.rmtree(self._server.home, ignore_errors=True)
        self._server.home.mkdir(parents=True)

    def answers(self) -> bool:
        return self._get("ns/instance/list", {"serviceName": APP}) is not None

    def instance(self) -> Instance | None:
        hosts = (self._get("ns/instance/list", {"serviceName": APP}) or {}).get("hosts")
        self._appearances += bool(hosts) and not self._shown
        self._shown = bool(hosts)
        if not hosts:
            return None
        (host,) = hosts
        name = f"{host['ip']}:{host['port']}"
        client = self._get("ns/client", {"clientId": f"{name}#true"}) or {}
        return Instance(
            name=name,
            address=host["ip"],
            port=host["port"],
            status="UP" if host["healthy"] else "unhealthy",
            registered=str(self._appearances),
            renewed=client.get("lastUpdatedTime", 0),
        )

    def _get(self, path: str, query: Mapping[str, str]) -> dict[str, Any] | None:
        try:
            answer = self._http.get(f"{self.url}/v2/{path}", params=query)
        except httpx.TransportError:
            return None
        found: dict[str, Any] | None = answer.json()["data"] if answer.status_code == 200 else None
        return found


def build(folder: Path) -> Nacos:
    return Nacos(folder)
