"""The plan of a pod as values. All references are resolved and all durations are in seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pidone.pacing import Backoff

TASK_BACKOFF = Backoff(
    initial=1.0, maximum=300.0
)  # of a task that sets none; schema/parts/task.json describes it


class Phase(StrEnum):
    """The pod's phase as the controller sees it. ``Terminating``: ``metadata.deletionTimestamp`` is set."""

    RUNNING = "Running"
    TERMINATING = "Terminating"


@dataclass(frozen=True, slots=True)
class Edge:
    """A dependency ``task.state``. It holds while that task is in that state. In ``run_on`` also one of ``EVENTS``."""

    task: str
    state: str

    def __str__(self) -> str:
        return f"{self.task}.{self.state}"


# Events of the pod, which ``runOn`` accepts like states of tasks.
TERMINATING, CONTAINERS_STARTED = "pod.terminating", "pod.containersStarted"
EVENTS = frozenset({TERMINATING, CONTAINERS_STARTED, "signal.SIGHUP"})
LASTING = frozenset({CONTAINERS_STARTED})  # events that hold for ever after they have happened


SECRETS = "secrets"  # the field of a task with its values of Secrets
VALUE_FILES = "files"  # in ``SECRETS``: the files that the pod reads, by the marks of their values
MAX_SECRET = 4096  # characters of one value


@dataclass(frozen=True, slots=True)
class Task:
    """One task: its action, and when the action runs."""

    name: str
    action: str
    config: Mapping[str, Any]  # the fields of the action, plain JSON
    digest: str  # of all fields of the task
    needs: tuple[Edge, ...] = ()  # must hold before the first run
    while_: tuple[Edge, ...] = ()  # must hold during all runs
    run_on: tuple[Edge, ...] = ()  # each of these events starts a run
    every: float | None = None  # seconds between runs
    timeout: float | None = None  # seconds for one run
    stop_timeout: float = 2.0  # seconds for undoing the task
    restart: str = "Always"  # Always | OnFailure | Never, as a pod's restartPolicy
    backoff: Backoff = TASK_BACKOFF
    backoff_limit: int | None = None
    confidential: bool = False  # it has values of Secrets; see ``pidone.plan.mask``

    @property
    def gates(self) -> tuple[Edge, ...]:
        """The edges to tasks that it depends on: they start before it, and are stopped after it."""
        return self.needs + self.while_


@dataclass(frozen=True, slots=True)
class Plan:
    """The tasks of one pod. Plans with equal digests are equal."""

    digest: str
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class Pod:
    """The facts that a pod gets about itself, from its own object."""

    name: str
    namespace: str
    uid: str
    ip: str
    node: str = ""
    restart_policy: str = ""  # Always | OnFailure | Never; empty: unknown


@dataclass(frozen=True, slots=True)
class Container:
    """A container of the pod's spec, as in ``PodStatus.containerStatuses``."""

    id: str  # as ``containerd://...``
    started: bool  # it runs, or has run


@dataclass(frozen=True, slots=True)
class Bundle:
    """The answer of the repo: the plan, with the pod's phase, its facts, and its containers by name."""

    phase: Phase
    pod: Pod
    plan: Plan
    containers: Mapping[str, Container] = field(default_factory=dict)
    maintenance: bool = False  # the pod's annotation takes its instances out of service

    @property
    def containers_started(self) -> bool:
        """True if all containers have been started; False if that is unknown."""
        return bool(self.containers) and all(container.started for container in self.containers.values())

    @property
    def runs_once(self) -> bool:
        """True if all containers have been started and the kubelet restarts none."""
        return self.pod.restart_policy == "Never" and self.containers_started
