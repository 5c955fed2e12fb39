"""The parts of the demo: a repo, a registry, an application, and pods. Each is a real process."""

import json
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx

from tests import pidns
from tests.demo import registries
from tests.demo.registries import APP, PORT, Instance
from tests.demo.service import Service
from tests.ports import free_address, free_port

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
METRICS = 19100
WEB, DB, PLAIN = "web", "db", "plain"
AWAY, NOT_REGISTERED = "away", "not registered"  # statuses of the demo itself


def bindings_for(registry: str, params: Mapping[str, object]) -> str:
    """Return the bindings of the demo for one registry, with these params of its ready-made set."""
    lines = "".join(f"\n    {name}: {value}" for name, value in params.items())
    return (HERE / "bindings.yaml").read_text().replace("$REGISTRY", registry).replace("$PARAMS", lines)


class World:
    """All parts. The end of the ``with`` block ends each process by its pid."""

    def __init__(self, folder: Path, registry: str = "eureka") -> None:
        self.folder, self.name = folder, registry
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.log"):
            old.unlink()
        self._closing = ExitStack()
        self.addresses = {name: free_address() for name in (WEB, DB, PLAIN)}
        repo_port = free_port()
        self.repo_url = f"http://127.0.0.1:{repo_port}"
        self.registry = registries.build(registry, folder)
        self.app = Service(
            "application",
            [sys.executable, str(HERE / "app.py"), self.addresses[WEB], str(PORT)],
            {},
            folder / "application.log",
        )
        self.pods: dict[str, pidns.ProcessOne] = {}
        self.inventory = folder / "pods.json"
        self.labels: dict[str, dict[str, str]] = {
            WEB: {"app": APP, "pidone.dev/registry": registry},
            DB: {"app": "db", "pidone.dev/metrics": "true"},
            PLAIN: {"app": "plain"},
        }
        self.deleted: set[str] = set()
        tasks = folder / "bindings"
        tasks.mkdir(exist_ok=True)
        (tasks / "bindings.yaml").write_text(bindings_for(registry, self.registry.params))
        self.write_inventory()
        command = ["-m", "pidone_controller", "standalone", "--inventory", str(self.inventory)]
        command += [
            "--tasks",
            str(ROOT / "tasks"),
            "--tasks",
            str(tasks),
            "--listen",
            f"127.0.0.1:{repo_port}",
        ]
        self.repo = Service("repo", [sys.executable, *command], {}, folder / "repo.log")
        self._http = httpx.Client(timeout=5, headers={"accept": "application/json"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()
        for service in (self.repo, self.app, self.registry.service):
            service.end(signal.SIGTERM)
        self._http.close()

    def start_pod(self, name: str) -> None:
        log = self._closing.enter_context((self.folder / f"pod-{name}.log").open("wb"))
        env = {
            "PIDONE_REPO": self.repo_url,
            "PIDONE_POD_IP": self.addresses[name],
            "PIDONE_POD_UID": f"uid-{name}",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'controller'}",  # process 1 has / as its working directory
        }
        command = [sys.executable, "-m", "pidone"]
        self.pods[name] = self._closing.enter_context(pidns.process_one(command, env=env, output=log))

    def write_inventory(self) -> None:
        """Write the inventory in the form of ``kubectl get pods -o json``; replace the file at once, as editors do."""
        pods = []
        for name, address in self.addresses.items():
            metadata: dict[str, Any] = {"name": name, "namespace": "shop", "uid": f"uid-{name}"}
            metadata["labels"] = self.labels[name]
            if name in self.deleted:
                metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
            pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status})
        aside = self.inventory.with_suffix(".new")
        aside.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": pods}, indent=2))
        aside.rename(self.inventory)

    # The steps are checked in the registry, the repo and the metrics pages, and never in logs.

    def repo_ready(self) -> bool:
        return self._get(f"{self.repo_url}/readyz") is not None

    def instance(self) -> Instance | None:
        """Return the instance in the registry; None if there is none, or the registry is away."""
        return self.registry.instance()

    def status(self) -> str:
        """Return the instance's status in the registry, NOT_REGISTERED, or AWAY."""
        if not self.registry.answers():
            return AWAY
        instance = self.instance()
        return instance.status if instance else NOT_REGISTERED

    def reported(self, pod: str) -> dict[str, Any]:
        """Return the repo's document about a pod: its expected plan and its last report."""
        answer = self._get(f"{self.repo_url}/v1/pods/shop/{pod}")
        document: dict[str, Any] = answer.json() if answer else {}
        return document

    def metric(self, pod: str, sample: str) -> float | None:
        """Return a value of the pod's metrics page; ``sample`` is its name and first labels as on the page."""
        answer = self._get(f"http://{self.addresses[pod]}:{METRICS}/metrics")
        for line in answer.text.splitlines() if answer else []:
            if line.startswith(sample):
                return float(line.rpartition(" ")[2])
        return None

    def order_application(self, order: str) -> None:
        self._http.post(f"http://{self.addresses[WEB]}:{PORT}/{order}").raise_for_status()

    def _get(self, url: str) -> httpx.Response | None:
        try:
            answer = self._http.get(url)
        except httpx.TransportError:
            return None
        return answer if answer.status_code == 200 else None
