"""Counters of the process, which its parts increase and the metrics report; each field has one writer."""

from dataclasses import dataclass, field
from time import time
from typing import Protocol

from pidone.plan.model import Task


@dataclass(slots=True)
class Counters:
    """Counts since the start of this process; times are seconds since the epoch."""

    bundle_fetches: int = 0
    bundle_fetch_failures: int = 0
    bundle_rejections: int = 0
    bundle_digest: str = ""  # of the running plan
    bundle_applied: float = 0.0
    repo_up: bool | None = None  # None: no request has ended yet, or no repo is configured
    shared_pid_namespace: bool = False  # a process of another cgroup was seen
    began: float = field(default_factory=time)  # the start of this process


class TaskView(Protocol):
    """The fields of a task that other parts than the engine read; see ``pidone.engine.core.TaskState``.

    ``since`` and ``last_success`` are times of Trio's clock. ``last_duration`` is in seconds.
    """

    task: Task
    state: str
    since: float
    runs: int
    failures: int
    streak: int
    error: str
    leaving: bool
    last_duration: float | None
    last_success: float | None

    @property
    def shown(self) -> str: ...
