"""doze executes the snapshot in place of Python, and gives it up where it does not work; the pod never notices."""

import os
import posix
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pidone.pid1 import stages
from tests import pidns
from tests.patience import PATIENCE_SECONDS
from tests.pid1.test_process_one import wait_for
from tests.pid1.test_stages import DOZE

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.pidns,
    pytest.mark.skipif(not DOZE.exists(), reason="doze is not built: make doze"),
    pytest.mark.skipif(pidns.missing() is not None, reason=str(pidns.missing())),
]


class Programs:
    """A program and a snapshot, shell scripts that write their starts into one file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.snapshot = folder / "snapshot"
        self.plain = self.script("plain", "[ $PIDONE_STAGE = run ] && sleep 1000; exit 3")

    def script(self, name: str, end: str) -> Path:
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $PIDONE_STAGE $PIDONE_SNAPSHOT" >> {self.log}\n{end}\n')
        path.chmod(0o755)
        return path

    def starts(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    @contextmanager
    def running(self, doze: Path = DOZE) -> Iterator[pidns.ProcessOne]:
        env = {"PIDONE_SNAPSHOT": str(self.snapshot), "PATH": os.environ["PATH"]}
        with pidns.process_one([str(doze), str(self.plain)], env=env) as process:
            yield process
            process.signal(signal.SIGKILL)  # the programs block all others, as doze does


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def test_the_snapshot_is_executed_to_ask_and_to_run(programs: Programs) -> None:
    path = programs.script("snapshot", "[ $PIDONE_STAGE = run ] && sleep 1000; exit 3")
    with programs.running() as process:
        wait_for(lambda: len(programs.starts()) == 2)
        assert programs.starts() == [f"snapshot ask {path}", f"snapshot run {path}"]
        assert process.same()


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("exits with 126", "exit code 126"),
        ("is killed", "signal 9"),
        ("is a text", "exit code 127"),
        ("may not be executed", "exit code 127"),
        ("is cut off", ""),  # the kernel refuses it, or kills
    ],
)
def test_a_snapshot_that_does_not_work_is_given_up(programs: Programs, broken: str, reason: str) -> None:
    path = programs.script("snapshot", {"is killed": "kill -9 $$"}.get(broken, "exit 126"))
    if broken == "is a text":
        path.write_text("no program\n")
    elif broken == "may not be executed":
        path.chmod(0o644)
    elif broken == "is cut off":
        path.write_bytes(DOZE.read_bytes()[:3000])
    with programs.running() as process:
        wait_for(lambda: len([start for start in programs.starts() if start.startswith("plain")]) == 2)
        asked, run = programs.starts()[-2:]
        assert asked.startswith("plain ask ")
        if reason:
            assert asked == f"plain ask {reason}"
        assert run == asked.replace("ask", "run")
        assert process.same()


def test_an_image_without_a_snapshot_is_no_failure(programs: Programs) -> None:
    with programs.running():
        wait_for(lambda: len(programs.starts()) == 2)
        assert programs.starts() == [f"plain {stage} {programs.snapshot}" for stage in ("ask", "run")]


def test_other_ends_say_nothing_about_the_snapshot(programs: Programs) -> None:
    # the limit that Python sets: a resolver hangs; doze has blocked all signals
    alarm = "import os, signal; signal.pthread_sigmask(signal.SIG_SETMASK, ()); os.kill(os.getpid(), signal.SIGALRM)"
    path = programs.script("snapshot", f'exec {sys.executable} -c "{alarm}"')
    with programs.running():
        wait_for(lambda: len(programs.starts()) == 2)
    path = programs.script("snapshot", "exit 1")
    with programs.running():
        wait_for(lambda: len(programs.starts()) == 4)
    assert programs.starts() == [f"snapshot ask {path}"] * 4


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler: apt-get install gcc libc6-dev")
def test_a_snapshot_that_hangs_is_given_up(programs: Programs, tmp_path: Path) -> None:
    doze = tmp_path / "doze"
    source = ROOT / "pidone/pid1/doze.c"
    command = ["gcc", "-w", "-Os", "-static", "-DASK_LIMIT=4000", "-o", str(doze), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_SECONDS)
    programs.script("snapshot", "sleep 1000")
    with programs.running(doze):
        wait_for(lambda: len(programs.starts()) == 3)
        assert programs.starts()[1:] == ["plain ask signal 9", "plain run signal 9"]


@pytest.mark.parametrize(
    ("setting", "shown"),
    [(b"", "off"), (b"/pidone.snapshot", "off"), (b"signal 4", "signal 4"), (None, "off")],
)
def test_the_form_is_reported(monkeypatch: pytest.MonkeyPatch, setting: bytes | None, shown: str) -> None:
    environment = {} if setting is None else {stages.SNAPSHOT: setting}
    monkeypatch.setattr(posix, "environ", environment)
    assert stages.snapshot() == shown
    monkeypatch.setattr(stages, "restored", True)
    assert stages.snapshot() == stages.USED
