"""Derives the plan of each pod from the pods of the cluster and the rules, and the last report of each pod.

All state is in memory. It changes in ``put``, ``drop``, ``replace``, ``rule`` and ``receive`` only, never across an
``await``, so there are no locks. A plan is derived when it is requested, or in ``run`` after a change that may concern
a pod that a binding selects. A pod without bindings costs its entry in the inventory and nothing else.
"""

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import trio

from pidone.language.binding import Rules, derive
from pidone.language.extends import ANY
from pidone.language.model import TaskBinding
from pidone.language.selector import matches
from pidone.metrics.exposition import Family, counter, gauge
from pidone.pacing import RateLimit
from pidone.plan.report import Report
from pidone_controller.log import Log, short_digest
from pidone_controller.pods.inventory import Inventory
from pidone_controller.pods.model import FrozenLabels, NamespacedName, Pod
from pidone_controller.repo import bundles
from pidone_controller.repo.bundles import Derive, Entry
from pidone_controller.repo.waiting import Waiting

SLICE_SECONDS = 0.005  # of derivation, until other tasks have a turn

OnReport = Callable[[Pod, Report], None]
OnGone = Callable[[Pod, Report | None], None]


@dataclass(slots=True)
class _PodReports:
    """The last report of one live pod, and the rate limit of its reports."""

    limit: RateLimit
    report: Report | None = None
    received: float = 0.0  # seconds since 1970


