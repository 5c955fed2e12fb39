"""Waits for the end of the last application process, where process 1 sees all processes of its pod.

Nothing polls. The oldest process is waited for by its pidfd, and the process table is read again only when it ends.
The start of a process is not seen, so the caller sets ``complete`` when no more processes will be started.
"""

import os

import trio

from pidone.pid1.reaper import MARK, Reaper
from pidone.pid1.tree import Process, foreign_processes, still_exists


def sees_all_processes() -> bool:
    """True if this is process 1 and /proc is that of its own PID namespace, and not the machine's."""
    try:
        return os.readlink("/proc/self") == "1"
    except OSError:
        return False


class Application:
    """All processes of this PID namespace except this one and those of commands that the reaper started."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._complete = False
        self._updated = trio.Event()

    def set_complete(self, *, complete: bool) -> None:
        """Set ``complete``: True if all containers have been started and none will be started again."""
        self._complete = complete
        self._updated.set()
        self._updated = trio.Event()

    def _processes(self) -> list[Process]:
        return foreign_processes([child.pid for child in self._reaper.started], f"{MARK}=".encode())

    async def wait_end(self) -> None:
        """Return when no process is left, after at least one was seen and ``complete`` was set.

        Until a process is seen it waits, because the PID namespace may not be shared. Raises ``OSError`` if the kernel
        has no pidfd, or a filter forbids it.
        """
        seen = False
        while True:
            updated = self._updated
            # Twice: a process that is forked while the table is read, by a parent that then ends, may be missed once.
            processes = self._processes() or self._processes()
            if not processes:
                if seen and self._complete:
                    return
                await updated.wait()
                continue

            seen = True
            oldest = min(processes, key=lambda process: process.start_time)
            try:
                descriptor = os.pidfd_open(oldest.pid)
            except ProcessLookupError:
                continue
            try:
                if still_exists(oldest):  # its pid may have been reused after the table was read
                    await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
