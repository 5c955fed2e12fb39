"""Writes one line for each event, with fixed keys, for people and for grep:

2026-01-02T03:04:05.678Z pod=shop/web event=plan digest=sha256-ab12cd34ef56 tasks=3
"""

import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

Log = Callable[..., None]  # log(event, pod=..., key=value, ...)

_BARE = re.compile(r"[\w./:@\[\]+-]+", re.ASCII)


def line(now: datetime, event: str, *, pod: str = "", **values: object) -> str:
    """Format one line. A value with other than plain characters becomes a JSON string, so no pod can forge a line."""
    fields = [("pod", pod)] if pod else []
    fields += [("event", event), *((key, str(value)) for key, value in values.items())]
    time = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{now.microsecond // 1000:03}Z"
    return " ".join([time, *(f"{key}={_value(text)}" for key, text in fields)])


def log(event: str, *, pod: str = "", **values: object) -> None:
    """Write one line to stderr. A closed stderr is ignored: the controller goes on serving."""
    say(line(datetime.now(UTC), event, pod=pod, **values))


def say(text: str) -> None:
    """Write text for people, of any number of lines, in one write."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def short_digest(digest: str) -> str:
    """``sha256-`` and the first 12 hexadecimal digits of a digest or ETag: enough to tell two apart in a log."""
    return digest[: len("sha256-") + 12]


def _value(text: str) -> str:
    return text if _BARE.fullmatch(text) else json.dumps(text)
