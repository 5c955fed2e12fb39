"""Signals of process 1: those that end it, and the mask and handlers that it sets."""

import signal

# The first lines of the program block all signals (``stages.block``); ``unblock`` follows when receivers are set.
STOP = (signal.SIGTERM, signal.SIGINT)
RELOAD, RELOADED = signal.SIGHUP, "signal.SIGHUP"  # the signal, and the event in ``runOn`` of tasks


def unblock() -> None:
    """Unblock all signals, so that pending ones are delivered. Trio does not unblock signals."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def ignore_other_signals() -> None:
    """Set handlers without effect for signals whose default action ends a process.

    Without a handler the kernel drops them for process 1 of a PID namespace only. SIG_IGN would be inherited by each
    command that a task starts.
    """
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGALRM):
        signal.signal(number, _ignore)


def _ignore(number: int, frame: object) -> None:
    pass
