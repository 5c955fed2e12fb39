"""The status report that a pod posts to the repo and the controller reads: values, states and limits.

    {"state": "applied",             one of STATES
     "boot": "9f...",                random for each start of the program in the pod
     "version": "0.1.0",             of pidone in the pod
     "digest": "sha256-...",         of the plan that runs; null or empty without one
     "rejected": "sha256-...",       the entity tag, without quotes, of the bundle that was refused because of "error"
     "error": "...",
     "tasks": {NAME: {"state", "since", "runs", "failures", "error"}},   since: seconds since 1970, by the pod's clock
     "tasksUntold": 12,              number of tasks that are left out of "tasks" for lack of room; 0 if missing
     "snapshot": "used",             how Python was started: from the snapshot ("used"), without one ("off"), or why the
                                     snapshot was given up ("signal 4", "exit code 127"); see docs/footprint.md
     "maintenance": true,            people have taken the pod's instances out of service; false if missing
     "left": [NAME, ...],            tasks that are gone and whose work could not be undone
     "logs": [LINE, ...]}            journal lines that were not reported before, oldest first

A task that "tasks" does not have is not there, unless tasks are left out: then nothing is known about it. Tasks that
hold something outside the pod, as a registration, are the last ones to be left out.

A pod also sends "time", "phase", "after" (why the program before this one ended) and "reaped" (orphans), for people who
read the request. Readers ignore unknown keys: pods may be older or newer than the controller.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

APPLIED, REJECTED, APPLYING = STATES = ("applied", "rejected", "applying")

# What a pod sends at most. A report has ``pidone.protocol.MAX_REPORT_BYTES``.
ERROR_WIDTH = 4000  # characters of the report's error
TASK_ERROR_WIDTH = 500  # characters of a task's error
TASKS_BYTES = 24_000  # of all tasks
OUTSIDE_TASKS_BYTES = 32_000  # of the tasks that hold something outside the pod, if these are more
LINES, LINE_WIDTH = 100, 300  # journal lines, and characters of each

# What the controller keeps at most. Longer texts are cut, since the beginning says what happened.
MAX_ERROR_WIDTH = 4096
MAX_LINES, MAX_LINE_WIDTH = 200, 1000

OMITTED = "tasksUntold"


@dataclass(frozen=True, slots=True)
class TaskReport:
    """One task as the pod sees it."""

    state: str
    since: float | None = None  # seconds since 1970, by the pod's clock
    runs: int = 0
    failures: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What one pod reports at one time."""

    state: str = APPLIED  # one of STATES
    boot: str = ""
    version: str = ""
    digest: str | None = None
    rejected: str | None = None
    error: str = ""
    tasks: Mapping[str, TaskReport] = field(default_factory=dict)
    logs: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    maintenance: bool = False  # by either source, see ``pidone.maintenance``
    snapshot: str = ""  # see ``pidone.pid1.stages.snapshot``; empty: the pod is older
    omitted: int = 0  # number of tasks that ``tasks`` has no room for


def encode_task(task: TaskReport) -> dict[str, Any]:
    """Return the JSON value of one task."""
    return {
        "state": task.state,
        "since": task.since,
        "runs": task.runs,
        "failures": task.failures,
        "error": _whole(task.error),
    }


def encode(report: Report) -> dict[str, Any]:
    """Return the JSON value of a report."""
    value: dict[str, Any] = {
        "state": report.state,
        "boot": report.boot,
        "version": report.version,
        "digest": report.digest,
        "rejected": report.rejected,
        "error": _whole(report.error),
        "tasks": {name: encode_task(task) for name, task in report.tasks.items()},
        "left": list(report.left),
        "logs": list(report.logs),
    }
    if report.snapshot:
        value["snapshot"] = report.snapshot
    if report.maintenance:
        value["maintenance"] = True
    if report.omitted:
        value[OMITTED] = report.omitted
    return value


def _whole(text: str) -> str:
    """Return the text with ``?`` for half characters, which no reader of JSON takes."""
    return text if text.isascii() else text.encode(errors="replace").decode()
