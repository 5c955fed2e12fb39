"""Pods as the repo sees them: the pod's own client at an address of its own, and a plan that is told, not run."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import trio

from pidone import actions
from pidone.counters import Counters
from pidone.errors import Refused
from pidone.journal import Journal
from pidone.plan.format import decode_bundle
from pidone.plan.model import Bundle, Phase
from pidone.plan.report import Report, TaskReport
from pidone.repo.client import RepoClient
from tests.patience import PATIENCE_SECONDS


@dataclass(eq=False)
class Asking:
    """One pod that asks for its plan. ``refuses`` says why it takes no plan, or nothing."""

    urls: list[str]
    address: str
    claims: dict[str, str] = field(default_factory=dict)
    refuses: Callable[[Bundle], str] = lambda bundle: ""
    states: dict[str, str] = field(default_factory=dict)  # what it reports of its tasks
    history: list[Bundle] = field(default_factory=list)  # every bundle it took
    taken: list[float] = field(default_factory=list)  # when, in Trio's time
    changed: trio.Event = field(default_factory=trio.Event)
    client: RepoClient = field(init=False)

    def __post_init__(self) -> None:
        self.client = RepoClient(
            self.urls, self, Journal(), Counters(), claims=self.claims, source=self.address, random=Random()
        )

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks of the plan it has; none where it has no plan."""
        return [task.name for task in self.history[-1].plan.tasks] if self.history else []

    @property
    def digest(self) -> str:
        return self.history[-1].plan.digest if self.history else ""

    @property
    def terminating(self) -> bool:
        return bool(self.history) and self.history[-1].phase is Phase.TERMINATING

    def apply(self, data: bytes, *, trusted: bool) -> None:
        bundle = decode_bundle(data, actions.names())
        why = self.refuses(bundle)
        if why:
            raise Refused(why)
        self.history.append(bundle)
        self.taken.append(trio.current_time())
        event, self.changed = self.changed, trio.Event()
        event.set()

    def status(self) -> Report:
        tasks = {name: TaskReport(self.states.get(name, "running")) for name in self.tasks}
        return Report(digest=self.digest or None, tasks=tasks)

    def look_at_files(self) -> bool:
        return False

    def repo_away(self) -> None:
        """Nothing to do."""

    def details(self) -> dict[str, Any]:
        return {}

    def report(self, **states: str) -> None:
        """Tell of states of tasks that have changed."""
        self.states.update(states)
        self.client.status_changed()

    async def until(self, holds: Callable[["Asking"], bool], seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until what the pod has is so. Raises ``trio.TooSlowError``."""
        with trio.fail_after(seconds):
            while not holds(self):
                await self.changed.wait()


@asynccontextmanager
async def asking(*pods: Asking) -> AsyncIterator[None]:
    """The pods ask and report while the block runs."""
    async with trio.open_nursery() as nursery:
        for pod in pods:
            nursery.start_soon(pod.client.poll)
            nursery.start_soon(pod.client.report)
        yield
        nursery.cancel_scope.cancel()
