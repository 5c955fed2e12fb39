"""A real process 1 in the sidecar form logs in to a real etcd by a password in a file that its author has mounted."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from pidone_controller.repo import certificates
from tests import pidns
from tests.cluster.process import Process, until
from tests.controller.factories import manifest
from tests.etcd.conftest import PREFIX, Bench
from tests.etcd.real import Cluster
from tests.mounted import mount
from tests.patience import PATIENCE_SECONDS
from tests.ports import free_address, free_port

USER, FIRST, SECOND = "pods", "correct-horse-battery", "staple-and/more"
SERVICE = "ratings"
SET = """
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {{name: registered}}
spec:
  params:
    - {{name: password, valueFrom: {{file: etcd/password}}}}
  tasks:
    - name: registration
      register:
        etcd:
          endpoints: {endpoints}
          layout: go-kit
          service: ratings
          port: 9080
          ttl: 6s
          user: pods
          password: $(params.password)
      backoff: {{initial: 1s, max: 2s}}
      stopTimeout: 5s
    - {{name: ready, probe: {{tcpSocket: {{port: 19101}}}}}}
---
apiVersion: pidone.dev/v1alpha1
kind: TaskBinding
metadata: {{name: registered, namespace: shop}}
spec:
  podSelector: {{matchLabels: {{web: "yes"}}}}
  taskSets: [registered]
"""


@contextmanager
def repo(folder: Path, cluster: Cluster, address: str) -> Iterator[str]:
    """A standalone repo over https without a folder of Secrets; yields its URL."""
    now, port = datetime.now(UTC), free_port()
    authority = certificates.make_ca(now)
    pair = certificates.issue(authority, ["127.0.0.1"], now)
    for name, data in {"ca.crt": authority.certificate, "crt": pair.certificate, "key": pair.key}.items():
        (folder / name).write_bytes(data)
    (folder / "tasks").mkdir()
    (folder / "tasks/set.yaml").write_text(SET.format(endpoints=cluster.endpoints))
    pods = {"apiVersion": "v1", "kind": "List", "items": [manifest(ip=address, labels={"web": "yes"})]}
    (folder / "pods.json").write_text(json.dumps(pods))
    words = [sys.executable, "-m", "pidone_controller", "standalone"]
    words += ["--tasks", str(folder / "tasks"), "--inventory", str(folder / "pods.json")]
    words += ["--listen", "127.0.0.1:0", "--listen-tls", f"127.0.0.1:{port}"]
    words += ["--certificate", str(folder / "crt"), "--key", str(folder / "key")]
    url = f"https://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/readyz", verify=False, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    process = Process(words, folder / "repo.log", answers)
    process.start()
    try:
        yield url
    finally:
        process.kill()


class Sidecar:
    """The pod, as its port of /status and its log show it."""

    def __init__(self, address: str, log: Path) -> None:
        self._url = f"http://{address}:19101"
        self._log = log

    def status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = httpx.get(f"{self._url}/status", trust_env=False, timeout=10).json()
        except httpx.HTTPError:
            return {"tasks": {}}
        return found

    def task(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.status()["tasks"].get(name, {})
        return found

    def told(self) -> str:
        return json.dumps(self.status()) + self._log.read_text()


def test_a_changed_file_is_used_by_the_task_that_has_it(lone: Cluster, tmp_path: Path) -> None:
    lone.enable_authentication(USER, FIRST, PREFIX)
    etcd = Bench(lone, SERVICE, {})
    address, secrets, log = free_address(), tmp_path / "secrets", tmp_path / "pod.log"
    secrets.mkdir()
    mount(secrets / "etcd", password=FIRST + "\n", other="x")
    pod = Sidecar(address, log)
    with repo(tmp_path, lone, address) as url:
        environment = {
            "PIDONE_REPO": url,
            "PIDONE_CA": str(tmp_path / "ca.crt"),
            "PIDONE_POD_IP": address,
            "PIDONE_SECRETS": str(secrets),
        }
        with (
            log.open("wb") as output,
            pidns.process_one([sys.executable, "-m", "pidone"], env=environment, output=output),
        ):
            until(etcd.values, told=pod.told)
            until(lambda: pod.task("ready").get("state") == "healthy", told=pod.told)
            others = pod.task("ready")["since"]
            assert pod.task("registration")["state"] == "registered"

            # another key of the Secret is no change of a task
            mount(secrets / "etcd", password=FIRST + "\n", other="y")
            until(lambda: "event=secret-files-changed" in log.read_text(), told=pod.told)
            assert pod.task("registration")["runs"] == 1

            # the registry has another password first: the pod fails, and says why
            lone.ask("auth/user/changepw", {"name": USER, "password": SECOND})
            (before,) = etcd.found()
            etcd.revoke(before["lease"])
            until(lambda: "user and password" in pod.task("registration")["error"], told=pod.told)
            assert etcd.values() == []
            mount(secrets / "etcd", password=SECOND + "\n", other="y")
            until(etcd.values, told=pod.told)
            until(lambda: not pod.task("registration").get("error", "?"), told=pod.told)
            assert pod.task("ready")["since"] == others

            told = pod.told() + (tmp_path / "repo.log").read_text()
            assert not any(value in told for value in (FIRST, SECOND))
            plan = httpx.get(f"{url}/v1/pods/shop/web", verify=False, trust_env=False).json()["tasks"]
            shown = next(task for task in plan if task["name"] == "registration")
            assert shown["register"]["etcd"]["password"] == "***"
            assert shown["secrets"] == {"values": [], "files": ["etcd/password"]}


def test_a_pod_without_a_folder_refuses_the_plan_with_the_remedy(lone: Cluster, tmp_path: Path) -> None:
    address, log = free_address(), tmp_path / "pod.log"
    with repo(tmp_path, lone, address) as url:
        environment = {"PIDONE_REPO": url, "PIDONE_CA": str(tmp_path / "ca.crt"), "PIDONE_POD_IP": address}
        with (
            log.open("wb") as output,
            pidns.process_one([sys.executable, "-m", "pidone"], env=environment, output=output),
        ):
            until(lambda: "event=plan-refused" in log.read_text(), told=log.read_text)
            assert "with PIDONE_SECRETS=FOLDER, or use valueFrom" in log.read_text()

            def report() -> str:
                return httpx.get(f"{url}/v1/pods/shop/web", verify=False, trust_env=False).text

            until(lambda: "this pod reads no files" in report(), PATIENCE_SECONDS, report)
