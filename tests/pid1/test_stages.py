"""The changes between doze and Python: the same process throughout, and nothing lost on the way."""

import math
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from tests import pidns
from tests.patience import ENDURANCE, PATIENCE_SECONDS
from tests.pid1.test_process_one import wait_for
from tests.processes import named, waiting_seconds

DOZE = Path(__file__).parents[2] / "build/doze"
HELPERS = 1  # children of a process 1 of the tests

pytestmark = [
    pytest.mark.pidns,
    pytest.mark.skipif(not DOZE.exists(), reason="doze is not built: make doze"),
    pytest.mark.skipif(pidns.missing() is not None, reason=str(pidns.missing())),
]


def executable(process: pidns.ProcessOne) -> str:
    return Path(f"/proc/{process.pid}/exe").readlink().name


@contextmanager
def dozing(*arguments: str) -> Iterator[pidns.ProcessOne]:
    with pidns.process_one([str(DOZE), *arguments], env={}) as process:
        wait_for(lambda: executable(process) == "doze")
        yield process


def test_without_arguments_it_is_pause() -> None:
    with dozing() as process:
        process.make_orphans(300)
        wait_for(lambda: process.zombies() == 0)
        for number in set(signal.Signals) - {signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGSTOP}:
            process.signal(number)
        process.make_orphans(1)
        wait_for(lambda: process.zombies() == 0)
        wait_for(lambda: waiting_seconds(process.pid) == math.inf)
        assert process.same()
        process.signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0


