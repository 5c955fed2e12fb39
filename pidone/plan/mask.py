"""Hides the values of Secrets in texts that leave the process: errors, lines of the journal, reports, printed plans.

A task that uses such values lists them: ``"secrets": {"salt": "9f...", "values": ["s3cret"]}``. The salt is random to
everybody but the repo, so no digest of the task, its plan or its bundle tells whether a guessed value is right.
"""

import json
import re
from binascii import b2a_base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

from pidone.plan.model import SECRETS, VALUE_FILES

MASK = "***"
# Messages cut long texts. So a piece of a value is hidden as the whole, if it has this many characters, ...
PIECE_WIDTH = 8
# ... or if it is the beginning of the value, has this many, and the text or its quotation ends after it.
START_WIDTH = 3
_ENDS = ('"', "'", "...", "…", "\\")
_USER = re.compile(r"://([^/@\s]+)@")


class Mask:
    """Hides these values in a text, also percent-encoded, escaped, or in base64. True if there are any."""

    __slots__ = ("_forms",)

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._forms = tuple(dict.fromkeys(form for value in values for form in _forms(value) if form))

    def __bool__(self) -> bool:
        return bool(self._forms)

    def __call__(self, text: str) -> str:
        """Return the text with ``***`` for the values and their pieces."""
        hidden = sorted(span for form in self._forms for span in _occurrences(form, text))
        if not hidden:
            return text
        parts, end = list[str](), 0
        for first, last in hidden:
            if last <= end:
                continue
            if first > end or not parts:
                parts += [text[end:first], MASK]
            end = last
        return "".join([*parts, text[end:]])


def values_of(tasks: Iterable[object]) -> frozenset[str]:
    """Return all that must not be told of rendered tasks: their values, and credentials in URLs made of these.

    The tasks may have any form: also the message that refuses them must not tell a value.
    """
    found: set[str] = set()
    for task in tasks:
        secrets = task.get(SECRETS) if isinstance(task, Mapping) else None
        values = secrets.get("values") if isinstance(secrets, Mapping) else None
        own = {value for value in values if isinstance(value, str)} if isinstance(values, list) else set()
        if own:
            found |= own
            for text in _texts(task):
                found.update(_credentials(text, own))
    return frozenset(found)


def masked_tasks(tasks: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rendered tasks for people: ``***`` stands for each value, also of a file, and the salt is left out."""
    return [_masked_task(task) if SECRETS in task else dict(task) for task in tasks]


def _masked_task(task: Mapping[str, Any]) -> dict[str, Any]:
    values, files = task[SECRETS]["values"], task[SECRETS].get(VALUE_FILES, {})
    rest = {name: value for name, value in task.items() if name != SECRETS}
    masked: dict[str, Any] = _masked(rest, [*values, *files])
    paths = {VALUE_FILES: sorted(files.values())} if files else {}
    return masked | {SECRETS: {"values": [MASK] * len(values), **paths}}


def hide(error: BaseException, mask: Callable[[str], str]) -> None:
    """Hide the values in the message of an error, and of the errors in its group."""
    error.args = tuple(mask(argument) if isinstance(argument, str) else argument for argument in error.args)
    for inner in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        hide(inner, mask)


def _masked(value: Any, values: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _masked(inner, values) for name, inner in value.items()}
    if isinstance(value, list):
        return [_masked(inner, values) for inner in value]
    if isinstance(value, str):
        for secret in sorted(values, key=len, reverse=True):
            value = value.replace(secret, MASK) if secret else value
        return value
    return MASK if not isinstance(value, bool) and str(value) in values else value


def _forms(value: str) -> Iterator[str]:
    yield value
    for plain in dict.fromkeys((value, unquote(value))):
        data = plain.encode(errors="replace")
        yield from (plain, quote(data, safe=""), quote(data), json.dumps(plain)[1:-1], repr(plain)[1:-1])
        if len(plain) >= START_WIDTH:
            yield b2a_base64(data, newline=False).decode().rstrip("=")


def _credentials(text: str, values: Iterable[str]) -> Iterator[str]:
    """Yield user and password of URLs with a value in them, as in Basic authentication, and the password."""
    for match in _USER.finditer(text):
        if any(value and value in text for value in values):
            user, _, password = match[1].partition(":")
            yield f"{unquote(user)}:{unquote(password)}"
            if len(password) >= START_WIDTH:
                yield password


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _occurrences(form: str, text: str) -> Iterator[tuple[int, int]]:
    """Yield where the form, or a piece of it that tells something, stands in the text."""
    width = min(len(form), PIECE_WIDTH)
    if len(form) <= PIECE_WIDTH:
        place = text.find(form)
        while place >= 0:
            yield place, place + width
            place = text.find(form, place + 1)
    else:
        for place in range(len(text) - width + 1):
            if text[place : place + width] in form:
                yield place, place + width
    if len(form) > START_WIDTH:
        place = text.find(form[:START_WIDTH])
        while place >= 0:
            end = place + START_WIDTH
            while end < len(text) and end - place < len(form) and text[end] == form[end - place]:
                end += 1
            if end == len(text) or text.startswith(_ENDS, end):
                yield place, end
            place = text.find(form[:START_WIDTH], place + 1)
