"""The Events that the leader writes: about pods that refuse their plans, have an annotation without effect, or have
left an instance registered, and about conflicts of bindings.

``kubernetes.recorder`` limits how many Events there are; this module decides which.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import trio

from pidone.plan.report import Report
from pidone_controller.kubernetes.resources import PODS, ObjectRef
from pidone_controller.pods.model import Pod
from pidone_controller.status.conditions import one_line

OVERLAP_SECONDS = 20.0  # before a term in which no replica may have led: as long as a lease lasts, and some
MAX_QUEUE = 1000  # Events that wait for the API server; more are dropped, since an Event is a courtesy
MAX_BINDINGS = 5  # that a message names


class Recorder(Protocol):
    """The method of ``kubernetes.recorder.Recorder`` that is used here."""

    async def record(self, about: Mapping[str, Any], kind: str, reason: str, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Event:
    """One Event about one object."""

    about: ObjectRef
    reason: str
    message: str
    kind: str = "Warning"


class EventQueue:
    """The Events of one term. ``run`` writes them until cancelled."""

    def __init__(self, recorder: Recorder, *, began: float | None = None) -> None:
        """``began`` is when the term began, in seconds since 1970."""
        self._recorder = recorder
        # The leader before has written the Events of earlier reports, except for the last seconds before the term.
        self._since = (time.time() if began is None else began) - OVERLAP_SECONDS
        self._refused: dict[
            str, str
        ] = {}  # by the pod's key: the ETag of the bundle whose refusal was queued
        self._annotated: dict[
            str, str
        ] = {}  # by the pod's key: the problem of its annotation that was queued
        self._in, self._out = trio.open_memory_channel[Event](MAX_QUEUE)
        self.dropped = 0

    def reported(self, pod: Pod, report: Report, received: float, etag: str, bindings: Sequence[str]) -> None:
        """Queue an Event if the report refuses the bundle that the pod is served, once for each bundle.

        ``received`` is in seconds since 1970, ``etag`` is that of the bundle, without quotes, and ``bindings`` are the
        titles of the bindings that select the pod.
        """
        if not report.rejected or report.rejected != etag or received < self._since:
            return
        if self._refused.get(pod.key) != etag:
            self._refused[pod.key] = etag
            self._put(refusal(pod, report, bindings))

    def changed(self, pod: Pod) -> None:
        """Queue an Event if the pod's maintenance annotation has no effect, once for each value."""
        problem = pod.maintenance_problem
        if not problem:
            self._annotated.pop(pod.key, None)
        elif self._annotated.get(pod.key) != problem:
            self._annotated[pod.key] = problem
            self._put(Event(_ref(pod), "UnknownMaintenance", problem))

    def left_registered(self, pod: Pod, text: str) -> None:
        """Queue an Event on a pod that is gone: an instance of it could not be deregistered."""
        self._put(Event(_ref(pod), "LeftRegistered", one_line(text)))

    def gone(self, pod: Pod) -> None:
        """Forget a pod that was deleted or has finished."""
        self._refused.pop(pod.key, None)
        self._annotated.pop(pod.key, None)

    def status_written(self, ref: ObjectRef, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Queue an Event for each new conflict in a status that was written."""
        for event in conflicts(ref, before, after):
            self._put(event)

    async def run(self) -> NoReturn:
        async for event in self._out:
            await self._recorder.record(event.about.value, event.kind, event.reason, event.message)
        raise AssertionError("the channel is never closed")

    def _put(self, event: Event) -> None:
        try:
            self._in.send_nowait(event)
        except trio.WouldBlock:
            self.dropped += 1


def refusal(pod: Pod, report: Report, bindings: Sequence[str]) -> Event:
    """An Event on a pod: the bindings that its plan comes from, and its error."""
    more = f" and {len(bindings) - MAX_BINDINGS} more" if len(bindings) > MAX_BINDINGS else ""
    names = f"{', '.join(bindings[:MAX_BINDINGS])}{more}" or "no binding any more"
    message = f"the plan of {names} was refused: {one_line(report.error)}"
    return Event(_ref(pod), "PlanRefused", message)


def conflicts(ref: ObjectRef, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Event]:
    """Events on a binding: the conflicts that are in a status and were not in the one before."""
    known = {(conflict.get("with"), conflict.get("task")) for conflict in before.get("conflicts", ())}
    return [
        Event(ref, "Conflict", conflict["message"])
        for conflict in after.get("conflicts", ())
        if (conflict["with"], conflict["task"]) not in known
    ]


def _ref(pod: Pod) -> ObjectRef:
    return ObjectRef(PODS, pod.namespace, pod.name, pod.uid)
