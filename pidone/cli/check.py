"""``pidone check``: every mistake in these files, each with its place and remedy."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pidone.language.checking import Checked, Parsed, check_parsed, extended_sets, parse_bytes
from pidone.language.reading import MAX_CHARACTERS

STANDARD_INPUT = "-"
_TOO_MUCH = 4 * MAX_CHARACTERS + 1  # bytes; enough for the reader to see that it is too large


def check(paths: Sequence[str]) -> int:
    """Files, folders (all ``*.yaml`` and ``*.yml`` below), ``-``; findings to stdout, a summary to stderr.

    0: none. 1: there are some. 2: a path cannot be read, or there is nothing to check.
    """
    try:
        files = [file for path in paths for file in _files(path)]
        parsed = [_parse(file) for file in dict.fromkeys(files)]
    except OSError as error:
        print(f"pidone check: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    sets = extended_sets(parsed)  # a set may extend another file's
    checked = [check_parsed(one, sets) for one in parsed]
    if not checked:
        print(f"pidone check: no .yaml or .yml file in {', '.join(paths) or 'no path'}", file=sys.stderr)
        return 2
    findings = [finding for one in checked for finding in one.findings]
    for finding in findings:
        print(finding)
    print(_summary(checked), file=sys.stderr)
    return 1 if findings else 0


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


def _summary(checked: Sequence[Checked]) -> str:
    bad = [one for one in checked if one.findings]
    if bad:
        return f"{_count(sum(len(one.findings) for one in bad), 'finding')} in {_count(len(bad), 'file')}"
    objects = sum(len(one.objects) for one in checked)
    return f"{_count(len(checked), 'file')} with {_count(objects, 'object')} of pidone: no findings"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
