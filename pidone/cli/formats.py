"""Writes findings as text for people, as JSON, as GitHub's workflow commands, and as SARIF 2.1.0."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pidone import __version__
from pidone.language.findings import Finding
from pidone.language.rule_texts import description
from pidone.text import printable

_BOLD, _RED, _YELLOW, _DIM, _END = "\x1b[1m", "\x1b[1;31m", "\x1b[1;33m", "\x1b[2m", "\x1b[0m"


def text(findings: Iterable[Finding]) -> str:
    """Return the findings, each with its line of the file and a caret; empty if there are none."""
    return "".join(f"{finding}\n" for finding in findings)


def coloured(findings: Iterable[Finding]) -> str:
    """Return ``text`` with the colours of a terminal."""
    return "".join(_coloured(finding) for finding in findings)


def _coloured(finding: Finding) -> str:
    colour = _YELLOW if finding.is_warning else _RED
    severity = f"{colour}warning:{_END} " if finding.is_warning else ""
    head = (
        f"{_BOLD}{finding.place}:{_END} {severity}{printable(finding.message)} {_DIM}[{finding.rule}]{_END}"
    )
    lines = [head]
    if excerpt := finding.excerpt():
        source, caret = excerpt
        number, bar, rest = source.partition("|")
        lines.append(f"{_DIM}{number}{bar}{_END}{rest}")
        number, bar, rest = caret.partition("|")
        lines.append(f"{_DIM}{number}{bar}{_END}{colour}{rest}{_END}")
    return "\n".join(lines) + "\n"


def as_json(findings: Iterable[Finding]) -> str:
    """Return one JSON object. Columns count characters from 1; ``endColumn`` is the column after the token."""
    return _dumped(
        {
            "findings": [
                {
                    "file": _unicode(finding.file),
                    "line": finding.line,
                    "column": finding.column,
                    "endColumn": finding.end,
                    "severity": _severity(finding),
                    "rule": finding.rule,
                    "message": finding.message,
                }
                for finding in findings
            ]
        }
    )


def github(findings: Iterable[Finding]) -> str:
    """Return workflow commands, which GitHub Actions shows as annotations at their lines."""
    return "".join(
        f"::{_severity(finding)} file={_property(finding.file)},line={finding.line},col={finding.column},"
        f"endColumn={finding.end},title={_property(f'pidone {finding.rule}')}::{_data(finding.message)}\n"
        for finding in findings
    )


def _data(text: str) -> str:
    """Escape as actions/toolkit does; otherwise a message could end its command and begin another."""
    return printable(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def sarif(findings: Iterable[Finding]) -> str:
    """Return SARIF 2.1.0 with the fields that GitHub code scanning requires.

    The paths of files in the working directory are relative to it.
    """
    findings = list(findings)
    rules = sorted({finding.rule for finding in findings})
    driver = {
        "name": "pidone",
        "semanticVersion": __version__,
        "rules": [_rule(rule) for rule in rules],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(finding, rules.index(finding.rule)) for finding in findings],
    }
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return _dumped({"$schema": schema, "version": "2.1.0", "runs": [run]})


def _rule(rule: str) -> dict[str, Any]:
    message = {"text": description(rule)}
    return {"id": rule, "shortDescription": message, "fullDescription": message, "help": message}


def _result(finding: Finding, rule: int) -> dict[str, Any]:
    region = {"startLine": finding.line, "startColumn": finding.column, "endColumn": finding.end}
    place = {"artifactLocation": {"uri": _uri(finding.file)}, "region": region}
    return {
        "ruleId": finding.rule,
        "ruleIndex": rule,
        "level": _severity(finding),
        "message": {"text": _unicode(finding.message)},
        "locations": [{"physicalLocation": place}],
    }


def _uri(file: str) -> str:
    path = Path(os.path.normpath(file))  # without the file system, because it may be <stdin>
    folder = Path.cwd()
    absolute = Path(os.path.normpath(folder / path))
    if absolute.is_relative_to(folder):
        return quote(os.fsencode(absolute.relative_to(folder)))
    return f"file://{quote(os.fsencode(absolute))}"


def _severity(finding: Finding) -> str:
    return "warning" if finding.is_warning else "error"


def _unicode(text: str) -> str:
    """Replace surrogates, which stand in file names that are not UTF-8 and which JSON readers refuse."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _dumped(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


FORMATS: Mapping[str, Callable[[Iterable[Finding]], str]] = {
    "text": text,
    "json": as_json,
    "github": github,
    "sarif": sarif,
}
