"""Finds the first processes of the containers, and what somebody has started inside of one: ``kubectl exec``, a probe.

Where the containers share the PID namespace of process 1, both have the parent 0, because the runtime starts them from
outside. A container's first process is the oldest of its cgroup.
"""

import os
import posix
from time import CLOCK_BOOTTIME, clock_gettime
from typing import NamedTuple

from pidone.pid1.tree import Process, pids, read_process

# Signals that tell nobody to end, of the kernel's numbers: CHLD, CONT, TSTP, TTIN, TTOU, URG, VTALRM, PROF, WINCH, IO,
# ALRM. In a stopped process they wait as well.
_QUIET_SIGNALS = sum(1 << (number - 1) for number in (14, 17, 18, 20, 21, 22, 23, 26, 27, 28, 29))


class Inside(NamedTuple):
    """What the runtime has started in the pod, except this process."""

    firsts: tuple[Process, ...]  # of each container
    visitors: tuple[int, ...]  # the pids of all others

    def youngest_seconds(self) -> float:
        """Return the time since the last start of a container; infinity without containers."""
        if not self.firsts:
            return float("inf")
        started = max(process.start_time for process in self.firsts) / os.sysconf("SC_CLK_TCK")
        return max(0.0, clock_gettime(CLOCK_BOOTTIME) - started)


class Processes:
    """Looks at the processes of this PID namespace, and reads only those that are new since the last look."""

    def __init__(self) -> None:
        self._from_outside: dict[int, bool] = {}  # by pid: its parent is 0

    def look(self) -> Inside:
        """Return what the runtime has started."""
        before, own = self._from_outside, posix.getpid()
        self._from_outside = {
            pid: before[pid] if pid in before else _is_from_outside(pid) for pid in pids() if pid != own
        }
        started = [read_process(pid) for pid, outside in self._from_outside.items() if outside]
        cgroups = {process: cgroup(process.pid) for process in started if process is not None}
        return _split(cgroups, cgroup(own))


def _split(cgroups: dict[Process, str], own: str) -> Inside:
    """Tell the first processes of containers from others, by the cgroup of each and that of process 1.

    A container's cgroup is beside that of process 1. A process that the runtime has just made is in a cgroup of the
    runtime's, and one that somebody has started beside process 1 is in the same as that.
    """
    siblings = own.rpartition("/")[0] if own != "/" else "/.."
    firsts: dict[str, Process] = {}
    for process, path in sorted(cgroups.items(), key=lambda item: item[0].start_time):
        if path != own and path.rpartition("/")[0] == siblings:
            firsts.setdefault(path, process)
    first = set(firsts.values())
    return Inside(tuple(firsts.values()), tuple(process.pid for process in cgroups if process not in first))


def waiting_signal() -> bool:
    """True if a signal that may tell a process to end waits in one, as it does while that is stopped (``ShdPnd``)."""
    for pid in pids():
        for line in _read(f"/proc/{pid}/status").splitlines():
            if line.startswith("ShdPnd:") and int(line[7:], 16) & ~_QUIET_SIGNALS:
                return True
    return False


def cgroup(pid: int) -> str:
    """Return the path of a process's cgroup as this process sees it: the longest, if it is in several; "" if unknown.

    With version 1 of cgroups a process has one for each controller.
    """
    paths = (line.split(":", 2)[-1] for line in _read(f"/proc/{pid}/cgroup").splitlines())
    return max(paths, key=len, default="")


def users() -> set[int]:
    """Return the effective uids of all processes but this one."""
    uids = set[int]()
    for pid in pids():
        for line in _read(f"/proc/{pid}/status").splitlines():
            if line.startswith("Uid:") and pid != posix.getpid():
                uids.add(int(line.split()[2]))
    return uids


def may_signal_all() -> bool:
    """True if this process may signal the processes of every user: it has CAP_KILL."""
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line[7:], 16) & 1 << 5)
    return False


def _is_from_outside(pid: int) -> bool:
    process = read_process(pid)
    return process is not None and process.parent == 0


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""  # it has ended
