"""Replaces the module of the standard library, which takes 45 KiB. For sortedcontainers and traceback."""

from collections.abc import Callable


def dedent(text: str) -> str:
    """Return the text without the white space that all lines begin with."""
    lines = text.split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:] if line.strip() else "" for line in lines)


def indent(text: str, prefix: str, predicate: Callable[[str], object] = str.strip) -> str:
    """Return the text with ``prefix`` before each line for which ``predicate`` is true."""
    return "".join(prefix + line if predicate(line) else line for line in text.splitlines(keepends=True))
