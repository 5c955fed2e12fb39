"""Some of the inputs of ``tests.language.fuzz``; by hand it runs millions."""

import signal
from collections.abc import Iterator

import pytest

from tests.language.fuzz import SECONDS, Fuzzer, examine, on_alarm, seeds
from tests.patience import ENDURANCE

INPUTS = 200 * ENDURANCE  # in each part


@pytest.fixture(scope="module")
def fuzzer() -> Fuzzer:
    return Fuzzer(1, seeds())


@pytest.fixture
def watch() -> Iterator[None]:
    before = signal.signal(signal.SIGVTALRM, on_alarm)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("part", range(4))
@pytest.mark.usefixtures("watch")
def test_no_damaged_file_is_a_traceback_or_a_hang(fuzzer: Fuzzer, part: int) -> None:
    for number in range(INPUTS * part, INPUTS * (part + 1)):
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        examine(fuzzer.input(number))  # on a failure: python -m tests.language.fuzz --only NUMBER
