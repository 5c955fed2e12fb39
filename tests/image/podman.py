"""podman with a store, a network and settings of its own; all of it gone at the end, by name."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tests import processes
from tests.patience import PATIENCE_SECONDS
from tests.ports import free_subnet

ROOT = Path(__file__).parents[2]
ARCHIVE = ROOT / "build" / "image.oci.tar"
ENGINE = {"python3.15", "pidone.snapshot"}  # the programs of a pod with tasks
PACKAGES = ("podman", "runc", "buildah", "containernetworking-plugins", "iptables", "busybox-static")
TOOLS = ("podman", "runc", "buildah", "/usr/lib/cni/bridge", "iptables", "/bin/busybox")
# The locks of all podmans are one file in /dev/shm, and one that starts anew frees those of the others: here they are
# files of this podman, as is the mark of its start.
SETTINGS = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["/usr/lib/cni"]
network_config_dir = "{folder}/networks"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
tmp_dir = "{folder}/tmp"
"""
# An application: answers on 8080, ends at TERM.
APPLICATION = """#!/bin/sh
trap 'exit 0' TERM
httpd -f -p 8080 -h /www &
wait $!
"""

T = TypeVar("T")


def missing() -> str | None:
    """Why podman pods cannot be had here, with the command that would bring them."""
    if not ARCHIVE.exists():
        return "no image: make image"
    if os.getuid() != 0:
        return "podman pods need root here"
    if not all(shutil.which(tool) or Path(tool).exists() for tool in TOOLS):
        return f"no podman: apt-get install --no-install-recommends {' '.join(PACKAGES)}"
    return None


def until(what: str, look: Callable[[], T | None], seconds: float = PATIENCE_SECONDS) -> T:
    """What ``look`` finds, once it finds something."""
    deadline = time.monotonic() + seconds
    while (found := look()) is None or found is False:
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return found


@dataclass
class Pod:
    """A pod's name, address, and its infra container: pidone."""

    name: str
    ip: str
    pid: int

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.pid)

    @property
    def shape(self) -> str:
        """Which of its shapes process 1 has now: doze, or one of ``ENGINE``."""
        return Path(os.readlink(f"/proc/{self.pid}/exe")).name

    @property
    def anonymous(self) -> int:
        """Anonymous memory in KiB: vfs copies the image for each pod, so pages of files tell nothing here."""
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

    def zombies(self) -> int:
        return processes.zombies(self.pid)


class Podman:
    """One store and one network; ``pod`` starts pods with pidone as their infra container."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.subnet = free_subnet()
        self.gateway = f"{self.subnet}.1"
        self.network = f"pods-{self.subnet.replace('.', '-')}"  # also the bridge: at most 15 characters
        self._env = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}
        self._store = (
            "--root",
            str(folder / "root"),
            "--runroot",
            str(folder / "run"),
            "--storage-driver",
            "vfs",
        )

    def __call__(self, *words: str, program: str = "podman", ok: bool = True) -> str:
        done = subprocess.run(
            [program, *self._store, *words],
            env=self._env,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )
        assert not ok or done.returncode == 0, f"{program} {' '.join(words)}: {done.stderr}"
        return done.stdout.strip()

    def settle(self) -> None:
        """An empty store and its settings."""
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "networks").mkdir(parents=True)
        (self.folder / "containers.conf").write_text(SETTINGS.format(folder=self.folder))

    def prepare(self, repo: str) -> None:
        """The image as it is, the same with another repo (as for a cluster of one's own), and an application's."""
        self.settle()
        self("load", "-q", "-i", str(ARCHIVE))
        recipe = self.folder / "Containerfile"
        recipe.write_text(f"FROM localhost/pidone:{version()}\nENV PIDONE_REPO={repo}\n")
        self._build("infra", recipe)
        files = self.folder / "application"
        (files / "bin").mkdir(parents=True)
        (files / "www").mkdir()
        (files / "www" / "index.html").write_text("well\n")
        shutil.copy("/bin/busybox", files / "bin" / "busybox")
        for name in ("sh", "httpd", "sleep", "true"):
            (files / "bin" / name).symlink_to("busybox")
        (files / "app").write_text(APPLICATION)
        (files / "app").chmod(0o755)
        recipe.write_text('FROM scratch\nCOPY . /\nENV PATH=/bin\nENTRYPOINT ["/app"]\n')
        self._build("application", recipe)
        self("network", "create", "--subnet", f"{self.subnet}.0/24", self.network)
        # Of two podmans that make their networks before their pods, both would take the same bridge.
        settings = self.folder / "networks" / f"{self.network}.conflist"
        settings.write_text(re.sub(r'(?<="bridge": ")[^"]+', self.network, settings.read_text()))

    def _build(self, name: str, recipe: Path) -> None:
        context = (
            str(self.folder / "application") if name == "application" else str(recipe.parent / "networks")
        )
        self("build", "-q", "-f", str(recipe), "-t", f"localhost/{name}", context, program="buildah")

    def pod(self, name: str, *options: str) -> Pod:
        """Create and start."""
        self(
            "pod",
            "create",
            "--name",
            name,
            "--infra-image",
            "localhost/infra",
            "--network",
            self.network,
            *options,
        )
        self("pod", "start", name)
        infra = json.loads(self("pod", "inspect", name))["InfraContainerID"]
        found: dict[str, Any] = json.loads(self("inspect", infra))[0]
        return Pod(
            name, found["NetworkSettings"]["Networks"][self.network]["IPAddress"], found["State"]["Pid"]
        )

    def application(self, pod: Pod, *options: str) -> str:
        """Start the application in the pod; its container's name."""
        name = f"{pod.name}-app"
        self("run", "-d", "--pod", pod.name, "--name", name, *options, "localhost/application")
        return name

    def remove(self, *pods: Pod) -> None:
        for pod in pods:
            self("pod", "rm", "-f", "-t", "0", pod.name, ok=False)

    def close(self) -> None:
        self("pod", "rm", "-f", "-a", "-t", "0", ok=False)
        self("network", "rm", "-f", self.network, ok=False)
        self("rmi", "-a", "-f", ok=False)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def podman(folder: Path, repo_port: int) -> Iterator[Podman]:
    program = Podman(folder)
    try:
        program.prepare(f"http://{program.gateway}:{repo_port}")
        yield program
    finally:
        program.close()


def version() -> str:
    text = (ROOT / "pyproject.toml").read_text()
    return text.partition('\nversion = "')[2].partition('"')[0]


@contextmanager
def service(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server of the test's, killed at the end."""
    with log.open("wb") as output:
        env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'controller'}"}
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait(PATIENCE_SECONDS)
