"""Signals of process 1: what is blocked during start, and what ends the process."""

import signal

# The first lines of the program block all signals (``stages.block``); ``unblock`` follows when receivers are set.
STOP = (signal.SIGTERM, signal.SIGINT)
RELOAD, RELOADED = signal.SIGHUP, "signal.SIGHUP"  # the signal, and the event in ``runOn`` of tasks


def unblock() -> None:
    """Unblock all signals, so that pending ones are delivered. Trio does not unblock signals."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def survive_the_rest() -> None:
    """Survive signals whose default action ends a process.

    Process 1 survives them by the kernel's rule, as pause does. The handler does nothing. SIG_IGN would be inherited
    by each command that a task starts.
    """
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGALRM):
        signal.signal(number, _ignore)


def _ignore(number: int, frame: object) -> None:
    pass
