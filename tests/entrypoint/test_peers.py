"""The table of docs/entrypoint.md: the jobs of tini and dumb-init, and the options of pidone for them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests import pidns
from tests.entrypoint.peers import PEERS, PIDONE, Peer, doing, missing
from tests.patience import PATIENCE_SECONDS
from tests.pid1.test_entrypoint import CATCHER
from tests.pid1.test_process_one import private, wait_for

pytestmark = [
    pytest.mark.pidns,
    private,
    pytest.mark.skipif(bool(missing(PEERS[0])), reason=missing(PEERS[0]) or "it is there"),
]
ABSENT = (
    ("/no/such/program", {"pidone": 127, "tini": 127, "dumb-init": 2}),
    ("/etc/passwd", {"pidone": 126, "tini": 126, "dumb-init": 2}),
)


def run(argv: list[str], *, alone: bool = True) -> "subprocess.CompletedProcess[str]":
    prefix = pidns.way()[1] if alone else ()
    return subprocess.run(
        [*prefix, *argv], capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )


@contextmanager
def running(argv: list[str]) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Process 1 of a PID namespace, and its pid outside of that."""
    outer = subprocess.Popen(
        [*pidns.way()[1], *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield outer, pidns.child(outer).pid
    finally:
        outer.kill()
        outer.wait(PATIENCE_SECONDS)
        assert outer.stdout is not None
        outer.stdout.close()


def lines(outer: "subprocess.Popen[bytes]", count: int) -> set[str]:
    assert outer.stdout is not None
    return {outer.stdout.readline().decode().strip() for _ in range(count)}


def child_line(outer: "subprocess.Popen[bytes]") -> str:
    """The next line of the command; with -v there are lines of its process 1 between."""
    assert outer.stdout is not None
    for line in outer.stdout:
        if line.startswith(b"child "):
            return line.decode().strip()
    raise AssertionError("the output ended without a line of the command")


@pytest.mark.parametrize(("peer", "job"), doing("plain", "without dashes", "group", "child"))
def test_the_exit_code_is_the_commands(peer: Peer, job: str) -> None:
    assert [run(peer.argv(job, "/bin/sh", "-c", f"exit {code}")).returncode for code in (0, 7, 255)] == [
        0,
        7,
        255,
    ]
    assert run(peer.argv(job, "/bin/sh", "-c", "kill -9 $$")).returncode == 137


@pytest.mark.parametrize(("peer", "job"), doing("plain"))
@pytest.mark.parametrize(("command", "codes"), ABSENT)
def test_a_command_that_cannot_start(peer: Peer, job: str, command: str, codes: dict[str, int]) -> None:
    done = run(peer.argv(job, command))
    assert done.returncode == codes[peer.name]
    assert command in done.stderr


@pytest.mark.parametrize(("peer", "job"), doing("143 is 0", "two codes are 0"))
def test_exit_codes_that_are_reported_as_0(peer: Peer, job: str) -> None:
    assert run(peer.argv(job, "/bin/sh", "-c", "kill $$")).returncode == 0
    assert run(peer.argv(job, "/bin/sh", "-c", "exit 4")).returncode == 4
    assert run(peer.argv(job, "/bin/sh", "-c", "exit 3")).returncode == (0 if job.startswith("two") else 3)


@pytest.mark.parametrize(("peer", "job"), doing("15 becomes 3", "long", "15 is dropped"))
def test_signals_that_are_rewritten(peer: Peer, job: str) -> None:
    with running(peer.argv(job, sys.executable, "-c", CATCHER)) as (outer, pid):
        assert child_line(outer) == "child ready"
        os.kill(pid, signal.SIGTERM)
        if "dropped" not in job:  # two signals that are pending at once may arrive in the other order
            assert child_line(outer) == "child 3"
        os.kill(pid, signal.SIGUSR1)
        assert child_line(outer) == ("child 12" if job == "long" else "child 10")


@pytest.mark.parametrize(("peer", "job"), doing("plain"))
def test_every_signal_of_the_terminal_and_of_people_is_forwarded(peer: Peer, job: str) -> None:
    numbers = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM}
    with running(peer.argv(job, sys.executable, "-c", CATCHER)) as (outer, pid):
        assert lines(outer, 1) == {"child ready"}
        for number in (*numbers, signal.SIGALRM, signal.SIGWINCH, signal.SIGPIPE, signal.SIGURG):
            os.kill(pid, number)
            assert lines(outer, 1) == {f"child {int(number)}"}


@pytest.mark.parametrize(("peer", "job"), doing("group", "flags together", "child"))
def test_signals_go_to_the_group_or_to_the_command_alone(peer: Peer, job: str) -> None:
    with running(peer.argv(job, sys.executable, "-c", CATCHER, "fork")) as (outer, pid):
        assert lines(outer, 2) == {"child ready", "grandchild ready"}
        os.kill(pid, signal.SIGUSR1)
        if job == "child":
            assert lines(outer, 1) == {"child 10"}
            os.kill(
                pid, signal.SIGHUP
            )  # which the child sends on: had the other one got USR1, it would say so now
            assert lines(outer, 2) == {"child 1", "grandchild 1"}
        else:
            assert lines(outer, 2) == {"child 10", "grandchild 10"}


# A zombie can still be signalled, so the command ends after the orphan was reaped.
ORPHAN = """
    orphan=$( (sleep 0.1 > /dev/null & echo $!) )
    echo $orphan
    while kill -0 $orphan 2> /dev/null; do sleep 0.02; done
"""


@pytest.mark.parametrize(("peer", "job"), doing("warns"))
def test_each_orphan_that_is_reaped_is_told(peer: Peer, job: str) -> None:
    done = run(peer.argv(job, "/bin/sh", "-c", ORPHAN))
    orphan = done.stdout.strip()
    assert done.returncode == 0
    assert any(orphan in line and "reaped" in line.lower() for line in done.stderr.splitlines())


@pytest.mark.parametrize(("peer", "job"), doing("says"))
def test_with_v_it_says_more(peer: Peer, job: str) -> None:
    loud, quiet = (run(peer.argv(name, "/bin/true")) for name in (job, "plain"))
    assert loud.stdout + loud.stderr  # tini writes to both
    assert not quiet.stdout + quiet.stderr


@pytest.mark.parametrize(("peer", "job"), doing("subreaper"))
def test_orphans_come_to_it_where_it_is_not_process_1(peer: Peer, job: str) -> None:
    script = "(sleep 1000 & echo $!); exec sleep 1000"
    with subprocess.Popen(peer.argv(job, "/bin/sh", "-c", script), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        orphan = psutil.Process(int(process.stdout.readline()))
        try:
            wait_for(lambda: orphan.ppid() == process.pid)
            process.terminate()
            assert process.wait(PATIENCE_SECONDS) == 143
        finally:
            process.kill()
            if orphan.is_running():
                orphan.kill()


@pytest.mark.parametrize(("peer", "job"), doing("ends with its parent"))
def test_it_gets_a_signal_when_its_parent_ends(peer: Peer, job: str) -> None:
    script = f"import subprocess, sys, time; subprocess.Popen({peer.argv(job, 'sleep', '1000')!r}); time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        wait_for(lambda: len(psutil.Process(parent.pid).children(recursive=True)) == 2)
        started = psutil.Process(parent.pid).children(recursive=True)
        wait_for(lambda: "sleep" in {process.name() for process in started})
        parent.kill()
        parent.wait(PATIENCE_SECONDS)
        wait_for(lambda: not any(alive(process) for process in started))


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-x", "true"], "unknown option -x"),
        (["--nonsense", "true"], "unknown option --nonsense"),
        (["-l"], "unknown option -l"),
        (["-e", "256", "true"], "-e 256: expected an exit code, 0 to 255"),
        (["-e", "x", "true"], "-e x: expected an exit code"),
        (["-e"], "-e needs a value"),
        (["-r", "15", "true"], "-r 15: expected two signals, as in 15:3 or TERM:QUIT"),
        (["-r", "TERM:NONE", "true"], "-r TERM:NONE: expected two signals"),
        (["-r", "99:3", "true"], "-r 99:3: expected two signals"),
        (["-p", "SIGNONE", "true"], "-p SIGNONE: expected a signal"),
        (["-g"], "no command; write pidone [OPTION...] -- COMMAND"),
        (["--"], "no command after --"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_starts_nothing(options: list[str], said: str) -> None:
    done = run([str(PIDONE), *options], alone=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"pidone: {said}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("names", ["TERM:QUIT", "SIGTERM:SIGQUIT", "term:3", "15:quit"])
def test_signals_have_names_too(names: str) -> None:
    with running([str(PIDONE), "-r", names, "-r", "RTMIN+3:TERM", "--", sys.executable, "-c", CATCHER]) as (
        outer,
        pid,
    ):
        assert lines(outer, 1) == {"child ready"}
        os.kill(pid, signal.SIGTERM)
        assert lines(outer, 1) == {"child 3"}
        os.kill(pid, signal.SIGRTMIN + 3)  # what systemd's containers are stopped with
        assert lines(outer, 1) == {"child 15"}


def test_a_command_without_dashes_is_told_how_it_is_run() -> None:
    done = run([str(Path(sys.executable).with_name("pidone")), "sleep", "1 h"], alone=False)
    assert done.returncode == 2
    assert done.stderr.endswith("pidone: to run it as the command of a container: pidone -- sleep '1 h'\n")


@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer.name == "pidone"], ids=["pidone"])
def test_what_the_command_leaves_gets_time_to_end(tmp_path: Path, peer: Peer) -> None:
    """tini and dumb-init leave at once, and the kernel kills what is left."""
    script = f"""
        mkfifo {tmp_path}/fifo
        (trap 'sleep 0.2; echo saved; exit' TERM; echo ready > {tmp_path}/fifo; while :; do sleep 0.05; done) &
        cat {tmp_path}/fifo
    """
    done = run(["env", "PIDONE_GRACE=3600", *peer.argv("plain", "/bin/sh", "-c", script)])
    assert (done.returncode, done.stdout.split()) == (0, ["ready", "saved"])
