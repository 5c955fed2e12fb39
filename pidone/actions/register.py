"""``register``: keeps one instance registered in one registry, with the status of probes."""

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
# A field for the controller. With this value it does not deregister the instance of a pod that is gone.
ON_POD_GONE, NONE = "onPodGone", "none"
ERRORS_BURST, ERRORS_SECONDS = 3, 300.0  # lines of the journal at once, and seconds until one more
_STATUS = {HEALTHY: Status.UP, UNHEALTHY: Status.DOWN, "": Status.STARTING}


class _HeartbeatRequest:
    """A heartbeat that the heartbeat task waits for."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error = "the registration has ended"


class Register:
    """Sends all calls of one instance, one after the other: in ``run``, and then in ``undo``.

    Calls are not parallel, because a registration that arrives after the deregistration would register the instance
    again. For the same reason a registration in flight is not cancelled at once. A heartbeat is.

    Until the registry has accepted the instance once, an error ends the run, and the engine retries. Later errors do
    not end it, because the lease continues while the registry is unreachable. Registration and heartbeats then share
    one backoff, of at most a third of the lease.
    """

    def __init__(self, registry: Registry, follow: Sequence[str]) -> None:
        self.registry = registry
        self._follow = follow
        self._running = False
        self._sent = False  # the registry may have the instance
        self._accepted = False  # the registry has had the instance
        self._cut_off = False  # a registration was cancelled without an answer, and may arrive at any time
        self._status: Status | None = None  # the last one that the registry accepted
        self._due = True  # the document must be sent
        self._failures = 0  # in a row
        self._retry_at = -inf
        self._away = False  # the last call failed and renewed nothing
        self._errors = RateLimit(ERRORS_BURST, ERRORS_SECONDS)
        self._request: _HeartbeatRequest | None = None
        self._waiting = trio.CancelScope()

    async def run(self, context: Context) -> None:
        self._due = self._running = True
        try:
            while True:
                await trio.lowlevel.checkpoint_if_cancelled()  # the call in flight is the last one
                seen = self._health(context)
                # A probe that restarts after a new plan does not change the status before its first result.
                status = self._status if self._status and not seen else _STATUS.get(seen, Status.UP)
                self._due |= status is not self._status

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
        """The longest wait after a failed run: the interval of heartbeats. A run fails only before the registration."""
        return self.registry.interval

    def _health(self, context: Context) -> str:
        """Return the common state of the probes that it follows: healthy if all of them are."""
        states = {context.state_of(name) for name in self._follow} or {HEALTHY}
        return next((state for state in (UNHEALTHY, "") if state in states), max(states))

    async def heartbeat(self) -> None:
        """Let ``run`` renew the lease, or register again if the registry has lost the instance.

        Raises ``TaskFailed``. Cancelling this does not cancel the call.
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
        if not self._sent:
            return
        await self.registry.deregister()
        if self._cut_off:
            raise TaskFailed(
                "deregistered, but a registration before it was cut off without an answer and may arrive later"
            )
        self._sent = self._accepted = False
        self._status = None
        context.log("deregistered")
        context.report("")

    def succeeds(self, previous: Action) -> bool:
        return isinstance(previous, Register) and self.registry.succeeds(previous.registry)

    def take_over(self, previous: Action) -> None:
        assert isinstance(previous, Register)
        self.registry.take_over(previous.registry)
        self._sent, self._accepted, self._status = previous._sent, previous._accepted, previous._status
        self._cut_off = previous._cut_off
        self._failures, self._retry_at, self._away = previous._failures, previous._retry_at, previous._away

    async def _call(self, context: Context, status: Status) -> None:
        """Send the heartbeat that a task waits for, and the document if it is due."""
        renewed = False
        try:
            if self._request is not None and self._accepted:
                renewed = await self.registry.heartbeat()
                self._away = False
                if not renewed:
                    context.report(LOST, "the registry does not have the instance any more")
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
        self._sent = True
        with context.shield() as scope:
            shown = await self.registry.register(status)
        if scope.cancelled_caught:
            self._cut_off = True
            raise TaskFailed("cut off without an answer")
        self._accepted, self._status, self._due, self._cut_off = True, status, False, False
        context.log("registered", status=status, overridden=shown if shown != status else None)
        context.report(REGISTERED, "")

    def _failed(self, context: Context, error: PidoneError, *, renewed: bool) -> None:
        """Set the backoff and log the error. The registration stays: the registry keeps it until the lease ends."""
        self._failures += 1
        self._away = not renewed
        now = trio.current_time()
        delay = context.retry_delay(self._failures, min(self.registry.interval, self.registry.lease / 3))
        self._retry_at = now + delay
        if self._errors.take(now) == 0:
            context.log("registry-failed", error=error, untold=self._errors.refused or None)
            self._errors.refused = 0
        self._answer("" if renewed else str(error))

    def _answer(self, error: str) -> None:
        """End the wait of the heartbeat task, if it waits. ``error`` is empty after success."""
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
    """True if the controller does not deregister the instance of a pod that is gone."""
    return config.get(ON_POD_GONE) == NONE


def build_registry(fields: Fields, pod: Pod, source: str | None) -> Registry:
    """Build the registry from the remaining ``fields``. Raises ``Refused``."""
    fields.text(ON_POD_GONE, None)
    registry = registries.build(fields, pod, source)
    fields.done()
    return registry
