"""Process 1 of a PID namespace of its own, for tests and the demo: as root, or in a user namespace without.

Where the kernel forbids both, it is a child subreaper: the kernel gives it the orphans as to a process 1.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import psutil

from tests import processes
from tests.patience import PATIENCE_SECONDS

PODLET = Path(__file__).with_name("podlet.py")

_AS_ROOT = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
_AS_USER = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
_WAYS = {
    "PID namespaces": _AS_ROOT,
    "PID namespaces in user namespaces": (*_AS_USER, "--mount-proc"),
    "PID namespaces in user namespaces, without a /proc of their own": _AS_USER,
}
SUBREAPER = "child subreapers, for the kernel allows no PID namespace here (root would be allowed)"


@cache
def way() -> tuple[str, tuple[str, ...]]:
    """How processes are kept apart here, in words and as the beginning of a command."""
    if shutil.which("unshare"):
        for words, command in _WAYS.items():
            tried = subprocess.run(
                [*command, "true"], capture_output=True, check=False, timeout=PATIENCE_SECONDS
            )
            if tried.returncode == 0:
                return words, command
    return SUBREAPER, ()


def missing() -> str | None:
    """Why there is no PID namespace to be had, with the remedy; None where there is."""
    words, command = way()
    return None if command else f"only {words}: run as root, or sysctl user.max_user_namespaces=1000"


def blind() -> str | None:
    """Why process 1 does not see the processes of its namespace, with the remedy; None where it does."""
    words, command = way()
    return None if "--mount-proc" in command else f"only {words}: run as root"


@dataclass
class ProcessOne:
    """A process 1 and the helper beside it that makes orphans. ``pid`` is the one outside of the namespace."""

    pid: int
    started: float  # the kernel's start time: the same pid and time are the same process
    _outer: subprocess.Popen[bytes]
    _helper: socket.socket

    def make_orphans(self, count: int) -> None:
        """Make that many processes whose parent has ended; returns when all were made."""
        self._helper.sendall(f"{count}\n".encode())
        assert self._helper.recv(16) == b"made\n", "the helper has ended"

    def end_helper(self) -> None:
        """The helper ends, and with it what makes orphans."""
        self._helper.close()

    def same(self) -> bool:
        """Whether it is still the process that was started."""
        try:
            return psutil.Process(self.pid).create_time() == self.started
        except psutil.NoSuchProcess:
            return False

    def zombies(self) -> int:
        """How many orphans have ended and are not reaped."""
        return processes.zombies(self.pid)

    def alone(self) -> bool:
        """Whether every orphan has ended and is reaped: its only child is the helper."""
        return len(psutil.Process(self.pid).children()) <= 1

    def childless(self) -> bool:
        """Whether nothing else runs in its namespace: the helper has ended as well, and is reaped."""
        return not psutil.Process(self.pid).children()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def ended(self) -> bool:
        return self._outer.poll() is not None

    def wait(self, timeout: float) -> int:
        """Its exit code."""
        return self._outer.wait(timeout)


@contextmanager
def process_one(
    argv: Sequence[str], *, env: Mapping[str, str], output: IO[bytes] | int = subprocess.DEVNULL
) -> Iterator[ProcessOne]:
    """Start ``argv`` as process 1, and kill it and all it holds at the end of the block."""
    ours, theirs = socket.socketpair()
    podlet = [sys.executable, "-S", str(PODLET), str(theirs.fileno()), *argv]
    command = [*way()[1], *podlet]
    with ours:
        outer = subprocess.Popen(
            command,
            env={**os.environ, **env},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        theirs.close()
        try:
            inner = child(outer) if way()[1] else psutil.Process(outer.pid)
            yield ProcessOne(inner.pid, inner.create_time(), outer, ours)
        finally:
            if outer.poll() is None:
                try:
                    os.killpg(outer.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            outer.wait(PATIENCE_SECONDS)


def child(outer: subprocess.Popen[bytes]) -> psutil.Process:
    """The child of unshare, which is process 1 inside. RuntimeError if there is none any more."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and outer.poll() is None:
        children = psutil.Process(outer.pid).children()
        if children:
            return children[0]
        time.sleep(0.005)  # a fork away
    raise RuntimeError(f"{outer.args!r} ended with {outer.returncode}")
