"""``pidone check``: every mistake in these files, each with its place and remedy."""

import os
import sys
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from pidone.cli.formats import FORMATS, coloured
from pidone.language.checking import Checked, Parsed, check_parsed, extended_sets, parse_bytes
from pidone.language.findings import printable
from pidone.language.reading import MAX_CHARACTERS

STANDARD_INPUT = "-"
_TOO_MUCH = 4 * MAX_CHARACTERS + 1  # bytes; enough for the reader to see that it is too large


def check(paths: Sequence[str], *, form: str = "text", strict: bool = False) -> int:
    """Files, folders (all ``*.yaml`` and ``*.yml`` below), ``-``; findings to stdout, a summary to stderr.

    0: no errors. 1: there are some. 2: a path cannot be read, or there is nothing to check; what can be read
    is checked all the same. 3: with ``strict``, there are warnings and nothing worse.
    """
    files = list(dict.fromkeys(file for path in paths for file in _files(path)))
    checked, problems = _checked(files)
    if not files:
        problems = [f"no .yaml or .yml file in {', '.join(paths)}"]
    findings = [one for file in checked for one in file.all]
    write = coloured if form == "text" and _wants_colour(sys.stdout) else FORMATS[form]
    _write(write(findings))
    for problem in problems:
        print(f"pidone check: {problem}", file=sys.stderr)
    if checked:
        print(_summary(checked), file=sys.stderr)
    if problems:
        return 2
    if any(file.findings for file in checked):
        return 1
    return 3 if strict and findings else 0


def _checked(files: Sequence[str]) -> tuple[list[Checked], list[str]]:
    """What is in each file, and why some cannot be read."""
    parsed, unread = [], []
    for file in files:
        try:
            parsed.append(_parse(file))
        except OSError as error:
            unread.append(f"{printable(file)}: {error.strerror or error}")
    sets = extended_sets(parsed)  # a set may extend another file's
    return [check_parsed(one, sets) for one in parsed], unread


def _files(path: str) -> Iterator[str]:
    if path == STANDARD_INPUT or not Path(path).is_dir():
        yield path
        return
    for file in sorted(Path(path).rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.suffix in {".yaml", ".yml"} and file.is_file() and not hidden:
            yield str(file)


def _parse(file: str) -> Parsed:
    if file == STANDARD_INPUT:
        return parse_bytes(sys.stdin.buffer.read(_TOO_MUCH), "<stdin>")
    with Path(file).open("rb") as stream:
        return parse_bytes(stream.read(_TOO_MUCH), file)


def _write(output: str) -> None:
    """To stdout, in whatever encoding a terminal has."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stdout.write(output)


def _wants_colour(stream: TextIO) -> bool:
    """A terminal that can, and nobody who said no (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _summary(checked: Sequence[Checked]) -> str:
    findings = sum(len(one.findings) for one in checked)
    warnings = sum(len(one.warnings) for one in checked)
    if findings or warnings:
        counted = [(findings, "finding"), (warnings, "warning")]
        found = " and ".join(_count(number, what) for number, what in counted if number)
        return f"{found} in {_count(sum(bool(one.all) for one in checked), 'file')}"
    objects = sum(len(one.objects) for one in checked)
    return f"{_count(len(checked), 'file')} with {_count(objects, 'object')} of pidone: no findings"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
