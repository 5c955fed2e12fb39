"""What the parts of the process count and the metrics show: plain numbers, each written by one owner."""

from dataclasses import dataclass
from typing import Protocol

from pidone.plan.model import Task


@dataclass(slots=True)
class Counters:
    """Counts since the start of this process; times are seconds since the epoch."""

    bundle_fetches: int = 0
    bundle_fetch_failures: int = 0
    bundle_rejections: int = 0
    bundle_digest: str = ""  # of the plan that runs
    bundle_applied: float = 0.0
    repo_up: bool | None = None  # None where there is no repo


class TaskView(Protocol):
    """What the engine shows of a task. Times are of the monotonic clock that the engine runs on."""

    task: Task
    state: str
    since: float
    runs: int
    failures: int
    streak: int
    error: str
    last_duration: float | None
    last_success: float | None

    @property
    def shown(self) -> str: ...
