"""What became of bindings and sets, told in their status: conditions by kstatus, numbers, the first refusals.

Functions over values with the time passed in; no I/O. ``StatusWriter`` is the thin loop that writes. Who calls what:

- ``binding_status`` once for each binding whose object, pods, plans or reports changed, with one ``SelectedPod`` for
  each live pod that it chooses; ``set_status`` for a set whose object, bases or bindings changed. Both answer with
  the whole status that pidone-controller owns; ``status.rollout`` is another field manager's and never in it.
- ``StatusWriter.mark(target)`` on each such change, as often as one likes; it asks ``compose`` for the status when
  it is time to write. ``run`` is led: begin it, and mark every target, when this replica becomes the leader;
  cancel it when it is the leader no more. Where a set has changed mark its bindings before it: then whoever waits
  for the set to be Ready, and after that for the binding, does not meet the binding's answer to the set before.

A binding is Ready when its newest generation was seen, every live pod that it chooses runs the plan that it is
served now, its rollout is over, and nothing is in conflict. Without pods it is Ready too (reason NoPods): nothing
that should run does not, and what waits for it, such as a deployment at zero or a binding that is applied before
its pods, must not wait for ever. What no pod could run (a set that is not there, exec over plain http) is said all
the same. Reconciling is what time mends, Stalled what takes a person; kstatus reads these two.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from pidone import actions
from pidone.errors import PidoneError
from pidone.language.binding import BindingError, Rules, shown
from pidone.language.model import TaskBinding, TaskSet
from pidone.language.resolution import flatten
from pidone.language.schemas import action_of
from pidone_controller.kubernetes.errors import NotFound
from pidone_controller.kubernetes.resources import Resource
from pidone_controller.log import Log
from pidone_controller.pods.reports import Bucket
from pidone_controller.repo.selection import Outcome, SelectedPod

SHOWN = 5  # rejections, conflicts and digests in a status, which is read by people; all are in /v1/pods
FINDINGS = 10
TEXT = 1024  # characters of one text, as a condition's message may have 32 KiB and a terminal has not
OTHERS = frozenset({"rollout"})  # fields of a status that are written by pidone-controller-rollout
PACE = 5.0  # seconds between two writes of one status, in the long run
AT_ONCE = 3  # changes of a condition, as from Reconciling to Ready, that are written without waiting for it
LOOK = 0.2  # seconds between two looks at one target: pods apply and report together
SHARE = 10  # times as long as a look took is between two: with 10,000 pods that is 20 ms
WRITERS = 8  # writes at once
RETRY_MAX = 60.0  # seconds before a write that failed is made again, at most

Status = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which condition holds, and why. ``reason`` is one word, for machines too."""

    kind: str  # Ready | Reconciling | Stalled
    reason: str
    message: str


