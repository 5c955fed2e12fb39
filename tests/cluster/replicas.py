"""Replicas of the controller, as processes beside a real API server, with the rights that the manifests give them."""

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import trio
from ruamel.yaml import YAML

from tests.cluster.apiserver import Cluster
from tests.cluster.process import Process, until
from tests.patience import PATIENCE_SECONDS
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "k3d" / "rbac.yaml"
HOME = "pidone-system"
ACCOUNT = "pidone-controller"

# A set and its binding, for whatever test needs one.
SET = """
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: web}
spec:
  params:
    - {name: port, type: integer, default: 8080, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['port']"}}}
  tasks:
    - name: ready
      probe: {httpGet: {path: /, port: $(params.port)}}
---
apiVersion: pidone.dev/v1alpha1
kind: TaskBinding
metadata: {name: web}
spec:
  podSelector: {matchLabels: {web: "yes"}}
  taskSets: [web]
"""

_addresses = itertools.count(2)


def address() -> str:
    """Of loopback, that no pod of these tests has had yet."""
    number = next(_addresses)
    return f"127.{77 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}"


@dataclass
class Replica:
    """One controller."""

    name: str
    port: int
    tls: int  # its port for https
    process: Process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=10, trust_env=False)


class Replicas:
    """All that were made for one API server."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.all: list[Replica] = []
        self.kubeconfig = allowed(cluster)

    def add(self, name: str, *, server: str = "", start: bool = True) -> Replica:
        """One more; ``server`` is what stands between it and the API server, if something does."""
        port, tls = free_port(), free_port()
        config = self.kubeconfig
        if server:
            config = self.cluster.kubeconfig_of(self.cluster.token(HOME, ACCOUNT), server)
        command = [sys.executable, "-m", "pidone_controller", "run"]
        command += ["--kubeconfig", str(config), "--namespace", HOME, "--listen", f"127.0.0.1:{port}"]
        command += ["--listen-tls", f"127.0.0.1:{tls}"]
        log = self.folder / f"controller-{name}.log"
        replica = Replica(name, port, tls, Process(command, log, lambda: replica.ready))
        replica.process.environment = {
            "POD_NAME": name,
            "POD_IP": "127.0.0.1",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'controller'}",
        }
        self.all.append(replica)
        if start:
            replica.process.start()
        return replica

    @property
    def urls(self) -> list[str]:
        return [replica.url for replica in self.all]

    def leader(self) -> str:
        """The name of the one that leads; empty while nobody does."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{HOME}/leases/pidone-controller"
        try:
            lease = self.cluster.request("GET", path)
        except AssertionError:
            return ""
        return str(lease["spec"].get("holderIdentity") or "").partition("_")[0]


@contextmanager
def replicas(cluster: Cluster, folder: Path) -> Iterator[Replicas]:
    """All of them end with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    found = Replicas(cluster, folder)
    try:
        yield found
    finally:
        for replica in found.all:
            replica.process.kill()
        # whoever is killed keeps its Lease for 15 s, and those of the next test could have the same names
        cluster.try_kubectl(
            "delete", "lease", "pidone-controller", "-n", HOME, "--ignore-not-found", "--request-timeout=5s"
        )


def allowed(cluster: Cluster) -> Path:
    """A kubeconfig of the controller's own account, with what ``k3d/rbac.yaml`` allows it and no more."""
    namespaces = cluster.request("GET", "/api/v1/namespaces")["items"]
    if HOME not in {one["metadata"]["name"] for one in namespaces}:
        cluster.make_namespace(HOME)
    cluster.kubectl("apply", "--server-side", "-f", MANIFESTS)
    return cluster.kubeconfig_of(cluster.token(HOME, ACCOUNT))


def written(text: str, namespace: str) -> list[dict[str, Any]]:
    """Objects from YAML, in a namespace."""
    documents = YAML(typ="safe", pure=True).load_all(text)
    return [
        {**one, "metadata": {**one["metadata"], "namespace": namespace}}
        for one in json.loads(json.dumps(list(documents)))
    ]


def conditions(cluster: Cluster, kind: str, name: str, namespace: str) -> dict[str, tuple[str, str]]:
    """By type: the status and the reason."""
    found = json.loads(cluster.kubectl("get", kind, name, "--namespace", namespace, "--output=json"))
    stand: Sequence[dict[str, str]] = found.get("status", {}).get("conditions", ())
    return {one["type"]: (one["status"], one["reason"]) for one in stand}


async def told(
    cluster: Cluster, namespace: str, name: str, kind: str = "taskbinding", **stand: tuple[str, str]
) -> None:
    """Wait until people see these conditions."""

    def seen() -> bool:
        return stand.items() <= conditions(cluster, kind, name, namespace).items()

    await trio.to_thread.run_sync(
        until, seen, PATIENCE_SECONDS, lambda: conditions(cluster, kind, name, namespace)
    )
