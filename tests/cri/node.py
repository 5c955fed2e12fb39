"""A node as a kubelet sees it: a containerd with everything of its own in one folder, driven over CRI."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.cri import grpc, messages
from tests.cri.images import Image
from tests.cri.messages import Call, ContainerState, Mode, SandboxState
from tests.patience import PATIENCE_SECONDS

INSTALL = "apt-get install -y --no-install-recommends containerd runc busybox-static"
PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr", "runc", "busybox")
SANDBOX_IMAGE = "pidone.test/sandbox:now"
CGROUPS = Path("/sys/fs/cgroup")
CGROUP = "pidone-cri"  # and the test's process: all of a node are below it, as those of a kubelet with --cgroup-root
NAMED = "org.opencontainers.image.ref.name"  # the annotation that an archive has for it

CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [
  "io.containerd.internal.v1.restart", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  restrict_oom_score_adj = true
  stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{folder}/cni/bin"
  conf_dir = "{folder}/cni/conf"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "{snapshotter}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
  Root = "{folder}/runc"
"""


def missing(programs: Path | None = None) -> str | None:
    """Why there can be no node here, with the remedy; None where there can.

    ``programs`` is the folder of a containerd that is not installed.
    """
    if os.geteuid() != 0:
        return f"containerd needs root, and {INSTALL}"
    path = search_path(programs)
    absent = [program for program in PROGRAMS if not shutil.which(program, path=path)]
    return f"no {', '.join(absent)}: {INSTALL}" if absent else None


def search_path(programs: Path | None) -> str:
    """PATH, with this folder first."""
    return os.pathsep.join([*([str(programs)] if programs else []), os.environ["PATH"]])


def until(condition: Callable[[], object], timeout: float = PATIENCE_SECONDS, told: object = "") -> None:
    """Return when it holds; another process's state has no event."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s {told}"
        time.sleep(0.01)


@dataclass
class Container:
    """An application's container; ``pid`` is that of its first process, as the node sees it."""

    node: "Node"
    id: str
    pid: int = 0

    def state(self) -> tuple[ContainerState, int]:
        """And the exit code."""
        answer = self.node.call(messages.CONTAINER_STATUS_OF, container_id=self.id)
        return ContainerState(answer["status"]["state"]), answer["status"]["exit_code"]

    def stop(self, timeout: int = 0) -> None:
        self.node.call(messages.STOP_CONTAINER, container_id=self.id, timeout=timeout)


@dataclass
class Sandbox:
    """A pod; ``pid`` is that of its sandbox process, as the node sees it."""

    node: "Node"
    id: str
    config: dict[str, Any]
    pid: int = 0
    started: float = 0.0

    def state(self) -> tuple[SandboxState, int]:
        """And the attempt: the kubelet counts one more for each sandbox that ended."""
        status = self.node.call(messages.SANDBOX_STATUS, pod_sandbox_id=self.id)["status"]
        return SandboxState(status["state"]), status["metadata"]["attempt"]

    def same(self) -> bool:
        """Whether its process is still the one that was started, and runs: a zombie may stay one for ever."""
        try:
            process = psutil.Process(self.pid)
            return process.create_time() == self.started and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def proc(self, name: str) -> Path:
        return Path(f"/proc/{self.pid}/{name}")

    def program(self) -> str:
        """What it runs: the path inside."""
        return os.readlink(self.proc("exe"))

    def begun(self) -> bool:
        """Whether the runtime's own program, which was told to become it, has done so."""
        words = self.proc("cmdline").read_bytes()
        return words not in {b"", b"runc\0init\0"} and self.proc("environ").read_bytes() != b""

    def status(self, key: str) -> str:
        """A line of /proc/PID/status."""
        lines = self.proc("status").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{key}:"))

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children()

    def sees(self) -> set[int]:
        """The processes in its own /proc, by the numbers they have there."""
        return {int(name) for name in os.listdir(self.proc("root/proc")) if name.isdecimal()}

    def run(self, *command: str, user: int = 0) -> Container:
        """Start an application in the pod, from the image with busybox."""
        security = self.config["linux"]["security_context"]
        answer = self.node.call(
            messages.CREATE_CONTAINER,
            pod_sandbox_id=self.id,
            config={
                "metadata": {"name": f"app-{next(self.node.numbers)}"},
                "image": {"image": self.node.busybox},
                "command": command,
                "linux": {
                    "security_context": {
                        "namespace_options": security["namespace_options"],
                        "run_as_user": {"value": user},
                    }
                },
            },
            sandbox_config=self.config,
        )
        container = Container(self.node, answer["container_id"])
        self.node.call(messages.START_CONTAINER, container_id=container.id)
        container.pid = self.node.pid(messages.CONTAINER_STATUS_OF, container_id=container.id)
        return container

    def stop(self) -> None:
        self.node.call(messages.STOP_SANDBOX, pod_sandbox_id=self.id)

    def remove(self) -> None:
        """Again and again as a kubelet: containerd refuses while it has not made up its mind on a container's end."""

        def removed() -> bool:
            try:
                self.stop()
                self.node.call(messages.REMOVE_SANDBOX, pod_sandbox_id=self.id)
            except grpc.CallError as error:
                refused.append(error)
                return False
            return True

        refused: list[grpc.CallError] = []
        until(removed, told=refused)

    def exit_code(self) -> int:
        """Of its process, as the runtime told it."""
        until(lambda: self.id in self.node.exits())
        return self.node.exits()[self.id]


