"""The leader's loop: keeps versions of sets and moves rollouts. ``revisions`` and ``step`` make the decisions.

Each term has a new ``Leader``. ``run`` is started when this replica becomes the leader and the catalog and the pods are
read, and cancelled at the end of the term. ``look`` is called whenever an object, a pod or a report changes.
"""

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import trio

from pidone.language.binding import Key
from pidone.language.model import Strategy
from pidone.pacing import Backoff
from pidone_controller.kubernetes.client import Client
from pidone_controller.kubernetes.errors import AlreadyExists, ApiError, Conflict, NotFound
from pidone_controller.kubernetes.resources import CLUSTER_TASK_BINDINGS, TASK_BINDINGS
from pidone_controller.log import Log
from pidone_controller.objects import revisions
from pidone_controller.objects.written import PIN, RESUME, Written
from pidone_controller.repo.selection import SelectedPod
from pidone_controller.rollout.catalog import Affected, Catalog
from pidone_controller.rollout.resolve import RolloutError
from pidone_controller.rollout.state import Phase, RolloutState, short_version
from pidone_controller.rollout.step import Health, next_look, remember, step

OBJECT_PAUSE_SECONDS = 0.1  # after a change of an object: people apply several at once
REPORT_PAUSE_SECONDS = 1.0  # after a pod or a report changed: pods are many
RETRY = Backoff(
    initial=1.0, maximum=30.0, jitter=0.0
)  # after a conflict, or when the API server did not answer
MAX_SLEEP_SECONDS = 3600.0

Move = tuple[Written, RolloutState]


