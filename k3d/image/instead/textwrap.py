"""In the image instead of the standard library's, which is 45 KiB: sortedcontainers and traceback shift text."""

from collections.abc import Callable


def dedent(text: str) -> str:
    """Without the white space that all lines begin with."""
    lines = text.split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:] if line.strip() else "" for line in lines)


def indent(text: str, prefix: str, predicate: Callable[[str], object] = str.strip) -> str:
    """``prefix`` before each line for which ``predicate`` holds."""
    return "".join(prefix + line if predicate(line) else line for line in text.splitlines(keepends=True))
