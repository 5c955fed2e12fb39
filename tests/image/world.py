"""A repo (standalone) and a Eureka (the fake) on all addresses of this machine, for pods of the image."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.demo.world import bindings_for
from tests.image.podman import ROOT, service

METRICS = 19100
ALL = {"app": "ratings", "pidone.dev/registry": "eureka", "pidone.dev/metrics": "true"}  # the tasks of each


class World:
    """Which pods there are is told with ``pods``; what became of them is asked at the servers."""

    def __init__(self, folder: Path, repo_port: int, eureka_port: int) -> None:
        self.inventory = folder / "pods.json"
        self.repo = f"http://127.0.0.1:{repo_port}"
        self.eureka = f"http://127.0.0.1:{eureka_port}/eureka"
        self._pods: dict[str, dict[str, Any]] = {}
        self._http = httpx.Client(timeout=5, headers={"accept": "application/json"})

    def pods(self, **changes: tuple[str, Mapping[str, str]] | None) -> None:
        """Add pods by name: address and labels; or take them out with None."""
        for name, pod in changes.items():
            self._pods.pop(name, None)
            if pod is not None:
                ip, labels = pod
                metadata = {"name": name, "namespace": "shop", "uid": f"uid-{name}", "labels": dict(labels)}
                status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}
                self._pods[name] = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}
        aside = self.inventory.with_suffix(".new")
        aside.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(self._pods.values())}))
        aside.rename(self.inventory)

    def registered(self, name: str) -> dict[str, Any] | None:
        """What Eureka has of the pod's application."""
        text = self.read(f"{self.eureka}/apps/RATINGS/{name}:ratings:8080")
        return dict(json.loads(text)["instance"]) if text else None

    def renewed(self, name: str) -> int:
        """When Eureka had the pod's last heartbeat; 0 where it does not know it."""
        instance = self.registered(name)
        return int(instance["leaseInfo"]["lastRenewalTimestamp"]) if instance else 0

    def renewed_after(self, name: str, before: int) -> bool:
        return self.renewed(name) > before

    def metrics(self, ip: str) -> str | None:
        return self.read(f"http://{ip}:{METRICS}/metrics")

    def read(self, url: str) -> str | None:
        try:
            answer = self._http.get(url)
        except httpx.TransportError:
            return None
        return answer.text if answer.status_code == 200 else None

    def close(self) -> None:
        self._http.close()


@contextmanager
def world(folder: Path, repo_port: int, eureka_port: int, eureka_host: str) -> Iterator[World]:
    """``eureka_host``: where pods see this machine."""
    here = World(folder, repo_port, eureka_port)
    bindings = folder / "bindings"
    bindings.mkdir()
    params = {"eureka": f"http://{eureka_host}:{eureka_port}/eureka"}
    (bindings / "bindings.yaml").write_text(bindings_for("eureka", params))
    here.pods()
    repo = [sys.executable, "-m", "pidone_controller", "standalone", "--inventory", str(here.inventory)]
    repo += ["--tasks", str(ROOT / "tasks"), "--tasks", str(bindings), "--listen", f"0.0.0.0:{repo_port}"]
    eureka = [sys.executable, "-m", "tests.eureka", "--listen", f"0.0.0.0:{eureka_port}"]
    with service(repo, folder / "repo.log"), service(eureka, folder / "eureka.log"):
        try:
            yield here
        finally:
            here.close()
