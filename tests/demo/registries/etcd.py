"""etcd: Debian's server, or that of ``make etcd``."""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from pidone.registries._etcd_layouts import host_of
from tests.demo.registries import APP, BEAT_SECONDS, Instance
from tests.demo.service import Service
from tests.etcd import real


def missing() -> str | None:
    reasons = [real.missing(server) for server in real.SERVERS]
    return None if None in reasons else reasons[0]


class Etcd:
    title = "etcd"
    unhealthy = "not registered"

    def __init__(self, folder: Path) -> None:
        server = next(server for server in real.SERVERS if real.missing(server) is None)
        self._member = real.Member(server, "etcd", folder, None)
        self._member.wipe()
        self.kind = f"etcd {real.version(server)}"
        self.url = self._member.url
        self.params: Mapping[str, str] = {"etcd": self.url, "ttl": f"{3 * BEAT_SECONDS}s"}
        self.service = Service("etcd", self._member.words, {}, folder / "etcd.log")
        self._http = httpx.Client(timeout=5)
        self._left, self._renewals = 0, 0

    def empty(self) -> None:
        self._member.wipe()

    def answers(self) -> bool:
        return self._ask("kv/range", {"key": "AA=="}) is not None

    def instance(self) -> Instance | None:
        prefix = f"{APP}/"
        keys = {"key": _base64(prefix), "range_end": _base64(f"{APP}0")}
        found = (self._ask("kv/range", keys) or {}).get("kvs")
        if not found:
            return None
        (kv,) = found
        key, value = b64decode(kv["key"]).decode(), json.loads(b64decode(kv["value"]))
        return Instance(
            name=key,
            address=host_of(value["Addr"]),
            port=int(value["Addr"].rpartition(":")[2]),
            status="UP",
            registered=kv["create_revision"],
            renewed=self._count(kv["lease"]),
        )

    def _count(self, lease: str) -> int:
        """Return how often the seconds that the lease has left have grown."""
        left = int((self._ask("lease/timetolive", {"ID": lease}) or {}).get("TTL", 0))
        self._renewals += left > self._left
        self._left = left
        return self._renewals

    def _ask(self, path: str, body: Mapping[str, str]) -> dict[str, Any] | None:
        try:
            answer = self._http.post(f"{self.url}/v3/{path}", content=json.dumps(body))
        except httpx.TransportError:
            return None
        found: dict[str, Any] | None = answer.json() if answer.status_code == 200 else None
        return found


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()


def build(folder: Path) -> Etcd:
    return Etcd(folder)
