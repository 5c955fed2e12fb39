"""What one replica does for all: versions are kept, and rollouts moved. The rest is in ``revisions`` and ``rollout``.

``Leader(...).run()`` is begun when this replica becomes the leader and everything that it reads is synced, pods
too, and cancelled when it is the leader no more; each term has a new one. ``look`` is called whenever an object, a
pod or a report changed. ``seen`` answers with all live pods that a binding chooses. For ``hearing`` seconds a new
leader hears what pods told the other replicas; so long no rollout under way goes further.
"""

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import trio

from pidone.language.binding import Key
from pidone.language.model import Strategy
from pidone_controller.kubernetes.client import Client
from pidone_controller.kubernetes.errors import AlreadyExists, ApiError, Conflict, NotFound
from pidone_controller.kubernetes.resources import CLUSTER_TASK_BINDINGS, TASK_BINDINGS
from pidone_controller.log import Log
from pidone_controller.objects import revisions
from pidone_controller.objects.revisions import History
from pidone_controller.objects.written import PIN, RESUME, Written
from pidone_controller.repo.selection import SelectedPod
from pidone_controller.rollout.step import (
    Health,
    Objects,
    Phase,
    RolloutError,
    State,
    next_look,
    remember,
    short,
    step,
)

GAP = 0.1  # seconds after an object changed: people apply several at once
REPORTS = 1.0  # seconds after a pod or a report changed: pods are many
AGAIN = 1.0  # seconds after somebody was faster, or the API server did not answer
AGAIN_MAX = 30.0

Move = tuple[Written, State]


class Leader:
    """The loop of one term."""

    def __init__(
        self,
        client: Client,
        objects: Objects,
        seen: Callable[[Written], Sequence[SelectedPod]],
        log: Log,
        *,
        hearing: float = 0.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._objects = objects
        self._seen = seen
        self._log = log
        self._now = now  # seconds since 1970: a pause goes on under the next leader
        self._dirty = trio.Event()
        self._health: dict[Key, Health] = {}
        self._wrote: dict[
            Key, str
        ] = {}  # the version of a binding that was written upon: its next one is to come
        self._failures = 0
        self._rest: dict[str, tuple[int, float]] = {}  # what failed: how often, and until when it is let be
        self._not_before = now() + hearing
        self._done = -1  # the count of the objects' changes that everything was looked at with
        self._moving: set[Key] = set()  # the bindings for which pods, reports and time count

    def look(self) -> None:
        self._dirty.set()

    async def run(self) -> NoReturn:
        while True:
            self._dirty = trio.Event()
            due = await self._once()
            with trio.move_on_after(max(0.0, min(due - self._now(), 3600.0))):
                await self._dirty.wait()
            soon = self._objects.changes != self._done and not self._failures
            await trio.sleep(GAP if soon else REPORTS)

    async def _once(self) -> float:
        """Do what there is to do. Returns when to look again by itself, in seconds since 1970."""
        objects = self._objects
        everything = objects.changes != self._done
        self._done = objects.changes
        changes = (
            revisions.changes(objects.sets, objects.revisions, objects.in_use(), objects.home)
            if everything
            else []
        )
        moves, due = self._moves(everything=everything)
        if everything:
            named = {change.name for change in changes} | {str(written) for written, _ in moves}
            self._rest = {name: rest for name, rest in self._rest.items() if name in named}
        good = [
            await self._do(change.name, partial(revisions.make, self._client, change)) for change in changes
        ]
        good += [
            await self._do(str(written), partial(self._write, written, state)) for written, state in moves
        ]
        if all(good):
            self._failures = 0
            return due
        self._failures += 1
        self._done = -1
        return min(due, self._now() + min(AGAIN_MAX, AGAIN * 2.0 ** min(self._failures - 1, 10)))

    async def _do(self, name: str, doing: Callable[[], Awaitable[None]]) -> bool:
        """Whether it was done, or needs not be. What somebody else did first comes with the watch.

        What cannot be done, as in a namespace that is being deleted, is tried more and more seldom.
        """
        failures, until = self._rest.get(name, (0, 0.0))
        if self._now() < until:
            return False
        try:
            await doing()
        except (AlreadyExists, NotFound):
            pass
        except Conflict:
            return False
        except ApiError as error:
            self._log("rollout", object=name, error=error)
            pause = min(AGAIN_MAX, AGAIN * 2.0 ** min(failures, 10))
            self._rest[name] = failures + 1, self._now() + pause
            return False
        self._rest.pop(name, None)
        return True

    def _moves(self, *, everything: bool) -> tuple[list[Move], float]:
        """The bindings that are to have another state, all decided at one moment, and when to look again."""
        history, now = self._objects.history(), self._now()
        moves: list[Move] = []
        due = math.inf
        bindings = self._objects.bindings
        for written in bindings if everything else [one for one in bindings if one.key in self._moving]:
            state = State.of(written.rollout)
            following = self._following(written, state, history, now)
            if following is not None and following.phase is Phase.PROGRESSING:
                self._moving.add(written.key)
            else:
                self._moving.discard(written.key)
                self._health.pop(written.key, None)
            if following is None:
                continue
            look = next_look(_strategy(written), following, self._not_before)
            due = min(due, look if look > now else math.inf)  # what waits for reports is not a matter of time
            if following != state and self._wrote.get(written.key) != written.resource_version:
                moves.append((written, following))
        there = {written.key for written in bindings}
        self._moving &= there
        for gone in (self._health.keys() | self._wrote.keys()) - there:
            self._health.pop(gone, None)
            self._wrote.pop(gone, None)
        return moves, due

    def _following(self, written: Written, state: State | None, history: History, now: float) -> State | None:
        """The next state of a binding; None where what it should come to is not known, or not kept yet."""
        try:
            wanted = self._objects.wanted(written, history)
        except RolloutError:
            return None  # told where plans are derived; what is served stays as it is
        if any(history.revision(*named) is None for named in wanted.keys(written.namespace)):
            return None  # a status names what is kept, and nothing else
        resumed = written.annotations.get(RESUME, "")
        known = state is not None and wanted in (state.current, state.target) and not resumed
        idle = state is not None and state.phase is not Phase.PROGRESSING
        pods = () if idle and known else self._seen(written)
        health = self._health.setdefault(written.key, {})
        following = step(_strategy(written), state, wanted, pods, health, now, resumed, self._not_before)
        remember(health, pods)
        return following

    async def _write(self, written: Written, state: State) -> None:
        resource = CLUSTER_TASK_BINDINGS if written.key[0] else TASK_BINDINGS
        patch = {
            "metadata": {"resourceVersion": written.resource_version},
            "status": {"rollout": difference(written.rollout, state.value())},
        }
        await self._client.merge(
            resource, written.name, patch, namespace=written.namespace, subresource="status"
        )
        self._wrote[written.key] = written.resource_version
        version = state.target or state.current
        self._log(
            "rollout",
            binding=written,
            phase=state.phase.value,
            percent=state.percent if state.target else 100,
            version=short(version.digest) if version else "",
            error=state.message,
        )


def _strategy(written: Written) -> Strategy | None:
    """How careful to be; not at all with a pin, for whoever pins decides."""
    binding = written.binding
    return binding.rollout if binding is not None and PIN not in written.annotations else None


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch that makes ``after`` of ``before``: a field that goes is None (RFC 7396)."""
    patch: dict[str, Any] = {name: None for name in before if name not in after}
    for name, value in after.items():
        there = before.get(name)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            patch[name] = difference(there, value)
        elif value != there or name not in before:
            patch[name] = value
    return patch
