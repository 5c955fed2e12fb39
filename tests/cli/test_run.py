"""``pidone run`` as people and programs see it: live on a terminal, JSON lines elsewhere."""

import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pidone.cli.run import task_table
from pidone.engine.core import Stage, TaskState
from tests.engine.test_core import task
from tests.patience import PATIENCE_SECONDS

SET = """
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: desk}
spec:
  tasks:
    - {name: first, exec: {command: [/bin/echo, hello]}}
    - {name: broken, exec: {command: [/bin/sh, -c, "exit 7"]}, backoffLimit: 0}
    - {name: bell, runOn: [signal.SIGHUP], exec: {command: [/bin/echo, ding]}}
    - {name: bye, runOn: [pod.terminating], exec: {command: [/bin/echo, farewell]}}
"""
PIDONE = [sys.executable, "-m", "pidone", "run"]
SIZE = {
    "COLUMNS",
    "LINES",
}  # they would count for more than the terminal's own size; pytest's workers have them
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in SIZE}
ENVIRONMENT |= {"TERM": "xterm", "PIDONE_STATUS_PORT": "0"}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "set.yaml"
    path.write_text(SET)
    return str(path)


def test_elsewhere_each_event_is_a_line_of_json(file: str) -> None:
    events = list[dict[str, Any]]()
    with subprocess.Popen([*PIDONE, file], stdout=subprocess.PIPE, env=ENVIRONMENT, text=True) as process:
        assert process.stdout is not None
        told = 0
        for line in process.stdout:
            events.append(json.loads(line))
            match events[-1]:
                case {"event": "state", "task": "first" | "broken", "state": "succeeded" | "failed"}:
                    told += 1
                    if told == 2:
                        process.send_signal(signal.SIGHUP)
                case {"event": "state", "task": "bell", "state": "succeeded"}:
                    process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", event["time"]) for event in events)
    assert events[0]["event"] == "start"
    said = [event["line"] for event in events if event["event"] == "output"]
    assert said == ["hello", "ding", "farewell"]
    (failed,) = [event for event in events if event["event"] == "failed"]
    assert failed["task"] == "broken"
    assert "exit code 7" in failed["error"]
    assert events[-1]["event"] == "stopped"


BINDING = """
---
apiVersion: pidone.dev/v1alpha1
kind: TaskBinding
metadata: {name: desk, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}, taskSets: [desk]}
"""


@pytest.mark.parametrize(
    ("text", "pod", "reason"),
    [
        (SET + BINDING, None, r"no TaskBinding selects pod default/\S+, whose labels are: none; .*--pod POD"),
        (
            SET + BINDING,
            "{kind: Pod, metadata: {name: a, namespace: shop, labels: {app: api}}}",
            "labels are: app=api",
        ),
        (
            SET + BINDING,
            "{kind: Pod, metadata: {name: a, labels: {app: web}}}",
            "not in the namespace of shop/desk",
        ),
        (
            re.sub("(?m)^    - {", "    - {podSelector: {matchLabels: {a: b}}, ", SET),
            None,
            "podSelector of each task excludes .*--pod POD",
        ),
    ],
)
def test_with_nothing_to_run_it_says_why_and_ends(
    tmp_path: Path, text: str, pod: str | None, reason: str
) -> None:
    (tmp_path / "set.yaml").write_text(text)
    (tmp_path / "pod.yaml").write_text(pod or "")
    arguments = [str(tmp_path / "set.yaml"), *(["--pod", str(tmp_path / "pod.yaml")] if pod else [])]
    ended = subprocess.run(
        [*PIDONE, *arguments],
        capture_output=True,
        env=ENVIRONMENT,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("pidone run: nothing to run: ")
    assert re.search(reason, ended.stderr)
    assert ended.stderr.count("\n") == 1


class Terminal:
    """A terminal of 80 columns and some rows, and what is to be read on it."""

    def __init__(self, file: str, rows: int = 24) -> None:
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 80, 0, 0))
        self.process = subprocess.Popen(
            [*PIDONE, file], stdin=theirs, stdout=theirs, stderr=theirs, env=ENVIRONMENT, start_new_session=True
        )  # fmt: skip
        os.close(theirs)
        self.raw = ""

    def read_until(self, good: Callable[[list[str]], bool]) -> list[str]:
        """What is shown, once it is good."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not good(self.shown()):
            readable, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, "\n".join(self.shown())
            try:
                self.raw += os.read(self._ours, 4096).decode()
            except OSError:  # how a terminal says that nobody has its other end any more
                assert good(self.shown()), self.shown()
        return self.shown()

    def shown(self) -> list[str]:
        """The lines as a terminal shows them that knows the few sequences that are used."""
        lines, at = [""], 0
        for part in re.findall(r"\x1b\[\d*[AJ]|\r\n|\r|[^\x1b\r]+", self.raw):
            if part.endswith("A") and part.startswith("\x1b"):
                at -= int(part[2:-1])
                assert at >= 0
            elif part == "\x1b[J":
                lines = [*lines[:at], ""]
            elif part == "\r\n":
                at += 1
                lines += [""] * (at >= len(lines))
            elif part != "\r":
                lines[at] += part
        return lines

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)
        os.close(self._ours)


def rows(shown: list[str], *starts: str) -> bool:
    return all(any(re.match(start, line) for line in shown) for start in starts)


def test_on_a_terminal_the_tasks_stand_below_the_journal(file: str) -> None:
    terminal = Terminal(file)
    try:
        shown = terminal.read_until(
            lambda shown: rows(
                shown,
                r"first +exec +succeeded ",
                r"broken +exec +failed .*exit code 7",
                r"bell +exec +armed ",
            )
        )
        head = next(place for place, line in enumerate(shown) if line.startswith("TASK "))
        assert shown[head].split() == ["TASK", "ACTION", "STATE", "SINCE", "LAST", "ERROR"]
        assert [line.split()[0] for line in shown[head + 1 : -1]] == ["first", "broken", "bell", "bye"]
        assert all(" event=" in line for line in shown[:head]), "above it is the journal"
        assert sum(line.startswith("TASK ") for line in shown) == 1, "it is drawn over, not again"
        terminal.process.send_signal(signal.SIGINT)
        shown = terminal.read_until(lambda shown: any("event=stopped" in line for line in shown))
        assert any("line=farewell" in line for line in shown)
        assert terminal.process.wait(PATIENCE_SECONDS) == 0
    finally:
        terminal.close()


def test_a_low_terminal_shows_what_it_can(file: str) -> None:
    terminal = Terminal(file, rows=4)
    try:
        shown = terminal.read_until(
            lambda shown: rows(shown, r"first +exec +succeeded ", r"\.\.\. and 3 more")
        )
        assert not rows(shown, "bell +exec")
    finally:
        terminal.close()


def test_the_picture_says_paused_and_why_it_failed() -> None:
    one = TaskState(task("a"), since=5.0, stage=Stage.PAUSED, error="no answer")
    head, line = task_table([one], 0.0, 10)
    assert head.startswith("TASK  ACTION")
    assert "paused" in line
    assert line.endswith("no answer")
    assert task_table([], 0.0, 10) == []
