"""The log of a pod: one line for each event, in a ring in memory and on the error output.

The runtime discards the output of a sandbox, so the lines of the ring are reported to the repo, where people read them.
"""

import sys
from collections import deque
from collections.abc import Callable
from time import gmtime, strftime, time

RING = 200  # lines; with 200 bytes each 40 KiB, the last half hour of a pod with many events
MAX_WIDTH = (
    2000  # characters of a line, which may contain texts of peers, such as the reason of a failed request
)


class Journal:
    """The last ``RING`` lines. ``echo`` is called with each new line; the default prints it."""

    def __init__(self, echo: Callable[[str], None] | None = None) -> None:
        self.lines: deque[str] = deque(maxlen=RING)
        self.written = 0  # number of lines
        self.reported = 0  # number of lines that the repo has received
        self.changed: Callable[[], None] = lambda: None
        self.mask: Callable[[str], str] = str  # hides values of Secrets
        self._echo = echo or _print

    def write(self, event: str, **fields: object) -> None:
        """Write one line: the time, ``event=``, then the fields in the order given, without those that are None."""
        stamp = timestamp(time())
        pairs = [
            f"{key}={quoted(self.mask(str(value)))}" for key, value in fields.items() if value is not None
        ]
        line = " ".join([stamp, f"event={event}", *pairs])[:MAX_WIDTH]
        self.lines.append(line)
        self.written += 1
        self._echo(line)
        self.changed()

    def extend(self, lines: list[str]) -> None:
        """Add lines that the program before this one has written and not reported."""
        self.lines.extend(lines)
        self.written += len(lines)

    def unreported(self, most: int = RING) -> tuple[list[str], int]:
        """Return the oldest ``most`` lines that are not reported, and the value of ``reported`` once the repo has them.

        If lines left the ring before they were reported, the first line returned is ``event=lines-lost`` with their
        number.
        """
        dropped = self.written - len(self.lines)
        first = max(self.reported, dropped)
        lines = list(self.lines)[first - dropped :][:most]
        reported = first + len(lines)
        if self.reported < dropped:
            stamp = lines[0].partition(" ")[0]
            lines.insert(0, f"{stamp} event=lines-lost count={dropped - self.reported}")
        return lines, reported


def timestamp(seconds: float) -> str:
    """Return the time in RFC 3339, with milliseconds. The module datetime would take memory of each pod."""
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    return f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(whole))}.{milliseconds:03}Z"


def quoted(value: object) -> str:
    """Return the value in logfmt: on one line, and in quotes unless it is one word."""
    text = str(value)
    if text and all(sign.isprintable() and sign not in ' "=' for sign in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + "".join(sign if sign.isprintable() else "?" for sign in escaped) + '"'


def _print(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass  # closed or full: a line that cannot be written must not end the program
