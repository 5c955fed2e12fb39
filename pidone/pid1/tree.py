"""All processes that one command has become, also those that have left its session or lost their parents.

A process belongs to the command while it is a descendant of it, or of its session, or, once its parents are
gone and it is ours by adoption, while its environment carries the command's mark. Who left the session,
lost its parents and cleared its environment is not found.
"""

import os
import signal
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

import trio

from pidone.pid1.reaper import MARK, Child

WITHOUT_PIDFD = 0.1  # seconds between two looks, on kernels before 5.3 and behind filters


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    parent: int
    session: int
    begun: int  # with the pid a name that no other process ever has
    alive: bool  # any thread of it


class Tree:
    """The processes of one command."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._mark = f"{MARK}={child.mark}".encode()

    def processes(self) -> list[Process]:
        """Those alive at present."""
        # until its end is known the pid is not another's, and so is the session's number
        sessions = {self._child.pid} if self._child.returncode is None else set[int]()
        return [process for process in _family(_table(), sessions, self._mark).values() if process.alive]

    async def end(self, number: signal.Signals) -> None:
        """Signal each of them once, also those that are forked meanwhile, and wait until none is left."""
        told: set[tuple[int, int]] = set()
        while processes := self.processes():
            held = {process: _hold(process) for process in processes}
            try:
                for process, descriptor in held.items():
                    if (process.pid, process.begun) not in told:
                        told.add((process.pid, process.begun))
                        _send(process, descriptor, number)
                async with trio.open_nursery() as nursery:
                    for descriptor in held.values():
                        nursery.start_soon(_ended, descriptor)
            finally:
                for descriptor in held.values():
                    if descriptor is not None:
                        os.close(descriptor)


def strangers(started: Iterable[Child]) -> list[Process]:
    """Those alive that are neither this process nor one that a command of ours has become."""
    table = _table()
    ours = _family(table, {child.pid for child in started}, f"{MARK}=".encode()).keys() | {os.getpid()}
    return [process for pid, process in table.items() if process.alive and pid not in ours]


def same(process: Process) -> bool:
    """Whether that pid is still the one process, alive or not yet waited for."""
    now = _look(process.pid)
    return now is not None and now.begun == process.begun


def _table() -> dict[int, Process]:
    return {process.pid: process for process in map(_look, _pids()) if process is not None}


def _family(table: Mapping[int, Process], sessions: Container[int], mark: bytes) -> dict[int, Process]:
    """The commands with these pids, their sessions, what we adopted that carries the mark, and all descendants."""
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    found = {pid: process for pid, process in table.items() if pid in sessions or process.session in sessions}
    for process in children.get(os.getpid(), ()):
        if process.pid not in found and any(word.startswith(mark) for word in _environment(process.pid)):
            found[process.pid] = process
    queue = list(found.values())
    for process in queue:  # it grows
        for inner in children.get(process.pid, ()):
            if inner.pid not in found:
                found[inner.pid] = inner
                queue.append(inner)
    return found


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _look(pid: int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            # the name stands in parentheses and may hold anything, parentheses too
            fields = file.readall().rpartition(b")")[2].split()
    except OSError:
        return None
    alive = fields[0] not in {b"Z", b"X"} or int(fields[17]) > 1  # other threads may outlive the first
    return Process(pid, int(fields[1]), int(fields[3]), int(fields[19]), alive)


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            return file.readall().split(b"\0")
    except OSError:
        return []  # ended, or of a user that we may not look at


def _hold(process: Process) -> int | None:
    try:
        return os.pidfd_open(process.pid)
    except OSError:
        return None


def _send(process: Process, descriptor: int | None, number: signal.Signals) -> None:
    if not same(process):
        return  # it ended between the look and the hold, and the pid may be a stranger's
    # CONT, for a process that is stopped takes no TERM
    for one in (number, signal.SIGCONT) if number != signal.SIGKILL else (number,):
        try:
            if descriptor is None:
                os.kill(process.pid, one)
            else:
                signal.pidfd_send_signal(descriptor, one)
        except OSError:
            pass  # it has ended, or has another uid and we lack CAP_KILL


async def _ended(descriptor: int | None) -> None:
    if descriptor is None:
        await trio.sleep(WITHOUT_PIDFD)
    else:
        await trio.lowlevel.wait_readable(descriptor)