def binding_status(
    binding: str,
    generation: int,
    pods: Iterable[SelectedPod],
    *,
    previous: Mapping[str, Any],
    now: str,
    refused: Sequence[str] = (),
    trouble: Verdict | None = None,
    moving: str = "",
    halted: str = "",
    hearing: bool = False,
) -> Status:
    """The status of one binding, called ``binding`` as ``shown`` calls it.

    ``refused`` is what the checker finds in the object, ``trouble`` what keeps every pod from running it (see
    ``sets_trouble``), ``moving`` and ``halted`` are a rollout's words, ``previous`` is the status that is there and
    ``now`` a time as Kubernetes writes it. While a new leader is still ``hearing`` what the other replicas were
    told, silence is no news: what is there stays.
    """
    view = _View(binding)
    for pod in pods:
        view.add(pod)
    told: Status = {
        "matched": view.matched,
        "applied": view.applied,
        "rejected": view.rejected,
        "digests": [
            {"digest": digest, "pods": count}
            for digest, count in sorted(view.digests.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
        ],
        "rejections": view.rejections,
        "conflicts": [
            {"with": other, "task": task, "pods": len(where), "message": one_line(text), "pod": where[0]}
            for (other, task), (text, where) in sorted(view.conflicts.items())[:SHOWN]
        ],
        "findings": [one_line(text) for text in refused[:FINDINGS]],
    }
    same = all(previous.get(key) == told[key] for key in ("matched", "digests"))
    if hearing and view.unheard and previous.get("observedGeneration") == generation and same:
        return _owned(previous)
    verdict = _verdict(view, refused, trouble, moving, halted)
    return _full({"observedGeneration": generation, **told}, conditions(verdict, generation, previous, now))


def set_status(
    generation: int,
    *,
    previous: Mapping[str, Any],
    now: str,
    findings: Sequence[str] = (),
    trouble: str = "",
    tasks: int = 0,
    bindings: int = 0,
    kept: bool = True,
) -> Status:
    """The status of a set: ``findings`` of the checker, ``trouble`` with what it extends (see ``extends_trouble``),
    its ``tasks`` with those that it extends, and how many ``bindings`` name it. ``kept`` is whether there is a
    ControllerRevision of this version: from then on a mistake after it takes nothing away.
    """
    if findings:
        verdict = Verdict("Stalled", "Refused", _findings(findings))
    elif trouble:
        verdict = Verdict("Stalled", "ExtendsUnresolved", one_line(trouble))
    elif not kept:
        verdict = Verdict("Reconciling", "Recording", "this version is not among its ControllerRevisions yet")
    else:
        verdict = Verdict(
            "Ready", "Accepted", f"{_count(tasks, 'task')}, used by {_count(bindings, 'binding')}"
        )
    told = {
        "observedGeneration": generation,
        "tasks": tasks,
        "bindings": bindings,
        "findings": [one_line(text) for text in findings[:FINDINGS]],
    }
    return _full(told, conditions(verdict, generation, previous, now))


def extends_trouble(task_set: TaskSet, rules: Rules) -> tuple[str, int]:
    """What keeps a set from being whole (empty: nothing does), and the number of its tasks with all it extends."""
    try:
        return "", len(flatten(task_set, rules.sets).tasks)
    except PidoneError as error:
        return str(error), 0


def sets_trouble(binding: TaskBinding, rules: Rules, *, https: bool) -> Verdict | None:
    """What no pod of this binding could run, whichever there will be; None where there is nothing.

    Without ``https`` pods refuse what must not come from a repo that did not prove who it is; better told here,
    before the first pod does.
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


def conditions(
    verdict: Verdict, generation: int, previous: Mapping[str, Any], now: str
) -> list[dict[str, Any]]:
    """Ready, Reconciling and Stalled, always all three; a transition is a change of ``status`` and nothing else."""
    there = {one.get("type"): one for one in previous.get("conditions", ())}
    made = []
    for kind in ("Ready", "Reconciling", "Stalled"):
        status = "True" if kind == verdict.kind else "False"
        before = there.get(kind, {})
        # what Ready says is why it is or is not so; the two others say it where they hold
        says = kind in {"Ready", verdict.kind}
        made.append(
            {
                "type": kind,
                "status": status,
                "observedGeneration": generation,
                "reason": verdict.reason if says else f"Not{kind}",
                "message": verdict.message if says else "",
                "lastTransitionTime": before.get("lastTransitionTime", now)
                if before.get("status") == status
                else now,
            }
        )
    return made


def _full(told: Status, stand: list[dict[str, Any]]) -> Status:
    """Without empty lists: a field that is applied no more is removed by the API server."""
    return {key: value for key, value in told.items() if value != []} | {"conditions": stand}


def _owned(status: Mapping[str, Any]) -> Status:
    """Without what other field managers write."""
    return {key: value for key, value in status.items() if key not in OTHERS}


class _View:
    """The pods of one binding, counted."""

    def __init__(self, binding: str) -> None:
        self.binding = binding
        self.matched = 0
        self.applied = self.rejected = self.underived = self.withheld = 0
        self.digests = Counter[str]()
        self.unheard = 0
        self.waiting = ""  # the first pod that has not said what it runs
        self.rejections: list[dict[str, str]] = []
        self.conflicts: dict[tuple[str, str], tuple[str, list[str]]] = {}  # by other and task: text, pods
        self.own: tuple[str, str] | None = None  # the first pod that this binding gives no plan, and why
        self.others: tuple[str, str] | None = None  # the same by another binding's fault
        self.insecure: tuple[str, str] | None = (
            None  # the first that asks over plain http for what needs https
        )

    def add(self, pod: SelectedPod) -> None:
        outcome = pod.outcome
        self.matched += 1
        if pod.digest:
            self.digests[pod.digest] += 1
        if outcome is Outcome.APPLIED:
            self.applied += 1
        elif outcome is Outcome.REJECTED:
            self.rejected += 1
            if pod.report is not None and len(self.rejections) < SHOWN:
                said = one_line(pod.report.error)
                self.rejections.append({"pod": pod.pod, "digest": pod.digest, "message": said})
        elif outcome is Outcome.WAITING:
            self.waiting = self.waiting or pod.pod
            self.unheard += pod.report is None
        elif pod.error:
            self.underived += 1
            self._blame(pod)
        else:
            self.withheld += 1
            self.insecure = self.insecure or (pod.pod, pod.withheld)

    def _blame(self, pod: SelectedPod) -> None:
        mine = False
        for fault in pod.faults:
            names = [shown(binding) for binding in fault.bindings]
            if self.binding not in names:
                continue
            mine = True
            if fault.task:
                other = next((name for name in names if name != self.binding), self.binding)
                self.conflicts.setdefault((other, fault.task), (fault.text, []))[1].append(pod.pod)
            else:
                self.own = self.own or (pod.pod, fault.text)
        if not pod.faults:
            self.own = self.own or (pod.pod, pod.error)
        elif not mine:
            self.others = self.others or (pod.pod, pod.error)


def _verdict(
    view: _View, refused: Sequence[str], trouble: Verdict | None, moving: str, halted: str
) -> Verdict:
    """The worst that is there: what a person must mend before what time mends."""
    if refused:
        return Verdict("Stalled", "Refused", _findings(refused))
    if trouble is not None:
        return trouble
    matched = view.matched
    stalled = _stalled(view, halted)
    if stalled is not None:
        return stalled
    if view.applied < matched:
        runs = "runs its plan" if matched == 1 else "run their plans"
        silent = "has reported nothing yet; is pidone its process 1?" if view.unheard else "has yet to say so"
        text = f"{view.applied} of {_count(matched, 'pod')} {runs}; {view.waiting} {silent}"
        return Verdict("Reconciling", "Applying", text)
    if moving:
        return Verdict("Reconciling", "RollingOut", one_line(moving))
    if not matched:
        return Verdict("Ready", "NoPods", "no live pod has these labels")
    return Verdict(
        "Ready", "AllApplied", f"{_count(matched, 'pod')}, and each runs the plan that it is served"
    )


def _stalled(view: _View, halted: str) -> Verdict | None:
    """What takes a person, of all that pods and rollout say."""
    if view.conflicts:
        (_, _), (text, where) = min(view.conflicts.items())
        return Verdict("Stalled", "Conflict", one_line(f"{text} (pod {where[0]}{_more(len(where) - 1)})"))
    blamed = view.own or view.others
    if blamed is not None:
        more = _more(view.underived - 1)
        reason = "NoPlan" if view.own else "Blocked"
        return Verdict("Stalled", reason, one_line(f"pod {blamed[0]}{more}: {blamed[1]}"))
    if view.insecure is not None:
        more = _more(view.withheld - 1)
        return Verdict("Stalled", "NeedsHTTPS", one_line(f"pod {view.insecure[0]}{more}: {view.insecure[1]}"))
    if halted:
        return Verdict("Stalled", "RolloutHalted", one_line(halted))
    if view.rejections:
        first, more = view.rejections[0], _more(view.rejected - 1)
        return Verdict("Stalled", "PlanRefused", one_line(f"pod {first['pod']}{more}: {first['message']}"))
    return None


def _findings(findings: Sequence[str]) -> str:
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return one_line(f"{findings[0]}{more}")


def _more(pods: int) -> str:
    return f" and {_count(pods, 'other')}" if pods > 0 else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def one_line(text: str) -> str:
    """One line for people, of a pod's words too: whatever cannot be printed, and cannot be read, is left out."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= TEXT else f"{line[: TEXT - 3]}..."


@dataclass(frozen=True, slots=True)
class Target:
    """Whose status it is. An object that is deleted and made anew is another one."""

    resource: Resource
    namespace: str  # empty for cluster kinds
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.resource.kind} {self.namespace}/{self.name}".replace(" /", " ")

    def body(self, status: Status) -> dict[str, Any]:
        where = {"namespace": self.namespace} if self.namespace else {}
        return {"metadata": {"name": self.name, **where}, "status": status}


