"""Deregisters the instances of pods that are gone and did not deregister themselves.

containerd ends a sandbox with SIGKILL, so a pod that ended too fast could not deregister, and clients would be sent to
an address without a server until the lease ends. The controller knows what was registered: the pod's plan names the
instance and its registry, its last report the tasks that it still has. It uses the same drivers as the pod. It does
not ask whether such a task had begun: a pod registers within milliseconds, may be killed before it reports, and
reports at most once a second. To look for an instance that was never there is one call without an effect.

An instance of a live pod is never deregistered. Two URLs may mean the same registry in ways that nobody can see from
them (aliases in DNS, a proxy). So an instance stays if a live pod registers the same one at the same server or with the
same address, and if the registry has it with another address than the pod had that is gone.

A registry that is starved may carry out a registration after the deregistration. So the controller looks a second time,
after ``LOOK_AGAIN_SECONDS``, and deregisters an instance that is back with the address of the pod that is gone.

The plan alone decides what is deregistered: people who may write TaskSets, and, where params come from labels and
annotations, people who may write pods; never a pod's report. It can be no more than a DELETE of one instance below a
URL. The controller calls from its own place in the network: a NetworkPolicy for the controller limits the registries
that it reaches. It reads no file that the plan names, since that would be a file of the controller, such as its own
token: the only credentials that it sends are those in the plan itself. It does not call a loopback address, which would
be its own and not the pod's.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, NoReturn

import trio

from pidone.actions.register import instance_of, is_left, short_forms
from pidone.errors import PidoneError, Refused, RegistryRefused, TransferTimeout
from pidone.http.client import redacted
from pidone.http.urls import is_loopback, with_namespace
from pidone.language.schemas import registries
from pidone.metrics.exposition import Family, counter_by, gauge
from pidone.pacing import Backoff
from pidone.plan import model
from pidone.plan.digest import canonical
from pidone.plan.mask import Mask, values_of
from pidone.plan.report import Report
from pidone.registries import Connected, Registry
from pidone_controller.log import Log
from pidone_controller.pods.model import Pod

MAX_CALLS = 64  # at once
MAX_CALLS_PER_REGISTRY = 8  # of them: a registry that does not answer must not delay the others
GIVE_UP_SECONDS = 300.0  # after the end of the pod: then the registry's lease ends the instance
RETRY = Backoff(initial=2.0, maximum=30.0, jitter=0.5)
HANDOVER_SECONDS = 60.0  # that a job waits for a leader: as long as a lease lasts, and some
# If a pod of the same name exists, wait this long for its first report before deregistering the old instance.
NEW_POD_REPORT_SECONDS = 3.0
LOOK_AGAIN_SECONDS = 30.0  # after a deregistration
CALL_SECONDS = 60.0  # for all requests of one try: a plan can make the limits of a driver longer
CLOSE_SECONDS = 1.0  # for closing the connection of a driver
FILE = "File"  # the end of the names of fields with the path of a file in the pod
# A new leader waits this long for the reports of the other replicas, which look at the Lease every 4 s.
NEW_LEADER_SECONDS = 10.0

Tasks = Callable[[], Sequence[Mapping[str, Any]]]
Build = Callable[[Mapping[str, Any], Pod], Registry]
Left = Callable[[Pod, str], None]  # the pod, and what was left with the reason


@dataclass(frozen=True, slots=True)
class Registration:
    """One target of a register task of one pod: an instance in a registry.

    Small, since there is one for each registered pod; the driver is built again when it is needed.
    """

    task: str
    config: bytes  # ``register`` of the plan, in its short form
    registry: str  # its servers as the plan writes them, for people and for the limit of calls
    places: frozenset[str]  # each server in one spelling
    instance: str
    address: str  # of the pod, as the registry gives it to clients
    secrets: frozenset[str] = frozenset()  # what no text may tell of it
    file: str = ""  # of the pod, with a value that the document lacks here; empty: there is none

    def overwrites(self, other: "Registration") -> bool:
        """True if both are or may be the same instance of the same registry."""
        same_registry = not self.places.isdisjoint(other.places) or self.address == other.address
        return self.instance == other.instance and same_registry


@dataclass(frozen=True, slots=True)
class _PodRegistrations:
    """What one live pod has registered, or is about to."""

    pod: Pod
    digest: str | None  # of the plan that it reported
    registrations: tuple[Registration, ...]


@dataclass(slots=True)
class _Job:
    """One instance to deregister."""

    pod: Pod
    registration: Registration
    since: float  # clock time at which the pod was gone
    pause: float = 0.0  # seconds before the first try
    failures: int = 0
    again: bool = False  # it was deregistered, and is looked at again


@dataclass(frozen=True, slots=True)
class _Result:
    """The result of one try."""

    holder: str = (
        ""  # the one that the instance belongs to instead; empty: the registry does not have it any more
    )
    was_there: bool = False  # the registry had it


def build(config: Mapping[str, Any], pod: Pod) -> Registry:
    """The driver for ``register`` of a plan, in its short form. Raises ``Refused``."""
    facts = model.Pod(pod.name, pod.namespace, pod.uid, pod.ips[0] if pod.ips else "")
    return instance_of(config, facts, pod.ips)


def outside(config: Mapping[str, Any], pod: str, here: str, *, one_host: bool = False) -> dict[str, Any]:
    """Return ``register`` of a plan as it means the same to the controller; ``pod`` and ``here`` are namespaces.

    To the pod ``http://eureka`` is the Service of its own namespace. The paths of files in the pod are left out.
    ``here`` is empty for a controller outside of a cluster. Raises ``RegistryRefused`` for a loopback address, unless
    pod and controller have ``one_host``.
    """

    def server(text: str) -> str:
        if here and not one_host and is_loopback(text):
            raise RegistryRefused(f"{redacted(text)} is an address within the pod, which no other can call")
        return with_namespace(text, pod) if here and here != pod else text

    def fields(config: Mapping[str, Any], servers: str) -> dict[str, Any]:
        return {
            key: ",".join(server(part.strip()) for part in value.split(","))
            if key == servers and isinstance(value, str)
            else anything(value, key)
            for key, value in config.items()
            if not key.endswith(FILE)
        }

    def anything(value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            registry = registries().get(key)
            return fields(value, registry.instance[0] if registry is not None else "")
        return [anything(item, "") for item in value] if isinstance(value, list) else value

    return fields(config, "")


class Deregistration:
    """Remembers the registrations of live pods, and deregisters them when their pods are gone.

    ``reported`` and ``gone`` are called in every replica, without an ``await``; ``run`` while this replica leads. A job
    that is due in a replica which does not lead waits for a while: if the leader dies together with a pod, the next
    leader takes the job over. To deregister twice does no harm.
    """

    def __init__(
        self,
        log: Log,
        build: Build = build,
        random: Random | None = None,
        *,
        namespace: str = "",
        left: Left = lambda _pod, _text: None,
    ) -> None:
        """``left`` is called for each instance that could not be deregistered."""
        self.results: Counter[str] = Counter()  # deregistered, deregistered_again, taken_over, given_up
        self._log, self._build, self._random = log, build, random or Random()
        self._namespace = namespace  # of the controller; empty where it is in none
        self._left = left
        self._pods: dict[str, _PodRegistrations] = {}  # by the pod's key
        self._holders: dict[str, tuple[str, ...]] = {}  # keys of live pods by the instance they register
        self._shared = lru_cache(maxsize=1024)(_same)  # most pods have the same few registries
        self._jobs: dict[int, _Job] = {}
        self._last_job = 0
        self._nursery: trio.Nursery | None = None  # while this replica leads
        self._limit = trio.CapacityLimiter(MAX_CALLS)
        self._limits: dict[str, trio.CapacityLimiter] = {}  # by registry

    def reported(self, pod: Pod, report: Report, digest: str, tasks: Tasks) -> None:
        """A live pod has reported, to this replica or to another one; also if its plan has changed since.

        ``digest`` is that of the plan that the pod is served, ``tasks`` returns its tasks.
        """
        before = self._pods.get(pod.key)
        registrations: dict[str, list[Registration]] = {}
        for one in before.registrations if before is not None else ():
            registrations.setdefault(one.task, []).append(one)
        # A report of an earlier plan adds nothing. A replica that has just begun knows no plan of the pod, and takes
        # the one that is served now as the best guess.
        if before is None or (before.digest != report.digest == digest):
            registrations |= self._read(pod, tasks())

        present = {*report.tasks, *report.left}
        if report.omitted:
            # Nothing is known about a task that the report has no room for, unless the plan does not have it either.
            planned = {task["name"] for task in tasks()} if report.digest == digest else registrations.keys()
            present |= planned
        kept = tuple(one for task, targets in registrations.items() if task in present for one in targets)
        # Also without any registration, so that the plan is not read again at each report.
        self._remember(pod.key, _PodRegistrations(pod, report.digest, kept))

    def gone(self, key: str, *, namesake: bool = False) -> None:
        """A pod was deleted or has finished. ``namesake``: a live pod has its name already."""
        pod = self._pods.get(key)
        self._remember(key, None)
        now = trio.current_time()
        if self._nursery is None:
            self._jobs = {
                number: job for number, job in self._jobs.items() if now - job.since <= HANDOVER_SECONDS
            }
        for registration in pod.registrations if pod is not None else ():
            assert pod is not None
            if is_left(json.loads(registration.config)):
                continue
            pause = NEW_POD_REPORT_SECONDS if namesake else 0.0
            self._last_job += 1
            job = self._jobs[self._last_job] = _Job(pod.pod, registration, now, pause)
            if self._nursery is not None:
                self._nursery.start_soon(self._work, self._last_job, job)

    @property
    def pending(self) -> int:
        """Instances that are to be deregistered."""
        return sum(not job.again for job in self._jobs.values())

    def families(self) -> Iterator[Family]:
        """Metrics of deregistrations."""
        prefix = "pidone_controller_backstop"
        yield counter_by("result", f"{prefix}_total", "Instances of dead pods, by result.", self.results)
        yield gauge(f"{prefix}_pending", "Instances of dead pods to deregister.", self.pending)

    async def run(self) -> NoReturn:
        """Work on all jobs until cancelled. A call that is cancelled is repeated by the next leader."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                now = trio.current_time()
                for number, job in list(self._jobs.items()):
                    if now - job.since > HANDOVER_SECONDS:
                        del self._jobs[number]
                    else:
                        # The leader before may have done it, and another pod may have the place by now.
                        job.pause = NEW_LEADER_SECONDS
                        nursery.start_soon(self._work, number, job)
                await trio.sleep_forever()
            finally:
                self._nursery = None
        raise AssertionError("a nursery with a task that sleeps forever does not end")

    async def _work(self, number: int, job: _Job) -> None:
        pause: float | None = job.pause
        while pause is not None:
            await trio.sleep(pause)
            try:
                pause = await self._try(job)
            except Exception as error:  # noqa: BLE001 - a bug that one instance triggers must not stop the others
                self._finish("given_up", job, error=f"{type(error).__name__}: {error}")
                pause = None
        self._jobs.pop(number, None)
        if not self._jobs:
            self._limits.clear()

    async def _try(self, job: _Job) -> float | None:
        """Deregister once. Returns the seconds until the next try or look; None if the job is finished."""
        registration = job.registration
        limit = self._limits.setdefault(registration.registry, trio.CapacityLimiter(MAX_CALLS_PER_REGISTRY))
        try:
            async with limit, self._limit:
                with trio.move_on_after(CALL_SECONDS) as scope:
                    result = await self._deregister(registration, job.pod)
                if scope.cancelled_caught:
                    raise TransferTimeout(f"{registration.registry}: not done within {CALL_SECONDS:g} s")
        except PidoneError as error:
            job.failures += 1
            pause = RETRY.delay(job.failures, self._random)
            refused = isinstance(error, RegistryRefused)
            if not refused and trio.current_time() + pause <= job.since + GIVE_UP_SECONDS:
                return pause
            if job.again:
                return None
            tries = "" if refused else f"; tried {job.failures} times in {GIVE_UP_SECONDS:g} s"
            self._finish("given_up", job, error=f"{error}{tries}; the registry's own lease ends it")
            return None

        if job.again:
            if result.was_there and not result.holder:
                self._finish("deregistered_again", job)
            return None
        if result.holder:
            self._finish("taken_over", job, by=result.holder)
            return None
        self._finish("deregistered", job)
        job.again, job.failures, job.since = True, 0, trio.current_time()
        return LOOK_AGAIN_SECONDS

    async def _deregister(self, registration: Registration, pod: Pod) -> _Result:
        """Deregister the instance, unless it is another's. Raises ``RegistryError`` and ``TransferError``."""
        holder = self._holder(registration)
        if holder:
            return _Result(holder)
        if registration.file:
            raise RegistryRefused(
                f"a value is in the file {registration.file} of the pod, which only the pod reads"
            )
        config = json.loads(registration.config)
        try:
            one_host = bool(pod.ips) and all(map(is_loopback, pod.ips))  # in tests
            config = outside(config, pod.namespace, self._namespace, one_host=one_host)
            driver = self._build(config, pod)
        except Refused as error:
            raise RegistryRefused(f"{error}{_without_files(registration)}") from error
        try:
            entry = await driver.read()
            if entry is None:
                return _Result()
            if entry.address not in {driver.address, *pod.ips}:
                return _Result(f"the instance at {entry.address}")
            # Looked up at the last moment: a pod that registers it by now writes its own document there.
            holder = self._holder(registration)
            if not holder:
                await driver.deregister()
            return _Result(holder, was_there=True)
        except RegistryRefused as error:
            raise RegistryRefused(f"{error}{_without_files(registration)}") from error
        finally:
            if isinstance(driver, Connected):
                with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_SECONDS):
                    await driver.close()

    def _finish(self, result: str, job: _Job, **more: str) -> None:
        """Count and log the result of a job."""
        self.results[result] += 1
        event = {"given_up": "left-registered", "taken_over": "registered-anew"}.get(
            result, result.replace("_", "-")
        )
        registration = job.registration
        mask = Mask(registration.secrets)
        if result == "given_up":
            what = f'"{registration.instance}" of task "{registration.task}" at {registration.registry}'
            self._left(job.pod, mask(f"{what} was not deregistered: {more.get('error', '')}"))
        self._log(
            event,
            pod=job.pod.path,
            task=registration.task,
            registry=mask(registration.registry),
            instance=mask(registration.instance),
            **{name: mask(text) for name, text in more.items()},
        )

    def _holder(self, registration: Registration) -> str:
        """A live pod whose plan registers the same instance; empty if there is none.

        Also one that has not registered it yet: it overwrites the old document, and its report may be under way.
        """
        pods = (self._pods[key] for key in self._holders.get(registration.instance, ()))
        return min(
            (one.pod.path for one in pods if any(map(registration.overwrites, one.registrations))), default=""
        )

    def _read(self, pod: Pod, tasks: Sequence[Mapping[str, Any]]) -> dict[str, list[Registration]]:
        """The registrations of a plan, by task: one for each of its targets."""
        registrations: dict[str, list[Registration]] = {}
        for task in tasks:
            config = task.get("register")
            if not isinstance(config, Mapping):
                continue
            try:
                drivers = [(form, self._build(form, pod)) for form in short_forms(config)]
            except PidoneError as error:  # the pod refuses it too, and reports it
                text = Mask(values_of([task]))(str(error))
                self._log("unknown-registry", pod=pod.path, task=task["name"], error=text)
                continue
            name = task["name"]
            registrations[name] = [
                Registration(
                    name,
                    canonical(form),
                    sys.intern(driver.where),
                    self._shared(driver.places),
                    driver.instance,
                    driver.address,
                    values_of([task]),
                    _marked_file(form, task),
                )
                for form, driver in drivers
            ]
        return registrations

    def _remember(self, key: str, pod: _PodRegistrations | None) -> None:
        """Replace what is known about a pod, and index the instances that it registers."""
        before = self._pods.pop(key, None)
        if pod is not None:
            self._pods[key] = pod
        old = (
            {registration.instance for registration in before.registrations} if before is not None else set()
        )
        new = {registration.instance for registration in pod.registrations} if pod is not None else set()
        for instance in old - new:
            holders = tuple(one for one in self._holders.pop(instance) if one != key)
            if holders:
                self._holders[instance] = holders
        for instance in new - old:
            self._holders[instance] = (*self._holders.get(instance, ()), key)


def _marked_file(form: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    """Return the first file that the pod reads for this target of its task; empty if there is none."""
    files: Mapping[str, str] = (task.get(model.SECRETS) or {}).get(model.VALUE_FILES) or {}
    written = canonical(form).decode() if files else ""
    return next((file for mark, file in files.items() if mark in written), "")


def _without_files(registration: Registration) -> str:
    """Return the end of a refusal, which names the files of the pod that the controller does not read."""

    def named(value: Any) -> Iterator[str]:
        for key, inner in value.items() if isinstance(value, Mapping) else ():
            yield from [f"{key} {inner}"] if key.endswith(FILE) else named(inner)

    files = ", ".join(named(json.loads(registration.config)))
    return f" (without {files}: the controller reads no file that the plan names)" if files else ""


def _same(places: frozenset[str]) -> frozenset[str]:
    return places
