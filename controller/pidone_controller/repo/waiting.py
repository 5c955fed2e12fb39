"""Requests that are held open: who waits where, and how they are woken."""

from collections.abc import Callable, Iterable

Call = Callable[[], object]


class Waiting:
    """By place: an address, as an unknown pod has nothing else, or the key of a pod that came with a token.

    Between looking at what there is and waiting for a call is no await, so no change can fall between them.
    """

    def __init__(self) -> None:
        self._calls: dict[str, list[Call]] = {}
        self.requests = 0  # waiting now

    def add(self, place: str, call: Call) -> None:
        self._calls.setdefault(place, []).append(call)
        self.requests += 1

    def remove(self, place: str, call: Call) -> None:
        calls = self._calls[place]
        calls.remove(call)
        self.requests -= 1
        if not calls:
            del self._calls[place]

    def count(self, place: str) -> int:
        return len(self._calls.get(place, ()))

    def places(self) -> list[str]:
        return list(self._calls)

    def wake(self, places: Iterable[str]) -> None:
        """Everybody there is to look again."""
        for place in places:
            for call in list(self._calls.get(place, ())):
                call()
