"""What happened, one line an event: a ring in memory, and the error output where there is one.

A sandbox's output goes to the null device, so the ring is what a person sees: it is reported to the repo.
"""

import sys
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

RING = 200  # lines; at 200 bytes each 40 KiB, the last half hour of a lively pod


class Journal:
    """The last ``RING`` lines. ``echo`` is called with each new line; the default prints it."""

    def __init__(self, echo: Callable[[str], None] | None = None) -> None:
        self.lines: deque[str] = deque(maxlen=RING)
        self.written = 0
        self.told = 0  # of these, how many the repo has
        self.changed: Callable[[], None] = lambda: None
        self._echo = echo or _print

    def write(self, event: str, **fields: object) -> None:
        """One line: the time, ``event=``, then the fields in the order given; None is left out."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        pairs = [f"{key}={quoted(value)}" for key, value in fields.items() if value is not None]
        line = " ".join([stamp, f"event={event}", *pairs])
        self.lines.append(line)
        self.written += 1
        self._echo(line)
        self.changed()

    def take_over(self, lines: list[str]) -> None:
        """What the program before this one had not told."""
        self.lines.extend(lines)
        self.written += len(lines)

    def untold(self, most: int = RING) -> tuple[list[str], int]:
        """The oldest ``most`` lines that the repo has not got yet, and what ``told`` becomes when it has them.

        Where lines were pushed out of the ring before they were told, the first one says how many.
        """
        gone = self.written - len(self.lines)
        first = max(self.told, gone)
        lines = list(self.lines)[first - gone :][:most]
        told = first + len(lines)
        if self.told < gone:
            lines.insert(0, f"{lines[0].partition(' ')[0]} event=lines-lost count={gone - self.told}")
        return lines, told


def quoted(value: object) -> str:
    """A value as logfmt has it: quoted where it would not be one word, and always on one line."""
    text = str(value)
    if text and all(sign.isprintable() and sign not in ' "=' for sign in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + "".join(sign if sign.isprintable() else "?" for sign in escaped) + '"'


def _print(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass  # closed or full: a log line is never a reason to end
