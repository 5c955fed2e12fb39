"""Prints what commands have to say. Text of others passes ``pidone.text.printable`` first."""

import re
import sys

from pidone.text import printable

_ESCAPED = re.compile(r"[^\n -~]")


def complain(text: object) -> None:
    """Print a message on the standard error; of several lines each stays one."""
    print("\n".join(map(printable, str(text).split("\n"))), file=sys.stderr)


def unreadable(command: str, error: OSError) -> int:
    """Print which file cannot be read, and return the exit code. Raise errors that are about no file.

    A closed pipe is such an error, and has another exit code.
    """
    if error.filename is None:
        raise error
    complain(f"pidone {command}: {error.filename}: {error.strerror}")
    return 2


def escaped(json_text: str) -> str:
    r"""Return JSON with ``\u`` escapes for the characters that a terminal would obey or not show."""
    return _ESCAPED.sub(
        lambda found: found.group() if found.group().isprintable() else _escape(found.group()), json_text
    )


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
