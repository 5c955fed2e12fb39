"""Computes the pauses of a reflector after failures."""

from math import inf
from random import Random

from pidone.pacing import Backoff

# client-go's reflector has the same numbers: 0.8 s to 30 s, and a failure two minutes after the last one counts as the
# first. Full jitter, because all replicas lose the same API server at the same moment.
RETRY = Backoff(initial=0.8, maximum=30.0)
RESET_SECONDS = 120.0


class Retries:
    """Counts failures in a row, and computes the pause after each."""

    __slots__ = ("_at", "_failures", "_random")

    def __init__(self, random: Random) -> None:
        self._random = random
        self._failures, self._at = 0, -inf

    def failed(self, now: float, retry_after: float | None = None) -> float:
        """Return the seconds to wait after a failure at ``now``: the server's Retry-After in full, and the backoff."""
        if now - self._at > RESET_SECONDS:
            self._failures = 0
        self._failures, self._at = self._failures + 1, now
        # A Retry-After of hours comes from a broken server, and would outlast the fault.
        return min(retry_after or 0.0, RESET_SECONDS) + RETRY.delay(self._failures, self._random)
