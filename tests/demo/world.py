"""The parts of the demo: a repo, a Eureka, an application, and pods. Each is a real process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Self

import httpx

from tests import pidns
from tests.eureka import real
from tests.patience import PATIENCE_SECONDS
from tests.ports import free_address, free_port

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PORT = 8080  # of the application
METRICS = 19100
WEB, DB, PLAIN = "web", "db", "plain"
INSTANCE = f"{WEB}:ratings:{PORT}"


class Service:
    """A server that can be killed and restarted on the same port."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._command = command
        self._env = {**os.environ, **env}
        self._log: IO[bytes] = log.open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command, env=self._env, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT
        )

    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(PATIENCE_SECONDS)


class World:
    """All parts. The end of the ``with`` block ends each process by its pid."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.log"):
            old.unlink()
        self._closing = ExitStack()
        self.addresses = {name: free_address() for name in (WEB, DB, PLAIN)}
        repo_port, eureka_port = free_port(), free_port()
        self.repo_url = f"http://127.0.0.1:{repo_port}"
        self.eureka_url = f"http://127.0.0.1:{eureka_port}/eureka"
        self.real_eureka = real.missing() is None
        self.eureka = self._eureka(eureka_port)
        self.app = Service(
            "application",
            [sys.executable, str(HERE / "app.py"), self.addresses[WEB], str(PORT)],
            {},
            folder / "application.log",
        )
        self.pods: dict[str, pidns.ProcessOne] = {}
        self.inventory = folder / "pods.json"
        self.labels: dict[str, dict[str, str]] = {
            WEB: {"app": "ratings", "pidone.dev/registry": "eureka"},
            DB: {"app": "db", "pidone.dev/metrics": "true"},
            PLAIN: {"app": "plain"},
        }
        self.deleted: set[str] = set()
        tasks = folder / "bindings"
        tasks.mkdir(exist_ok=True)
        bindings = (HERE / "bindings.yaml").read_text().replace("$EUREKA", self.eureka_url)
        (tasks / "bindings.yaml").write_text(bindings)
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
        for service in (self.repo, self.app, self.eureka):
            service.end(signal.SIGTERM)
        self._http.close()

    def _eureka(self, port: int) -> Service:
        log = self.folder / "eureka.log"
        if self.real_eureka:
            return Service("Eureka", real.command(), real.environment(port), log)
        fake_eureka = [sys.executable, "-m", "tests.eureka", "--listen", f"127.0.0.1:{port}"]
        return Service("Eureka", fake_eureka, {"PYTHONPATH": str(ROOT)}, log)

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

    def instance(self) -> dict[str, Any] | None:
        """Return the instance in Eureka; None if there is none, or Eureka is away."""
        answer = self._get(f"{self.eureka_url}/apps/RATINGS/{INSTANCE}")
        if answer is None:
            return None
        instance: dict[str, Any] = answer.json()["instance"]
        return instance

    def status(self) -> str:
        """Return the instance's status in Eureka, "not registered", or "Eureka is away"."""
        if self._get(f"{self.eureka_url}/apps") is None:
            return "Eureka is away"
        instance = self.instance()
        return str(instance["status"]) if instance else "not registered"

    def reported(self, pod: str) -> dict[str, Any]:
        """Return the repo's document about a pod: its expected plan and its last report."""
        answer = self._get(f"{self.repo_url}/v1/pods/shop/{pod}")
        document: dict[str, Any] = answer.json() if answer else {}
        return document

    def metric(self, pod: str, sample: str) -> float | None:
        """Return a value of the pod's metrics page; ``sample`` is its name and labels as on the page."""
        answer = self._get(f"http://{self.addresses[pod]}:{METRICS}/metrics")
        for line in answer.text.splitlines() if answer else []:
            if line.startswith(f"{sample} "):
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
