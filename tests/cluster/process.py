"""A part of the control plane as a process that tests end, start again and stop for a while."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.patience import PATIENCE_SECONDS


def until(
    condition: Callable[[], object], timeout: float = PATIENCE_SECONDS, told: Callable[[], object] = str
) -> None:
    """Return when it holds; another process's state has no event. ``told`` is asked for more when it never does."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s {told()}"
        time.sleep(0.02)


@dataclass
class Process:
    """The same words each time it is started: same ports, same data. What it writes is appended to ``log``."""

    words: list[str]
    log: Path
    ready: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    _running: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._running is not None, f"{self.log.stem} is not running"
        return self._running.pid

    def start(self, *, wait: bool = True) -> None:
        """And wait until it answers.

        Raises:
            AssertionError: it ended, or does not answer within a minute; with the end of its log.
        """
        assert self._running is None, f"{self.log.stem} is already running"
        with self.log.open("ab") as output:
            self._running = subprocess.Popen(
                self.words,
                env=os.environ | {"CLUSTER_ENDS_WITH": "stdin"} | self.environment,
                stdin=subprocess.PIPE,  # never written: it ends with this process, however this one ends
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        if wait:
            self.wait_ready()

    def wait_ready(self, timeout: float = 60) -> None:
        def answers() -> bool:
            assert self._running is not None
            assert self._running.poll() is None, f"{self.log.stem} ended: {self.told()}"
            return self.ready()

        until(answers, timeout, self.told)

    def told(self) -> str:
        return self.log.read_text("utf-8", "replace")[-3000:]

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """As a rollout ends it, by SIGTERM; an API server says goodbye to its watches first."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._running is None:
            return
        self._running.send_signal(number)
        try:
            self._running.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()
        assert self._running.stdin is not None
        self._running.stdin.close()
        self._running = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It stands still in the block: connections stay, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)
