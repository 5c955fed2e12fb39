"""Eureka: the real server if it is built, else an embedded fake, so that the demo needs nothing but Python."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.demo.registries import APP, BEAT_SECONDS, PORT, Instance
from tests.demo.service import Service
from tests.eureka import real
from tests.ports import free_port

ROOT = Path(__file__).parents[3]


def missing() -> None:
    """The fake is always there."""


class Eureka:
    title = "Eureka"
    unhealthy = "DOWN"

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/eureka"
        self._id = f"web:{APP}:{PORT}"
        self._http = httpx.Client(timeout=5, headers={"accept": "application/json"})
        self.params: Mapping[str, str] = {"eureka": self.url, "renew": f"{BEAT_SECONDS}s"}
        log = folder / "eureka.log"
        if real.missing() is None:
            self.kind = "Spring Cloud Eureka"
            self.service = Service("Eureka", real.command(), real.environment(port), log)
        else:
            self.kind = "an embedded fake (make eureka builds the real one)"
            command = [sys.executable, "-m", "tests.eureka", "--listen", f"127.0.0.1:{port}"]
            self.service = Service("Eureka", command, {"PYTHONPATH": str(ROOT)}, log)

    def empty(self) -> None:
        """It keeps nothing."""

    def answers(self) -> bool:
        return self._get("apps") is not None

    def instance(self) -> Instance | None:
        answer = self._get(f"apps/{APP.upper()}/{self._id}")
        if answer is None:
            return None
        found: dict[str, Any] = answer.json()["instance"]
        return Instance(
            name=f"{APP.upper()} {self._id}",
            address=found["ipAddr"],
            port=found["port"]["$"],
            status=found["status"],
            registered=str(found["leaseInfo"]["registrationTimestamp"]),
            renewed=int(found["leaseInfo"]["lastRenewalTimestamp"]),
        )

    def _get(self, path: str) -> httpx.Response | None:
        try:
            answer = self._http.get(f"{self.url}/{path}")
        except httpx.TransportError:
            return None
        return answer if answer.status_code == 200 else None


def build(folder: Path) -> Eureka:
    return Eureka(folder)
