"""Requests that are held open: who waits where, and how they are woken."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio


@dataclass(slots=True)
class Held:
    """The requests waiting at one place: ``change`` is replaced each time it is set."""

    change: trio.Event = field(default_factory=trio.Event)
    requests: int = 0
    closing: bool = False

    def wake(self) -> None:
        self.change.set()
        self.change = trio.Event()


class Waiting:
    """By place: an address, as an unknown pod has nothing else, or the key of a pod that came with a token.

    Between looking at what there is and waiting for ``change`` is no await, so no change can fall between them.
    """

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self.requests = 0  # waiting now

    @contextmanager
    def at(self, place: str) -> Iterator[Held]:
        """One request more, until the end of the block."""
        held = self._held.setdefault(place, Held())
        held.requests += 1
        self.requests += 1
        try:
            yield held
        finally:
            held.requests -= 1
            self.requests -= 1
            if not held.requests:
                del self._held[place]

    def count(self, place: str) -> int:
        return self._held[place].requests if place in self._held else 0

    def places(self) -> list[str]:
        return list(self._held)

    def wake(self, places: Iterable[str]) -> None:
        """Everybody there is to look again."""
        for place in places:
            if place in self._held:
                self._held[place].wake()

    def close(self, place: str) -> None:
        """Whoever waits there is to give up."""
        if place in self._held:
            self._held[place].closing = True
            self._held[place].wake()


async def until(change: trio.Event, deadline: float) -> bool:
    """Wait for a change; False where the deadline came first. A change that is there wins."""
    with trio.move_on_at(deadline):
        await change.wait()
    return change.is_set()
