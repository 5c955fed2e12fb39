"""Composes the statuses of bindings and sets.

A binding is Ready when the controller has seen its newest generation, every live pod that it selects runs the plan
that it is served, its rollout is complete, and nothing conflicts. Without pods it is Ready too (reason NoPods): a
Deployment with zero replicas, or a binding that is applied before its pods, must not keep a person waiting forever.
What no pod could run (a missing set, exec over plain http) is reported without pods as well. Reconciling resolves
itself in time; Stalled needs a person.

``binding_status`` and ``set_status`` are pure and return all fields that the controller applies; ``status.rollout``
belongs to another field manager and is never among them. ``Composer`` finds an object by its key and calls them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pidone import actions
from pidone.errors import PidoneError
from pidone.language.binding import BindingError, Rules, shown
from pidone.language.model import TaskBinding, TaskSet
from pidone.language.resolution import flatten
from pidone.language.schemas import action_of
from pidone.language.secrets import SecretError
from pidone_controller.kubernetes.resources import (
    CLUSTER_TASK_BINDINGS,
    CLUSTER_TASK_SETS,
    TASK_BINDINGS,
    TASK_SETS,
    ObjectRef,
)
from pidone_controller.objects.written import Written
from pidone_controller.repo.plans import Plans
from pidone_controller.repo.selection import PlanState, SelectedPod, Selection
from pidone_controller.rollout.catalog import Affected, Catalog
from pidone_controller.status.conditions import (
    Status,
    Verdict,
    and_others,
    conditions,
    counted,
    first_finding,
    one_line,
    owned,
    without_empty,
)

MAX_ITEMS = 5  # rejections, conflicts and digests in a status, which people read; /v1/pods has all of them
MAX_FINDINGS = 10

_RESOURCES = {
    resource.kind: resource
    for resource in (TASK_SETS, CLUSTER_TASK_SETS, TASK_BINDINGS, CLUSTER_TASK_BINDINGS)
}


def ref_of(written: Written) -> ObjectRef:
    return ObjectRef(_RESOURCES[written.kind], written.namespace, written.name, written.uid)


def utc_now() -> str:
    """Now, as Kubernetes writes a Time."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Composer:
    """Composes the status of one object from the catalog, the plans and the reports of its pods.

    ``collecting_reports`` returns True while this replica, as a new leader, still receives the reports of the others.
    """

    def __init__(
        self,
        catalog: Catalog,
        plans: Plans,
        selection: Selection,
        *,
        collecting_reports: Callable[[], bool] = lambda: False,
        now: Callable[[], str] = utc_now,
    ) -> None:
        self._catalog, self._plans, self._selection = catalog, plans, selection
        self._collecting_reports, self._now = collecting_reports, now

    def refs(self, affected: Affected) -> Iterable[ObjectRef]:
        """References to these objects in the order in which their statuses are written: bindings before sets."""
        for keys, find in (
            (affected.bindings, self._catalog.find_binding),
            (affected.sets, self._catalog.find_set),
        ):
            yield from (ref_of(written) for key in sorted(keys) if (written := find(key)) is not None)

    def compose(self, ref: ObjectRef, previous: Mapping[str, Any]) -> Status | None:
        """The status of an object; None if it does not exist."""
        key = not ref.resource.namespaced, ref.namespace, ref.name
        is_set = ref.resource in {TASK_SETS, CLUSTER_TASK_SETS}
        written = self._catalog.find_set(key) if is_set else self._catalog.find_binding(key)
        if written is None or written.uid != ref.uid:
            return None
        return self._set(written, previous) if is_set else self._binding(written, previous)

    def _set(self, written: Written, previous: Mapping[str, Any]) -> Status:
        task_set = written.task_set
        error, tasks = extends_error(task_set, self._plans.rules) if task_set else ("", 0)
        return set_status(
            written.generation,
            previous=previous,
            now=self._now(),
            findings=written.findings,
            error=error,
            tasks=tasks,
            bindings=self._catalog.naming(written.key),
            kept=self._catalog.history.revision(written.key, written.digest) is not None,
        )

    def _binding(self, written: Written, previous: Mapping[str, Any]) -> Status:
        binding = written.binding
        progress, halt_reason = self._catalog.progress(written)
        pods = self._selection.pods(binding) if binding else []
        error = sets_error(binding, self._plans.rules, https=True) if binding else None
        if binding and not pods and error is None:
            error = secrets_error(binding, self._plans.rules)
        return binding_status(
            str(written),
            written.generation,
            pods,
            previous=previous,
            now=self._now(),
            refused=written.findings,
            error=error,
            progress=progress,
            halt_reason=halt_reason,
            collecting_reports=self._collecting_reports(),
        )