class Plans:
    """Pods, rules, derived plans and reports. ``ready`` after both pods and rules were set once.

    ``on_report`` is called with each report of a live pod, ``on_gone`` with each pod that has finished or was deleted,
    and its last report.
    """

    def __init__(
        self,
        log: Log,
        *,
        on_report: OnReport | None = None,
        on_gone: OnGone | None = None,
        derive: Derive = derive,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.inventory = Inventory()
        self.waiting = Waiting()
        self._log, self._derive, self._wall_clock = log, derive, wall_clock
        self._on_report, self._on_gone = on_report, on_gone
        self._rules: Rules | None = None
        self._listed = False  # ``replace`` was called once
        # By namespace and labels: True if a binding selects such pods
        self._bound: dict[str, dict[FrozenLabels, bool]] = {}
        self._bound_count = 0  # of their labels
        self._entries: dict[str, Entry] = {}  # of pods that a binding selects, by the pod's key
        self._outdated: set[str] = set()  # of them: derived under earlier rules
        self._reports: dict[str, _PodReports] = {}  # by the pod's key
        self._withheld: dict[str, str] = {}  # by the pod's key: the reason why plain http is refused
        self._queue: dict[NamespacedName, None] = {}  # pods to derive in ``run``, before those of ``_scan``
        self._scan: deque[Pod] = deque()
        self._work = trio.Event()
        self._derivations, self._derivation_seconds = 0, 0.0

    @property
    def ready(self) -> bool:
        return self._listed and self._rules is not None

    @property
    def rules(self) -> Rules:
        return self._rules or Rules()

    # Changes

    def replace(self, pods: Iterable[Pod]) -> None:
        """Set all pods: every other pod was deleted."""
        present = {(pod.namespace, pod.name): pod for pod in pods}
        for pod in [pod for pod in self.inventory if (pod.namespace, pod.name) not in present]:
            self.drop((pod.namespace, pod.name))
        for pod in present.values():
            self.put(pod)
        self._listed = True

    def put(self, pod: Pod) -> None:
        """Add or change a pod. Several changes without an ``await`` between them are derived once.

        Held requests of the pod are answered at once if the change brings an answer.
        """
        before = self.inventory.find(pod.namespace, pod.name)
        if before == pod:
            return
        places = self.inventory.put(pod) | {pod.key, *pod.ips}
        if before:
            places |= {before.key, *before.ips}
            if pod.finished or pod.key != before.key:
                self._forget(before)

        if self._needs_entry(pod):
            self._queue[pod.namespace, pod.name] = None
            self._work.set()
        self.waiting.wake(places)

    def drop(self, name: NamespacedName) -> None:
        """Remove a pod that was deleted."""
        before = self.inventory.find(*name)
        places = self.inventory.drop(*name)
        if before:
            self._forget(before)
            self.waiting.wake(places | {before.key, *before.ips})

    def rule(self, rules: Rules, changed: Iterable[TaskBinding] | None = None) -> list[Pod]:
        """Set the rules. ``run`` derives the plans that may change, those of waiting pods first.

        ``changed`` are the bindings through which plans may change, as they were and as they are; None: any plan may.
        Returns the pods whose plans may change.
        """
        self._rules = rules
        if changed is None:
            self._forget_all_bound()
            pods = list(self.inventory)
            self._scan.clear()
        else:
            bindings = list(changed)
            self._forget_bound(bindings)
            by_key = {pod.key: pod for binding in bindings for pod in self.selected(binding)}
            pods = list(by_key.values())

        self._derive_again(pods)
        return pods

    def secrets_changed(self, namespace: str) -> list[Pod]:
        """Derive the plans of a namespace (``ANY``: of all) again that may change with its Secrets."""
        pods = [
            pod
            for pod in (self.inventory.in_namespace(namespace) if namespace != ANY else self.inventory)
            if (entry := self._entries.get(pod.key)) is not None and entry.uses_secrets
        ]
        self._derive_again(pods)
        return pods

    def _derive_again(self, pods: Sequence[Pod]) -> None:
        self._outdated.update(pod.key for pod in pods if pod.key in self._entries)
        self._queue.update(dict.fromkeys((pod.namespace, pod.name) for pod in self._waiting(pods)))
        self._scan.extend(pods)
        self._work.set()

    def selected(self, binding: TaskBinding) -> Iterator[Pod]:
        """Return the present pods that a binding selects, in any phase."""
        matching: dict[FrozenLabels, bool] = {}  # pods of one workload have the same labels
        pods = self.inventory.in_namespace(binding.namespace) if binding.namespace != ANY else self.inventory
        for pod in pods:
            labels = pod.labels
            if labels not in matching:
                matching[labels] = matches(binding.pod_selector, labels)
            if matching[labels]:
                yield pod

    async def run(self) -> None:
        """Derive plans after changes and wake their held requests, until cancelled."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            async for pod in in_slices(self._pending()):
                if self._needs_entry(pod):
                    self.entry(pod)

    # Plans

    def is_bound(self, pod: Pod) -> bool:
        """True if any binding selects the pod."""
        bound = self._bound.get(pod.namespace, {}).get(pod.labels)
        if bound is None:
            if self._bound_count > 2 * len(self.inventory) + 1000:
                self._forget_all_bound()  # most are of deleted pods
            bound = next(self.rules.matching(pod), None) is not None
            self._bound.setdefault(pod.namespace, {})[pod.labels] = bound
            self._bound_count += 1
        return bound

    def entry(self, pod: Pod) -> Entry:
        """Return the entry of a present pod, derived again if it is outdated."""
        before = self._entries.get(pod.key)
        if before and before.pod is pod and pod.key not in self._outdated:
            return before

        self._outdated.discard(pod.key)
        if not self.is_bound(pod):
            entry = Entry(pod, bundles.encode(pod, []))
            if before:
                del self._entries[pod.key]
        else:
            began = time.perf_counter()
            entry = self._entries[pod.key] = bundles.entry(pod, self.rules, before, self._derive)
            self._derivations += 1
            self._derivation_seconds += time.perf_counter() - began

        if before or self.is_bound(pod):
            self._log_entry(before, entry)
            if before is None or (before.bundle, before.rest) != (entry.bundle, entry.rest):
                self.waiting.wake([pod.key, *pod.ips])
        return entry

    def withheld(self, pod: Pod) -> str:
        """Return why the pod does not get its plan over plain http; empty if it does, or has sent no request."""
        return self._withheld.get(pod.key, "")

    def withhold(self, pod: Pod, reason: str) -> None:
        """Record and log why the pod does not get its plan over plain http; an empty reason: it does."""
        if not reason:
            self._withheld.pop(pod.key, None)
        elif self._withheld.get(pod.key) != reason:
            self._withheld[pod.key] = reason
            self._log("withheld", pod=pod.path, error=reason)

    # Reports

    def report(self, pod: Pod) -> Report | None:
        """Return the last report of the pod; None if it has sent none."""
        last = self._reports.get(pod.key)
        return last.report if last else None

    def last_report(self, pod: Pod) -> tuple[Report, float] | None:
        """Return the last report of the pod and the time at which it was received, in seconds since 1970."""
        last = self._reports.get(pod.key)
        return (last.report, last.received) if last and last.report else None

    def report_pause(self, pod: Pod, *, take: bool = True) -> float:
        """Return 0, or the seconds until the pod may report again. With ``take`` the report is counted."""
        limit = self._reports.setdefault(pod.key, _PodReports(_report_limit())).limit
        return limit.take(trio.current_time()) if take else limit.wait(trio.current_time())

    def receive(self, pod: Pod, report: Report, received: float | None = None) -> None:
        """Store a report of a live pod. ``received`` is the time at which another replica got it; the latest counts."""
        last = self._reports.get(pod.key)
        if last is None:
            last = self._reports[pod.key] = _PodReports(_report_limit())
        if received is not None and received <= last.received:
            return
        self._log_report(pod, last.report, report)
        last.report, last.received = report, self._wall_clock() if received is None else received
        if self._on_report:
            self._on_report(pod, report)

    def families(self) -> Iterator[Family]:
        """Yield metrics of pods and derivations."""
        prefix = "pidone_controller_"
        yield gauge(f"{prefix}pods", "Pods in the inventory.", len(self.inventory))
        yield gauge(f"{prefix}bound_pods", "Served pods that a binding selects.", len(self._entries))
        yield counter(f"{prefix}derivations_total", "Plans that were derived.", self._derivations)
        yield counter(
            f"{prefix}derivation_seconds_total", "Time for deriving plans.", self._derivation_seconds
        )

    def _waiting(self, pods: Sequence[Pod]) -> Iterator[Pod]:
        """Return those of these pods that hold a request, and possibly others."""
        places = self.waiting.places()
        if len(places) < len(pods):
            for place in places:
                yield from self.inventory.at(place)
            return
        for pod in pods:
            if any(self.waiting.count(place) for place in (pod.key, *pod.ips)):
                yield pod

    def _pending(self) -> Iterator[Pod]:
        """Yield the pods that ``run`` must process, with those that are added meanwhile."""
        while True:
            if self._queue:
                name = next(iter(self._queue))
                del self._queue[name]
                pod = self.inventory.find(*name)
            else:
                if not self._scan:
                    return
                scanned = self._scan.popleft()
                pod = self.inventory.find(scanned.namespace, scanned.name)
            if pod:
                yield pod

    def _needs_entry(self, pod: Pod) -> bool:
        """True if a plan is derived for the pod before its request."""
        return pod.key in self._entries or (pod.served and self.is_bound(pod))

    def _forget_bound(self, bindings: Iterable[TaskBinding]) -> None:
        """Forget ``is_bound`` of all pods that these bindings select."""
        for binding in bindings:
            for namespace in list(self._bound) if binding.namespace == ANY else [binding.namespace]:
                bound = self._bound.get(namespace, {})
                for labels in [labels for labels in bound if matches(binding.pod_selector, labels)]:
                    del bound[labels]
                    self._bound_count -= 1

    def _forget_all_bound(self) -> None:
        self._bound.clear()
        self._bound_count = 0

    def _forget(self, pod: Pod) -> None:
        """Remove everything about a pod that was deleted or has finished, unless it had finished before."""
        if pod.finished:
            return
        self._outdated.discard(pod.key)
        if self._entries.pop(pod.key, None):
            self._log("gone", pod=pod.path)
        last = self._reports.pop(pod.key, None)
        self._withheld.pop(pod.key, None)
        if self._on_gone:
            self._on_gone(pod, last.report if last else None)

    def _log_entry(self, before: Entry | None, after: Entry) -> None:
        pod, bundle = after.pod, after.bundle
        if after.error and not (before and before.error == after.error):
            self._log(
                "error", pod=pod.path, error=after.error, kept=short_digest(bundle.digest) if bundle else ""
            )
        if bundle and not (before and before.bundle and before.bundle.digest == bundle.digest):
            self._log("plan", pod=pod.path, digest=short_digest(bundle.digest), tasks=bundle.count)
        elif before and before.error and not after.error:
            self._log("mended", pod=pod.path)
        if pod.terminating and not (before and before.pod.terminating):
            self._log("terminating", pod=pod.path)

    def _log_report(self, pod: Pod, before: Report | None, after: Report) -> None:
        if after.state == "applied" and not (
            before and (before.state, before.digest) == (after.state, after.digest)
        ):
            self._log("applied", pod=pod.path, digest=short_digest(after.digest or ""))
        if after.rejected and not (before and before.rejected == after.rejected):
            # A pod names a bundle by its ETag, which differs from the digest of the plan in it.
            entry = self._entries.get(pod.key)
            bundle = entry.bundle if entry else None
            served = bundle is not None and bundle.etag.strip('"') == after.rejected
            digest = {"digest": short_digest(bundle.digest)} if bundle is not None and served else {}
            etag = short_digest(after.rejected)
            self._log("rejected", pod=pod.path, **digest, etag=etag, error=after.error)


def _report_limit() -> RateLimit:
    """Return the limit of a pod's reports: ten at once, and one a second."""
    return RateLimit(10, 1.0)


async def in_slices(pods: Iterable[Pod]) -> AsyncIterator[Pod]:
    """Yield the pods, with a checkpoint for other tasks after each ``SLICE_SECONDS``."""
    end = time.perf_counter() + SLICE_SECONDS
    for pod in pods:
        yield pod
        if time.perf_counter() > end:
            await trio.lowlevel.checkpoint()
            end = time.perf_counter() + SLICE_SECONDS
