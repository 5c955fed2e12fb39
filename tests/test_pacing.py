"""Waits after failures, and rates, with a clock that the test moves."""

from math import inf
from random import Random

import pytest

from pidone.pacing import Backoff, RateLimit


def test_the_limit_of_a_backoff_doubles_to_its_maximum() -> None:
    backoff = Backoff(initial=0.8, maximum=30)
    assert [backoff.limit(failures) for failures in range(1, 5)] == [0.8, 1.6, 3.2, 6.4]
    assert backoff.limit(7) == backoff.limit(5000) == 30


@pytest.mark.parametrize(("jitter", "least"), [(1.0, 0.0), (0.25, 3.0), (0.0, 4.0)])
def test_jitter_is_the_random_part_of_a_delay(jitter: float, least: float) -> None:
    backoff = Backoff(initial=1, maximum=4, jitter=jitter)
    delays = [backoff.delay(9, Random(seed)) for seed in range(1000)]
    assert all(least <= delay <= 4 for delay in delays)
    assert min(delays) <= least + 0.01


def test_a_rate_limit_gives_its_burst_at_once_and_then_one_each_interval() -> None:
    limit = RateLimit(3, 10)
    assert [limit.take(100) for _ in range(4)] == [0, 0, 0, 10]
    assert limit.take(109) == 1
    assert limit.refused == 2
    assert [limit.take(110), limit.take(110)] == [0, 10]
    assert [limit.take(1000) for _ in range(4)] == [0, 0, 0, 10], "a rest is worth the burst, and no more"


def test_turns_are_an_interval_apart_and_none_is_taken_that_comes_too_late() -> None:
    limit = RateLimit(3, 0.1)
    assert [limit.turn(100, 100) for _ in range(3)] == [100, 100, 100]
    assert limit.turn(100, 100) == inf
    assert limit.turn(100, 101) == pytest.approx(100.1)
    assert limit.turn(100, 100.15) == inf
    assert limit.wait(100) == pytest.approx(0.2)
    assert limit.turn(100) == pytest.approx(100.2), "without a deadline each caller has its turn"
    assert [limit.turn(200, 200) for _ in range(4)] == [200, 200, 200, inf]
