"""A monitoring system to which ``report`` sends: one request for each message, and the words for its answer."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import isfinite
from time import time
from typing import Any, Protocol

from pidone.actions._report_checks import header_name, header_value
from pidone.counters import TaskView
from pidone.errors import NotAccepted, Refused
from pidone.http.client import redacted, request
from pidone.http.message import Response
from pidone.plan.fields import Fields
from pidone.text import printable

TIMEOUT_SECONDS = 10.0  # for one message
WAIT_MAX_SECONDS = 3600.0  # of a Retry-After
MAX_ANSWER = 1 << 14  # bytes of an answer that are read
MAX_WORDS = 200  # characters of an answer in a message

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_REMEDIES = {
    400: "the receiver did not understand the report; is this the URL of such a receiver?",
    401: "does the receiver need a token in headers, or user and password in the URL?",
    403: "are the token in headers, or user and password in the URL, those of this receiver?",
    404: "is the path of the URL right?",
    405: "is the path of the URL right?",
    413: "the receiver takes no report of this size; select fewer tasks with the field of",
    415: "the receiver takes another format; is this the URL of such a receiver?",
}


class Destination(Protocol):
    """A monitoring system at a URL."""

    @property
    def url(self) -> str: ...

    @property
    def period(self) -> float | None:
        """The seconds between two messages of a task without ``every``; None: changes alone are sent."""

    @property
    def waiting(self) -> bool:
        """True if results wait for the next message."""

    @property
    def warning(self) -> str:
        """What the receiver said of the last message that it accepted; empty if nothing."""

    def take_over(self, previous: "Destination") -> bool:
        """Continue with the unsent results of an earlier destination of the same kind and URL.

        True if what was reported before needs no new message.
        """

    def add(self, views: Iterable[TaskView], gone: Iterable[TaskView] = ()) -> None:
        """Add the states of these tasks to the next messages; ``gone`` are tasks that have left the plan."""

    async def send(self, views: Sequence[TaskView]) -> None:
        """Send one message: added states, or the current states ``views``.

        Raises ``TransferError`` and ``TaskFailed``.
        """

    async def close(self, views: Sequence[TaskView]) -> None:
        """Send the states that wait or the last ``views``, or delete what must not stay. The last call."""


async def exchange(
    method: str, url: str, headers: Mapping[str, str], body: bytes, source: str | None
) -> Response:
    """Send a request, and return its answer; of a long answer the beginning."""
    return await request(
        method,
        url,
        timeout=TIMEOUT_SECONDS,
        headers=headers,
        body=body,
        source=source,
        limit=MAX_ANSWER,
        cut=True,
    )


def not_accepted(what: str, answer: Response, passing: Collection[int]) -> NotAccepted:
    """Return the exception for an answer that is no success to the request ``what``, in the receiver's own words.

    ``passing`` are the statuses after which the same message may be accepted later.
    """
    status = answer.status
    if is_page(answer) and not 300 <= status < 400:
        text = f"{what}: {page_words(answer)}"
        return NotAccepted(text, refused=status not in passing, wait=retry_after(answer, time()))
    text = f"{what}: answered {status}"
    if said := words(answer):
        text += f' "{said}"'
    if 300 <= status < 400:
        place = printable(redacted(answer.headers.get("location", "")), MAX_WORDS) or "another URL"
        text += f", a redirect to {place}, which is not followed; if that is the receiver, write its URL"
    elif remedy := _REMEDIES.get(status):
        text += f"; {remedy}"
    return NotAccepted(text, refused=status not in passing, wait=retry_after(answer, time()))


def words(answer: Response) -> str:
    """Return the receiver's own words in an answer that is no success: the message in JSON, or the text, on one line.

    Empty for HTML. JSON is a google.rpc.Status, or has its text in one of the usual places.
    """
    if is_page(answer):
        return ""
    value: Any = answer.text
    if answer.body[:1] == b"{":
        said = json_object(answer.body) or {}
        value = next((said[key] for key in ("message", "error", "detail") if said.get(key)), value)
        if isinstance(value, dict):
            value = value.get("message", answer.text)
    return printable(" ".join(str(value)[: 4 * MAX_WORDS].split()), MAX_WORDS)


def json_object(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object; None if the body is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_page(answer: Response) -> bool:
    """True if the answer is an HTML page, such as a login page."""
    return answer.body[:256].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def page_words(answer: Response) -> str:
    return f"answered {answer.status} with an HTML page; is that the receiver, or a login page or proxy before it?"


def retry_after(answer: Response, now: float) -> float:
    """Return the seconds of Retry-After, which is a number or a date (RFC 9110, 10.2.3); 0 without it.

    ``now`` is in seconds since the epoch. The result has an upper bound, since any proxy may have sent the header.
    """
    value = answer.headers.get("retry-after", "").strip()
    try:
        seconds = float(value) if value.isascii() and value.isdecimal() else _date(value) - now
    except (ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), WAIT_MAX_SECONDS) if isfinite(seconds) else WAIT_MAX_SECONDS


def read_url(fields: Fields, problem: Callable[[str], str]) -> str:
    """Read the field ``url``. ``problem`` is a function of ``_report_checks``."""
    url = fields.text("url")
    if wrong := problem(url):
        raise Refused(f"{fields.path}.url: {wrong}")
    return url


def read_headers(fields: Fields) -> dict[str, str]:
    """Read the field ``headers``; names in lower case."""
    headers = fields.table("headers")
    for name, value in headers.items():
        if wrong := header_name(name) or header_value(value):
            raise Refused(f"{fields.path}.headers.{printable(name, 40)}: {wrong}")
    return {name.lower(): value for name, value in headers.items()}


def _date(text: str) -> float:
    """Return the seconds since the epoch of an IMF-fixdate, as ``Sun, 06 Nov 1994 08:49:37 GMT``.

    Raises ``ValueError``. The image has none of the standard library's modules for dates, which only this would need.
    """
    day, name, year, clock = text.split()[1:5]
    month = _MONTHS.index(name) + 1
    hours, minutes, seconds = map(int, clock.split(":"))
    if not 1 <= int(day) <= 31:
        raise ValueError("no day of a month")
    # years begin in March, so that the day of a leap year is their last one
    years, months = int(year) - (month <= 2), (month - 3) % 12
    leap_days = years // 4 - years // 100 + years // 400
    days = 365 * years + leap_days + (153 * months + 2) // 5 + int(day) - 1 - 719468
    return days * 86400.0 + hours * 3600 + minutes * 60 + seconds
