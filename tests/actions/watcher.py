from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import trio

from tests.patience import PATIENCE_SECONDS


class Watcher:
    """A ``Context`` for an action alone: remembers the states, and tells who waits for one."""

    def __init__(self) -> None:
        self.task = "x"
        self.every: float | None = None
        self.random = Random(1)
        self.ending = False
        self.change = trio.Event()
        self.stop_timeout = 2.0
        self.events: list[tuple[str, dict[str, object]]] = []
        self.states: list[str] = []
        self.reasons: list[str] = []
        self.lines: list[str] = []  # of output
        self._send, self._receive = trio.open_memory_channel[str](100)

    def report(self, state: str, reason: str | None = None) -> None:
        if not self.states or self.states[-1] != state:
            self.states.append(state)
            self._send.send_nowait(state)

    def explain(self, reason: str) -> None:
        self.reasons.append(reason)

    async def next_state(self) -> str:
        with trio.fail_after(PATIENCE_SECONDS):
            return await self._receive.receive()

    def log(self, event: str, **fields: object) -> None:
        if "reason" in fields:
            self.reasons.append(str(fields["reason"]))
        self.lines += [str(fields["line"])] if event == "output" else []
        self.events.append((event, fields))

    def state_of(self, task: str) -> str:
        raise NotImplementedError

    async def state_change(self, task: str, seen: str) -> str:
        raise NotImplementedError

    async def changed(self) -> None:
        await self.change.wait()

    @contextmanager
    def grace(self) -> Iterator[None]:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self.stop_timeout):
            yield

    @contextmanager
    def shield(self) -> Iterator[trio.CancelScope]:
        with trio.CancelScope(shield=True) as scope:
            yield scope

    def retry_delay(self, failures: int, at_most: float, *, lasting: bool = False) -> float:
        del lasting
        return min(float(failures), at_most)

    def action_of(self, task: str) -> None:
        return None
