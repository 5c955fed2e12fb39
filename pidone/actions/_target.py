"""One registry of a registration: what it is told, and when."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import NamedTuple

import trio

from pidone.actions import Context, Preparable, Setting, Shown
from pidone.actions.probe import UNHEALTHY
from pidone.errors import PidoneError, RegistryRefused, TaskFailed, describe
from pidone.pacing import RateLimit
from pidone.registries import Registry, Status

ERRORS_BURST, ERRORS_SECONDS = 3, 300.0  # lines of the journal at once, and seconds until one more
# The part of the interval by which a renewal may be early. None is late, because leases depend on it.
RENEWAL_JITTER = 0.1
# Changes to UP at once, and seconds until one more: the limits of Eureka's Java client (``InstanceInfoReplicator``). A
# change to DOWN never waits, and each one needs an UP before it.
UP_BURST, UP_SECONDS = 2, 15.0

# Reasons of registrations, and results of heartbeats, for metrics
REASONS = FIRST, FORGOTTEN, CHANGED, TOOK_OVER = ("first", "forgotten", "changed", "took-over")
RESULTS = ACCEPTED, _, FAILED = ("accepted", FORGOTTEN, "failed")

# Values of ``untilHealthy``: what is registered before the first result of the probes
WAIT, STARTING, UP = UNTIL = ("wait", "starting", "up")
# Values of ``whenUnhealthy``
DOWN, DEREGISTER, IGNORE = WHEN = ("down", "deregister", "ignore")


class Following(NamedTuple):
    """How the status follows the probes."""

    probes: Sequence[str] = ()
    until_healthy: str = WAIT  # one of UNTIL
    when_unhealthy: str = DOWN  # one of WHEN

    def status(self, states: Mapping[str, str], last: Status | None, *, begun: bool) -> Status | None:
        """Return the status to register; None: no registration.

        ``states`` are those of the probes, empty before their first results. ``last`` is the status before, and
        ``begun`` is true after the first result. A probe that restarts after a new plan changes nothing before its
        first result.
        """
        seen = {states[name] for name in self.probes}
        first = {STARTING: Status.STARTING, UP: Status.UP}.get(self.until_healthy)
        if UNHEALTHY in seen:
            if last is None and self.until_healthy == WAIT:
                return None
            unhealthy = {DOWN: Status.DOWN, DEREGISTER: None}
            return unhealthy.get(self.when_unhealthy, last if begun else first)
        if "" in seen:
            return last if begun else first
        return Status.UP


_NOT_REGISTERED = "not registered at present, so there is no lease to renew"


class _HeartbeatRequest:
    """A heartbeat that the heartbeat task waits for."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error = "the registration has ended"


