"""How fast to ask, and how long to wait before asking again. Values; the clock and the dice are passed in."""

import math
from random import Random


class Backoff:
    """Full-jitter exponential backoff: between nothing and a limit that doubles with each failure in a row.

    client-go's reflector has the same numbers: 0.8 s to 30 s, and a failure two minutes after the last one is a
    first one. Full jitter, because all replicas lose the same API server at the same moment.
    """

    __slots__ = ("_at", "_failures", "_initial", "_maximum", "_random", "_reset")

    def __init__(
        self, random: Random, *, initial: float = 0.8, maximum: float = 30.0, reset: float = 120.0
    ) -> None:
        self._random, self._initial, self._maximum, self._reset = random, initial, maximum, reset
        self._failures, self._at = 0, -math.inf

    def failed(self, now: float, retry_after: float | None = None) -> float:
        """Seconds to wait after a failure at ``now``: the server's wish in full, and the jitter on top of it."""
        if now - self._at > self._reset:
            self._failures = 0
        limit = min(self._maximum, self._initial * 2.0 ** min(self._failures, 64))
        self._failures, self._at = self._failures + 1, now
        # A wish of hours is a broken server's; it would outlive the trouble.
        wish = min(retry_after or 0.0, self._reset)
        return wish + limit * self._random.random()


class Limit:
    """A token bucket: ``rate`` a second, ``burst`` at once. Who comes first goes first."""

    __slots__ = ("_burst", "_due", "_rate")

    def __init__(self, rate: float = 20.0, burst: int = 30) -> None:
        self._rate, self._burst = rate, burst
        self._due = -math.inf  # when the last place that was given away is paid for

    def place(self, now: float) -> float:
        """Take the next place: seconds to wait for it."""
        self._due = max(self._due, now) + 1 / self._rate
        return max(0.0, self._due - now - self._burst / self._rate)
