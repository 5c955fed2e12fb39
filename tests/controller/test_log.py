"""The log: no text of others forges a line, fills it, or reaches a terminal."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from pidone_controller.log import BURST, INTERVAL_SECONDS, MAX_SUBJECTS, MAX_VALUE, LimitedLog, line

NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)


@pytest.mark.parametrize(
    "text",
    [
        "two\nlines event=forged",
        "\x1b]52;c;aGk=\x07 \x9b31m",
        "\u202eleft\u2066\u200b",
        '" event=forged x="',
        "\ud800 \x00 \x7f",
        "\u2028\x85",
        "\U0001f600" * 9000,
        "\x01" * 9000,
    ],
)
def test_a_value_stays_within_its_quotes_and_its_length(text: str) -> None:
    written = line(NOW, "failed", pod="shop/web", error=text, last="x")
    head, tail = "2026-01-02T03:04:05.678Z pod=shop/web event=failed error=", " last=x"
    assert written.startswith(head)
    assert written.endswith(tail)
    assert written.isprintable()
    assert len(written.encode()) < 4 * MAX_VALUE + 100
    assert isinstance(json.loads(written.removeprefix(head).removesuffix(tail)), str)


class Lines:
    """A limited log, and the lines that come through at a time that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.written: list[tuple[str, str, dict[str, Any]]] = []
        self.log = LimitedLog(self._write, lambda: self.now)

    def _write(self, event: str, *, pod: str = "", **values: Any) -> None:
        self.written.append((event, pod, values))


def test_lines_about_one_pod_have_a_rate_and_the_next_one_tells_how_many_are_missing() -> None:
    lines = Lines()
    for _ in range(1000):
        lines.log("failed", pod="shop/web", error="x")
    assert len(lines.written) == BURST
    lines.log("failed", pod="shop/db", error="x")
    lines.log("applied", pod="shop/web")
    assert len(lines.written) == BURST + 2
    lines.now += INTERVAL_SECONDS
    lines.log("failed", pod="shop/web", error="y")
    lines.log("failed", pod="shop/web", error="z")
    assert lines.written[BURST + 2 :] == [("failed", "shop/web", {"error": "y", "suppressed": 1000 - BURST})]


def test_all_strangers_are_one_subject() -> None:
    lines = Lines()
    for number in range(1000):
        lines.log("failed", pod=f"10.1.{number >> 8}.{number & 255}", error="x")
        lines.log("died", pod=f"fd00::{number:x}", error="x")
    assert len(lines.written) == 2 * BURST


def test_without_a_pod_the_object_is_the_subject() -> None:
    lines = Lines()
    for number in range(100):
        lines.log("status-failed", object="TaskSet shop/web", error=str(number))
        lines.log("listening", address=f"127.0.0.1:{number}")
    assert len(lines.written) == BURST + 100


def test_subjects_are_forgotten_so_that_nobody_fills_the_memory() -> None:
    lines = Lines()
    for number in range(MAX_SUBJECTS + 1000):
        lines.log("applied", pod=f"shop/{number}")
    assert len(lines.log._limits) == MAX_SUBJECTS
