"""Some of the inputs of ``tests.language.fuzz``; a million at a time run by hand."""

import signal
from collections.abc import Iterator

import pytest

from tests.language.fuzz import SECONDS, Fuzzer, examine, on_alarm, seeds


@pytest.fixture(scope="module")
def fuzzer() -> Fuzzer:
    return Fuzzer(1, seeds())


@pytest.fixture
def watch() -> Iterator[None]:
    before = signal.signal(signal.SIGVTALRM, on_alarm)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("part", range(10))
@pytest.mark.usefixtures("watch")
def test_no_damaged_file_is_a_traceback_or_a_hang(fuzzer: Fuzzer, part: int) -> None:
    for number in range(200 * part, 200 * (part + 1)):
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        examine(fuzzer.input(number))  # on a failure: python -m tests.language.fuzz --only NUMBER
