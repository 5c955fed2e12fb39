"""The live pods that each binding selects, with their plans and last reports: what statuses and rollouts read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from pidone.language.binding import Fault, Key
from pidone.plan.report import Report
from pidone_controller.pods.model import FrozenLabels, Pod
from pidone_controller.repo.plans import Plans


class Outcome(Enum):
    """Whether one pod runs the plan that it is served."""

    APPLIED = "applied"
    REJECTED = "rejected"
    WAITING = "waiting"  # the pod has not reported it yet
    UNDERIVED = "underived"  # there is no plan to serve


@dataclass(frozen=True, slots=True)
class SelectedPod:
    """One live pod that a binding selects and that is not terminating: its plan and its last report.

    With an ``error`` no plan with all its bindings can be derived, and the pod keeps the plan that it has. ``faults``
    name the bindings at fault; without any the error is the pod's own.
    """

    pod: str  # namespace/name
    uid: str = ""
    digest: str = ""  # of the plan that it is served
    etag: str = ""  # of the bundle, without quotes, as reports name a refused one
    tasks: int = 0
    report: Report | None = None
    error: str = ""
    faults: tuple[Fault, ...] = ()
    withheld: str = ""  # why it does not get its plan over plain http

    @property
    def rejected(self) -> bool:
        """Whether it reports that it refused the bundle that it is served."""
        return self.report is not None and bool(self.report.rejected) and self.report.rejected == self.etag

    @property
    def running(self) -> bool:
        """Whether it reports that it runs the plan that it is served."""
        return self.report is not None and self.report.digest == self.digest and not self.rejected

    @property
    def outcome(self) -> Outcome:
        if self.error or self.withheld:
            return Outcome.UNDERIVED
        if self.rejected:
            return Outcome.REJECTED
        if self.report is not None and self.report.digest:
            return Outcome.APPLIED if self.report.digest == self.digest else Outcome.WAITING
        # A pod without tasks sleeps and reports nothing.
        return Outcome.WAITING if self.tasks else Outcome.APPLIED


class Selection:
    """The pods of each binding, found in one pass over all pods when they are asked for after a change.

    A terminating pod is not among them: it is served its end, and no plan is expected of it.
    """

    def __init__(self, plans: Plans) -> None:
        self._plans = plans
        self._by_binding: Mapping[Key, Sequence[Pod]] | None = None

    def changed(self) -> None:
        """Pods or rules have changed."""
        self._by_binding = None

    def pods(self, binding: Key) -> list[SelectedPod]:
        if self._by_binding is None:
            self._by_binding = self._selected()
        return [self._selected_pod(pod) for pod in self._by_binding.get(binding, ())]

    def _selected_pod(self, pod: Pod) -> SelectedPod:
        entry = self._plans.entry(pod)
        bundle = entry.bundle
        return SelectedPod(
            pod.path,
            pod.uid,
            digest=bundle.digest if bundle else "",
            etag=bundle.etag.strip('"') if bundle else "",
            tasks=bundle.count if bundle else 0,
            report=self._plans.report(pod),
            error=entry.error,
            faults=entry.faults,
            withheld=self._plans.withheld(pod),
        )

    def _selected(self) -> dict[Key, list[Pod]]:
        rules = self._plans.rules
        bindings: dict[tuple[str, FrozenLabels], list[Key]] = {}  # pods of one workload have the same labels
        selected: dict[Key, list[Pod]] = {}
        for pod in self._plans.inventory:
            if not pod.served or pod.terminating:
                continue
            group = pod.namespace, pod.labels
            if group not in bindings:
                bindings[group] = [binding.key for binding in rules.matching(pod)]
            for key in bindings[group]:
                selected.setdefault(key, []).append(pod)
        return selected
