"""``register``: keeps an instance registered in one registry or in several, with the status of probes."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import trio

from pidone import registries
from pidone.actions import Action, Context, Setting, Shown
from pidone.actions._target import DOWN, REASONS, RESULTS, UNTIL, WAIT, WHEN, Following, Target
from pidone.counters import TaskView
from pidone.errors import PidoneError, Refused, RegistryRefused, TaskFailed, describe
from pidone.metrics.exposition import Family, counter, gauge
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Connected, Registry

STATES = ("registered", "lost")
REGISTERED, LOST = STATES
HOLDS_OUTSIDE = True
# A field for the controller. With this value it does not deregister the instance of a pod that is gone.
ON_POD_GONE, NONE = "onPodGone", "none"
MAX_TARGETS = 10
MAX_DRAIN_SECONDS = 3600.0
# The part of the time for undoing that each of several targets has, so that those that failed can be named.
UNDO_PART = 0.95


class Register:
    """Keeps an instance in each of its registries. A registry that fails does not hold back another one.

    Until a registry has accepted the instance, an error of all targets ends the run, and the engine retries. With an
    error of some, these retry alone.
    """

    def __init__(self, targets: Sequence[Target], setting: Setting, drain: float = 0.0) -> None:
        self.targets = tuple(targets)
        self._drain = drain
        self._setting = setting
        self._former: list[Target] = []  # of the plan before, and not of this one
        self._failed: dict[
            Target, Exception
        ] = {}  # the errors of targets that have not registered in this run
        if len(self.targets) > 1:
            for target in self.targets:
                target.label = target.title

    async def prepare(self) -> None:
        async with trio.open_nursery() as nursery:
            for target in self.targets:
                nursery.start_soon(target.prepare)

    async def run(self, context: Context) -> None:
        self._failed.clear()
        async with trio.open_nursery() as nursery:
            for target in self.targets:
                nursery.start_soon(self._keep, context, target, nursery.cancel_scope)
            for target in list(self._former):
                nursery.start_soon(self._leave, context, target)
        errors = [self._failed[target] for target in self.targets]
        if len(errors) == 1:
            raise errors[0]
        text = _together({target: describe(self._failed[target]) for target in self.targets})
        refused = all(isinstance(error, RegistryRefused) for error in errors)
        raise (RegistryRefused if refused else TaskFailed)(text)

    @property
    def retry_seconds(self) -> float:
        """The longest wait after a failed run: the interval of heartbeats. A run fails only before the registration."""
        return min(target.registry.interval for target in self.targets)

    @property
    def refused_retry_seconds(self) -> float:
        """The same after a refusal: the lease. The instance of the program before this one may still be there."""
        return min(target.registry.lease for target in self.targets)

    async def heartbeat(self) -> None:
        """Renew the leases, or register again where the instance is lost. Raises ``TaskFailed``.

        Cancelling this does not cancel the calls.
        """
        errors = await _in_parallel({target: target.heartbeat for target in self.targets})
        if errors:
            raise TaskFailed(_together({target: str(error) for target, error in errors.items()}))

    async def undo(self, context: Context) -> None:
        """Deregister all targets at the same time, and then wait for the drain if the pod ends."""
        held = [target for target in (*self.targets, *self._former) if target.may_be_registered]
        errors = await _in_parallel({target: partial(self._deregister, context, target) for target in held})
        for target in held:
            if isinstance(target.registry, Connected):
                await target.registry.close()
        if context.ending and len(errors) < len(held):
            left = trio.current_effective_deadline() - trio.current_time()
            with context.grace():
                await trio.sleep(max(0.0, min(self._drain, left)))
        if len(errors) == 1 and len(held) == 1:
            raise errors[held[0]]
        if errors:
            raise TaskFailed(_together({target: str(error) for target, error in errors.items()}))
        self._former.clear()
        if held:
            context.report("")
        self._setting.maintenance.notify()

    def shown(self) -> dict[str, Shown]:
        """Return what each registry shows, by its servers; of several, by its name and its servers."""
        shown = {target.label or target.registry.where: target.shown() for target in self.targets}
        return {name: instance for name, instance in shown.items() if instance is not None}

    def succeeds(self, previous: Action) -> bool:
        return isinstance(previous, Register) and any(
            target.registry.succeeds(other.registry) for target in self.targets for other in previous.targets
        )

    def take_over(self, previous: Action) -> None:
        assert isinstance(previous, Register)
        rest = [target for target in (*previous.targets, *previous._former) if target.may_be_registered]
        for target in self.targets:
            same = next((other for other in rest if target.registry.succeeds(other.registry)), None)
            if same is not None:
                target.take_over(same)
                rest.remove(same)
        self._former = rest
        for target in rest:
            target.label = target.title

    async def _keep(self, context: Context, target: Target, scope: trio.CancelScope) -> None:
        """Keep the instance of one target registered; cancel the scope of all when each has failed."""
        while self._is_held(context, target, leaving=True):
            await context.changed()
        failures = 0
        while True:
            try:
                await target.run(context, partial(self._report, context))
            except Exception as error:  # noqa: BLE001 - also a bug of one driver costs its own target alone
                failures = failures + 1 if target in self._failed else 1
                self._failed[target] = error
                if len(self._failed) == len(self.targets):
                    scope.cancel()
                    return
                target.error = describe(error)
                target.log_failure(context, error)
                lasting = isinstance(error, RegistryRefused)
            self._report(context)
            at_most = target.registry.lease if lasting else target.registry.interval
            await trio.sleep(context.retry_delay(failures, at_most, lasting=lasting))

    async def _leave(self, context: Context, target: Target) -> None:
        """Deregister a target that the plan does not have any more; at most until its lease has ended."""
        until, failures = trio.current_time() + target.registry.lease, 0
        while not self._is_held(context, target, leaving=False):
            try:
                await target.deregister(context)
                break
            except PidoneError as error:
                failures += 1
                target.error = f"not deregistered: {error}"
            if trio.current_time() >= until:
                context.log("left-registered", registry=target.registry.where, error=target.error)
                break
            self._report(context)
            await trio.sleep(context.retry_delay(failures, target.registry.lease / 3))
        if isinstance(target.registry, Connected):
            await target.registry.close()
        self._former.remove(target)
        self._report(context)

    def _is_held(self, context: Context, target: Target, *, leaving: bool) -> bool:
        """True if another task of the plan has the same instance; with ``leaving``, a task that leaves it.

        Such a task deregisters the instance, and a registration at the same time could be lost.
        """
        for view in self._setting.tasks():
            if view.leaving is leaving and view.task.action == "register" and view.task.name != context.task:
                action = context.action_of(view.task.name)
                if isinstance(action, Register) and any(
                    other.registry.succeeds(target.registry) for other in action.targets
                ):
                    return True
        return False

    async def _deregister(self, context: Context, target: Target) -> None:
        """Deregister one target. Of several, each has less time than all, so that those that failed are named."""
        seconds = trio.current_effective_deadline() - trio.current_time()
        part = UNDO_PART if len(self.targets) + len(self._former) > 1 else 2.0
        with trio.move_on_after(max(0.0, part * seconds)) as limit:
            await target.deregister(context)
        if limit.cancelled_caught:
            raise TaskFailed(f"not done within {part * seconds:.3g} s")

    def _report(self, context: Context) -> None:
        for target in self.targets:
            if target.registered:
                self._failed.pop(target, None)
        lost = any(target.lost for target in self.targets)
        registered = all(target.registered for target in self.targets)
        errors = {target: target.error for target in (*self.targets, *self._former) if target.error}
        reason = _together(errors)
        context.report(LOST if lost else REGISTERED if registered else "", reason)
        context.explain(reason)
        self._setting.maintenance.notify()


async def _in_parallel(calls: Mapping[Target, Callable[[], Awaitable[None]]]) -> dict[Target, PidoneError]:
    """Make all calls at the same time, and return the errors."""
    errors: dict[Target, PidoneError] = {}

    async def make(target: Target, call: Callable[[], Awaitable[None]]) -> None:
        try:
            await call()
        except PidoneError as error:
            errors[target] = error

    async with trio.open_nursery() as nursery:
        for target, call in calls.items():
            nursery.start_soon(make, target, call)
    return errors


def _together(errors: Mapping[Target, str]) -> str:
    """Return the errors of targets in one line; each names its target, if the task has several."""
    return "; ".join(
        f"{target.label}: {error}" if target.label else error for target, error in errors.items()
    )


def families(setting: Setting, views: Iterable[TaskView]) -> Iterator[Family]:
    up = gauge("pidone_registration_up", "Whether the instance is registered.")
    status = gauge("pidone_registration_status", "The status that the registry showed last; always 1.")
    endpoint = gauge("pidone_registration_endpoint", "The server of the registry that is in use; always 1.")
    age = gauge(
        "pidone_registration_heartbeat_age_seconds", "Seconds since the last heartbeat that was accepted."
    )
    lease = gauge("pidone_registration_lease_seconds", "Seconds until the lease ends.")
    backoff = gauge("pidone_registration_backoff_seconds", "Seconds until the next try after a failure.")
    registrations = counter("pidone_registrations_total", "Registrations that were accepted, by reason.")
    heartbeats = counter("pidone_heartbeats_total", "Heartbeats, by result.")
    for view in views:
        action = setting.action(view.task.name)
        for target in action.targets if isinstance(action, Register) else ():
            labels = {"task": view.task.name, "registry": target.name, "target": target.registry.where}
            up.add(target.registered, **labels)
            if target.status:
                status.add(1, **labels, status=target.status)
            endpoint.add(1, **labels, endpoint=target.registry.endpoint)
            if (seconds := target.heartbeat_age()) is not None:
                age.add(seconds, **labels)
            lease.add(target.lease_left(), **labels)
            backoff.add(target.backoff(), **labels)
            for reason in REASONS:
                registrations.add(target.registrations[reason], **labels, reason=reason)
            for result in RESULTS:
                heartbeats.add(target.heartbeats[result], **labels, result=result)
    yield from (up, status, endpoint, age, lease, backoff, registrations, heartbeats)


def build(fields: Fields, setting: Setting) -> Register:
    drain = fields.seconds("drain", 0.0, most=MAX_DRAIN_SECONDS)
    targets = []
    for entry in _entries(fields):
        following = _following(entry)
        pod = replace(setting.pod, ip=_address(entry, setting.pod.ip))
        name = registries.name_of(entry.left)
        registry = build_registry(entry, pod, setting.source)
        targets.append(Target(name, registry, following, setting))
    for first, second in combinations(targets, 2):
        if second.registry.succeeds(first.registry):
            raise Refused(f"{fields.path}.to: two targets keep the same instance at {first.registry.where}")
    return Register(targets, setting, drain)


def short_forms(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one registration in the short form for each target. Raises ``Refused``."""
    return [entry.left for entry in _entries(Fields(config, "register"))]