class Client(Protocol):
    """``kubernetes.client.Client``, as far as it is needed here."""

    async def get(self, resource: Resource, name: str, namespace: str) -> dict[str, Any]: ...

    async def list(self, resource: Resource) -> list[dict[str, Any]]: ...

    async def apply(self, resource: Resource, body: dict[str, Any], *, subresource: str) -> object: ...


# What the status of a target is to be, by ``binding_status`` or ``set_status``; None where there is no such object.
Compose = Callable[[Target, Mapping[str, Any]], Status | None]


@dataclass(slots=True)
class _Line:
    """One target: when to look next, and what was written."""

    bucket: Bucket
    due: float = math.inf
    next: float = -math.inf  # no look before
    wrote: float = -math.inf
    failures: int = 0
    there: Mapping[str, Any] | None = None  # what was written or read last; None: to be read


class StatusWriter:
    """Writes what has changed by server-side apply. ``wrote`` is called after each write, with before and after."""

    def __init__(
        self,
        client: Client,
        compose: Compose,
        log: Log,
        *,
        wrote: Callable[[Target, Mapping[str, Any], Status], None] = lambda *_: None,
        meter: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._client = client
        self._compose = compose
        self._log = log
        self._wrote = wrote
        self._meter = meter  # seconds, for what a look takes
        self._lines: dict[Target, _Line] = {}
        self._timer = trio.CancelScope()

    def mark(self, target: Target) -> None:
        """Its status may be another one now."""
        line = self._lines.get(target)
        if line is None:
            line = self._lines[target] = _Line(Bucket.full(trio.current_time(), size=AT_ONCE, rate=1 / PACE))
        self._wake(line, max(trio.current_time(), line.next))

    async def run(self) -> None:
        """Write until cancelled. What was written before is forgotten: another leader may have written since."""
        for line in self._lines.values():
            line.there = None
        await self._read_all()
        while True:
            due = min((line.due for line in self._lines.values()), default=math.inf)
            with trio.CancelScope(deadline=due) as self._timer:
                await trio.sleep_forever()
            now = trio.current_time()
            targets = [target for target, line in self._lines.items() if line.due <= now]
            limit = trio.CapacityLimiter(WRITERS)
            async with trio.open_nursery() as nursery:
                for target in targets:
                    await limit.acquire_on_behalf_of(target)
                    nursery.start_soon(self._serve, target, limit)

    def _wake(self, line: _Line, due: float) -> None:
        line.due = min(line.due, due)
        self._timer.deadline = min(self._timer.deadline, line.due)

    async def _serve(self, target: Target, limit: trio.CapacityLimiter) -> None:
        try:
            await self._look(target)
        finally:
            limit.release_on_behalf_of(target)

    async def _look(self, target: Target) -> None:
        line = self._lines[target]
        line.due, line.next = math.inf, trio.current_time() + LOOK
        try:
            if line.there is None:
                line.there = await self._read(target)
            began = self._meter()
            made = self._compose(target, line.there) if line.there is not None else None
            line.next = max(line.next, trio.current_time() + SHARE * (self._meter() - began))
            if line.there is None or made is None:
                del self._lines[target]
                return
            now = trio.current_time()
            if made == _owned(line.there):
                return
            # What a gate waits for is told at once, as long as it does not come and go; numbers have time.
            pause = 0.0 if _turned(line.there, made) else line.wrote + PACE - now
            pause = pause if pause > 0 else line.bucket.take(now)
            if pause > 0:
                self._wake(line, now + max(pause, LOOK))  # the last bit of a token is no time at all
                return
            await self._client.apply(target.resource, target.body(made), subresource="status")
        except Exception as error:  # noqa: BLE001 - a bug that one object brings out must not stop the others
            line.failures += 1
            text = str(error) if isinstance(error, PidoneError) else f"{type(error).__name__}: {error}"
            self._log("status-failed", object=target, error=text)
            line.next = trio.current_time() + min(RETRY_MAX, 2.0 ** min(line.failures, 10))
            self._wake(line, line.next)
            return
        before, line.there = line.there, made
        line.failures, line.wrote = 0, trio.current_time()
        self._wrote(target, before, made)

    async def _read_all(self) -> None:
        """The statuses that are there, by one list for each kind: one by one they would be hundreds of requests.

        What cannot be had so is read when it is looked at.
        """
        for resource in {target.resource: None for target in self._lines}:
            try:
                found = await self._client.list(resource)
            except PidoneError as error:
                self._log("status-failed", object=resource, error=error)
                continue
            for one in found:
                metadata = one["metadata"]
                target = Target(resource, metadata.get("namespace", ""), metadata["name"], metadata["uid"])
                if target in self._lines:
                    self._lines[target].there = one.get("status") or {}

    async def _read(self, target: Target) -> Mapping[str, Any] | None:
        """The status that is there; None where the object is gone, or another one has its name."""
        try:
            found = await self._client.get(target.resource, target.name, target.namespace)
        except NotFound:
            return None
        status: Mapping[str, Any] = found.get("status") or {}
        return status if found["metadata"]["uid"] == target.uid else None


def _turned(before: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    """Whether another condition holds, or it holds of another generation or for another reason."""
    keys = ("type", "status", "reason", "observedGeneration")
    stands = (
        [[one.get(key) for key in keys] for one in status.get("conditions", ())] for status in (before, made)
    )
    return next(stands) != next(stands)
