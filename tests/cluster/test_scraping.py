"""A real Prometheus finds twenty pods of a real node by HTTP SD, and their metrics are compared with other sources."""

import base64
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster import node
from tests.cluster.apiserver import Object
from tests.cluster.node import NodeCluster
from tests.cluster.process import until
from tests.cluster.scenario import ROOT, SYSTEM, controllers
from tests.cluster.test_installed import installed
from tests.cri.conftest import BUSYBOX
from tests.patience import PATIENCE_SECONDS
from tests.ports import free_port
from tests.prometheus import LOOK_SECONDS, NEEDED, Prometheus, prometheus

__all__ = ["installed"]

pytestmark = NEEDED

PODS = 20
CONTAINERS = ("forks", "spins", "idle")
BINDING = """
apiVersion: pidone.dev/v1alpha1
kind: TaskBinding
metadata: {name: scraped}
spec:
  podSelector: {matchLabels: {scraped: "true"}}
  taskSets: [metrics]
"""
# Children of the first are killed before they end; the second uses a core, and both end if a test forgets them.
FORKS = f"while :; do {BUSYBOX} sleep 9 & {BUSYBOX} usleep 20000; kill $!; wait $!; done"
SPINS = "while :; do :; done"
# It has memory, descriptors and bytes written, in processes of its own and in one that has ended.
IDLE = (
    f"X=$({BUSYBOX} head -c 4000000 /dev/zero | {BUSYBOX} tr '\\0' x); exec 7</ 8</ 9</; "
    f"{BUSYBOX} dd if=/dev/zero of=/written bs=65536 count=64 conv=fsync; while :; do {BUSYBOX} sleep 5; done"
)
NOBODY = 65534
# Clock ticks of user and system time are rounded down for each process, and the kubelet's sample has a time of its own.
SLACK_SECONDS = 0.2


@dataclass(frozen=True)
class World:
    cluster: NodeCluster
    namespace: str
    token: Path
    ca: Path


def container(cluster: NodeCluster, name: str, script: str, **more: Any) -> Object:
    words = [BUSYBOX, "timeout", "300", BUSYBOX, "sh", "-c", script]
    return {
        "name": name,
        "image": cluster.containerd.busybox,
        "imagePullPolicy": "Never",
        "command": words,
        **more,
    }