def instance_of(config: Mapping[str, Any], pod: Pod, ips: Sequence[str]) -> Registry:
    """Return the registry with the instance of a pod with these addresses, for the controller.

    ``config`` is a short form. The controller does not know the interfaces of a pod; an address in its list that only
    they tell is passed over. Raises ``Refused``.
    """
    fields = Fields(config, "register")
    _following(fields)
    fields.seconds("drain", 0.0)
    return build_registry(fields, replace(pod, ip=_address(fields, pod.ip, ips)), None)


def is_left(config: Mapping[str, Any]) -> bool:
    """True if the controller does not deregister the instance of a pod that is gone."""
    return config.get(ON_POD_GONE) == NONE


def build_registry(fields: Fields, pod: Pod, source: str | None) -> Registry:
    """Build the registry from the remaining ``fields``. Raises ``Refused``."""
    fields.text(ON_POD_GONE, None)
    registry = registries.build(fields, pod, source)
    fields.done()
    return registry


def _following(fields: Fields) -> Following:
    """Return how the status follows the probes. Raises ``Refused``."""
    until, when = fields.text("untilHealthy", WAIT), fields.text("whenUnhealthy", DOWN)
    for name, value, known in (("untilHealthy", until, UNTIL), ("whenUnhealthy", when, WHEN)):
        if value not in known:
            raise Refused(f'{fields.path}.{name}: expected {" or ".join(known)}, not "{value}"')
    return Following(fields.names("follow"), until, when)


