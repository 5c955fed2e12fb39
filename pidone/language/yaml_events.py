"""ruamel.yaml's parser with the detours taken out that a thousand files pay for: a third of its time.

One thing is read differently, as kubectl's go-yaml reads it: a tab may stand between two tokens of a line, where it is
no indentation. Besides, properties are replaced that find their neighbours anew at each call, and steps that are done
for each character or token where they have nothing to do.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import FileMark
from ruamel.yaml.parser import Parser
from ruamel.yaml.reader import Reader
from ruamel.yaml.scanner import Scanner

# White space and a comment, up to the end of the line.
_INDICATORS = re.compile("(?:[-+][1-9]?|[1-9][-+]?|)(?=\t)")  # of a block scalar
_LINE_ENDS = "\r\n\x85\u2028\u2029"
_BLANK = re.compile("[ ]*(?:#[^\\0\n\r\x85\u2028\u2029]*)?")
_BLANK_WITH_TABS = re.compile("[ \t]*(?:#[^\\0\n\r\x85\u2028\u2029]*)?")


@dataclass(slots=True)
class Seen:
    """What the scanner has passed last, in characters from the begin of the text; it helps to explain an error."""

    quoted: tuple[int, int] | None = None  # begin and end of a quoted text of several lines
    plain: int | None = None  # begin of a text without quotation marks


def events(text: str, seen: Seen | None = None) -> Iterator[Any]:
    """Yield the events of YAML 1.2. Raises what ruamel.yaml raises. ``seen`` is kept up to date."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Reader, yaml.Scanner, yaml.Parser = _Reader, _Scanner, _Parser
    if seen is not None:
        yaml.scanner.seen = seen
    yield from yaml.parse(text)


class _Reader(Reader):
    def forward(self, length: int = 1) -> None:
        end = self.pointer + length
        passed = self.buffer[self.pointer : end]
        if "\n" in passed or "\r" in passed or "\ufeff" in passed or end + 1 >= len(self.buffer):
            super().forward(length)
            return
        self.pointer = end
        self.index += length
        self.column += length

    def get_mark(self) -> FileMark:
        return FileMark(self.name, self.index, self.line, self.column)


class _Scanner(Scanner):
    reader: Any = None  # a property there
    seen: Seen | None = None

    def __init__(self, loader: Any) -> None:
        self.reader = loader.reader
        super().__init__(loader)

    def scan_flow_scalar(self, style: Any) -> Any:
        token = super().scan_flow_scalar(style)
        if self.seen is not None and token.start_mark.line != token.end_mark.line:
            self.seen.quoted = token.start_mark.index, token.end_mark.index
        return token

    def scan_plain(self) -> Any:
        if self.seen is not None:
            self.seen.plain = self.reader.index
        return super().scan_plain()

    def scan_to_next_token(self) -> None:
        reader = self.reader
        if reader.index == 0 and reader.peek() == "\ufeff":
            reader.forward()
        while True:
            blank = _BLANK if self.allow_simple_key and not self.flow_context else _BLANK_WITH_TABS
            passed = blank.match(reader.buffer, reader.pointer)
            assert passed is not None  # nothing is a match too
            if passed.end() > reader.pointer:
                reader.forward(passed.end() - reader.pointer)
            if not self.scan_line_break():
                return
            if not self.flow_context:
                self.allow_simple_key = True

    def scan_plain_spaces(self, indent: Any, start_mark: Any) -> Any:
        reader = self.reader
        length = 0
        while reader.peek(length) in " \t":
            length += 1
        if reader.peek(length) in _LINE_ENDS or "\t" not in reader.prefix(length):
            blanks = len(reader.prefix(length).lstrip(" "))
            if blanks:
                reader.forward(length)  # tabs at the end of a line
            return super().scan_plain_spaces(indent, start_mark)
        spaces = reader.prefix(length)
        reader.forward(length)
        return [spaces]

    def scan_block_scalar_indicators(self, start_mark: Any) -> Any:
        found = _INDICATORS.match(self.reader.buffer, self.reader.pointer)
        if found is None:
            return super().scan_block_scalar_indicators(start_mark)
        self.reader.forward(found.end() - found.start())
        chomping = {"+": True, "-": False}.get(found[0].strip("123456789"))
        return chomping, int(found[0].strip("+-") or 0) or None

    def scan_block_scalar_ignored_line(self, start_mark: Any) -> Any:
        while self.reader.peek() in " \t":
            self.reader.forward()
        return super().scan_block_scalar_ignored_line(start_mark)

    def check_token(self, *choices: Any) -> bool:
        while self.need_more_tokens():
            self.fetch_more_tokens()
        return bool(self.tokens) and (not choices or isinstance(self.tokens[0], choices))

    def need_more_tokens(self) -> bool:
        if self.done or (self.tokens and not self.possible_simple_keys):
            return False
        return bool(super().need_more_tokens())

    def stale_possible_simple_keys(self) -> None:
        if self.possible_simple_keys:
            super().stale_possible_simple_keys()


class _Parser(Parser):
    scanner: Any = None  # a property there

    def __init__(self, loader: Any) -> None:
        self.scanner = loader.scanner
        super().__init__(loader)
