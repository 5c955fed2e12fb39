"""``register``: keeps one instance in one registry, with its status following probes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Any

import trio

from pidone import registries
from pidone.actions import Action, Context, Setting
from pidone.actions.probe import HEALTHY, UNHEALTHY
from pidone.counters import TaskView
from pidone.errors import PidoneError, TaskFailed
from pidone.metrics.exposition import Family, gauge
from pidone.pacing import RateLimit
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Registry, Status

STATES = ("registered", "lost")
REGISTERED, LOST = STATES
HOLDS_OUTSIDE = True
ON_POD_GONE, LEAVE = (
    "onPodGone",
    "none",
)  # for the controller: do not deregister the instance of a pod that is gone
ERRORS_BURST, ERRORS_SECONDS = 3, 300.0  # lines of the journal at once, and until one more
_STATUS = {HEALTHY: Status.UP, UNHEALTHY: Status.DOWN, "": Status.STARTING}


class _HeartbeatRequest:
    """A heartbeat that a task waits for."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error = "the registration has ended"


class Register:
    """All calls of one instance go through ``run`` and then ``undo``, one after the other.

    Parallel calls are the classic bug of registry clients: a late registration that lands after the
    deregistration brings the instance back. For the same reason a registration that is on its way is not broken
    off while there is time; a heartbeat is.

    Until the registry has accepted the instance once, an error ends the run, and the engine tries again. After
    that no error does: it is the registry that is away, or something in between, and the lease goes on. One
    backoff holds for registration and heartbeats then, shorter than a third of the lease.
    """

    def __init__(self, registry: Registry, follow: Sequence[str]) -> None:
        self.registry = registry
        self._follow = follow
        self._running = False
        self._asked = False  # whether the registry may know the instance
        self._accepted = False  # whether it has said so
        self._cut_off = False  # whether a registration got no answer, and may arrive at any time
        self._told: Status | None = None  # the last status that it accepted
        self._due = True  # whether the document is to be sent
        self._failures = 0  # in a row
        self._retry_at = -inf
        self._away = False  # whether the last heartbeat failed as well
        self._errors = RateLimit(ERRORS_BURST, ERRORS_SECONDS)
        self._request: _HeartbeatRequest | None = None
        self._waiting = trio.CancelScope()

    async def run(self, context: Context) -> None:
        self._due = self._running = True
        try:
            while True:
                await trio.lowlevel.checkpoint_if_cancelled()  # after the call in flight no other is begun
                seen = self._health(context)
                # a probe that is begun anew, as by a new plan, takes nothing back before it has an answer
                status = self._told if self._told and not seen else _STATUS.get(seen, Status.UP)
                self._due |= status is not self._told

                wait = self._retry_at - trio.current_time()
                may_beat = self._request is not None and (wait <= 0 or not self._away)
                if may_beat or (self._due and wait <= 0):
                    await self._call(context, status)
                else:
                    with trio.move_on_after(wait if wait > 0 else inf) as self._waiting:
                        while self._health(context) == seen:
                            await context.changed()
        except PidoneError as error:
            self._answer(str(error))
            raise
        finally:
            self._running = False
            self._answer(_HeartbeatRequest().error)

    @property
    def retry_seconds(self) -> float:
        """Until the registry has accepted the instance once, it is sent as often as a heartbeat would be."""
        return self.registry.interval

    def _health(self, context: Context) -> str:
        """Return the state of the probes that it follows, as of one: it is healthy if all of them are."""
        states = {context.state_of(name) for name in self._follow} or {HEALTHY}
        return next((state for state in (UNHEALTHY, "") if state in states), max(states))

    async def heartbeat(self) -> None:
        """Have the lease renewed, and the instance registered again where the registry forgot it.

        Raises ``TaskFailed``. Cancelling the wait does not cancel the call.
        """
        if not self._running:
            raise TaskFailed("not registered at present, so there is no lease to renew")
        if self._request is None:
            self._request = _HeartbeatRequest()
            self._waiting.cancel()
        request = self._request
        await request.done.wait()
        if request.error:
            raise TaskFailed(request.error)

    async def undo(self, context: Context) -> None:
        if not self._asked:
            return
        await self.registry.deregister()
        if self._cut_off:
            raise TaskFailed(
                "deregistered, but a registration before it was cut off without an answer and may arrive later"
            )
        self._asked = self._accepted = False
        self._told = None
        context.log("deregistered")
        context.report("")

    def succeeds(self, previous: Action) -> bool:
        return isinstance(previous, Register) and self.registry.succeeds(previous.registry)

    def take_over(self, previous: Action) -> None:
        assert isinstance(previous, Register)
        self.registry.take_over(previous.registry)
        self._asked, self._accepted, self._told = previous._asked, previous._accepted, previous._told
        self._cut_off = previous._cut_off
        self._failures, self._retry_at, self._away = previous._failures, previous._retry_at, previous._away

    async def _call(self, context: Context, status: Status) -> None:
        """Answer the heartbeat that is waited for, and send the document where it is due."""
        renewed = False
        try:
            if self._request is not None and self._accepted:
                renewed = await self.registry.heartbeat()
                self._away = False
                if not renewed:
                    context.report(LOST)
                    self._due = True
            if self._due:
                await self._register(context, status)
        except PidoneError as error:
            if not self._accepted:
                raise
            self._failed(context, error, renewed=renewed)
        else:
            self._failures, self._retry_at, self._away = 0, -inf, False
            self._answer("")

    async def _register(self, context: Context, status: Status) -> None:
        self._asked = True
        with context.unbroken() as scope:
            shown = await self.registry.register(status)
        if scope.cancelled_caught:
            self._cut_off = True
            raise TaskFailed("cut off without an answer")
        self._accepted, self._told, self._due, self._cut_off = True, status, False, False
        context.log("registered", status=status, overridden=shown if shown != status else None)
        context.report(REGISTERED)

    def _failed(self, context: Context, error: PidoneError, *, renewed: bool) -> None:
        """No answer is not a "no": what the registry has outlives short absences, and is not given up."""
        self._failures += 1
        self._away = not renewed
        now = trio.current_time()
        pause = context.pause(self._failures, min(self.registry.interval, self.registry.lease / 3))
        self._retry_at = now + pause
        if self._errors.take(now) == 0:
            context.log("registry-failed", error=error, untold=self._errors.refused or None)
            self._errors.refused = 0
        self._answer("" if renewed else str(error))

    def _answer(self, error: str) -> None:
        if self._request is not None:
            self._request.error = error
            self._request.done.set()
            self._request = None


def families(views: Iterable[TaskView]) -> Iterator[Family]:
    registered = gauge("pidone_registration_up", "Whether the instance is registered.")
    for view in views:
        registry = registries.name_of(view.task.config)
        registered.add(view.state == REGISTERED, task=view.task.name, registry=registry)
    yield registered


def build(fields: Fields, setting: Setting) -> Register:
    follow = fields.names("follow")
    return Register(build_registry(fields, setting.pod, setting.source), follow)


def instance_of(config: Mapping[str, Any], pod: Pod) -> Registry:
    """Return the registry with the instance of a pod, for the controller. Raises ``Refused``."""
    fields = Fields(config, "register")
    fields.names("follow")
    return build_registry(fields, pod, None)


def is_left(config: Mapping[str, Any]) -> bool:
    """Whether the controller leaves the instance of a pod that is gone until its lease ends."""
    return config.get(ON_POD_GONE) == LEAVE


def build_registry(fields: Fields, pod: Pod, source: str | None) -> Registry:
    """Build the registry that is left in ``fields``. Raises ``Refused``."""
    fields.text(ON_POD_GONE, None)
    registry = registries.build(fields, pod, source)
    fields.done()
    return registry
