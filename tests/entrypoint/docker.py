"""A Docker engine of its own, with its folders and its socket in the folder of the test."""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from tests.entrypoint.peers import PEERS, PIDONE, missing
from tests.patience import PATIENCE_SECONDS
from tests.pid1.test_process_one import wait_for

BUSYBOX = Path("/bin/busybox")
APPLETS = ("cat", "env", "grep", "id", "kill", "ls", "ps", "sh", "sleep", "stty", "touch", "tty")
IMAGE = "pidone-test"


def unavailable() -> str:
    """Why no Docker engine can run here, with the remedy; "" if one can."""
    if os.geteuid() != 0:
        return "a Docker engine needs root: sudo make test"
    if not shutil.which("dockerd") or not shutil.which("docker"):
        return "needs a Docker engine: apt-get install docker.io"
    if not BUSYBOX.exists():
        return "needs a static busybox: apt-get install busybox-static"
    return next((text for text in map(missing, PEERS) if text), "")


@dataclass(frozen=True)
class Docker:
    socket: str

    def argv(self, *words: str) -> list[str]:
        return ["docker", "-H", self.socket, *words]

    def __call__(self, *words: str, data: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            self.argv(*words), input=data, capture_output=True, check=False, timeout=PATIENCE_SECONDS
        )

    def said(self, *words: str) -> str:
        """Run a command that must succeed, and return its output."""
        done = self(*words)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def start(self, entrypoint: Sequence[str], *command: str, options: Sequence[str] = ()) -> str:
        """Start a container in the background, and return its id."""
        words = ["-d", "--network", "none", "--entrypoint", entrypoint[0], *options, IMAGE]
        return self.said("run", *words, *entrypoint[1:], *command)

    def run(
        self, entrypoint: Sequence[str], *command: str, options: Sequence[str] = ()
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run a container to its end."""
        words = ["--rm", "--network", "none", "--entrypoint", entrypoint[0], *options, IMAGE]
        return self("run", *words, *entrypoint[1:], *command)

    def code(self, container: str) -> int:
        """Wait for the end of a container, and return its exit code."""
        return int(self.said("wait", container))

    def logs(self, container: str) -> list[str]:
        return self.said("logs", container).splitlines()


@contextmanager
def engine(folder: Path) -> Iterator[Docker]:
    """A Docker engine that changes nothing of this machine's network, with one image."""
    socket, log = folder / "socket", folder / "log"
    options = [
        "--bridge=none",
        "--iptables=false",
        "--ip6tables=false",
        "--ip-forward=false",
        "--storage-driver=vfs",
    ]
    places = ["--data-root", folder / "data", "--exec-root", folder / "exec", "--pidfile", folder / "pid"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["dockerd", *options, *map(str, places), "--host", f"unix://{socket}"],
            stdout=output,
            stderr=output,
        )
    docker = Docker(f"unix://{socket}")
    try:
        wait_for(lambda: process.poll() is not None or docker("version").returncode == 0)
        assert process.poll() is None, log.read_text()
        done = docker("import", "-", IMAGE, data=_root())
        assert done.returncode == 0, done.stderr.decode()
        yield docker
    finally:
        for container in docker("ps", "-aq").stdout.decode().split():
            docker("rm", "-f", container)
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def _root() -> bytes:
    """A root file system: a shell, pidone, tini and dumb-init."""
    archive = BytesIO()
    libraries = [Path("/lib64/ld-linux-x86-64.so.2"), *Path("/lib").glob("*-linux-gnu/libc.so.6")]
    with tarfile.open(fileobj=archive, mode="w", dereference=True) as tar:
        for name, mode in (("bin", 0o755), ("lib", 0o755), ("lib64", 0o755), ("tmp", 0o1777)):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            tar.addfile(folder)
        tar.add(BUSYBOX, "bin/busybox")
        tar.add(PIDONE, "bin/pidone")
        for peer in PEERS[1:]:
            tar.add(peer.program, f"bin/{peer.name}")
        for library in libraries:
            if library.exists():
                tar.add(library, str(library)[1:])
        for name in APPLETS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return archive.getvalue()
