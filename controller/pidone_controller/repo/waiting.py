"""Wakes the held requests that a change concerns."""

from collections.abc import Callable, Iterable

Call = Callable[[], object]


class Waiting:
    """The calls of held requests by place: an address, or the key of a pod that came with a token.

    An unknown pod has only its address. Between looking for an answer and adding a call there is no ``await``,
    so no change is missed.
    """

    def __init__(self) -> None:
        self._calls: dict[str, list[Call]] = {}
        self.requests = 0  # held at present

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
        """Make all calls at these places, since their requests may have an answer now."""
        for place in places:
            for call in list(self._calls.get(place, ())):
                call()
