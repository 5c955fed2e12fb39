"""Text that others have written, as it is printed."""

import sys

import pytest

from pidone.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain: Grüße, 東京", "plain: Grüße, 東京"),
        ("a\x1b[31mred\x1b]52;c;aGk=\x07", "a\ufffd[31mred\ufffd]52;c;aGk=\ufffd"),
        ("two\nlines\r\nand\ttab\x85\u2028\u2029\x0b\x0c.", "two lines  and tab     ."),
        ("\x9b31m \x90q\x9c", "\ufffd31m \ufffdq\ufffd"),
        ("\u202eleft\u2066iso\u200bzero\ufeff\u00ad", "\ufffdleft\ufffdiso\ufffdzero\ufffd\ufffd"),
        ("\ud800 \x00 \x7f \U000e0041", "\ufffd \ufffd \ufffd \ufffd"),
        ("no\u00a0break", "no break"),
    ],
)
def test_nothing_is_left_that_a_terminal_obeys(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_every_character_becomes_one_that_is_printable_and_can_be_encoded() -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    line = printable(everything)
    assert line.isprintable()
    assert line.encode()
    assert len(line.splitlines()) == 1


def test_a_width_cuts_before_anything_else_is_done() -> None:
    assert printable("x" * 10, 10) == "x" * 10
    assert printable("x" * 11, 10) == "x" * 7 + "..."
