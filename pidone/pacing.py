"""Backoff and rate limits, as values. Clock and random numbers are passed in."""

from dataclasses import dataclass
from math import inf
from random import Random


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with jitter: a random part of a limit that grows with each failure in a row.

    The limit is ``initial * factor ** (failures - 1)`` seconds, at most ``maximum``. ``jitter`` is the random part of
    it: 1 is full jitter, so that clients that failed together do not retry together; 0 is none.
    """

    initial: float  # seconds
    maximum: float  # seconds
    factor: float = 2.0
    jitter: float = 1.0

    def limit(self, failures: int) -> float:
        """Return the longest wait in seconds after ``failures`` in a row, 1 or more."""
        exponent = min(failures - 1, 64)  # beyond, the limit has long been reached and floats overflow
        return min(self.maximum, self.initial * self.factor**exponent)

    def delay(self, failures: int, random: Random) -> float:
        """Return the seconds to wait after ``failures`` in a row."""
        return self.limit(failures) * (1 - self.jitter * random.random())


class RateLimit:
    """A token bucket: ``burst`` at once, and one more each ``interval`` seconds. It is full at first.

    It keeps one number instead of tokens: the time at which the last one taken would have been due if all came
    ``interval`` apart (generic cell rate algorithm, ITU-T I.371).
    """

    __slots__ = ("_burst", "_interval", "_last", "refused")

    def __init__(self, burst: float, interval: float) -> None:
        self._burst, self._interval = burst, interval
        self._last = -inf
        self.refused = 0  # by ``take``, since the caller set it to 0

    def take(self, now: float) -> float:
        """Take a token and return 0; without one, return the seconds until the next."""
        due = self._next(now)
        if due > now:
            self.refused += 1
            return due - now
        self._last = due
        return 0.0

    def turn(self, now: float, deadline: float = inf) -> float:
        """Take the next token and return its time, ``now`` or later; ``inf``, without taking one, after the deadline.

        Callers that wait for their turn do not retry together, as they would with ``take``.
        """
        due = self._next(now)
        if due > max(now, deadline):
            return inf
        self._last = due
        return max(now, due)

    def wait(self, now: float) -> float:
        """Return the seconds until the next token, without taking it."""
        return max(0.0, self._next(now) - now)

    def _next(self, now: float) -> float:
        return max(self._last, now - self._burst * self._interval) + self._interval
