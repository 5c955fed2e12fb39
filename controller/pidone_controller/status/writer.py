"""Writes statuses by server-side apply: a changed condition at once, numbers at a limited rate."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any, Protocol

import trio

from pidone.errors import PidoneError
from pidone.pacing import Backoff, RateLimit
from pidone_controller.kubernetes.errors import NotFound
from pidone_controller.kubernetes.resources import ObjectRef, Resource
from pidone_controller.log import Log
from pidone_controller.status.conditions import Status, owned

WRITE_SECONDS = 5.0  # between two writes of one status, in the long run
BURST = 3  # changed conditions, as from Reconciling to Ready, that are written without waiting for it
LOOK_SECONDS = 0.2  # between two looks at one object: its pods apply and report together
LOOK_SHARE = 10  # looks at one object take at most one tenth of the time: with 10,000 pods a look takes 20 ms
WRITERS = 8  # writes at once
RETRY = Backoff(initial=2.0, maximum=60.0, jitter=0.0)


class Client(Protocol):
    """The methods of ``kubernetes.client.Client`` that are used here."""

    async def get(self, resource: Resource, name: str, namespace: str) -> dict[str, Any]: ...

    async def list(self, resource: Resource) -> list[dict[str, Any]]: ...

    async def apply(self, resource: Resource, body: dict[str, Any], *, subresource: str) -> object: ...


# Returns the status of an object from its previous status; None if the object does not exist.
Compose = Callable[[ObjectRef, Mapping[str, Any]], Status | None]
OnWrite = Callable[[ObjectRef, Mapping[str, Any], Status], None]


@dataclass(slots=True)
class _Entry:
    """One object: when to look at it next, and its last status."""

    limit: RateLimit
    due: float = math.inf
    not_before: float = -math.inf
    written_at: float = -math.inf
    failures: int = 0
    status: Mapping[str, Any] | None = None  # as written or read last; None: not read yet
    busy: bool = False
    marked: bool = False  # while it was busy


class StatusWriter:
    """Writes the statuses of marked objects.

    ``mark`` an object whenever its status may change, as often as needed; ``compose`` is called when it is time to
    write. Objects are looked at in the order in which they are due: mark the bindings of a changed set before the set,
    so that a person who waits for the set and then for the binding does not see an old status of the binding. ``run``
    is for the leader: start it and mark every object at the beginning of a term, cancel it at the end. ``on_write`` is
    called after each write with the status before and after.
    """

    def __init__(
        self,
        client: Client,
        compose: Compose,
        log: Log,
        *,
        on_write: OnWrite = lambda *_: None,
        meter: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._client, self._compose, self._log, self._on_write = client, compose, log, on_write
        self._meter = meter  # seconds, to measure how long a look takes
        self._entries: dict[ObjectRef, _Entry] = {}
        self._queue: list[
            tuple[float, int, ObjectRef]
        ] = []  # heap by due time; an entry's ``due`` says which counts
        self._sequence = count()
        self._timer = trio.CancelScope()

    def mark(self, ref: ObjectRef) -> None:
        """The status of this object may have changed."""
        entry = self._entries.get(ref)
        if entry is None:
            entry = self._entries[ref] = _Entry(RateLimit(BURST, WRITE_SECONDS))
        if entry.busy:
            entry.marked = True
        else:
            self._schedule(ref, entry, max(trio.current_time(), entry.not_before))

    async def run(self) -> None:
        """Write until cancelled. Statuses are read again first: another leader may have written them."""
        for entry in self._entries.values():
            entry.status = None
        await self._read_all()

        limit = trio.Semaphore(WRITERS)
        async with trio.open_nursery() as nursery:
            while True:
                await limit.acquire()
                ref = await self._next_due()
                nursery.start_soon(self._serve, ref, limit)

    async def _next_due(self) -> ObjectRef:
        """Wait until an object is due."""
        while True:
            now = trio.current_time()
            while self._queue and self._queue[0][0] <= now:
                due, _, ref = heappop(self._queue)
                entry = self._entries.get(ref)
                if entry is not None and entry.due == due:
                    # At once, since an object may be in the queue twice with the same time.
                    entry.busy, entry.marked, entry.due = True, False, math.inf
                    entry.not_before = now + LOOK_SECONDS
                    return ref
            deadline = self._queue[0][0] if self._queue else math.inf
            with trio.CancelScope(deadline=deadline) as self._timer:
                await trio.sleep_forever()

    def _schedule(self, ref: ObjectRef, entry: _Entry, due: float) -> None:
        if due < entry.due:
            entry.due = due
            heappush(self._queue, (due, next(self._sequence), ref))
            self._timer.deadline = min(self._timer.deadline, due)

    async def _serve(self, ref: ObjectRef, limit: trio.Semaphore) -> None:
        entry = self._entries[ref]
        try:
            await self._look(ref, entry)
        finally:
            entry.busy = False
            if entry.marked and ref in self._entries:
                self._schedule(ref, entry, max(trio.current_time(), entry.not_before))
            limit.release()

    async def _look(self, ref: ObjectRef, entry: _Entry) -> None:
        try:
            if entry.status is None:
                entry.status = await self._read(ref)
            began = self._meter()
            status = self._compose(ref, entry.status) if entry.status is not None else None
            entry.not_before = max(
                entry.not_before, trio.current_time() + LOOK_SHARE * (self._meter() - began)
            )
            if entry.status is None or status is None:
                del self._entries[ref]
                return
            now = trio.current_time()
            if status == owned(entry.status):
                return

            # A gate waits for a condition, so it is written at once unless it changes back and forth; numbers can wait.
            pause = 0.0 if _turned(entry.status, status) else entry.written_at + WRITE_SECONDS - now
            pause = pause if pause > 0 else entry.limit.take(now)
            if pause > 0:
                # Not less than a look: the last bit of a token takes no time at all.
                self._schedule(ref, entry, now + max(pause, LOOK_SECONDS))
                return
            await self._client.apply(ref.resource, _body(ref, status), subresource="status")
        except Exception as error:  # noqa: BLE001 - a bug that one object triggers must not stop the others
            entry.failures += 1
            text = str(error) if isinstance(error, PidoneError) else f"{type(error).__name__}: {error}"
            self._log("status-failed", object=ref, error=text)
            entry.not_before = trio.current_time() + RETRY.limit(entry.failures)
            self._schedule(ref, entry, entry.not_before)
            return
        before, entry.status = entry.status, status
        entry.failures, entry.written_at = 0, trio.current_time()
        self._on_write(ref, before, status)

    async def _read_all(self) -> None:
        """Read the present statuses by one list for each kind; one by one they would be hundreds of requests.

        A status that is not in a list is read when its object is looked at.
        """
        for resource in {ref.resource: None for ref in self._entries}:
            try:
                values = await self._client.list(resource)
            except PidoneError as error:
                self._log("status-failed", object=resource, error=error)
                continue
            for value in values:
                metadata = value["metadata"]
                ref = ObjectRef(resource, metadata.get("namespace", ""), metadata["name"], metadata["uid"])
                if ref in self._entries:
                    self._entries[ref].status = value.get("status") or {}

    async def _read(self, ref: ObjectRef) -> Mapping[str, Any] | None:
        """The present status; None if the object is gone, or another one has its name."""
        try:
            value = await self._client.get(ref.resource, ref.name, ref.namespace)
        except NotFound:
            return None
        status: Mapping[str, Any] = value.get("status") or {}
        return status if value["metadata"]["uid"] == ref.uid else None


def _body(ref: ObjectRef, status: Status) -> dict[str, Any]:
    namespace = {"namespace": ref.namespace} if ref.namespace else {}
    return {"metadata": {"name": ref.name, **namespace}, "status": status}


def _turned(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether another condition is True, or the same one for another generation or reason."""
    fields = ("type", "status", "reason", "observedGeneration")
    old, new = (
        [[condition.get(field) for field in fields] for condition in status.get("conditions", ())]
        for status in (before, after)
    )
    return old != new
