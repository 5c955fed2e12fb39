"""Process 1 in poor surroundings: no working directory, few descriptors, little memory, closed or full outputs."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

from tests import pidns
from tests.patience import PATIENCE_SECONDS
from tests.pid1.test_entrypoint import PIDONE
from tests.pid1.test_environment import Repo
from tests.pid1.test_process_one import private, wait_for
from tests.processes import waiting_seconds

ROOT = Path(__file__).parents[2]
STATIC, MODULE = [str(Path(sys.executable).with_name("pidone"))], [sys.executable, "-m", "pidone"]
pytestmark = [
    pytest.mark.pidns,
    private,
    pytest.mark.skipif(not Path(PIDONE[0]).exists(), reason="pidone is not built: make doze"),
]

LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_{}, ({}, {}))"
# The kernel limits the processes of ordinary users only. Root of a user namespace is one, and can become nobody else.
NOT_ROOT = "" if "--user" in pidns.way()[1] else "os.setgid(65534); os.setuid(54321); "
FAULTS = {
    "no working directory": "os.chdir(folder); os.rmdir(folder)",
    "no descriptor is left": LIMIT.format("NOFILE", 3, 3),
    "one descriptor is left": LIMIT.format("NOFILE", 4, 4),
    "few descriptors": LIMIT.format("NOFILE", 8, 8),
    "no process": "import resource; " + NOT_ROOT + LIMIT.format("NPROC", 1, 1),
    "no memory for Python": LIMIT.format("AS", 4 << 20, 4 << 20),
    "no memory for the engine": LIMIT.format("DATA", 10 << 20, 10 << 20),
    "a small stack": LIMIT.format("STACK", 1 << 17, 1 << 17),
    "no file may grow": LIMIT.format("FSIZE", 0, 0),
    "no signal may queue": LIMIT.format("SIGPENDING", 0, 0),
    "closed outputs": "os.close(0); os.close(1); os.close(2)",
    "a full disk": "full = os.open('/dev/full', os.O_WRONLY); os.dup2(full, 1); os.dup2(full, 2)",
    "nobody reads": "read, write = os.pipe(); os.dup2(write, 1); os.dup2(write, 2); os.close(read)",
}
ENGINE = {
    name for name in FAULTS if not name.startswith(("no descriptor", "one desc", "few", "no proc", "no mem"))
}


@contextmanager
def process_one(
    folder: Path, fault: str, program: list[str], repo: str = ""
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process 1 that starts with this fault."""
    script = dedent(f"""
        import os, sys
        folder = {str(folder / "gone")!r}
        os.mkdir(folder)
        {FAULTS[fault]}
        os.execv(sys.argv[1], sys.argv[1:])
    """)
    environment = {
        "PATH": os.environ["PATH"],
        "PIDONE_DOZE": str(ROOT / "build/doze"),
        "PIDONE_POD_UID": "",
        "PIDONE_REPO": repo,
        "PIDONE_STATUS_PORT": "0",
    }
    outer = subprocess.Popen(
        [*pidns.way()[1], sys.executable, "-S", "-c", script, *program],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield outer
    finally:
        outer.kill()
        outer.wait(PATIENCE_SECONDS)


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "no process"])
def test_the_command_of_a_container_starts_all_the_same(tmp_path: Path, fault: str) -> None:
    with process_one(tmp_path, fault, [*PIDONE, "--", "/bin/sh", "-c", "exit 4"]) as outer:
        # the dynamic loader of the shell needs a descriptor
        assert outer.wait(PATIENCE_SECONDS) == (4 if fault != "no descriptor is left" else 127)


@pytest.fixture
def repo() -> Iterator[Repo]:
    with Repo() as server:
        yield server
        server.shutdown()


@pytest.mark.parametrize("fault", FAULTS)
def test_process_1_of_a_pod_lives_and_leaves_on_term(tmp_path: Path, fault: str, repo: Repo) -> None:
    assert_lives_and_leaves(tmp_path, fault, STATIC, repo)


def assert_lives_and_leaves(folder: Path, fault: str, program: list[str], repo: Repo) -> None:
    with process_one(folder, fault, program, repo.url) as outer:
        pid = pidns.child(outer).pid
        wait_for(lambda: is_up(pid, fault, repo))
        assert outer.poll() is None
        os.kill(pid, signal.SIGTERM)
        assert outer.wait(PATIENCE_SECONDS) == 0


def is_up(pid: int, fault: str, repo: Repo) -> bool:
    """True if process 1 has come as far as it can with this fault."""
    if fault == "few descriptors":  # they suffice to ask, and perhaps for the engine
        return bool(repo.paths)
    if fault == "no memory for the engine" and repo.paths:  # perhaps the engine starts, and waits
        return True
    return engine_runs(repo) or (fault not in ENGINE and tries_again(pid))


def engine_runs(repo: Repo) -> bool:
    return any("doorbell" not in path for path in repo.paths)


def tries_again(pid: int) -> bool:
    """True while doze waits after a failure."""
    return 0 < (waiting_seconds(pid) or 0) < math.inf


@pytest.mark.parametrize("fault", ["no working directory", "closed outputs", "no memory for the engine"])
def test_python_that_people_start_themselves_does_not_end_either(
    tmp_path: Path, fault: str, repo: Repo
) -> None:
    assert_lives_and_leaves(tmp_path, fault, MODULE, repo)
