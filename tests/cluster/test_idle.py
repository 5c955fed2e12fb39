"""Pods that freeze on a real node: the kubelet's probes of each kind are answered, and no request is lost.

Each probe ends its container at the first failure. The counts are those of the kubelet's Events and of the clients.
"""

import json
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import golang
from tests.cluster import node
from tests.cluster.apiserver import Object
from tests.cluster.node import NodeCluster
from tests.cluster.process import until
from tests.cri import images
from tests.cri.conftest import IMAGE, busybox
from tests.patience import PATIENCE_SECONDS

FOLDER = Path(__file__).parents[1] / "idle"
APPLICATION = "pidone.test/idle:now"
PORT, METRICS = 8080, 19100
PROBE_SECONDS = 10  # the timeout of a probe, long enough for a busy machine
HTTP = {"httpGet": {"path": "/", "port": PORT}}
PROBES: dict[str, Object] = {
    "http": HTTP,
    "https": {"httpGet": {**HTTP["httpGet"], "scheme": "HTTPS"}},
    "tcp": {"tcpSocket": {"port": PORT}},
    "exec": {"exec": {"command": ["/server", "ask", str(PORT)]}},
    "grpc": {"grpc": {"port": PORT}},
}
IDLE = {"after": 1, "ports": [f"{PORT}/TCP"], "nodes": [node.ADDRESS], "probeTimeout": PROBE_SECONDS}
PLAN = [
    {"name": "rest", "idle": IDLE},
    {"name": "metrics", "metrics": {"collectors": ["tasks"], "port": METRICS}},
]


@pytest.fixture
def shop(real_node: NodeCluster) -> Iterator[str]:
    """A namespace whose pods have the image with the plan as their sandbox."""
    if not IMAGE.exists():
        pytest.skip(f"no build/{IMAGE.name}: make image")
    try:
        server = golang.build_cached(FOLDER / "server", "idle")
    except golang.NoGo as reason:
        pytest.skip(str(reason))
    real_node.containerd.put(busybox("/server", server=server.read_bytes()), APPLICATION)
    real_node.containerd.put(sandbox())
    with real_node.namespace("idle") as name:
        yield name


def sandbox() -> images.Image:
    """The image that make built, whose program runs the plan without a repo."""
    built = images.read(IMAGE)
    added = images.of_files({"sandbox.py": (FOLDER / "sandbox.py").read_bytes()}, ["/sandbox.py"])
    config = json.loads(json.dumps(built.config))
    _, *python = config["config"]["Entrypoint"]
    config["config"]["Entrypoint"] = [*python[:-1], "/sandbox.py"]
    config["rootfs"]["diff_ids"] += added.config["rootfs"]["diff_ids"]
    config.pop("history", None)
    image = images.Image(config, [*built.layers, *added.layers])
    return image.with_env(PIDONE_IDLE_PLAN=json.dumps(PLAN))


def make_pod(cluster: NodeCluster, namespace: str, kind: str) -> None:
    probe = PROBES[kind] | {"timeoutSeconds": PROBE_SECONDS}
    strict = probe | {"periodSeconds": 1, "failureThreshold": 1}
    container = {
        "name": "app",
        "image": APPLICATION,
        "imagePullPolicy": "Never",
        "command": ["/server", kind, str(PORT)],
        "startupProbe": probe | {"periodSeconds": 1, "failureThreshold": 100},
        "livenessProbe": strict,
        "readinessProbe": strict,
    }
    cluster.make_pod(namespace, kind, node="", containers=[container], shareProcessNamespace=True)


def ready_since(pod: Object) -> str:
    return next(
        str(each["lastTransitionTime"]) for each in pod["status"]["conditions"] if each["type"] == "Ready"
    )


def ask(address: str, kind: str) -> bytes:
    """Send a request as a client with a connection of its own, and return the first line of the answer."""
    connection = socket.create_connection((address, PORT), PATIENCE_SECONDS)
    if kind == "https":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = context.wrap_socket(connection)
    with connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: web\r\nUser-Agent: client\r\nConnection: close\r\n\r\n")
        return connection.recv(1000).partition(b"\r\n")[0]


def figures(address: str) -> dict[str, float]:
    """Return the figures of the idle task; empty while process 1 does not serve them."""
    try:
        with socket.create_connection((address, METRICS), PATIENCE_SECONDS) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
            page = b""
            while more := connection.recv(65536):
                page += more
    except OSError:
        return {}
    lines = re.findall(r"^pidone_idle(\S*?)\{\S*\} (\S+)$", page.decode(), re.MULTILINE)
    values: dict[str, float] = {}
    for name, value in lines:
        values[name] = values.get(name, 0.0) + float(value)
    return values


def test_probes_of_each_kind_are_answered_and_no_request_is_lost(real_node: NodeCluster, shop: str) -> None:
    for kind in PROBES:
        make_pod(real_node, shop, kind)
    pods = {kind: real_node.wait_running(shop, kind, PATIENCE_SECONDS) for kind in PROBES}

    for kind, pod in pods.items():
        address = pod["status"]["podIP"]
        for number in range(1, 6):
            until(lambda: figures(address).get("") == 1, PATIENCE_SECONDS)  # noqa: B023 - it is called at once
            assert ask(address, kind) == b"HTTP/1.1 200 OK"
            if kind != "https":  # what comes from the node and cannot be read is taken for a probe
                until(lambda: figures(address).get("_wakes_total", 0) >= number, PATIENCE_SECONDS)  # noqa: B023

    for kind in {*PROBES} - {"exec", "tcp"}:  # whose every probe needs a frozen application
        address = pods[kind]["status"]["podIP"]
        until(lambda: figures(address)["_blinks_total"] >= 10, PATIENCE_SECONDS)  # noqa: B023

    for kind, pod in pods.items():
        now = real_node.pod(shop, kind)
        (status,) = now["status"]["containerStatuses"]
        assert (status["ready"], status["restartCount"]) == (True, 0), kind
        assert ready_since(now) == ready_since(pod), kind
    events = json.loads(real_node.kubectl("get", "events", "-n", shop, "--output=json"))["items"]
    wrong = [each["message"] for each in events if each["reason"] in {"Killing", "SandboxChanged"}]
    wrong += [
        each["message"]
        for each in events
        if each["reason"] == "Unhealthy" and "Startup" not in each["message"]
    ]
    assert wrong == []
