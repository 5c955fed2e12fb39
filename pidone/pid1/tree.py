"""Finds all processes of one command, also those that have left its session or lost their parents.

A process belongs to the command if one of these holds:
- It is a descendant of the command, or of a process in the command's session.
- It was adopted by this process, and its environment carries the command's mark.

A process that left the session, lost its parents and cleared its environment is not found.
"""

import os
import signal
from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass

import trio

POLL_SECONDS = 0.1  # between two checks of a process without a pidfd: kernels before 5.3, and behind filters


@dataclass(frozen=True, slots=True)
class Process:
    """One line of the process table, from ``/proc/PID/stat`` (proc_pid_stat(5))."""

    pid: int
    parent: int
    session: int
    start_time: int  # clock ticks since boot; together with the pid it is unique
    alive: bool  # at least one thread runs; otherwise it is a zombie


class Tree:
    """The processes of one command, which has this pid and leads a session of its own.

    ``mark`` is the command's variable in the environment, as ``NAME=value``. ``ended`` returns True if the
    command's end is known. Until then its pid and its session number are not reused.
    """

    def __init__(self, pid: int, mark: bytes, ended: Callable[[], bool]) -> None:
        self._pid, self._mark, self._ended = pid, mark, ended

    def processes(self) -> list[Process]:
        """Return the processes that are alive."""
        sessions = set[int]() if self._ended() else {self._pid}
        return [process for process in _family(_table(), sessions, self._mark).values() if process.alive]

    async def end(self, number: signal.Signals) -> None:
        """Signal each process once, also those that are forked meanwhile, and wait until none is left."""
        signalled: set[tuple[int, int]] = set()
        while processes := self.processes():
            descriptors = {process: _open_pidfd(process) for process in processes}
            try:
                for process, descriptor in descriptors.items():
                    if (process.pid, process.start_time) not in signalled:
                        signalled.add((process.pid, process.start_time))
                        _send(process, descriptor, number)
                async with trio.open_nursery() as nursery:
                    for descriptor in descriptors.values():
                        nursery.start_soon(_wait_end, descriptor)
            finally:
                for descriptor in descriptors.values():
                    if descriptor is not None:
                        os.close(descriptor)


def foreign_processes(commands: Collection[int], mark: bytes) -> list[Process]:
    """Return the processes that are alive, except this one and all processes of commands.

    ``commands`` are the pids of the commands that run. ``mark`` is how the mark of any command begins: ``NAME=``.
    """
    table = _table()
    ours = _family(table, commands, mark).keys() | {os.getpid()}
    return [process for pid, process in table.items() if process.alive and pid not in ours]


def still_exists(process: Process) -> bool:
    """True if the pid still belongs to this process, alive or a zombie."""
    current = read_process(process.pid)
    return current is not None and current.start_time == process.start_time


def _table() -> dict[int, Process]:
    return {process.pid: process for process in map(read_process, pids()) if process is not None}


def _family(table: Mapping[int, Process], sessions: Container[int], mark: bytes) -> dict[int, Process]:
    """Return the processes of these sessions, our adopted children that carry the mark, and all descendants.

    ``sessions`` are the pids of commands. Each command leads a session of its own.
    """
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)

    family = {
        pid: process for pid, process in table.items() if pid in sessions or process.session in sessions
    }
    for process in children.get(os.getpid(), ()):
        if process.pid not in family and any(
            variable.startswith(mark) for variable in _environment(process.pid)
        ):
            family[process.pid] = process

    queue = list(family.values())
    for process in queue:  # the list grows in the loop
        for inner in children.get(process.pid, ()):
            if inner.pid not in family:
                family[inner.pid] = inner
                queue.append(inner)
    return family


def pids() -> list[int]:
    """Return the processes of ``/proc``; empty if there is none."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def read_process(pid: int) -> Process | None:
    """Return a process of the table; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            # the name stands in parentheses and may contain any character, also parentheses
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
        return []  # it has ended, or belongs to another user


def _open_pidfd(process: Process) -> int | None:
    try:
        return os.pidfd_open(process.pid)
    except OSError:
        return None


def _send(process: Process, descriptor: int | None, number: signal.Signals) -> None:
    if not still_exists(process):
        return  # it ended before the pidfd was opened, and the pid may have been reused
    # then CONT, because a stopped process does not take TERM
    numbers = (number, signal.SIGCONT) if number != signal.SIGKILL else (number,)
    for each in numbers:
        try:
            if descriptor is None:
                os.kill(process.pid, each)
            else:
                signal.pidfd_send_signal(descriptor, each)
        except OSError:
            pass  # it has ended, or has another uid and we lack CAP_KILL


async def _wait_end(descriptor: int | None) -> None:
    if descriptor is None:
        await trio.sleep(POLL_SECONDS)
    else:
        await trio.lowlevel.wait_readable(descriptor)
