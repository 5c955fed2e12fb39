"""The live pods that each binding selects, with their plans and last reports, for statuses and rollouts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from pidone.language.binding import Fault, Key
from pidone.language.model import TaskBinding
from pidone.plan.report import Report
from pidone_controller.pods.model import Pod
from pidone_controller.repo.plans import Plans


class PlanState(Enum):
    """The state of the plan in one pod."""

    APPLIED = "applied"
    REJECTED = "rejected"
    WAITING = "waiting"  # the pod has not reported it yet
    WITHOUT_PLAN = "without plan"  # no plan can be served


@dataclass(frozen=True, slots=True)
class SelectedPod:
    """One live pod that a binding selects and that is not terminating: its plan and its last report.

    With an ``error`` no plan with all its bindings can be derived, and the pod keeps its plan. ``faults``
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
    withheld: str = ""  # the reason why it does not get its plan over plain http
    pending: bool = False  # the error will be over in a moment: Secrets are being read

    @property
    def rejected(self) -> bool:
        """True if it reports that it refused the bundle that it is served."""
        return self.report is not None and bool(self.report.rejected) and self.report.rejected == self.etag

    @property
    def running(self) -> bool:
        """True if it reports that it runs the plan that it is served."""
        return self.report is not None and self.report.digest == self.digest and not self.rejected

    @property
    def state(self) -> PlanState:
        if self.pending:
            return PlanState.WAITING
        if self.error or self.withheld:
            return PlanState.WITHOUT_PLAN
        if self.rejected:
            return PlanState.REJECTED
        if self.report is not None and self.report.digest:
            return PlanState.APPLIED if self.report.digest == self.digest else PlanState.WAITING
        # A pod without tasks sleeps and reports nothing.
        return PlanState.WAITING if self.tasks else PlanState.APPLIED


class Selection:
    """The pods that a binding selects, looked up when requested and cached until they change.

    A terminating pod is not among them: it is served its end, and no plan is expected of it.
    """

    def __init__(self, plans: Plans) -> None:
        self._plans = plans
        self._pods: dict[Key, Sequence[Pod]] = {}

    def changed(self, bindings: Iterable[Key]) -> None:
        """Forget the pods of these bindings: their selector, or pods that they select or selected, have changed."""
        for key in bindings:
            self._pods.pop(key, None)

    def clear(self) -> None:
        """Forget all pods: any binding or pod may have changed."""
        self._pods.clear()

    def pods(self, binding: TaskBinding) -> list[SelectedPod]:
        pods = self._pods.get(binding.key)
        if pods is None:
            selected = self._plans.selected(binding)
            pods = self._pods[binding.key] = [pod for pod in selected if pod.served and not pod.terminating]
        return [self._selected_pod(pod) for pod in pods]

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
            pending=entry.pending,
        )
