"""A whole node: the control plane with all its controllers, a kubelet, kube-proxy, and Debian's containerd and runc.

Pods are real ones: scheduled, with addresses of their own, reachable by Services. Each sandbox is made of the image
that ``containerd.put`` was given last. Images come by ``containerd.put`` alone (``imagePullPolicy: Never``). A node has
a network namespace of its own (``network.py``), so several nodes run on one machine.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.cluster import program
from tests.cluster.apiserver import ControlPlane, Object, answers, control_plane, kubeconfig
from tests.cluster.dns import DOMAIN
from tests.cluster.process import Process, until
from tests.cri import messages
from tests.cri import node as cri
from tests.ports import free_port

ADDRESS = "10.79.0.1"  # of the node and of the API server; no pod's and no Service's
PODS = "10.78.0.0/16"
NAME = "node-1"
TOKEN = "kubelet-of-the-tests"
LINKS = Path("/var/log/containers")
PLUGINS = Path("/usr/lib/cni")  # Debian's containernetworking-plugins
INSTALL = (
    "apt-get install -y --no-install-recommends containerd runc containernetworking-plugins iptables iproute2"
)

# Each pod has a wire of its own to the node, and the node routes: what kube-proxy translates comes back through it.
NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "ptp",
            "ipMasq": False,
            "ipam": {"type": "host-local", "subnet": PODS, "routes": [{"dst": "0.0.0.0/0"}]},
        }
    ],
}


def missing() -> str | None:
    """Why there can be no node here, with the remedy; None where it can."""
    if reason := cri.missing() or program.missing():
        return reason
    if not (PLUGINS / "ptp").exists():
        return f"no CNI plugins in {PLUGINS}: {INSTALL}"
    absent = [name for name in ("iptables", "ip") if not shutil.which(name)]
    return f"no {', '.join(absent)}: {INSTALL}" if absent else None


@dataclass(kw_only=True)
class NodeCluster(ControlPlane):
    """A cluster of one node; its parts can be killed one by one, containerd by ``end`` and ``start``."""

    containerd: cri.Node

    @property
    def kubelet(self) -> Process:
        return self.parts["kubelet"]

    def pod(self, namespace: str, name: str) -> Object:
        return self.request("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")

    def sandbox(self, namespace: str, name: str) -> cri.Sandbox:
        """The pod's sandbox, if it has one that is ready."""
        sandboxes = self.containerd.call(messages.LIST_SANDBOXES)["items"]
        (found,) = (
            one["id"]
            for one in sandboxes
            if (one["metadata"]["namespace"], one["metadata"]["name"]) == (namespace, name)
            and one["state"] == messages.SandboxState.READY
        )
        sandbox = cri.Sandbox(self.containerd, found, {})
        sandbox.pid = self.containerd.pid(messages.SANDBOX_STATUS, pod_sandbox_id=found)
        sandbox.started = psutil.Process(sandbox.pid).create_time()
        return sandbox

    def wait_running(self, namespace: str, name: str, timeout: float = 30) -> Object:
        """The pod, when all its containers are ready."""

        def ready() -> bool:
            found = self.pod(namespace, name)["status"].get("conditions", ())
            return any(one["type"] == "Ready" and one["status"] == "True" for one in found)

        until(ready, timeout, lambda: self.kubectl("describe", "pod", name, "-n", namespace)[-2000:])
        return self.pod(namespace, name)


