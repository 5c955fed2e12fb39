"""YAML that is not ours, such as pods and kubeconfigs, as kubectl reads it.

The reader of TaskSets refuses what readers of YAML disagree on. Here kubectl's reading counts, that of go-yaml 2: words
such as ``on`` are booleans, ``0123`` is in base 8, ``<<`` merges, and the last of equal keys counts. There are no
positions, so a file of ten thousand pods needs little memory.
"""

import json
import re
from base64 import b64decode
from binascii import Error as Base64Error
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isinf
from typing import Any

from pidone.errors import LanguageError
from pidone.language.findings import Source
from pidone.language.reading import Builder, Stop

MAX_DEPTH = 100
MAX_ALIASED = 100_000  # values of one document that aliases stand for

_SEPARATOR = re.compile(r"^---[ \t]*(?:#.*)?\r?$", re.MULTILINE)
_WORDS: Mapping[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **{form: True for word in ("y", "yes", "true", "on") for form in (word, word.title(), word.upper())},
    **{form: False for word in ("n", "no", "false", "off") for form in (word, word.title(), word.upper())},
}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_TIME = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?")
_INTEGERS = (
    (re.compile(r"([-+]?)0[xX]([0-9a-fA-F]+)"), 16),
    (re.compile(r"([-+]?)0[bB]([01]+)"), 2),
    (re.compile(r"([-+]?)0[oO]?([0-7]+)"), 8),
    (re.compile(r"([-+]?)(0|[1-9][0-9]*)"), 10),
)
_MERGE, _NO_KEY = object(), object()
_PLAIN_TAGS = {"int", "float", "bool", "null"}
_TAGS = "tag:yaml.org,2002:"


def decoded(data: bytes) -> str:
    """Return the text of a file: UTF-8, or by its byte order mark UTF-16, as kubectl reads it."""
    for mark, encoding in ((BOM_UTF8, "utf-8"), (BOM_UTF16_LE, "utf-16-le"), (BOM_UTF16_BE, "utf-16-be")):
        if data.startswith(mark):
            return data.removeprefix(mark).decode(encoding, errors="replace")
    return data.decode("utf-8", errors="replace")


def parts(text: str) -> Iterator[tuple[int, str]]:
    """Yield the documents of a file, split as kubectl splits it, each with the number of lines before it."""
    lines, start = 0, 0
    for separator in _SEPARATOR.finditer(text):
        yield lines, text[start : separator.start()]
        lines += text.count("\n", start, separator.end())
        start = separator.end()
    yield lines, text[start:]


def value(text: str, *, lines: int = 0) -> Any:
    """Return the value of the first document of ``text``, None if it is empty.

    Raises ``LanguageError`` with the line if it is not YAML. ``lines`` are those before it in its file.
    """
    if text.lstrip().startswith("{"):  # JSON is YAML, and its own reader a hundred times as fast
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass  # {flow: mapping}, or an error that is said better below
    source = Source.of(text, "")
    try:
        return next(_Values(text, source).values(), None)
    except Stop as stop:
        span, message, _ = stop.said
        raise LanguageError(f"line {span.line + lines}, column {span.column}: {message}") from stop


@dataclass(slots=True)
class _Collection:
    """A list or an object that is being read."""

    value: Any
    anchor: str | None
    key: Any = field(default=_NO_KEY)
    size: int = 1


class _Values(Builder):
    """Converts events to plain values."""

    def __init__(self, text: str, source: Source) -> None:
        super().__init__(text, source)
        self._ends = deque()
        self._result: Any = None
        self._stack: list[_Collection] = []
        self._known: dict[str, tuple[Any, int]] = {}  # anchored values and their sizes
        self._aliased = 0

    def values(self) -> Iterator[Any]:
        from ruamel.yaml import events

        for event in self._events():
            match event:
                case events.DocumentEndEvent():
                    yield self._result
                case events.MappingStartEvent() | events.SequenceStartEvent():
                    if len(self._stack) == MAX_DEPTH:
                        raise Stop(self._span(event), f"nested more than {MAX_DEPTH} deep", "too-deep")
                    new: Any = {} if isinstance(event, events.MappingStartEvent) else []
                    self._stack.append(_Collection(new, event.anchor))
                case events.MappingEndEvent() | events.SequenceEndEvent():
                    done = self._stack.pop()
                    self._add(event, done.value, done.size, done.anchor)
                case events.ScalarEvent():
                    is_key = bool(self._stack) and isinstance(self._stack[-1].value, dict)
                    is_key = is_key and self._stack[-1].key is _NO_KEY
                    if is_key and event.value == "<<" and event.style is None and event.tag is None:
                        self._stack[-1].key = _MERGE
                    else:
                        self._add(event, _scalar(event), 1, event.anchor)
                case events.AliasEvent():
                    self._add_alias(event)

    def _add_alias(self, event: Any) -> None:
        if event.anchor not in self._known:
            message = f"no anchor &{event.anchor:.60} stands before this alias"
            raise Stop(self._span(event), message, "unknown-anchor")
        same, size = self._known[event.anchor]
        self._aliased += size
        if self._aliased > MAX_ALIASED:
            raise Stop(self._span(event), f"aliases stand for more than {MAX_ALIASED} values", "too-large")
        self._add(event, same, size, None)

    def _add(self, event: Any, new: Any, size: int, anchor: str | None) -> None:
        if anchor:
            self._known[anchor] = new, size
        if not self._stack:
            self._result = new
            return
        around = self._stack[-1]
        around.size += size
        if isinstance(around.value, list):
            around.value.append(new)
        elif around.key is _NO_KEY:
            if isinstance(new, dict | list) or new is None:
                raise Stop(self._span(event), "a key of an object is text", "key")
            whole = isinstance(new, float) and new.is_integer() and abs(new) < 1e21
            around.key = str(new).lower() if isinstance(new, bool) else str(int(new) if whole else new)
        elif around.key is _MERGE:
            around.key = _NO_KEY
            for one in reversed(new if isinstance(new, list) else [new]):
                if not isinstance(one, dict):
                    raise Stop(self._span(event), "only objects can be merged by <<", "merge-key")
                around.value.update(one)
        else:
            around.value[around.key] = new
            around.key = _NO_KEY


def _scalar(event: Any) -> Any:
    tag = str(event.tag or "").removeprefix(_TAGS)
    if tag == "binary":
        try:
            return b64decode(event.value, validate=True).decode("utf-8", errors="replace")
        except (Base64Error, ValueError):
            return event.value
    is_plain = tag in _PLAIN_TAGS or (not tag and event.style is None)
    return plain(event.value) if is_plain else event.value


def plain(text: str) -> Any:
    """Return what kubectl reads for a word without quotation marks."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] == "." and _FLOAT.fullmatch(text):
        return _float(text, text)
    if text[0] not in "+-0123456789" or _TIME.fullmatch(text):
        return text
    number = text.replace("_", "")
    for pattern, base in _INTEGERS:
        if found := pattern.fullmatch(number):
            whole = int(found[2], base) * (-1 if found[1] == "-" else 1) if len(found[2]) < 80 else 1 << 80
            if -(1 << 63) <= whole < 1 << 64:
                return whole
    return _float(number, text) if _FLOAT.fullmatch(number) else text


def _float(number: str, text: str) -> Any:
    """Return a number; a number that is too large is text."""
    return text if isinf(float(number)) else float(number)