class Leader:
    """The loop of one term.

    ``selected`` returns all live pods that a binding selects. A new leader receives the reports of the other replicas
    for ``collecting_seconds``; until then no rollout that is under way continues. ``now`` is in seconds since 1970: a
    pause continues under the next leader.
    """

    def __init__(
        self,
        client: Client,
        catalog: Catalog,
        selected: Callable[[Written], Sequence[SelectedPod]],
        log: Log,
        *,
        collecting_seconds: float = 0.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client, self._catalog, self._selected, self._log, self._now = (
            client,
            catalog,
            selected,
            log,
            now,
        )
        self._changed = trio.Event()
        self._affected = catalog.everything()  # changes since the last look, and writes to retry
        self._moving: set[Key] = set()  # bindings whose state depends on pods, reports and time
        self._health: dict[Key, Health] = {}
        self._written: dict[
            Key, str
        ] = {}  # the resourceVersion of a binding on which a write was based: the watch brings a newer one
        self._failures = 0  # looks in a row in which something failed
        self._retries: dict[
            str, tuple[int, float]
        ] = {}  # by an object's name: failures, and when to try again
        self._not_before = now() + collecting_seconds

    def look(self, affected: Affected | None = None) -> None:
        """Request a look after a change of these objects, or without any, of pods or reports."""
        if affected is not None:
            self._affected.add(affected)
        self._changed.set()

    async def run(self) -> NoReturn:
        while True:
            self._changed = trio.Event()
            due = await self.look_once()
            with trio.move_on_after(max(0.0, min(due - self._now(), MAX_SLEEP_SECONDS))):
                await self._changed.wait()
            urgent = bool(self._affected) and not self._failures
            await trio.sleep(OBJECT_PAUSE_SECONDS if urgent else REPORT_PAUSE_SECONDS)

    async def look_once(self) -> float:
        """Make the writes that are due. Return the time of the next look without a change, in seconds since 1970."""
        affected, self._affected = self._affected, Affected()
        changes = [(key, change) for key in sorted(affected.sets) for change in self._changes(key)]
        moves, due = self._moves(affected.bindings | self._moving)
        names = {change.name for _, change in changes} | {str(written) for written, _ in moves}
        self._retries = {name: retry for name, retry in self._retries.items() if name in names}

        failed = Affected()
        for key, change in changes:
            if not await self._try(change.name, partial(revisions.apply, self._client, change)):
                failed.sets.add(key)
        for written, state in moves:
            if not await self._try(str(written), partial(self._write, written, state)):
                failed.bindings.add(written.key)

        if not failed:
            self._failures = 0
            return due
        self._affected.add(failed)
        self._failures += 1
        return min(due, self._now() + RETRY.limit(self._failures))

    async def _try(self, name: str, write: Callable[[], Awaitable[None]]) -> bool:
        """True if the write succeeded or is no longer needed. Concurrent changes arrive through the watch.

        A write that always fails, as in a namespace that is being deleted, is retried with growing delays.
        """
        failures, until = self._retries.get(name, (0, 0.0))
        if self._now() < until:
            return False
        try:
            await write()
        except (AlreadyExists, NotFound):
            pass
        except Conflict:
            return False
        except ApiError as error:
            self._log("rollout", object=name, error=error)
            self._retries[name] = failures + 1, self._now() + RETRY.limit(failures + 1)
            return False
        self._retries.pop(name, None)
        return True

    def _changes(self, key: Key) -> list[revisions.Change]:
        written = self._catalog.find_set(key)
        if written is None:
            return []
        catalog = self._catalog
        return revisions.changes(written, catalog.history.revisions(key), catalog.in_use, catalog.home)

    def _moves(self, keys: set[Key]) -> tuple[list[Move], float]:
        """Return the bindings whose state must change, all decided at one time, and the time of the next look."""
        now = self._now()
        moves: list[Move] = []
        due = math.inf
        for key in sorted(keys):
            written = self._catalog.find_binding(key)
            state = self._next_state(written, now) if written is not None else None
            if state is not None and state.phase is Phase.PROGRESSING:
                self._moving.add(key)
            else:
                self._moving.discard(key)
                self._health.pop(key, None)
            if written is None:
                self._written.pop(key, None)
            if written is None or state is None:
                continue

            look = next_look(_strategy(written), state, self._not_before)
            due = min(
                due, look if look > now else math.inf
            )  # a look that is due waits for reports, not for time
            unchanged = state == RolloutState.of(written.rollout)
            if not unchanged and self._written.get(key) != written.resource_version:
                moves.append((written, state))
        return moves, due

    def _next_state(self, written: Written, now: float) -> RolloutState | None:
        """Return the next state of a binding; None if its wanted version is unknown, or not all of it is kept yet."""
        try:
            wanted = self._catalog.wanted(written)
        except RolloutError:
            return None  # reported with the plans; pods keep theirs
        history = self._catalog.history
        if any(history.revision(*version) is None for version in wanted.keys(written.namespace)):
            return None  # a status names only versions that are kept

        state = RolloutState.of(written.rollout)
        resumed = written.annotations.get(RESUME, "")
        same = state is not None and wanted in (state.current, state.target) and not resumed
        idle = state is not None and state.phase is not Phase.PROGRESSING
        pods = () if idle and same else self._selected(written)
        health = self._health.setdefault(written.key, {})
        following = step(_strategy(written), state, wanted, pods, health, now, resumed, self._not_before)
        remember(health, pods)
        return following

    async def _write(self, written: Written, state: RolloutState) -> None:
        resource = CLUSTER_TASK_BINDINGS if written.key[0] else TASK_BINDINGS
        patch = {
            "metadata": {"resourceVersion": written.resource_version},
            "status": {"rollout": merge_patch(written.rollout, state.value())},
        }
        await self._client.merge(
            resource, written.name, patch, namespace=written.namespace, subresource="status"
        )
        self._written[written.key] = written.resource_version
        version = state.target or state.current
        self._log(
            "rollout",
            binding=written,
            phase=state.phase.value,
            percent=state.percent if state.target else 100,
            version=short_version(version.digest) if version else "",
            error=state.message,
        )


def _strategy(written: Written) -> Strategy | None:
    """Return ``spec.rollout``; None with a pin, which applies to all pods at once."""
    binding = written.binding
    return binding.rollout if binding is not None and PIN not in written.annotations else None


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON merge patch (RFC 7396) from ``before`` to ``after``: None removes a field."""
    patch: dict[str, Any] = {name: None for name in before if name not in after}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            patch[name] = merge_patch(old, value)
        elif value != old or name not in before:
            patch[name] = value
    return patch