@pytest.fixture(scope="module")
def world(installed: NodeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Twenty pods with metrics; of one the containers share a PID namespace, by its label."""
    folder = tmp_path_factory.mktemp("scraping")
    sharing = ROOT / "k3d" / "components" / "process-sharing"
    installed.kubectl("apply", "-f", sharing / "sharing.yaml", "-f", sharing / "warnings.yaml")
    with installed.namespace("scraped") as namespace:
        for text in ((ROOT / "tasks" / "metrics.yaml").read_text(), BINDING):
            installed.kubectl("apply", "-n", namespace, "-f", "-", stdin=text)
        sleeps = container(installed, "app", f"exec {BUSYBOX} sleep 300")
        for number in range(PODS - 1):
            make(installed, namespace, f"pod-{number}", [sleeps])
        until(lambda: shares(installed, namespace))
        make(
            installed,
            namespace,
            "three",
            [
                container(installed, "forks", FORKS, securityContext={"runAsUser": NOBODY}),
                container(installed, "spins", SPINS),
                container(installed, "idle", IDLE),
            ],
            **{"pidone.dev/processes": "true"},
        )
        installed.account(
            namespace, "prometheus", {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
        )
        token, ca = folder / "token", folder / "ca.crt"
        token.write_text(installed.token(namespace, "prometheus"))
        secret = installed.request("GET", f"/api/v1/namespaces/{SYSTEM}/secrets/pidone-ca")
        ca.write_bytes(base64.b64decode(secret["data"]["ca.crt"]))
        yield World(installed, namespace, token, ca)
    installed.kubectl("delete", "-f", sharing / "sharing.yaml", "-f", sharing / "warnings.yaml")


def make(cluster: NodeCluster, namespace: str, name: str, containers: list[Object], **labels: str) -> None:
    cluster.make_pod(
        namespace,
        name,
        node="",
        labels={"app": name, "scraped": "true", **labels},
        containers=containers,
        terminationGracePeriodSeconds=0,
        automountServiceAccountToken=False,
    )


def shares(cluster: NodeCluster, namespace: str) -> bool:
    """True if the API server acts on the policy."""
    spec = {"containers": [{"name": "a", "image": "a"}]}
    body = {"metadata": {"name": "asked", "labels": {"pidone.dev/processes": "true"}}, "spec": spec}
    made = cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", body)
    return bool(made["spec"].get("shareProcessNamespace"))


@asynccontextmanager
async def scraping(world: World, folder: Path) -> AsyncIterator[Prometheus]:
    # not at the Service: the node of the tests has no route to its address
    controller = world.cluster.pod(SYSTEM, controllers(world.cluster)[0])
    about = world.cluster.request("GET", f"/api/v1/nodes/{node.NAME}")
    kubelet = f"{node.ADDRESS}:{about['status']['daemonEndpoints']['kubeletEndpoint']['Port']}"
    repo = f"https://{controller['status']['podIP']}:6443/v1/prometheus/targets"
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            {
                "job_name": "pods",
                "http_sd_configs": [
                    {
                        "url": repo,
                        "refresh_interval": "1s",
                        "authorization": {"type": "Bearer", "credentials_file": str(world.token)},
                        "tls_config": {
                            "ca_file": str(world.ca),
                            "server_name": f"pidone-repo.{SYSTEM}.svc",
                        },
                    }
                ],
            },
            {
                "job_name": "kubelet",
                "scheme": "https",
                "metrics_path": "/metrics/resource",
                "tls_config": {"insecure_skip_verify": True},
                "static_configs": [{"targets": [kubelet]}],
            },
        ],
    }
    async with prometheus(folder, free_port(), config) as server:
        yield server


async def test_prometheus_scrapes_twenty_pods_and_agrees_with_the_kubelet(
    world: World, tmp_path: Path
) -> None:
    names = {(world.namespace, name, node.NAME) for name in ("three", *(f"pod-{n}" for n in range(PODS - 1)))}
    async with scraping(world, tmp_path) as server:
        await server.until(
            lambda up: up == dict.fromkeys(names, 1),
            'max_over_time(up{job="pods"}[5m])',
            "namespace",
            "pod",
            "node",
        )
        visible = await server.until(
            lambda found: len(found) == PODS,
            f'last_over_time(pidone_processes_visible{{namespace="{world.namespace}"}}[5m])',
            "pod",
        )
        assert visible == {(name,): float(name == "three") for _, name, _ in names}
        with trio.fail_after(PATIENCE_SECONDS):
            while not all((found := await brackets(server, world)).values()):
                await trio.sleep(LOOK_SECONDS)
        for name in CONTAINERS:
            own = [value for _, value in await own_seconds(server, world, name)]
            assert own == sorted(own), f"a counter of {name} went back"
    for name, compared in found.items():
        for before, kubelet, after in compared:
            assert before - SLACK_SECONDS <= kubelet <= after + SLACK_SECONDS, (name, compared)


async def brackets(server: Prometheus, world: World) -> dict[str, list[tuple[float, float, float]]]:
    """For each container the kubelet's values between ours.

    Prometheus gives a sample the time at which its request began, and a busy pod answers up to a second later. So the
    values are those of the second sample before the kubelet's, and of the second one after it.
    """
    theirs = await server.samples(f"container_cpu_usage_seconds_total{{{of(world)}}}[5m]", "container")
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CONTAINERS}
    for name, compared in found.items():
        ours = await own_seconds(server, world, name)
        for at, value in theirs.get(name, ()):
            before = [own for time, own in ours if time <= at][-2:]
            after = [own for time, own in ours if time > at][:2]
            if len(before) == len(after) == 2:
                compared.append((before[0], value, after[1]))
    return found


def test_a_page_has_what_proc_and_ps_show_of_the_containers(world: World) -> None:
    address = world.cluster.wait_running(world.namespace, "three")["status"]["podIP"]
    statuses = world.cluster.pod(world.namespace, "three")["status"]["containerStatuses"]
    ids = {one["name"]: one["containerID"].removeprefix("containerd://") for one in statuses}

    def ours(name: str) -> dict[str, float]:
        page = httpx.get(f"http://{address}:19100/metrics", trust_env=False, timeout=PATIENCE_SECONDS).text
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.labels.get("container") == name:
                    found[sample.name] = found.get(sample.name, 0) + sample.value
        return found

    def agree(name: str) -> bool:
        found, expected = ours(name), theirs(ids[name])
        return {key: found.get(key) for key in expected} == expected

    def shown(name: str) -> str:
        return f"{name}: {ours(name)}, and ps and /proc show {theirs(ids[name])}"

    for name in ("spins", "idle"):
        until(partial(agree, name), told=partial(shown, name))
        assert "pidone_processes_unreadable" not in ours(name)
    assert theirs(ids["idle"])["pidone_disk_written_bytes_total"] >= 64 * 65536

    foreign = ours("forks")
    assert foreign["pidone_cpu_seconds_total"] > 0
    assert foreign["pidone_memory_resident_bytes"] > 0
    assert foreign["pidone_processes_unreadable"] > 0
    assert not foreign.keys() & {"pidone_disk_read_bytes_total", "pidone_disk_written_bytes_total"}


def theirs(container: str) -> dict[str, float]:
    """What ps and /proc of the node show of a container."""
    processes = [process for process in psutil.process_iter() if container in cgroup(process.pid)]
    words = ["ps", "-o", "rss=", *(str(process.pid) for process in processes)]
    resident = subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()
    found = dict.fromkeys(("pidone_processes", "pidone_threads", "pidone_open_fds"), 0.0)
    read = written = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found["pidone_processes"] += 1
            found["pidone_threads"] += process.num_threads()
            found["pidone_open_fds"] += process.num_fds()
            counters = process.io_counters()
            read, written = read + counters.read_bytes, written + counters.write_bytes
    return found | {
        "pidone_memory_resident_bytes": 1024.0 * sum(map(int, resident)),
        "pidone_disk_read_bytes_total": read,
        "pidone_disk_written_bytes_total": written,
    }


def cgroup(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""


async def own_seconds(server: Prometheus, world: World, name: str) -> list[tuple[float, float]]:
    """The processor time of a container by our metrics, at the time of each scrape."""
    query = f'pidone_cpu_seconds_total{{{of(world)},container="{name}"}}[5m]'
    modes = await server.samples(query, "mode")
    system = dict(modes.get("system", ()))
    return [(at, value + system[at]) for at, value in modes.get("user", ()) if at in system]


def of(world: World) -> str:
    return f'namespace="{world.namespace}",pod="three"'
