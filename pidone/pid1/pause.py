"""What pause does, in Python: reap and wait. The net under the rest: process 1 may fail, it may not end."""

import os
import signal
import time

from pidone.pid1.signals import BLOCKED, STOP, block


def pause(seconds: float) -> bool:
    """Reap for that long; True when asked to end in the meantime. Never raises for what a child or signal does."""
    block()
    until = time.monotonic() + seconds
    while True:
        _sweep()
        left = until - time.monotonic()
        if left <= 0:
            return False
        received = signal.sigtimedwait(BLOCKED, left)
        if received is not None and received.si_signo in STOP:
            return True


def _sweep() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
