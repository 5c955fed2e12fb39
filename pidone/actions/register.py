"""``register``: keeps one instance in one registry, with its status following a probe."""

from collections.abc import Awaitable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import trio

from pidone import registries
from pidone.actions import Context, Setting
from pidone.actions.probe import HEALTHY, UNHEALTHY
from pidone.counters import TaskView
from pidone.errors import PidoneError, TaskFailed
from pidone.metrics.exposition import Family, gauge
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Registry, Status

T = TypeVar("T")

STATES = ("registered", "lost")
REGISTERED, LOST = STATES
HOLDS_OUTSIDE = True
ON_POD_GONE, LEAVE = (
    "onPodGone",
    "none",
)  # for the controller: do not deregister the instance of a pod that is gone
_STATUS = {HEALTHY: Status.UP, UNHEALTHY: Status.DOWN, "": Status.STARTING}


class _Beat:
    """A heartbeat that somebody waits for."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error = "the registration has ended"


class Register:
    """All calls of one instance go through ``run`` and then ``undo``, one after the other.

    Parallel calls are the classic bug of registry clients: a late registration that lands after the
    deregistration brings the instance back. For the same reason a call once begun is not cancelled; the
    registry's module bounds it in time.
    """

    def __init__(self, registry: Registry, follow: str | None) -> None:
        self.registry = registry
        self._follow = follow
        self._running = False
        self._asked = False  # whether the registry may know the instance
        self._beat: _Beat | None = None
        self._waiting = trio.CancelScope()

    async def run(self, context: Context) -> None:
        told: Status | None = None
        self._running = True
        try:
            while True:
                await trio.lowlevel.checkpoint_if_cancelled()  # after the call in flight no other is begun
                seen = context.state_of(self._follow) if self._follow else HEALTHY
                # a probe that is begun anew, as by a new plan, takes nothing back before it has an answer
                status = told if told and not seen else _STATUS.get(seen, Status.UP)
                if status is not told:
                    await self._register(context, status)
                    told = status
                elif self._beat is not None:
                    await self._renew(context, status, self._beat)
                else:
                    with trio.CancelScope() as self._waiting:  # until the probe changes, or a beat is wanted
                        if self._follow:
                            await context.state_change(self._follow, seen)
                        else:
                            await trio.sleep_forever()
        except PidoneError as error:
            self._answer(str(error))
            raise
        finally:
            self._running = False
            self._answer(_Beat().error)

    async def heartbeat(self) -> None:
        """Have the lease renewed, and the instance registered again where the registry forgot it.

        Raises ``TaskFailed``. Cancelling the wait does not cancel the call.
        """
        if not self._running:
            raise TaskFailed("not registered at present, so there is no lease to renew")
        if self._beat is None:
            self._beat = _Beat()
            self._waiting.cancel()
        beat = self._beat
        await beat.done.wait()
        if beat.error:
            raise TaskFailed(beat.error)

    async def undo(self, context: Context) -> None:
        if self._asked:
            await _whole(self.registry.deregister())
            self._asked = False
            context.log("deregistered")
            context.report("")

    async def _register(self, context: Context, status: Status) -> None:
        self._asked = True
        shown = await _whole(self.registry.register(status))
        context.log("registered", status=status, overridden=shown if shown != status else None)
        context.report(REGISTERED)

    async def _renew(self, context: Context, status: Status, beat: _Beat) -> None:
        try:
            known = await _whole(self.registry.heartbeat())
        except PidoneError as error:
            # No answer is not a "no": the registry may be away, and the lease outlives short absences. The
            # heartbeat's own backoff asks again.
            self._answer(str(error))
            return
        if not known:
            context.report(LOST)
            await self._register(context, status)
        if self._beat is beat:
            self._answer("")

    def _answer(self, error: str) -> None:
        if self._beat is not None:
            self._beat.error = error
            self._beat.done.set()
            self._beat = None


async def _whole(call: Awaitable[T]) -> T:
    """A call once begun is waited for; its own time limit holds."""
    with trio.CancelScope(shield=True):
        return await call
    raise AssertionError("nobody cancels this scope")


def families(views: Iterable[TaskView]) -> Iterator[Family]:
    registered = gauge("pidone_registration_up", "Whether the instance is registered.")
    for view in views:
        registry = registries.name_of(view.task.config)
        registered.add(view.state == REGISTERED, task=view.task.name, registry=registry)
    yield registered


def build(fields: Fields, setting: Setting) -> Register:
    follow = fields.text("follow", None)
    return Register(build_registry(fields, setting.pod, setting.source), follow)


def left_behind(config: Mapping[str, Any], pod: Pod) -> Registry | None:
    """Return the registry with the instance of a pod that is gone; None if its lease is to end by itself.

    Used by the controller. Raises ``Refused``.
    """
    if config.get(ON_POD_GONE) == LEAVE:
        return None
    fields = Fields(config, "register")
    fields.text("follow", None)
    return build_registry(fields, pod, None)


def build_registry(fields: Fields, pod: Pod, source: str | None) -> Registry:
    """Build the registry that is left in ``fields``. Raises ``Refused``."""
    fields.text(ON_POD_GONE, None)
    registry = registries.build(fields, pod, source)
    fields.done()
    return registry
