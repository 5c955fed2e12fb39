"""Finds and parses the files that commands get as arguments."""

import sys
from collections.abc import Iterator
from pathlib import Path

from pidone.language.checking import Parsed, parse_bytes
from pidone.language.reading import MAX_CHARACTERS

STANDARD_INPUT = "-"
_READ_LIMIT = 4 * MAX_CHARACTERS + 1  # bytes; enough for the reader to see that a file is too large


def yaml_files(path: str) -> Iterator[str]:
    """Return the path itself, or all ``*.yaml`` and ``*.yml`` below a folder that are not hidden."""
    if path == STANDARD_INPUT or not Path(path).is_dir():
        yield path
        return
    for file in sorted(Path(path).rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.suffix in {".yaml", ".yml"} and file.is_file() and not hidden:
            yield str(file)


def parse_file(path: str) -> Parsed:
    """Parse a file, or standard input for ``-``. Raises ``OSError``."""
    return parse_bytes(read_bytes(path, _READ_LIMIT), "<stdin>" if path == STANDARD_INPUT else path)


def read_bytes(path: str, most: int = -1) -> bytes:
    """Return the bytes of a file, or of standard input for ``-``. Raises ``OSError``."""
    if path == STANDARD_INPUT:
        return sys.stdin.buffer.read(most)
    with Path(path).open("rb") as stream:
        return stream.read(most)


def read_text(path: str) -> str:
    """Return the text of a file, or of standard input for ``-``. Raises ``OSError``."""
    return read_bytes(path).decode("utf-8", "replace")
