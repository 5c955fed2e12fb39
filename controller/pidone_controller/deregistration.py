"""The backstop: what a pod had registered and did not take back is taken out of its registry when the pod is gone.

containerd ends a sandbox with SIGKILL, so a pod that went too fast could not do it itself, and callers would be sent to
an address with nobody behind it until the lease ends. The controller knows what was there: the pod's plan says
which instance in which registry, its last report which tasks it still has. The same drivers as in the pod do it.
Whether such a task has begun is not asked: reports come at most once a second, and a pod registers within
milliseconds and may be killed before it tells. To take out what never was there is one call without an effect.

``Backstop`` has two sides. In every replica, called as it happens, without an ``await``:

- ``heard(pod, report, digest, plan)`` for each report of a live pod, its own or forwarded by a peer; ``digest`` is
  of the plan that the pod is served, ``plan()`` its tasks. Called for reports that came before the plan changed, too.
- ``gone(key, namesake=...)`` when a pod is gone: deleted, or finished; ``namesake``: a live pod has its name already.

And led: ``run()`` does what there is to do while this replica leads. What is due in one that does not lead waits for a
while: should the leader die with the pod, the next one takes it on. Twice does no harm.

What is asked for is named by a plan: by whoever may write TaskSets, and, where params of theirs come from labels and
annotations, by whoever may write pods; never by what a pod reports. It can be no more than a DELETE of one instance
below a URL. The controller calls from its own place in the network, without a credential but what stands in that
URL: a NetworkPolicy on it says which registries it reaches.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NoReturn, Protocol

import trio

from pidone.errors import PidoneError, RegistryRefused
from pidone.metrics.exposition import Family, counter_by, gauge
from pidone.plan import model
from pidone.plan.digest import canonical
from pidone.plan.fields import Fields
from pidone.plan.report import Report
from pidone.registries import Registry
from pidone.registries import build as build_registry
from pidone_controller.log import Log

AT_ONCE = 64  # calls in flight,
AT_ONE = 8  # of them to one registry: one that does not answer must not hold up the others
PATIENCE = 300.0  # seconds from the pod's end until a registry is left to its own lease
RETRY_MAX = 30.0  # seconds between two tries, at most; the first are a second or two apart
HANDOVER = 60.0  # seconds that a job waits for a leader: a lease that ran out, and some
HEARSAY = 3.0  # seconds for a namesake's first report to arrive, before its place is taken for the old pod's
TERM = 10.0  # seconds until a new leader has heard who holds what: its peers look at the Lease each 4 s

NOBODY = "none"  # onPodGone

Plan = Callable[[], Sequence[Mapping[str, Any]]]


class Pod(Protocol):
    """What is read of ``inventory.Pod``."""

    @property
    def key(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def uid(self) -> str: ...
    @property
    def ips(self) -> tuple[str, ...]: ...


Build = Callable[[Mapping[str, Any], Pod], Registry]


@dataclass(frozen=True, slots=True)
class Registration:
    """One register task of one pod: which instance of which registry.

    Small, since there is one for each registered pod; the driver is made again where it is needed.
    """

    task: str
    config: bytes  # ``register`` of the plan
    where: str
    instance: str

    @property
    def place(self) -> tuple[str, str]:
        return self.where, self.instance


@dataclass(frozen=True, slots=True)
class _Known:
    """What one live pod has registered, or is about to."""

    pod: Pod
    digest: str | None  # of the plan that it reported
    registrations: tuple[Registration, ...]


@dataclass(slots=True)
class _Job:
    """One instance to be taken out. ``since`` is when its pod was gone."""

    pod: Pod
    registration: Registration
    since: float
    pause: float = 0.0  # before the first try
    tries: int = 0


def build(config: Mapping[str, Any], pod: Pod) -> Registry:
    """The driver for ``register`` of a plan. Raises ``Refused``."""
    facts = model.Pod(pod.name, pod.namespace, pod.uid, pod.ips[0] if pod.ips else "")
    left = {name: value for name, value in config.items() if name not in {"follow", "onPodGone"}}
    return build_registry(Fields(left, "register"), facts, None)


@dataclass(slots=True)
class Backstop:
    """Knows what pods have registered, and takes it out when they are gone."""

    log: Log
    build: Build = build
    random: Random = field(default_factory=Random)
    counts: Counter[str] = field(default_factory=Counter)  # deregistered, taken_over, given_up
    _known: dict[str, _Known] = field(default_factory=dict)  # by the pod's key
    _holders: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)  # keys of pods, by place
    _jobs: dict[int, _Job] = field(default_factory=dict)
    _made: int = 0
    _nursery: trio.Nursery | None = None
    _all: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(AT_ONCE))
    _lanes: dict[str, trio.CapacityLimiter] = field(default_factory=dict)

    def heard(self, pod: Pod, report: Report, digest: str, plan: Plan) -> None:
        """A live pod has reported. A task that its report does not have is taken back, or was never there."""
        known = self._known.get(pod.key)
        there = {one.task: one for one in known.registrations} if known is not None else {}
        # Of a plan that is not the one served now, only what is known already. Who has just begun to listen knows
        # nothing, and what is served now is the best guess.
        if known is None or (known.digest != report.digest == digest):
            there |= self._read(pod, plan())
        mine = tuple(one for one in there.values() if one.task in report.tasks or one.task in report.left)
        # a pod that registers nothing is remembered too, so that its plan is not read at each report
        self._keep(pod.key, _Known(pod, report.digest, mine))

    def gone(self, key: str, *, namesake: bool = False) -> None:
        """A pod is no more. Nothing is to be done where it took back all that it did."""
        known = self._known.get(key)
        self._keep(key, None)
        now = trio.current_time()
        if self._nursery is None:
            self._jobs = {number: job for number, job in self._jobs.items() if now - job.since <= HANDOVER}
        if known is None:
            return
        for one in known.registrations:
            if json.loads(one.config).get("onPodGone") != NOBODY:
                self._made += 1
                job = self._jobs[self._made] = _Job(known.pod, one, now, HEARSAY if namesake else 0.0)
                if self._nursery is not None:
                    self._nursery.start_soon(self._do, self._made, job)

    def families(self) -> Iterator[Family]:
        """Metrics of deregistrations."""
        yield counter_by(
            "result", "pidone_controller_backstop_total", "Instances of dead pods, by result.", self.counts
        )
        yield gauge(
            "pidone_controller_backstop_pending", "Instances of dead pods to deregister.", self.pending
        )

    @property
    def pending(self) -> int:
        """Instances that are to be taken out, and are not yet."""
        return len(self._jobs)

    async def run(self) -> NoReturn:
        """Take out what is left, until cancelled; a call that is under way then is given up, as by a time limit."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                now = trio.current_time()
                for number, job in list(self._jobs.items()):
                    if now - job.since > HANDOVER:
                        del self._jobs[number]
                    else:  # the leader before may have done it, and the place be another pod's by now
                        job.pause = TERM
                        nursery.start_soon(self._do, number, job)
                await trio.sleep_forever()
            finally:
                self._nursery = None
        raise AssertionError("a nursery with a task that sleeps for ever has no end")

    async def _do(self, number: int, job: _Job) -> None:
        pause: float | None = job.pause
        while pause is not None:
            await trio.sleep(pause)
            try:
                pause = await self._try(job)
            except Exception as error:  # noqa: BLE001 - a bug that one instance brings out must not stop the others
                self._tell("given_up", job, error=f"{type(error).__name__}: {error}")
                pause = None
        self._jobs.pop(number, None)
        if not self._jobs:
            self._lanes.clear()

    async def _try(self, job: _Job) -> float | None:
        """Seconds until the next try; None where there is none."""
        one = job.registration
        try:
            async with self._lanes.setdefault(one.where, trio.CapacityLimiter(AT_ONE)), self._all:
                # looked up at the last moment: whoever has the place by now puts its own document there
                holder = self._holder(one)
                if not holder:
                    await self.build(json.loads(one.config), job.pod).deregister()
        except PidoneError as error:
            job.tries += 1
            pause = min(RETRY_MAX, 2.0**job.tries) * (1 - 0.5 * self.random.random())
            lasting = isinstance(error, RegistryRefused)
            if not lasting and trio.current_time() + pause <= job.since + PATIENCE:
                return pause
            tried = "" if lasting else f"; tried {job.tries} times in {PATIENCE:g} s"
            self._tell("given_up", job, error=f"{error}{tried}; the registry's own lease ends it")
            return None
        if holder:
            self._tell("taken_over", job, by=holder)
        else:
            self._tell("deregistered", job)
        return None

    def _tell(self, what: str, job: _Job, **more: str) -> None:
        self.counts[what] += 1
        one = job.registration
        event = {"given_up": "left-registered", "taken_over": "registered-anew"}.get(what, what)
        self.log(event, pod=job.pod.path, task=one.task, registry=one.where, instance=one.instance, **more)

    def _holder(self, one: Registration) -> str:
        """A live pod whose plan has the same instance; empty where there is none.

        Also one that is only about to register it: it puts its own document over what is there, and its word that
        it has may be under way.
        """
        keys = self._holders.get(one.place, ())
        return min((self._known[key].pod.path for key in keys), default="")

    def _read(self, pod: Pod, plan: Sequence[Mapping[str, Any]]) -> dict[str, Registration]:
        """What a plan registers, and the controller may take out."""
        found = {}
        for task in plan:
            config = task.get("register")
            if not isinstance(config, Mapping):
                continue
            try:
                registry = self.build(config, pod)
            except PidoneError as error:  # the pod refuses it as well, and says so
                self.log("unknown-registry", pod=pod.path, task=task["name"], error=error)
                continue
            where = sys.intern(registry.where)
            found[task["name"]] = Registration(task["name"], canonical(config), where, registry.instance)
        return found

    def _keep(self, key: str, known: _Known | None) -> None:
        """Remember it, and who holds which place."""
        before = self._known.pop(key, None)
        if known is not None:
            self._known[key] = known
        old = {one.place for one in before.registrations} if before is not None else set()
        new = {one.place for one in known.registrations} if known is not None else set()
        for place in old - new:
            holders = self._holders[place] = tuple(one for one in self._holders[place] if one != key)
            if not holders:
                del self._holders[place]
        for place in new - old:
            self._holders[place] = (*self._holders.get(place, ()), key)
