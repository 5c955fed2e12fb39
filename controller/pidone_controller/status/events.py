"""What people see under ``kubectl describe``: one Event for each pod that refused its plan, one for each conflict.

Values and a queue; how many Events there may be, and how they are written, is ``kubernetes.recorder``'s business.
One ``Tidings`` a term of the leader, and of its methods:

- ``refused(pod, report, received, etag, bindings)`` for each report that the leader hears of; ``etag`` is of the
  bundle that the pod is served, ``bindings`` (as ``shown``) are those that choose it. What pods said before this term
  began the leader before has told, but for the last seconds before, in which there may have been none.
- ``wrote(target, before, made)`` is for ``StatusWriter``: conflicts that were not in the status before.
- ``run()`` writes what is queued, until cancelled.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import trio

from pidone.plan.report import Report
from pidone_controller.pods.model import Pod
from pidone_controller.status.compose import Target, one_line

OVERLAP = 20.0  # seconds before a term: a lease that ran out, and some
QUEUE = 1000  # Events that wait for the API server; what comes beyond is dropped: an Event is a courtesy, no record
LIST = 5  # bindings that a text names


class Recorder(Protocol):
    """``kubernetes.recorder.Recorder``, as far as it is needed here."""

    async def record(self, about: Mapping[str, Any], kind: str, reason: str, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to one object, of which ``about`` has apiVersion, kind and metadata."""

    about: Mapping[str, Any]
    reason: str
    message: str
    kind: str = "Warning"


class Tidings:
    """The Events of one term."""

    def __init__(self, recorder: Recorder, *, began: float | None = None) -> None:
        """``began`` is when the term did, in seconds since 1970."""
        self._recorder = recorder
        self._since = (time.time() if began is None else began) - OVERLAP
        self._told: dict[str, str] = {}  # by the pod's key: the ETag whose refusal was told
        self._in, self._out = trio.open_memory_channel[Event](QUEUE)
        self.dropped = 0

    def refused(self, pod: Pod, report: Report, received: float, etag: str, bindings: Sequence[str]) -> None:
        """A pod has reported. Nothing is told twice, and nothing of what it is not served any more."""
        if not report.rejected or report.rejected != etag or received < self._since:
            return
        if self._told.get(pod.key) != etag:
            self._told[pod.key] = etag
            self._tell(refusal(pod, report, bindings))

    def gone(self, pod: Pod) -> None:
        """A pod is no more, and need not be remembered."""
        self._told.pop(pod.key, None)

    def wrote(self, target: Target, before: Mapping[str, Any], made: Mapping[str, Any]) -> None:
        """The status of a binding or set was written."""
        for event in conflicts(target, before, made):
            self._tell(event)

    async def run(self) -> NoReturn:
        async for event in self._out:
            await self._recorder.record(event.about, event.kind, event.reason, event.message)
        raise AssertionError("the channel is never closed")

    def _tell(self, event: Event) -> None:
        try:
            self._in.send_nowait(event)
        except trio.WouldBlock:
            self.dropped += 1


def refusal(pod: Pod, report: Report, bindings: Sequence[str]) -> Event:
    """On the pod: which bindings its plan comes from, and what it said."""
    more = f" and {len(bindings) - LIST} more" if len(bindings) > LIST else ""
    names = f"{', '.join(bindings[:LIST])}{more}" or "no binding any more"
    about = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": pod.namespace, "name": pod.name, "uid": pod.uid},
    }
    return Event(about, "PlanRefused", f"the plan of {names} was refused: {one_line(report.error)}")


def conflicts(target: Target, before: Mapping[str, Any], made: Mapping[str, Any]) -> list[Event]:
    """On the binding: conflicts that are in a status, and were not in the one before."""
    there = {(one.get("with"), one.get("task")) for one in before.get("conflicts", ())}
    about = {
        "apiVersion": target.resource.api_version,
        "kind": target.resource.kind,
        "metadata": {"namespace": target.namespace, "name": target.name, "uid": target.uid},
    }
    return [
        Event(about, "Conflict", one["message"])
        for one in made.get("conflicts", ())
        if (one["with"], one["task"]) not in there
    ]