def _address(fields: Fields, own: str, known: Sequence[str] | None = None) -> str:
    """Return the address to register, by the field ``address``. Raises ``Refused``.

    Only ``known`` addresses are chosen from, and ``own`` if none of them fits; None: those of this pod.
    """
    wanted = fields.texts("address")
    if not wanted:
        return own
    from pidone.actions import _address as choice

    for index, item in enumerate(wanted):
        if wrong := choice.problem(item):
            raise Refused(f"{fields.path}.address[{index}]: {wrong}")
    if known is not None:
        return choice.choose(wanted, own, [choice.Address("", ip) for ip in known]) or own
    present = choice.addresses()
    address = choice.choose(wanted, own, present)
    if not address:
        has = ", ".join(f"{one.interface} {one.text}" for one in present) or "none that it knows"
        raise Refused(f"{fields.path}.address: the pod has no address for {', '.join(wanted)}; it has {has}")
    return address


def _entries(fields: Fields) -> list[Fields]:
    """Return the fields of each target: its own, and the common ones that it does not have."""
    if "to" not in fields:
        return [fields]
    entries = fields.objects("to")
    if name := registries.name_of(fields.left):
        raise Refused(f"{fields.path}: it has to and {name}; move {name} into the list")
    if not 1 <= len(entries) <= MAX_TARGETS:
        raise Refused(f"{fields.path}.to: expected 1 to {MAX_TARGETS} registries, not {len(entries)}")
    return [entry.with_defaults(fields) for entry in entries]