def binding_status(
    binding: str,
    generation: int,
    pods: Iterable[SelectedPod],
    *,
    previous: Mapping[str, Any],
    now: str,
    refused: Sequence[str] = (),
    error: Verdict | None = None,
    progress: str = "",
    halt_reason: str = "",
    collecting_reports: bool = False,
) -> Status:
    """The status of a binding whose title is ``binding``, as in ``language.binding.shown``.

    ``pods`` are all live pods that it selects, ``refused`` the checker's findings, ``error`` what keeps every pod
    from running it (see ``sets_error``), ``progress`` and ``halt_reason`` texts about its rollout, ``previous`` its
    present status and ``now`` a time as Kubernetes writes it. While a new leader still receives the reports of the
    other replicas (``collecting_reports``), a missing report changes nothing.
    """
    counts = _PodCounts(binding)
    for pod in pods:
        counts.add(pod)
    fields: Status = {
        "matched": counts.matched,
        "applied": counts.applied,
        "rejected": counts.rejected,
        "maintenance": counts.maintenance,
        "digests": [
            {"digest": digest, "pods": number}
            for digest, number in sorted(counts.digests.items(), key=lambda item: (-item[1], item[0]))[
                :MAX_ITEMS
            ]
        ],
        "rejections": counts.rejections,
        "conflicts": [
            {"with": other, "task": task, "pods": len(names), "message": one_line(text), "pod": names[0]}
            for (other, task), (text, names) in sorted(counts.conflicts.items())[:MAX_ITEMS]
        ],
        "findings": [one_line(text) for text in refused[:MAX_FINDINGS]],
    }
    same = all(previous.get(key) == fields[key] for key in ("matched", "digests"))
    if collecting_reports and counts.unreported and previous.get("observedGeneration") == generation and same:
        return owned(previous)

    verdict = _verdict(counts, refused, error, progress, halt_reason)
    return _status(fields, verdict, generation, previous, now)


def set_status(
    generation: int,
    *,
    previous: Mapping[str, Any],
    now: str,
    findings: Sequence[str] = (),
    error: str = "",
    tasks: int = 0,
    bindings: int = 0,
    kept: bool = True,
) -> Status:
    """The status of a set.

    ``findings`` are the checker's, ``error`` is what is wrong with the sets that it extends (see
    ``extends_error``), ``tasks`` the number of its tasks with theirs, ``bindings`` the number of bindings that name
    it. ``kept`` is whether a ControllerRevision keeps this version: then a mistake in a later version does no harm.
    """
    if findings:
        verdict = Verdict("Stalled", "Refused", first_finding(findings))
    elif error:
        verdict = Verdict("Stalled", "ExtendsUnresolved", one_line(error))
    elif not kept:
        verdict = Verdict("Reconciling", "Recording", "this version is not among its ControllerRevisions yet")
    else:
        used = f"{counted(tasks, 'task')}, used by {counted(bindings, 'binding')}"
        verdict = Verdict("Ready", "Accepted", used)
    fields: Status = {
        "tasks": tasks,
        "bindings": bindings,
        "findings": [one_line(text) for text in findings[:MAX_FINDINGS]],
    }
    return _status(fields, verdict, generation, previous, now)


def _status(
    fields: Status, verdict: Verdict, generation: int, previous: Mapping[str, Any], now: str
) -> Status:
    status = {"observedGeneration": generation, **fields}
    return {**without_empty(status), "conditions": conditions(verdict, generation, previous, now)}


def extends_error(task_set: TaskSet, rules: Rules) -> tuple[str, int]:
    """What is wrong with the sets that a set extends (empty: nothing), and the number of tasks of all together."""
    try:
        return "", len(flatten(task_set, rules.sets).tasks)
    except PidoneError as error:
        return str(error), 0


def sets_error(binding: TaskBinding, rules: Rules, *, https: bool) -> Verdict | None:
    """What keeps every pod from running this binding; None if nothing does.

    Without ``https`` pods refuse privileged actions; the status says so before the first pod does.
    """
    try:
        sets = [rules.task_set(name, binding, binding.namespace) for name in binding.task_sets]
    except BindingError as error:
        return Verdict("Stalled", "TaskSetUnusable", one_line(str(error)))
    if https:
        return None
    for task_set in sets:
        for task in task_set.tasks:
            action = action_of(task)
            if action is not None and actions.privileged(action.name, task[action.name]):
                text = (
                    f'{task_set.title}, task "{task["name"]}": {action.name} needs the https repo, and this '
                    "controller serves plain http, over which pods refuse it"
                )
                return Verdict("Stalled", "NeedsHTTPS", text)
    return None


def secrets_error(binding: TaskBinding, rules: Rules) -> Verdict | None:
    """The first Secret that pods of this TaskBinding would lack; None if they would lack none.

    Pods of a ClusterTaskBinding have Secrets of their own namespaces, which are not known before there are pods.
    """
    for name in binding.task_sets if not binding.cluster and binding.namespace else ():
        task_set = rules.task_set(name, binding, binding.namespace)
        for param in task_set.params:
            if param.confidential and param.name not in binding.params:
                try:
                    rules.secrets.text(param, binding.namespace)
                except SecretError as error:
                    if not error.pending:
                        text = f'{task_set.title}: param "{param.name}" {error}'
                        return Verdict("Stalled", "NoSecret", one_line(text))
    return None


