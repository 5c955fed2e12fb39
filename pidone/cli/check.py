"""``pidone check``: prints every mistake in files, with its place and remedy."""

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import TextIO

from pidone.cli.files import parse_file, yaml_files
from pidone.cli.formats import FORMATS, coloured
from pidone.cli.output import complain
from pidone.language.checking import Checked, check_files
from pidone.language.findings import Finding
from pidone.text import printable

PASSED_OVER_LINES = 10


def check(paths: Sequence[str], *, form: str = "text", strict: bool = False) -> int:
    """Print the findings of files and folders, or of the standard input for ``-``, and a summary on the standard error.

    Exit code 0: no errors. 1: errors. 2: a path cannot be read, or there is no file; the others are checked all the
    same. 3: with ``strict``, warnings and no errors.
    """
    files = list(dict.fromkeys(file for path in paths for file in yaml_files(path)))
    checked, problems = _checked(files)
    if not files:
        problems = [f"no .yaml or .yml file in {', '.join(paths)}"]
    findings = [one for file in checked for one in file.all]
    write = coloured if form == "text" and _wants_colour(sys.stdout) else FORMATS[form]
    _write(write(findings))
    for line in _passed_over([one for file in checked for one in file.passed_over]):
        print(line, file=sys.stderr)
    for problem in problems:
        complain(f"pidone check: {problem}")
    if checked:
        print(_summary(checked), file=sys.stderr)
    if problems:
        return 2
    if any(file.findings for file in checked):
        return 1
    return 3 if strict and findings else 0


def _checked(files: Sequence[str]) -> tuple[list[Checked], list[str]]:
    """Return the result of each file, and a message for each that cannot be read."""
    parsed, unread = [], []
    for file in files:
        try:
            parsed.append(parse_file(file))
        except OSError as error:
            unread.append(f"{file}: {error.strerror or error}")
    return check_files(parsed), unread


def _passed_over(passed: Sequence[Finding]) -> list[str]:
    """Return the lines about what was not checked, each with the reason; at most ``PASSED_OVER_LINES``."""
    lines = [f"{one.place}: passed over: {printable(one.message)}" for one in passed]
    if len(lines) <= PASSED_OVER_LINES:
        return lines
    rest = len(lines) - PASSED_OVER_LINES + 1
    return [*lines[: PASSED_OVER_LINES - 1], f"{rest} more documents and names were passed over"]


def _write(output: str) -> None:
    """Print on the standard output, with escapes for what its encoding does not have."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stdout.write(output)


def _wants_colour(stream: TextIO) -> bool:
    """True for a terminal with colours, unless NO_COLOR is set (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _summary(checked: Sequence[Checked]) -> str:
    findings = sum(len(one.findings) for one in checked)
    warnings = sum(len(one.warnings) for one in checked)
    if findings or warnings:
        counted = [(findings, "finding"), (warnings, "warning")]
        found = " and ".join(_count(number, what) for number, what in counted if number)
        return f"{found} in {_count(sum(bool(one.all) for one in checked), 'file')}"
    objects = sum(len(one.objects) for one in checked)
    if not objects:
        return f"nothing was checked: no TaskSet and no TaskBinding in {_count(len(checked), 'file')}"
    return f"{_count(len(checked), 'file')} with {_count(objects, 'object')} of pidone: no findings"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
