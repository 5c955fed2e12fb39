"""Signals of process 1: what is blocked during start, and what ends the process."""

import signal

# All signals are blocked in the first lines of the program (``stages.block``), and until the receivers stand.
STOP = (signal.SIGTERM, signal.SIGINT)
RELOAD, RELOADED = signal.SIGHUP, "signal.SIGHUP"  # and as the event that tasks run on


def unblock() -> None:
    """Deliver what is pending and all that comes. Trio does not unblock by itself."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def survive_the_rest() -> None:
    """Survive what would end an ordinary process, as process 1 does by the kernel's rule and pause with it.

    A handler that does nothing, and not SIG_IGN, which every command that a task starts would inherit.
    """
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGALRM):
        signal.signal(number, _nothing)


def _nothing(number: int, frame: object) -> None:
    pass