@dataclass
class Node:
    """containerd, its events, and what runs by it."""

    folder: Path
    cgroup: str
    programs: Path | None = None
    busybox: str = "pidone.test/busybox:now"
    numbers: Iterator[int] = field(default_factory=itertools.count)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def socket(self) -> Path:
        return self.folder / "containerd.sock"

    def call(self, what: Call, **request: Any) -> dict[str, Any]:
        return grpc.call(self.socket, what, request)

    def pid(self, what: Call, **request: Any) -> int:
        """Of the first process, from a verbose status."""
        info = self.call(what, **request, verbose=1)["info"]
        pid: int = json.loads(next(part["value"] for part in info if part["key"] == "info"))["pid"]
        return pid

    def start(self) -> None:
        """Start containerd, which takes over what still runs from before, and wait until it answers."""
        self._spawn("containerd", "containerd", "--config", str(self.folder / "config.toml"))
        until(self._answers)
        self._spawn("events", *self._ctr("events"))
        said = (self.folder / "events").stat().st_size
        until(lambda: self._heard(said))

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End containerd; sandboxes stay, for each belongs to its shim."""
        for process in reversed(self._processes):
            process.send_signal(number)
            process.wait(PATIENCE_SECONDS)
        self._processes.clear()

    def put(self, image: Image, name: str = SANDBOX_IMAGE) -> None:
        """Import it; under the name that the config has, the next sandboxes are made of it."""
        archive = self.folder / "image.tar"
        image.write(archive, name)
        words = self._ctr("images", "import", str(archive))
        done = subprocess.run(
            words,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        # CRI learns of it by an event
        until(
            lambda: self.call(messages.IMAGE_STATUS, image={"image": name})["image"].get("id") == image.id()
        )

    def load(self, archive: Path) -> None:
        """Import all images of an archive, under the names that they have there."""
        with tarfile.open(archive) as archived:
            index = archived.extractfile("index.json")
            assert index is not None
            names = [one["annotations"][NAMED] for one in json.load(index)["manifests"]]
        subprocess.run(
            self._ctr("images", "import", str(archive)),
            env=self._environment,
            check=True,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
        )
        until(lambda: all(self.call(messages.IMAGE_STATUS, image={"image": name})["image"] for name in names))

    @contextmanager
    def sandboxes_of(self, image: str) -> Iterator[None]:
        """The setting for the image of sandboxes has this name in the block; containerd reads it when it starts."""
        config = self.folder / "config.toml"
        before = config.read_text()
        self.end()
        config.write_text(before.replace(f'"{SANDBOX_IMAGE}"', f'"{image}"'))
        self.start()
        try:
            yield
        finally:
            self.end()
            config.write_text(before)
            self.start()

    def remove_sandboxes(self) -> None:
        for item in self.call(messages.LIST_SANDBOXES)["items"]:
            Sandbox(self, item["id"], {}).remove()

    @contextmanager
    def sandbox(self, *, pid: Mode = Mode.CONTAINER, user: int | None = None) -> Iterator[Sandbox]:
        """A pod, until the end of the block, asked for as the kubelet asks. The network is the node's: no CNI."""
        uid = str(uuid.uuid4())
        security: dict[str, Any] = {
            "namespace_options": {"network": Mode.NODE, "pid": pid},
            "seccomp": {"profile_type": 0},
        }
        if user is not None:
            security["run_as_user"] = {"value": user}
        config = {
            "metadata": {"name": "web", "uid": uid, "namespace": "shop", "attempt": 0},
            "linux": {
                "cgroup_parent": f"/{self.cgroup}/kubepods/besteffort/pod{uid}",
                "security_context": security,
            },
        }
        answer = self.call(messages.RUN_SANDBOX, config=config)
        sandbox = Sandbox(self, answer["pod_sandbox_id"], config)
        try:
            sandbox.pid = self.pid(messages.SANDBOX_STATUS, pod_sandbox_id=sandbox.id)
            sandbox.started = psutil.Process(sandbox.pid).create_time()
            until(sandbox.begun)
            yield sandbox
        finally:
            sandbox.remove()

    def exits(self) -> dict[str, int]:
        """The exit codes of first processes, by the id of their container or sandbox."""
        found: dict[str, int] = {}
        for line in (self.folder / "events").read_text().splitlines():
            _, topic, event = line.partition(" /tasks/exit ")
            if topic:
                told = json.loads(event)
                if told["id"] == told["container_id"]:
                    # a second one comes from cleaning up after the shim, and tells nothing
                    found.setdefault(told["id"], told.get("exit_status", 0))
        return found

    def _spawn(self, name: str, *command: str) -> None:
        with (self.folder / name).open("ab") as output:
            # it must not outlive this process, whatever happens to that
            words = ["setpriv", "--pdeathsig", "TERM", *command]
            self._processes.append(
                subprocess.Popen(
                    words,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )

    @property
    def _environment(self) -> dict[str, str]:
        """For containerd, which starts its shims from PATH, and for ctr."""
        return {**os.environ, "PATH": search_path(self.programs)}

    def _ctr(self, *words: str) -> list[str]:
        return ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", *words]

    def _heard(self, said: int) -> bool:
        """Whether events arrive: make one, and look."""
        words = self._ctr("namespaces", "create", f"heard-{next(self.numbers)}-{said}")
        subprocess.run(words, env=self._environment, check=True, timeout=PATIENCE_SECONDS)
        return (self.folder / "events").stat().st_size > said

    def _answers(self) -> bool:
        assert self._processes[-1].poll() is None, self.log()
        try:
            return bool(self.call(messages.VERSION))
        except (OSError, grpc.CallError):
            return False

    def log(self) -> str:
        return (self.folder / "containerd").read_text()[-4000:]


@contextmanager
def node(folder: Path, *, programs: Path | None = None) -> Iterator[Node]:
    """containerd, until the end of the block; then nothing of it is left. What a killed run left is removed first.

    ``programs`` is the folder of a containerd that is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = ["stat", "--file-system", "--format=%T", str(folder)]
    below = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    snapshotter = "native" if below == "overlayfs" else "overlayfs"  # an overlay's upper layer cannot be one
    config = CONFIG.format(folder=folder, image=SANDBOX_IMAGE, snapshotter=snapshotter)
    (folder / "config.toml").write_text(config)
    _forget_cgroups()
    found = Node(folder, f"{CGROUP}-{os.getpid()}-{folder.name}", programs)
    try:
        found.start()
        found.remove_sandboxes()
        yield found
        found.remove_sandboxes()
    finally:
        found.end()
        _end_shims(folder)
    mounted = [line for line in Path("/proc/mounts").read_text().splitlines() if f" {folder}/" in line]
    assert not mounted, mounted
    shutil.rmtree(folder)
    _remove_cgroups(found.cgroup)


def _end_shims(folder: Path) -> None:
    """containerd 2 leaves some of sandboxes that it has removed."""
    shims = [process for process in psutil.process_iter() if _shim(process, folder)]
    for shim in shims:
        with suppress(psutil.NoSuchProcess):
            shim.kill()
    until(lambda: not any(_shim(process, folder) for process in shims), told=shims)


def _remove_cgroups(name: str) -> None:
    """What was killed may be in one for a moment longer."""

    for top in _cgroups(name):
        until(partial(_is_removed, top), told=top)


def _is_removed(top: Path) -> bool:
    try:
        for path, _, _ in os.walk(top, topdown=False):
            os.rmdir(path)
    except OSError:
        return False
    return True


def _forget_cgroups() -> None:
    """Remove those of tests that were killed, except for those in which something still runs: nobody needs them."""
    for top in _cgroups(f"{CGROUP}-*-*"):
        if not psutil.pid_exists(int(top.name.split("-")[2])):
            _is_removed(top)


def _cgroups(pattern: str) -> list[Path]:
    """In version 2's tree, or in each of version 1's controllers."""
    return [*CGROUPS.glob(pattern), *CGROUPS.glob(f"*/{pattern}")]


def _shim(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.name().startswith("containerd") and f"{folder}/" in " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