def test_it_holds_nothing_open_and_no_file_system() -> None:
    with dozing() as process:
        wait_for(lambda: Path(f"/proc/{process.pid}/cwd").readlink() == Path("/"))
        open_now = {
            number: os.readlink(f"/proc/{process.pid}/fd/{number}")
            for number in os.listdir(f"/proc/{process.pid}/fd")
        }
        assert set(open_now) == {"0", "1", "2", "3"}
        assert "signalfd" in open_now["3"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_leaves_while_it_asks_too_and_takes_the_asking_with_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    program = tmp_path / "hang"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    with dozing(str(program)) as process:
        wait_for(lambda: named(process.pid, "sleep"))
        process.signal(number)
        assert process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.parametrize("broken", ["missing", "not executable", "ends with 1", "killed"])
def test_a_program_that_is_broken_costs_the_pod_nothing(tmp_path: Path, broken: str) -> None:
    program, tries = tmp_path / "program", tmp_path / "tries"
    ends = {"ends with 1": "exit 1", "killed": "kill -9 $$"}
    if broken != "missing":
        program.write_text(f"#!/bin/sh\ncat /proc/uptime >> {tries}\n{ends.get(broken, '')}\n")
        program.chmod(0o755 if broken in ends else 0o644)
    with dozing(str(program)) as process:
        if broken in ends:
            wait_for(lambda: tries.exists() and tries.read_text().count("\n") >= 2)
            first, second = (float(line.split()[0]) for line in tries.read_text().splitlines()[:2])
            assert second - first >= 0.4, "again after a second or so"
        else:
            wait_for(lambda: 0 < (waiting_seconds(process.pid) or 0) < math.inf)  # until the next try
        assert process.same()
        process.make_orphans(50)
        wait_for(lambda: process.zombies() == 0)
        process.signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0


ASKER = dedent("""
    import os, socket, sys
    # Plays pidone: asks a listener of the test's what to answer to doze.
    control = socket.socket(socket.AF_UNIX)
    control.connect(sys.argv[1])
    stage = os.environ["PIDONE_STAGE"]
    control.sendall(f"{stage} {os.getpid()}\\n".encode())
    said = b""
    while not said.endswith(b"\\n") and (byte := control.recv(1)):  # what comes behind the order is the bell
        said += byte
    order = said.decode().split() or ["doze" if stage == "run" else "end"]
    if order[0] == "plan":
        os._exit(3)
    if order[0] == "later":
        socket.socket(fileno=3).send(order[1].encode())
    if order[0] == "bell":
        socket.send_fds(socket.socket(fileno=3), [b"0"], [control.fileno()])
    if order[0] == "doze":
        import signal
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        os.environ.pop("PIDONE_STAGE")
        if "idle" not in order:  # as an engine that had tasks
            os.environ.pop("PIDONE_HASTE")
        os.execv(sys.argv[2], [sys.argv[2], sys.executable, *sys.argv])
""")


class Director:
    """The test's end: each start of the asker connects, says its stage, and is told what to do."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "asker.py"
        self.script.write_text(ASKER)
        self.path = folder / "s"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._listener.settimeout(PATIENCE_SECONDS)
        self._connections: list[socket.socket] = []
        self.times: list[float] = []  # before each order: a busy machine makes the gaps longer, never shorter

    def close(self) -> None:
        for opened in (*self._connections, self._listener):
            opened.close()

    @property
    def program(self) -> list[str]:
        return [sys.executable, "-S", str(self.script), str(self.path), str(DOZE)]

    def next(self, order: str) -> tuple[str, socket.socket]:
        """The stage of the next start, and the connection to it, after telling it the order."""
        connection, _ = self._listener.accept()
        self._connections.append(connection)
        stage = connection.recv(64).decode()
        self.times.append(time.monotonic())
        connection.sendall(f"{order}\n".encode())
        return stage.strip(), connection

    def drain(self) -> None:
        """Leave whoever waits for an order without one: an engine then dozes, an asking ends."""
        self._listener.setblocking(False)
        try:
            while True:
                self._listener.accept()[0].close()
        except BlockingIOError:
            pass
        finally:
            self._listener.settimeout(PATIENCE_SECONDS)

    def pause(self, pid: int) -> float:
        """How long doze waits before the next start: the first time limit that is seen, 0 if it starts before."""
        limits: list[float] = []

        def decided() -> bool:
            limit = waiting_seconds(pid)
            # a program that it has started has a time limit too
            started = len(psutil.Process(pid).children()) > HELPERS
            if limit is not None and limit < math.inf and not started:
                limits.append(limit)
            return bool(limits) or bool(select.select([self._listener], [], [], 0)[0])

        wait_for(decided)
        return limits[0] if limits else 0

    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.times)]


@pytest.fixture
def director(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Director]:
    director = Director(tmp_path_factory.mktemp("d"))
    yield director
    director.close()


def test_a_byte_on_the_doorbell_asks_again_and_a_plan_becomes_the_same_process(director: Director) -> None:
    with dozing(*director.program) as process:
        stage, bell = director.next("bell")
        assert stage.startswith("ask")
        wait_for(lambda: len(psutil.Process(process.pid).children()) == 1)
        wait_for(lambda: waiting_seconds(process.pid) == math.inf)
        process.make_orphans(20)
        wait_for(lambda: process.zombies() == 0)
        bell.sendall(b"!")
        assert director.pause(process.pid) == 0
        stage, _ = director.next("plan")
        assert stage.startswith("ask")
        stage, running = director.next("doze")
        assert stage == "run 1", "the engine is process 1 itself"
        wait_for(lambda: executable(process) == "doze")
        assert process.same()
        running.close()


def test_the_end_of_a_doorbell_asks_again_after_a_random_while(director: Director) -> None:
    """Over 30 s. That all three waits are too short to be seen has a chance of 1 in 10 million."""
    limits = []
    for _ in range(3):
        with dozing(*director.program) as process:
            _, bell = director.next("bell")
            wait_for(lambda process=process: waiting_seconds(process.pid) == math.inf)  # type: ignore[misc]
            bell.close()
            limits.append(director.pause(process.pid))
            assert process.same()
        director.drain()
    seen = {limit for limit in limits if limit}
    assert len(seen) > 1
    assert max(seen) <= 30


def test_it_asks_again_when_it_was_told_to(director: Director) -> None:
    with dozing(*director.program) as process:
        director.next("later 300")
        director.next("later 3600000")
        assert director.gaps()[0] > 0.29
        wait_for(lambda: waiting_seconds(process.pid) == 300)  # it looks at the clock every five minutes


def test_a_delay_on_the_command_line(director: Director) -> None:
    began = time.monotonic()
    with dozing("-d", "700", *director.program):
        director.next("later 60000")
        assert time.monotonic() - began >= 0.7


def test_a_doorbell_that_rings_at_once_each_time_is_no_repos_and_slows_down(director: Director) -> None:
    """Any web server answers 200 with a body."""
    with dozing(*director.program):
        for _ in range(4):
            _, bell = director.next("bell")
            bell.sendall(b"<html>")
        gaps = director.gaps()
        assert gaps[1] >= 0.5
        assert gaps[2] >= 1.0


def test_plans_without_tasks_slow_down_too(director: Director) -> None:
    """Any web server may answer 303. The count survives the change to the engine and back."""
    with dozing(*director.program):
        for _ in range(3):
            director.next("plan")
            director.next("doze idle")
        gaps = director.gaps()[1::2]  # from the order to doze to the next question
        assert gaps[0] >= 0.5
        assert gaps[1] >= 1.0


def test_a_short_pause_that_is_asked_for_again_and_again_grows(director: Director) -> None:
    with dozing(*director.program):
        for _ in range(3):
            director.next("later 1")
        gaps = director.gaps()
        assert gaps[0] >= 0.5
        assert gaps[1] >= 1.0


@pytest.mark.parametrize("storm", [False, True])
def test_changes_lose_no_signal_no_zombie_and_no_bell(director: Director, storm: bool) -> None:
    """TERM at a random moment of the changes ends it every time; a storm of orphans goes on meanwhile."""
    for changes in (0, 1, 3, 7) * ENDURANCE:
        with dozing(*director.program) as process:
            for _ in range(changes):
                if storm:
                    process.make_orphans(20)
                _, bell = director.next("bell")
                bell.sendall(b"!")
                director.next("plan")
                stage, _ = director.next("doze")
                assert stage == "run 1"
            if storm:
                wait_for(lambda process=process: process.zombies() <= 1)  # type: ignore[misc] # the loop's own
            time.sleep(random.random() * 0.05)  # any moment of the next one
            process.signal(signal.SIGTERM)

            def ended(process: pidns.ProcessOne = process) -> bool:
                director.drain()
                return process.ended()

            wait_for(ended)
            assert process.wait(PATIENCE_SECONDS) == 0
        director.drain()


def test_a_term_that_comes_in_the_engine_before_its_handlers_is_delivered(director: Director) -> None:
    """The mask crosses the execve: what is pending then ends the dozing that follows."""
    with dozing(*director.program) as process:
        director.next("plan")
        connection, _ = director._listener.accept()
        with connection:
            assert connection.recv(64) == b"run 1\n"
            process.signal(signal.SIGTERM)  # the engine has not unblocked: it is pending
            connection.sendall(b"doze\n")
            assert process.wait(PATIENCE_SECONDS) == 0