def kubelet_config(folder: Path, containerd: cri.Node, port: int, healthz: int) -> Object:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "port": port,
        "healthzPort": healthz,
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": f"unix://{containerd.socket}",
        "clusterDNS": [ADDRESS],  # dns.py, in tests that need names
        "clusterDomain": DOMAIN,
        "podLogsDir": str(folder / "logs"),
        "volumePluginDir": str(folder / "plugins"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{containerd.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "makeIPTablesUtilChains": False,
        # neither a full disk nor an image that no pod uses now is a reason to take something away
        "evictionHard": {"imagefs.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "1s",
    }


def _parts(folder: Path, plane: ControlPlane, containerd: cri.Node) -> dict[str, Process]:
    """The parts of a cluster besides etcd and the API server."""
    binary = str(program.find())
    config, login = f"--kubeconfig={plane.kubeconfig}", folder / "kubelet.kubeconfig"
    cluster = {"server": plane.server, "certificate-authority": str(plane.certificate)}
    login.write_text(kubeconfig(cluster, {"token": TOKEN}))
    ports = {name: free_port() for name in ("controller-manager", "scheduler", "proxy", "healthz", "kubelet")}
    settings = folder / "kubelet.config"
    settings.write_text(json.dumps(kubelet_config(folder, containerd, ports["kubelet"], ports["healthz"])))

    def part(name: str, health: str, *flags: str) -> Process:
        return Process([binary, name, *flags], folder / f"{name}.log", lambda: answers(health))

    def led(name: str, *flags: str) -> Process:
        """One that would ask for a lease where there are several of it."""
        port = ports[name]
        return part(
            name,
            f"https://127.0.0.1:{port}/healthz",
            *(config, f"--authentication-kubeconfig={plane.kubeconfig}", f"--secure-port={port}"),
            *(
                f"--authorization-kubeconfig={plane.kubeconfig}",
                "--bind-address=127.0.0.1",
                "--leader-elect=false",
            ),
            *(f"--cert-dir={folder / name}", *flags),
        )

    signing = f"--service-account-private-key-file={plane.folder / 'accounts.key'}"
    return {
        "controller-manager": led("controller-manager", signing, f"--root-ca-file={plane.certificate}"),
        "scheduler": led("scheduler"),
        "kubelet": part(
            "kubelet",
            f"http://127.0.0.1:{ports['healthz']}/healthz",
            *(f"--kubeconfig={login}", f"--config={settings}", f"--root-dir={folder / 'kubelet'}"),
            *(
                f"--hostname-override={NAME}",
                f"--node-ip={ADDRESS}",
                f"--cert-dir={folder / 'kubelet-certificates'}",
            ),
        ),
        "proxy": part(
            "proxy",
            f"http://127.0.0.1:{ports['proxy']}/healthz",
            *(config, "--proxy-mode=iptables", f"--hostname-override={NAME}", f"--cluster-cidr={PODS}"),
            *(
                f"--healthz-bind-address=127.0.0.1:{ports['proxy']}",
                f"--metrics-bind-address=127.0.0.1:{free_port()}",
            ),
            *("--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s"),
            "--conntrack-tcp-timeout-close-wait=0s",
        ),
    }


@contextmanager
def node(folder: Path) -> Iterator[NodeCluster]:
    """A cluster of one node, ready after some 15 s, until the end of the block; then only its logs are left.

    It begins in a network of its own (``network.private``).
    """
    runtime = folder / "containerd"
    (runtime / "cni" / "conf").mkdir(parents=True, exist_ok=True)
    (runtime / "cni" / "bin").unlink(missing_ok=True)
    (runtime / "cni" / "bin").symlink_to(PLUGINS)
    network = json.loads(json.dumps(NETWORK))
    network["plugins"][0]["ipam"]["dataDir"] = str(runtime / "addresses")
    (runtime / "cni" / "conf" / "pods.conflist").write_text(json.dumps(network))
    with ExitStack() as stack:
        subprocess.run(["ip", "address", "replace", f"{ADDRESS}/32", "dev", "lo"], check=True)
        containerd = stack.enter_context(cri.node(runtime))
        # of a killed run; containerd has removed its sandboxes
        _unmount(folder / "kubelet")
        _forget_logs(folder / "logs")
        for path in folder.iterdir():
            if path.is_dir() and path != runtime:
                shutil.rmtree(path)
            elif path != runtime:
                path.unlink()
        stack.callback(_forget_logs, folder / "logs")
        stack.callback(_unmount, folder / "kubelet")
        kubelet = f"{TOKEN},system:node:{NAME},{NAME},system:nodes"
        by_address = "--kubelet-preferred-address-types=InternalIP"  # no DNS knows the node's name
        plane = stack.enter_context(
            control_plane(folder / "plane", by_address, address=ADDRESS, tokens=[kubelet])
        )
        found = NodeCluster(**(vars(plane) | {"alone": False}), containerd=containerd)
        _make_cgroups(containerd.cgroup)
        for name, part in _parts(folder, plane, containerd).items():
            plane.parts[name] = part
            stack.callback(part.kill)
            part.start(wait=False)
        for part in found.parts.values():
            part.wait_ready()
        until(lambda: NAME in found.kubectl("get", "nodes", "--output=name"))
        found.kubectl("wait", "--for=condition=Ready", "--timeout=120s", "node", NAME)
        found.install_crds()
        yield found


def _make_cgroups(name: str) -> None:
    """Make the cgroup below which the kubelet makes those of pods, in each controller of version 1."""
    controllers = [cri.CGROUPS] if (cri.CGROUPS / "cgroup.controllers").exists() else cri.CGROUPS.iterdir()
    for controller in controllers:
        if controller.is_dir() and not controller.is_symlink():
            (controller / name).mkdir(exist_ok=True)


def _unmount(folder: Path) -> None:
    """Volumes of pods that the kubelet had no time to take down."""
    mounts = (line.split()[1] for line in Path("/proc/mounts").read_text().splitlines())
    for mount in reversed(
        [mount for mount in mounts if mount == str(folder) or mount.startswith(f"{folder}/")]
    ):
        subprocess.run(["umount", mount], check=True)


def _forget_logs(folder: Path) -> None:
    """The kubelet's links to them, in a folder that is fixed."""
    for link in LINKS.iterdir() if LINKS.is_dir() else ():
        if link.is_symlink() and link.readlink().is_relative_to(folder):
            link.unlink()
    with suppress(OSError):  # other nodes' links
        LINKS.rmdir()
