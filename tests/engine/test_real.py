"""The engine in a real process, from the file that people write to signals and what commands say."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

from tests.patience import PATIENCE_SECONDS

TASKS = """
    apiVersion: pidone.dev/v1alpha1
    kind: TaskSet
    metadata: {name: desk}
    spec:
      tasks:
        - name: flag
          probe: {exec: {command: [/usr/bin/test, -e, FLAG]}, periodSeconds: 1, failureThreshold: 1}
        - name: reload
          runOn: [signal.SIGHUP]
          exec: {command: [/bin/echo, reloaded]}
        - name: guarded
          while: [flag.healthy]
          exec: {command: [/bin/sleep, "1000"]}
        - name: bye
          runOn: [pod.terminating]
          exec: {command: [/bin/echo, farewell]}
"""


def wait_for(good: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not good():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_events_pauses_and_the_end_in_a_real_process(tmp_path: Path) -> None:
    flag, log, file = tmp_path / "flag", tmp_path / "log", tmp_path / "desk.yaml"
    file.write_text(dedent(TASKS).replace("FLAG", str(flag)))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pidone", "run", str(file)], stdout=output, stderr=output
        )

    def places(**fields: str) -> list[int]:
        """The lines that say this; the last one may be half written."""
        lines = log.read_text().rpartition("\n")[0].splitlines()
        return [place for place, line in enumerate(lines) if fields.items() <= json.loads(line).items()]

    try:
        wait_for(lambda: places(task="flag", state="unhealthy"))
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(places(task="reload", line="reloaded")) == 1)
        assert not places(task="guarded")
        flag.touch()
        wait_for(lambda: len(places(task="guarded", state="started")) == 1)
        flag.unlink()
        wait_for(lambda: places(event="paused", task="guarded"))
        flag.touch()
        wait_for(lambda: len(places(task="guarded", state="started")) == 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
    (stopping,), (bye,), (stopped,) = (
        places(event="stopping"),
        places(task="bye", line="farewell"),
        places(event="stopped"),
    )
    assert stopping < bye < stopped
    assert not places(task="guarded", state="failed"), "it was paused, and then stopped"
