"""What the helpers of the tests promise where several things happen at once."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import folders, processes
from tests.patience import PATIENCE_SECONDS
from tests.pid1.test_process_one import wait_for

ROOT = Path(__file__).parents[1]


def test_two_runs_do_not_share_a_folder_and_an_ended_one_leaves_it(tmp_path: Path) -> None:
    program = "import pathlib, sys, tests.folders as f; print(f.reserve(pathlib.Path(sys.argv[1])))"

    def other_run() -> str:
        words = [sys.executable, "-c", program, str(tmp_path / "x")]
        done = subprocess.run(
            words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
        )
        return done.stdout.strip()

    assert other_run() == str(tmp_path / "x")
    assert folders.reserve(tmp_path / "x") == tmp_path / "x"
    assert folders.reserve(tmp_path / "x") == tmp_path / "x-2"
    assert other_run() == other_run() == str(tmp_path / "x-3")


def test_a_child_that_was_reaped_since_it_was_listed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "1000"]) as program:
        child = psutil.Process(program.pid)
        monkeypatch.setattr(psutil.Process, "children", lambda _: [child])
        try:
            # The kernel closes the pipe that Popen waits for a moment before it sets the name and the command line.
            wait_for(lambda: processes.command(child) == ["sleep", "1000"])
            assert processes.named(os.getpid(), "sleep") == [child]
        finally:
            program.kill()
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        assert processes.zombies(os.getpid()) == 1
        assert processes.command(child) == []
    assert processes.zombies(os.getpid()) == 0
    assert processes.named(os.getpid(), "sleep") == []
    assert processes.command(child) == []
