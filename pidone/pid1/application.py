"""When the last process is gone that is not one of ours: where process 1 sees all that run in its pod.

Nothing polls: the oldest of them is waited for by its pidfd, and only when it ends is the table looked at
again. Which processes come is not seen, so whether more are to come must be told.
"""

import os

import trio

from pidone.pid1.reaper import Reaper
from pidone.pid1.tree import same, strangers


def all_seen() -> bool:
    """Whether this is process 1, in whose /proc all of its namespace stands, and not that of the machine."""
    try:
        return os.readlink("/proc/self") == "1"
    except OSError:
        return False


class Application:
    """All processes of this PID namespace but this one and those that its reaper has started."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._complete = False
        self._told = trio.Event()

    def tell(self, *, complete: bool) -> None:
        """Whether all that is to run has been started, and nobody starts it again."""
        self._complete = complete
        self._told.set()
        self._told = trio.Event()

    async def wait_end(self) -> None:
        """Return when it was there, is complete, and is gone.

        What was never seen has no end: the PID namespace may not be shared. Raises ``OSError`` where the
        kernel has no pidfd, or a filter forbids it.
        """
        seen = False
        while True:
            told = self._told
            # Twice: what is forked while the table is read, by a process that then ends, may be missed once.
            processes = strangers(self._reaper.started) or strangers(self._reaper.started)
            if not processes:
                if seen and self._complete:
                    return
                await told.wait()
                continue
            seen = True
            oldest = min(processes, key=lambda process: process.begun)
            try:
                descriptor = os.pidfd_open(oldest.pid)
            except ProcessLookupError:
                continue
            try:
                if same(oldest):  # and not a stranger with its pid, which may have come after the look
                    await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
