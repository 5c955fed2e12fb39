"""A plan as values: every name resolved, every duration in seconds, nothing left to compute in the pod."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pidone.pacing import Backoff


class Phase(StrEnum):
    """The pod's life as the controller sees it. ``Terminating`` is ``metadata.deletionTimestamp`` being set."""

    RUNNING = "Running"
    TERMINATING = "Terminating"


@dataclass(frozen=True, slots=True)
class Edge:
    """``task.state``: held while that task is in that state. In ``run_on`` also one of ``EVENTS``."""

    task: str
    state: str

    def __str__(self) -> str:
        return f"{self.task}.{self.state}"


# What happens to the pod and not to a task: what ``runOn`` takes beside edges.
TERMINATING, CONTAINERS_STARTED = "pod.terminating", "pod.containersStarted"
EVENTS = frozenset({TERMINATING, CONTAINERS_STARTED, "signal.SIGHUP"})
LASTING = frozenset({CONTAINERS_STARTED})  # what is so from then on


@dataclass(frozen=True, slots=True)
class Task:
    """One task: what it does (``action`` and its ``config``, plain JSON) and when."""

    name: str
    action: str
    config: Mapping[str, Any]
    digest: str
    needs: tuple[Edge, ...] = ()  # what must hold once, before the first run
    while_: tuple[Edge, ...] = ()  # what must hold all the time
    run_on: tuple[Edge, ...] = ()  # on each of these a run
    every: float | None = None  # seconds
    timeout: float | None = None  # seconds, of one run
    stop_timeout: float = 2.0  # seconds its undoing may take
    restart: str = "Always"  # Always | OnFailure | Never, as a pod's restartPolicy
    backoff: Backoff = field(default_factory=Backoff)
    backoff_limit: int | None = None

    @property
    def gates(self) -> tuple[Edge, ...]:
        """What it depends on: these tasks are there before it, and go after it."""
        return self.needs + self.while_


@dataclass(frozen=True, slots=True)
class Plan:
    """The tasks of one pod, content-addressed: equal digests are equal plans."""

    digest: str
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class Pod:
    """What the pod is told about itself (its own metadata, never another's)."""

    name: str
    namespace: str
    uid: str
    ip: str
    node: str = ""
    restart_policy: str = ""  # Always | OnFailure | Never; empty where nobody knows


@dataclass(frozen=True, slots=True)
class Container:
    """One of the pod's spec, as the status has it: its id, as ``containerd://...``, and whether it has ever run."""

    id: str
    started: bool


@dataclass(frozen=True, slots=True)
class Bundle:
    """What the repo serves: the plan in an envelope with the pod's phase, its own facts and its containers by name."""

    phase: Phase
    pod: Pod
    plan: Plan
    containers: Mapping[str, Container] = field(default_factory=dict)

    @property
    def containers_started(self) -> bool:
        """Whether all that the pod is to run has been started; False where nobody says."""
        return bool(self.containers) and all(container.started for container in self.containers.values())

    @property
    def runs_once(self) -> bool:
        """Whether nobody starts again what has ended in the pod, and all that it is to run has been started."""
        return self.pod.restart_policy == "Never" and self.containers_started
