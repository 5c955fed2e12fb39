"""Findings: the message about one mistake and its place in a file, and their text for people."""

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from unicodedata import combining, east_asian_width

from pidone.language.rule_texts import WARNINGS
from pidone.text import printable

_WIDEST = 160  # characters of a source line that are shown
_LONGEST = 300  # characters of a message
_MOST = 20  # words that are listed where none is close
MAX_COMPARED = 200  # words that are compared with an unknown one
_LONGEST_COMPARED = 100  # characters of it
_LINE_END = re.compile(r"\r\n|[\n\r]")  # of YAML 1.2, and of editors


@dataclass(frozen=True, slots=True)
class Span:
    """The position of a token. Line and column count from 1; ``width`` is in characters, on that line."""

    line: int
    column: int
    width: int = 1


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake. ``str()`` is the message with its place and rule, the line, and a caret under the token."""

    file: str
    line: int
    column: int
    message: str
    rule: str
    source: str = ""  # its line in the file
    width: int = 1

    @property
    def is_warning(self) -> bool:
        """True if the file is valid nevertheless, which depends on the rule alone."""
        return self.rule in WARNINGS

    @property
    def end(self) -> int:
        """The column after the token's last character in this line."""
        return max(self.column + 1, min(self.column + self.width, len(self.source) + 1))

    @property
    def place(self) -> str:
        return f"{printable(self.file)}:{self.line}:{self.column}"

    def __str__(self) -> str:
        warning = "warning: " if self.is_warning else ""
        head = f"{self.place}: {warning}{printable(self.message)} [{self.rule}]"
        return "\n".join([head, *self.excerpt()])

    def excerpt(self) -> list[str]:
        """Return the line, and below it the caret; nothing if the line is empty."""
        if not self.source.strip():
            return []
        source, before = self.source, self.column - 1
        if len(source) > _WIDEST:
            cut = max(0, before - _WIDEST // 2)
            source, before = source[cut : cut + _WIDEST], before - cut
        source = printable(source).ljust(before)
        space = " " * _cells(source[:before])
        width = max(1, _cells(source[before : before + self.width]))
        return [f"{self.line:>5} | {source.rstrip()}", f"      | {space}^{'~' * (width - 1)}"]


@dataclass(frozen=True, slots=True)
class Source:
    """The name and the lines of a file, from which findings show the place."""

    file: str
    lines: tuple[str, ...]
    starts: tuple[int, ...]  # of the lines, in characters from the beginning

    @classmethod
    def of(cls, text: str, file: str) -> "Source":
        ends = [(match.start(), match.end()) for match in _LINE_END.finditer(text)]
        starts = (0, *(end for _, end in ends))
        stops = (*(stop for stop, _ in ends), len(text))
        return cls(file, tuple(text[start:stop] for start, stop in zip(starts, stops, strict=True)), starts)

    def span(self, start: int, end: int | None = None) -> Span:
        """Return the span of the characters from ``start`` to ``end``, at most to the end of the first line."""
        line = bisect_right(self.starts, start) - 1
        column = start - self.starts[line]
        rest = max(1, len(self.lines[line]) - column)
        return Span(line + 1, column + 1, 1 if end is None else min(rest, max(1, end - start)))

    def finding(self, span: Span, message: str, rule: str) -> Finding:
        if len(message) > _LONGEST:  # it contains a word of the file, which may be a megabyte
            message = f"{message[: _LONGEST - 3]}..."
        line = self.lines[span.line - 1]
        return Finding(self.file, span.line, span.column, message, rule, line, span.width)


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings in the order of the file, without duplicates."""
    return tuple(
        sorted(set(findings), key=lambda item: (item.file, item.line, item.column, item.rule, item.message))
    )


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown word: the nearest known word, or all of them."""
    options = list(known)[:MAX_COMPARED]
    folded = {option.lower(): option for option in options}
    low = word.lower()
    close = get_close_matches(low[:_LONGEST_COMPARED], folded, n=1, cutoff=0.6) or [
        option
        for option in folded
        if min(len(option), len(low)) > 2 and (option.startswith(low) or low.startswith(option))
    ]
    if close:
        return f'; did you mean "{folded[close[0]]}"?'
    more = ", ..." if len(options) > _MOST else ""
    return f"; expected one of {', '.join(options[:_MOST])}{more}" if options else ""


def _cells(text: str) -> int:
    """Return the number of columns of a text in a terminal."""
    return sum(0 if combining(sign) else 1 + (east_asian_width(sign) in {"W", "F"}) for sign in text)


def _visible(text: str) -> str:
    """Return a text with the code points of characters that cannot be seen."""
    if text.isprintable():
        return text
    marks = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return "".join(sign if sign.isprintable() else marks.get(sign, f"<U+{ord(sign):04X}>") for sign in text)


def shown(value: object) -> str:
    """Return a value for messages: shortened, never a whole object, with code points of invisible characters."""
    match value:
        case str():
            return f'"{_visible(value)}"' if len(value) <= 60 else f'"{_visible(value[:57])}..."'
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            text = str(value)
            return text if len(text) <= 60 else f"{text[:57]}..."
