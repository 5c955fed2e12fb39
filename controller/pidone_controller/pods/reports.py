"""Reads the status reports of pods (``pidone.plan.report``). Any process in a pod can post one, so it is untrusted.

A false report can only hurt the pod that posts it. It must not hurt the controller, so everything has a bound.
"""

import re
from collections.abc import Mapping
from typing import Any

from pidone.errors import PidoneError
from pidone.plan.format import MAX_TASKS
from pidone.plan.report import (
    MAX_ERROR_WIDTH,
    MAX_LINE_WIDTH,
    MAX_LINES,
    OMITTED,
    STATES,
    Report,
    TaskReport,
)
from pidone.plan.strict_json import loads

_DIGEST = re.compile(r"sha256-[0-9a-f]{64}")


class ReportError(PidoneError):
    """The status report is invalid; the text names the field and the expected value."""


def read(body: bytes) -> Report:
    """Read a report as posted. Raises ``ReportError``."""
    try:
        value = loads(body)
    except ValueError as error:
        raise ReportError(f"not JSON: {error}") from error
    return of(value)


def of(value: object) -> Report:
    """Return the report of a JSON value. Raises ``ReportError``."""
    report = _object(value, "the report")
    state = _text(report, "state", 16)
    if state not in STATES:
        raise ReportError(f'state: expected {", ".join(STATES)}, not "{state}"')
    tasks = _object(report.get("tasks", {}), "tasks")
    if len(tasks) > MAX_TASKS:
        raise ReportError(f"tasks: at most {MAX_TASKS}, not {len(tasks)}")
    logs, left = _texts(report, "logs"), _texts(report, "left")
    return Report(
        state=state,
        boot=_text(report, "boot", 64),
        version=_text(report, "version", 64),
        digest=_digest(report, "digest"),
        rejected=_digest(report, "rejected"),
        error=_text(report, "error", MAX_ERROR_WIDTH),
        tasks={name[:253]: _task(item, f"tasks.{name[:253]}") for name, item in tasks.items()},
        logs=tuple(entry[:MAX_LINE_WIDTH] for entry in logs[-MAX_LINES:]),
        left=tuple(name[:253] for name in left[:MAX_TASKS]),
        omitted=_count(report, OMITTED, "the report"),
        maintenance=report.get("maintenance") is True,
        snapshot=_text(report, "snapshot", 32),
    )


def _task(value: object, path: str) -> TaskReport:
    task = _object(value, path)
    since = task.get("since")
    if since is not None and not (type(since) in {int, float} and abs(since) < 1 << 53):
        raise ReportError(f"{path}.since: expected seconds since 1970")
    return TaskReport(
        state=_text(task, "state", 64),
        since=since,
        runs=_count(task, "runs", path),
        failures=_count(task, "failures", path),
        error=_text(task, "error", MAX_ERROR_WIDTH),
    )


def _object(value: object, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ReportError(f"{path}: expected an object")
    return value


def _text(table: Mapping[str, Any], name: str, most: int) -> str:
    value = table.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ReportError(f"{name}: expected a string")
    return value[:most]


def _texts(table: Mapping[str, Any], name: str) -> list[str]:
    value = table.get(name, [])
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ReportError(f"{name}: expected a list of strings")
    return value


def _digest(table: Mapping[str, Any], name: str) -> str | None:
    value = table.get(name)
    if value is None or value == "":  # of a pod without a plan
        return None
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ReportError(f'{name}: expected "sha256-" and 64 hexadecimal digits')
    return value


def _count(table: Mapping[str, Any], name: str, path: str) -> int:
    value = table.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ReportError(f"{path}.{name}: expected a number, 0 or more")
    return value
