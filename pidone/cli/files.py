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
    if path == STANDARD_INPUT:
        return parse_bytes(sys.stdin.buffer.read(_READ_LIMIT), "<stdin>")
    with Path(path).open("rb") as stream:
        return parse_bytes(stream.read(_READ_LIMIT), path)
