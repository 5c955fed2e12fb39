"""Writes one line for each event, with fixed keys, for people and for grep:

2026-01-02T03:04:05.678Z pod=shop/web event=plan digest=sha256-ab12cd34ef56 tasks=3

Pods, registries and authors of objects choose texts in it, and how often there is something to write. So each value
has a greatest length, and ``LimitedLog`` bounds the lines about one subject.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from pidone.pacing import RateLimit
from pidone.text import printable

MAX_VALUE = 2000  # characters
# Lines of one event about one subject: at once, and seconds for each further one
BURST, INTERVAL_SECONDS = 20, 10.0
MAX_SUBJECTS = 20_000  # whose lines are counted

Log = Callable[..., None]  # log(event, pod=..., key=value, ...)

_BARE = re.compile(r"[\w./:@\[\]+-]+", re.ASCII)


def line(now: datetime, event: str, *, pod: str = "", **values: object) -> str:
    """Format one line. A value with other than plain characters is made printable, cut, and quoted as a JSON string.

    So no text forges a line, or sends control characters to a terminal.
    """
    fields = [("pod", pod)] if pod else []
    fields += [("event", event), *((key, str(value)) for key, value in values.items())]
    time = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{now.microsecond // 1000:03}Z"
    return " ".join([time, *(f"{key}={_value(text)}" for key, text in fields)])


def log(event: str, *, pod: str = "", **values: object) -> None:
    """Write one line to stderr. A closed stderr is ignored: the controller goes on serving."""
    say(line(datetime.now(UTC), event, pod=pod, **values))


class LimitedLog:
    """A log that writes at most ``BURST`` lines of one event about one subject, and one each ``INTERVAL_SECONDS``.

    The subject is the pod, or without one the first value. All addresses that are no known pod's are one subject. The
    next line that is written has the number of those that were not, as ``suppressed``.
    """

    def __init__(self, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._limits: dict[tuple[str, str], RateLimit] = {}

    def __call__(self, event: str, *, pod: str = "", **values: object) -> None:
        subject = pod or printable(str(next(iter(values.values()), "")), MAX_VALUE)
        key = event, "" if pod and "/" not in pod else subject
        limit = self._limits.pop(key, None) or RateLimit(BURST, INTERVAL_SECONDS)
        self._limits[key] = limit
        if len(self._limits) > MAX_SUBJECTS:
            del self._limits[next(iter(self._limits))]
        if limit.take(self._clock()):
            return
        if limit.refused:
            values["suppressed"], limit.refused = limit.refused, 0
        self._log(event, pod=pod, **values)


def say(text: str) -> None:
    """Write text for people, of any number of lines, in one write."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def short_digest(digest: str) -> str:
    """``sha256-`` and the first 12 hexadecimal digits of a digest or ETag: enough to tell two apart in a log."""
    return digest[: len("sha256-") + 12]


def _value(text: str) -> str:
    text = printable(text, MAX_VALUE)
    return text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False)