class Target:
    """Sends all calls of one instance, one after the other: in ``prepare``, in ``run``, and then in ``deregister``.

    Calls are not parallel, because a registration that arrives after the deregistration would register the instance
    again. For the same reason a registration in flight is not cancelled at once. A heartbeat is.

    Until the registry has accepted the instance once, an error ends ``run``. Later errors do not end it, because the
    lease continues while the registry is unreachable. Registration and heartbeats then share one backoff, of at most a
    third of the lease.

    The lease is renewed at the registry's own pace, unless a heartbeat task names this registration.
    """

    def __init__(self, name: str, registry: Registry, following: Following, setting: Setting) -> None:
        self.name = name  # of the registry
        self.registry = registry
        self.label = ""  # for the journal, where a task has several targets
        self.registered = False  # the registry has the instance, as far as we know
        self.lost = False  # the registry does not have the instance any more
        self.error = ""  # of the last call; empty after success
        self.registrations = Counter[str]()  # that the registry accepted, by reason
        self.heartbeats = Counter[str]()  # by result
        self._following = following
        self._setting = setting
        self._running = False
        self._changed: Callable[[], None] = lambda: None
        self._sent = False  # the registry may have the instance
        self._accepted = False  # the registry has had the instance
        self._cut_off = False  # a registration was cancelled without an answer, and may arrive at any time
        self._begun = False  # the probes have had a result
        self._health: Status | None = None  # the last status by the probes; None: no registration
        self._ups = RateLimit(UP_BURST, UP_SECONDS)
        self._status: Status | None = None  # the last one that the registry accepted
        self._shown = ""  # the status that the registry showed after that
        self._due = True  # the document must be sent
        self._failures = 0  # in a row
        self._retry_at = -inf
        self._away = False  # the last call failed and renewed nothing
        self._inherited = False  # taken over, and not registered since
        self._renewed_at = -inf  # the last heartbeat or registration that the registry accepted
        self._lease_over = False  # it was said that the lease must have ended
        self._beat_at = -inf  # the last heartbeat that it accepted
        self._renew_at = -inf  # the next renewal that no heartbeat task asks for
        self._refusal = ""  # the last one that was logged; empty after success
        self._errors = RateLimit(ERRORS_BURST, ERRORS_SECONDS)
        self._request: _HeartbeatRequest | None = None
        self._waiting = trio.CancelScope()
        self._turn = trio.Lock()  # of the call in flight

    async def prepare(self) -> None:
        """Let the registry do what the first registration would wait for; at most for an interval of heartbeats.

        The first registration reports what fails.
        """
        if isinstance(self.registry, Preparable):
            async with self._turn:
                if not self._sent:
                    with suppress(PidoneError), trio.move_on_after(self.registry.interval):
                        await self.registry.prepare()

    async def run(self, context: Context, changed: Callable[[], None]) -> None:
        """Keep the instance registered. ``changed`` is called when ``registered``, ``lost`` or ``error`` change."""
        self._due = self._running = True
        self._changed = changed
        if self._renew_at <= trio.current_time():
            self._renew_at = self._first_renewal(context)
        try:
            while True:
                await trio.lowlevel.checkpoint_if_cancelled()  # the call in flight is the last one
                status, now = self._wanted(context), trio.current_time()
                change_at = self._change_at(status, now)
                beat = status is not None and (self._request is not None or self._renewal_is_due(context))
                if change_at <= now or (beat and (now >= self._retry_at or not self._away)):
                    async with self._turn:
                        await self._call(context, status, beat=beat)
                else:
                    if status is None:
                        self._answer(_NOT_REGISTERED)
                    with trio.move_on_at(min(change_at, self._next_beat())) as self._waiting:
                        while self._wanted(context) is status:
                            await context.changed()
        except PidoneError as error:
            self._answer(str(error))
            raise
        finally:
            self._running = False
            self._answer(_HeartbeatRequest().error)

    async def heartbeat(self) -> None:
        """Let ``run`` renew the lease, or register again if the registry has lost the instance.

        Raises ``TaskFailed``. Cancelling this does not cancel the call.
        """
        if not self._running:
            raise TaskFailed(_NOT_REGISTERED)
        if self._request is None:
            self._request = _HeartbeatRequest()
            self._waiting.cancel()
        request = self._request
        await request.done.wait()
        if request.error:
            raise TaskFailed(request.error)

    @property
    def title(self) -> str:
        """The registry and its servers, for people."""
        return f"{self.name} {self.registry.where}".lstrip()

    @property
    def status(self) -> str:
        """The status that the registry showed last; empty without a registration."""
        return self._shown if self.registered else ""

    def heartbeat_age(self) -> float | None:
        """Return the seconds since the last heartbeat that the registry accepted; None before it."""
        return trio.current_time() - self._beat_at if self._beat_at > -inf else None

    def lease_left(self) -> float:
        """Return the seconds until the lease ends, as far as we know."""
        ends = self._renewed_at + self.registry.lease
        return max(0.0, ends - trio.current_time()) if self._accepted else 0.0

    def backoff(self) -> float:
        """Return the seconds until the next try after a failure."""
        return max(0.0, self._retry_at - trio.current_time())

    @property
    def may_be_registered(self) -> bool:
        """True if the registry may have the instance."""
        return self._sent

    async def deregister(self, context: Context) -> None:
        """Deregister the instance, if the registry may have it. ``run`` has ended."""
        if not self._sent:
            return
        async with self._turn:
            await self._deregister(context)
        self._begun, self._health = False, None

    async def _deregister(self, context: Context) -> None:
        await self.registry.deregister()
        if self._cut_off:
            self._cut_off = False
            raise TaskFailed(
                "deregistered, but a registration before it was cut off without an answer and may arrive later"
            )
        self._sent = self._accepted = self._due = self.registered = self.lost = False
        self._status = None
        self.error = self._shown = ""
        self._log(context, "deregistered")

    def take_over(self, previous: "Target") -> None:
        """Take over the instance of ``previous``, whose run has ended."""
        self.registry.take_over(previous.registry)
        self._sent, self._accepted, self._status = previous._sent, previous._accepted, previous._status
        self._begun, self._health, self._shown = previous._begun, previous._health, previous._shown
        self._ups = previous._ups
        self._cut_off = previous._cut_off
        self._failures, self._retry_at, self._away = previous._failures, previous._retry_at, previous._away
        self._renew_at, self._renewed_at = previous._renew_at, previous._renewed_at
        self._beat_at, self._inherited = previous._beat_at, True
        self.registrations, self.heartbeats = previous.registrations, previous.heartbeats

    def shown(self) -> Shown | None:
        """Return what the registry shows of the instance; None if it has none of ours."""
        if not self.registered:
            return None
        if self._setting.maintenance.on != (self._status is Status.OUT_OF_SERVICE):
            return Shown(self._shown, self.error or "no answer yet", pending=True)
        overridden = self._status is not None and self._shown != self._status
        return Shown(
            self._shown, "the registry keeps this status; has an operator set it?" if overridden else ""
        )

    def _wanted(self, context: Context) -> Status | None:
        """Return the status that the registry is to show; None: no registration."""
        states = {name: context.state_of(name) for name in self._following.probes}
        self._health = self._following.status(states, self._health, begun=self._begun)
        self._begun |= all(states.values()) or UNHEALTHY in states.values()
        maintenance = self._health is not None and self._setting.maintenance.on
        return Status.OUT_OF_SERVICE if maintenance else self._health

    def _change_at(self, status: Status | None, now: float) -> float:
        """Return the time at which the registry is told what it does not show yet; infinity if there is nothing."""
        if status is None:
            return self._retry_at if self._sent else inf
        if self._due:
            return self._retry_at
        if status is self._status:
            return inf
        return max(self._retry_at, now + self._ups.wait(now)) if self._is_limited(status) else self._retry_at

    def _is_limited(self, status: Status) -> bool:
        """True if a flapping probe may be the reason of this change."""
        return status is Status.UP and self._status in {None, Status.DOWN}

    def _renewal_is_due(self, context: Context) -> bool:
        """True if the lease must be renewed now, and no heartbeat task does it."""
        now = trio.current_time()
        if not self._accepted or now < self._renew_at:
            return False
        # Looked up once per interval: if the heartbeat task has just left the plan, its last renewal is not older
        # than that, and two intervals are shorter than a lease.
        if not any(
            view.task.action == "heartbeat" and view.task.config.get("of") == context.task
            for view in self._setting.tasks()
        ):
            return True
        self._renew_at = self._next_renewal(context, now)
        return False

    def _first_renewal(self, context: Context) -> float:
        """Return the time of the first renewal: pods that start together must not renew together."""
        return trio.current_time() + self.registry.interval * context.random.random()

    def _next_renewal(self, context: Context, last: float) -> float:
        return last + self.registry.interval * (1 - RENEWAL_JITTER * context.random.random())

    def _next_beat(self) -> float:
        """Return the time of the next heartbeat."""
        due = self._retry_at if self._request is not None else inf
        if not self._accepted:
            return due
        return min(due, max(self._renew_at, self._retry_at) if self._away else self._renew_at)

    async def _call(self, context: Context, status: Status | None, *, beat: bool) -> None:
        """Send a heartbeat if ``beat``, and what the registry does not show yet, if its time has come."""
        renewed, began = False, trio.current_time()
        try:
            if beat and self._accepted:
                renewed = await self._heartbeat()
                self._renew_at = self._next_renewal(context, began)
                if not renewed:
                    self._due = self.lost = True
                    self.registered, self.error = False, "the registry does not have the instance any more"
                    self._changed()
            if status is None:
                await self._deregister(context)
            elif self.lost or self._change_at(status, trio.current_time()) <= trio.current_time():
                await self._register(context, status)
        except PidoneError as error:
            if not self._accepted:
                raise
            self._failed(context, error, renewed=renewed)
        else:
            if not self._due and (status is None or status is self._status):
                self._failures, self._retry_at, self._refusal, self.error = 0, -inf, "", ""
            self._away = False
            self._answer("")
            self._changed()

    async def _heartbeat(self) -> bool:
        try:
            renewed = await self.registry.heartbeat()
        except PidoneError:
            self.heartbeats[FAILED] += 1
            raise
        self._away = False
        self.heartbeats[ACCEPTED if renewed else FORGOTTEN] += 1
        if renewed:
            self._renewed_at = self._beat_at = trio.current_time()
            self._lease_over = False
        return renewed

    async def _register(self, context: Context, status: Status) -> None:
        if not self._due and self._is_limited(status):
            self._ups.take(trio.current_time())
        self._sent = self._due = True
        with context.shield() as scope:
            shown = await self.registry.register(status)
        if scope.cancelled_caught:
            self._cut_off = True
            raise TaskFailed("cut off without an answer")
        self.registrations[self._reason()] += 1
        self._renewed_at, self._inherited, self._lease_over = trio.current_time(), False, False
        if not self._accepted:
            self._renew_at = self._first_renewal(context)
        self._accepted, self._status, self._due, self._cut_off = True, status, False, False
        self.registered, self.lost, self.error, self._shown = True, False, "", shown
        self._log(context, "registered", status=status, overridden=shown if shown != status else None)
        self._changed()

    def _reason(self) -> str:
        """Return the reason of a registration that was accepted now."""
        if self.lost:
            return FORGOTTEN
        if self._inherited:
            return TOOK_OVER
        return CHANGED if self._accepted else FIRST

    def _failed(self, context: Context, error: PidoneError, *, renewed: bool) -> None:
        """Set the backoff and log the error. The registration stays: the registry keeps it until the lease ends."""
        self._failures += 1
        self._away = not renewed
        now = trio.current_time()
        delay = context.retry_delay(self._failures, min(self.registry.interval, self.registry.lease / 3))
        self._retry_at = now + delay
        self.log_failure(context, error)
        self._answer("" if renewed else str(error))
        self.error = str(error)
        if self.lease_left() == 0 and not self.lost:
            self.error += "; the lease must have ended"
            if not self._lease_over:
                self._lease_over = True
                self._log(context, "lease-over", lease=f"{self.registry.lease:g}s")
        self._changed()

    def log_failure(self, context: Context, error: Exception) -> None:
        """Write the error of a call to the journal."""
        now = trio.current_time()
        if isinstance(error, RegistryRefused):
            if self._refusal != str(error):
                self._refusal = str(error)
                self._log(context, "registry-refused", error=error)  # once, since only a person can help
        elif self._errors.take(now) == 0:
            self._log(context, "registry-failed", error=describe(error), untold=self._errors.refused or None)
            self._errors.refused = 0

    def _log(self, context: Context, event: str, **fields: object) -> None:
        context.log(event, registry=self.label or None, **fields)

    def _answer(self, error: str) -> None:
        """End the wait of the heartbeat task, if it waits. ``error`` is empty after success."""
        if self._request is not None:
            self._request.error = error
            self._request.done.set()
            self._request = None