class _PodCounts:
    """The pods of one binding, counted by state, with the first of each kind for messages."""

    def __init__(self, binding: str) -> None:
        self.binding = binding
        self.matched = 0
        self.maintenance = 0  # pods that report it
        self.applied = self.rejected = self.without_plan = self.withheld = 0
        self.digests = Counter[str]()
        self.unreported = 0  # pods without any report
        self.waiting = ""  # the first pod that has not reported that it runs its plan
        self.rejections: list[dict[str, str]] = []
        # By the other binding and the task: the text, and the names of the pods
        self.conflicts: dict[tuple[str, str], tuple[str, list[str]]] = {}
        # The first pod, and the error: without a plan by this binding's fault, by another's, and without https
        self.at_fault: tuple[str, str] | None = None
        self.no_secret: tuple[str, str] | None = None  # without a value of a Secret
        self.blocked: tuple[str, str] | None = None
        self.insecure: tuple[str, str] | None = None

    def add(self, pod: SelectedPod) -> None:
        state = pod.state
        self.matched += 1
        self.maintenance += pod.report is not None and pod.report.maintenance
        if pod.digest:
            self.digests[pod.digest] += 1

        if state is PlanState.APPLIED:
            self.applied += 1
        elif state is PlanState.REJECTED:
            self.rejected += 1
            if pod.report is not None and len(self.rejections) < MAX_ITEMS:
                message = one_line(pod.report.error)
                self.rejections.append({"pod": pod.pod, "digest": pod.digest, "message": message})
        elif state is PlanState.WAITING:
            self.waiting = self.waiting or pod.pod
            self.unreported += pod.report is None
        elif pod.error:
            self.without_plan += 1
            self._add_faults(pod)
        else:
            self.withheld += 1
            self.insecure = self.insecure or (pod.pod, pod.withheld)

    def _add_faults(self, pod: SelectedPod) -> None:
        involved = False
        for fault in pod.faults:
            names = [shown(binding) for binding in fault.bindings]
            if self.binding not in names:
                continue
            involved = True
            if fault.task:
                other = next((name for name in names if name != self.binding), self.binding)
                self.conflicts.setdefault((other, fault.task), (fault.text, []))[1].append(pod.pod)
            elif fault.secret:
                self.no_secret = self.no_secret or (pod.pod, fault.text)
            else:
                self.at_fault = self.at_fault or (pod.pod, fault.text)
        if not pod.faults:
            self.at_fault = self.at_fault or (pod.pod, pod.error)
        elif not involved:
            self.blocked = self.blocked or (pod.pod, pod.error)


def _verdict(
    counts: _PodCounts, refused: Sequence[str], error: Verdict | None, progress: str, halt_reason: str
) -> Verdict:
    """The worst condition: what needs a person before what resolves itself."""
    if refused:
        return Verdict("Stalled", "Refused", first_finding(refused))
    stalled = error or _stalled(counts, halt_reason)
    if stalled is not None:
        return stalled

    matched = counts.matched
    if counts.applied < matched:
        run = "runs its plan" if matched == 1 else "run their plans"
        reported = (
            "has reported nothing yet; is pidone its process 1?" if counts.unreported else "has yet to say so"
        )
        text = f"{counts.applied} of {counted(matched, 'pod')} {run}; {counts.waiting} {reported}"
        return Verdict("Reconciling", "Applying", text)
    if progress:
        return Verdict("Reconciling", "RollingOut", one_line(progress))
    if not matched:
        return Verdict("Ready", "NoPods", "no live pod has these labels")
    return Verdict(
        "Ready", "AllApplied", f"{counted(matched, 'pod')}, and each runs the plan that it is served"
    )


def _stalled(counts: _PodCounts, halt_reason: str) -> Verdict | None:
    """The worst that pods and rollout report and that needs a person."""
    if counts.conflicts:
        _, (text, names) = min(counts.conflicts.items())
        return Verdict(
            "Stalled", "Conflict", one_line(f"{text} (pod {names[0]}{and_others(len(names) - 1)})")
        )

    if counts.at_fault is not None:
        return _named("NoPlan", counts.at_fault, counts.without_plan)
    if counts.no_secret is not None:
        return _named("NoSecret", counts.no_secret, counts.without_plan)
    if counts.blocked is not None:
        return _named("Blocked", counts.blocked, counts.without_plan)
    if counts.insecure is not None:
        return _named("NeedsHTTPS", counts.insecure, counts.withheld)
    if halt_reason:
        return Verdict("Stalled", "RolloutHalted", one_line(halt_reason))
    if counts.rejections:
        first = counts.rejections[0]
        return _named("PlanRefused", (first["pod"], first["message"]), counts.rejected)
    return None


def _named(reason: str, first: tuple[str, str], number: int) -> Verdict:
    """Stalled, with the first of ``number`` pods and its error."""
    pod, error = first
    return Verdict("Stalled", reason, one_line(f"pod {pod}{and_others(number - 1)}: {error}"))
