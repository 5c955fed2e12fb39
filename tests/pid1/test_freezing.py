"""All processes of a pod are stopped and continued at once, and doze continues them whatever has ended Python."""

import os
import signal
import sys
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from pidone.pid1 import freezing
from tests import pidns
from tests.pid1.test_process_one import wait_for

DOZE = Path(__file__).parents[2] / "build/doze"
TOP = Path(__file__).parents[2]

needs_namespace = pytest.mark.skipif(pidns.blind() is not None, reason=str(pidns.blind()))

STOPPER = dedent("""
    import os, signal, sys, time
    sys.path.insert(0, sys.argv[1])
    from pidone.pid1 import freezing
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    for _ in range(3):
        if os.fork() == 0:
            signal.pause()
            os._exit(0)
    if os.fork() == 0:  # it forks all the time
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            if os.fork() == 0:
                os._exit(0)
            time.sleep(0.001)
    freezing.stop_all()
    order = sys.argv[2]
    signal.sigwait({signal.SIGUSR1})
    if order == "continue":
        freezing.continue_all()
        signal.pause()
    os.execv(order, [order])
""")


def alive(process: pidns.ProcessOne) -> list[str]:
    """The states of the other processes of its namespace, without those that have ended."""
    states = [child.status() for child in psutil.Process(process.pid).children(recursive=True)]
    return [state for state in states if state != psutil.STATUS_ZOMBIE]


@pytest.mark.pidns
@needs_namespace
@pytest.mark.parametrize("way", ["continue", "doze"])
def test_all_are_stopped_at_once_and_run_again(way: str) -> None:
    if way == "doze" and not DOZE.exists():
        pytest.skip("doze is not built: make doze")
    script = [sys.executable, "-S", "-c", STOPPER, str(TOP), "continue" if way == "continue" else str(DOZE)]
    with pidns.process_one(script, env={}) as process:
        wait_for(lambda: len(alive(process)) >= 4 and set(alive(process)) == {psutil.STATUS_STOPPED})
        process.signal(signal.SIGUSR1)
        wait_for(lambda: psutil.STATUS_STOPPED not in alive(process))
        assert len(alive(process)) >= 4
        assert process.same()


def test_a_process_that_is_not_the_first_of_a_pod_stops_nobody() -> None:
    assert freezing.refusal().startswith(f"it is process {os.getpid()}, and only process 1")
    freezing.stop_all()
    freezing.continue_all()
