"""Computes the next state of one binding's rollout. Pure; ``rollout.leader`` calls it and writes the result.

A rollout begins when the binding's wanted version differs from ``current``. ``canary`` percent of the pods, at least
one, get the target; after each ``pause`` another ``step`` percent get it; it is complete one pause after all have it.
It does not continue while none of the pods that report runs the target. It is halted when too many pods with the target
refuse it, or run it and fail in a task that worked with the version before; then all pods get ``current`` again. Too
many are, with ``maxRejected``, more pods than that which refuse, or one which fails. Without it they are two pods, or
one if only one has the target, so that a false report of one pod does not halt the rollout of the others.

It begins again from the same ``current`` when the wanted version changes, and when a person requests it
(``pidone.dev/resume``). A new binding begins without a ``current``.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pidone.language.binding import PLACES, place
from pidone.language.model import Strategy
from pidone.language.schemas import BAD, GOOD, states_of_class
from pidone.plan.report import TaskReport
from pidone.text import printable
from pidone_controller.repo.selection import SelectedPod
from pidone_controller.rollout.state import Phase, RolloutState, VersionRef, micro_time

NAMED = 3  # pods and tasks that a message names
ERROR_WIDTH = 500  # characters of a pod's error in a message

Health = dict[str, set[str]]  # by a pod's uid: the tasks that have worked


def step(
    strategy: Strategy | None,
    state: RolloutState | None,
    wanted: VersionRef,
    pods: Sequence[SelectedPod],
    health: Health,
    now: float,
    resumed: str = "",
    not_before: float = 0.0,
) -> RolloutState:
    """Return the next state of a binding whose wanted version is ``wanted``; an equal state if nothing changes.

    ``strategy`` is None if all pods get a change at once: there is no ``spec.rollout``, or a pin. ``pods`` are all live
    pods that the binding selects, ``now`` is seconds since 1970. ``health`` is the record of ``remember`` about the
    same pods; a new leader begins without it, and counts no failure of a task that it did not see work. ``resumed`` is
    the annotation ``pidone.dev/resume``: the time of the halt that it ends. ``not_before`` is the time at which a new
    leader has the reports of the other replicas: until then no further pods get the target.
    """
    current = state.current if state is not None else None
    if current == wanted:
        assert state is not None
        # Also if a change was taken back while it was under way or after it was halted.
        return state if state.phase is Phase.COMPLETE else _complete(wanted, now)

    again = state is not None and state.phase is Phase.HALTED and resumed == micro_time(state.since)
    if state is None or state.target != wanted or again:
        if strategy is None or not pods:
            return _complete(wanted, now)
        return _grown(RolloutState(Phase.PROGRESSING, current, wanted), strategy.canary, pods, now)

    if strategy is None:
        return _complete(wanted, now)
    if state.phase is not Phase.PROGRESSING:
        return state
    return _continued(strategy, state, pods, health, now, not_before)


def _continued(
    strategy: Strategy,
    state: RolloutState,
    pods: Sequence[SelectedPod],
    health: Health,
    now: float,
    not_before: float,
) -> RolloutState:
    """Return the next state of a rollout that is under way to the wanted version."""
    assert state.target is not None
    updated = [pod for pod in pods if place(pod.uid, state.target.digest) < state.share]
    trouble = _refusals(updated, strategy) or _failures(updated, health, strategy)
    if trouble:
        return replace(state, phase=Phase.HALTED, percent=0, share=0, since=now, message=trouble)
    if now < max(not_before, state.since + strategy.pause) or not _proven(updated):
        return state
    if state.share >= PLACES:
        return _complete(state.target, now)
    return _grown(state, state.percent + strategy.step, pods, now)


def next_look(strategy: Strategy | None, state: RolloutState, not_before: float = 0.0) -> float:
    """Return the time at which a state may change without an event: seconds since 1970, or infinity."""
    if strategy is None or state.phase is not Phase.PROGRESSING:
        return math.inf
    return max(not_before, state.since + strategy.pause)


def remember(health: Health, pods: Iterable[SelectedPod]) -> None:
    """Record which tasks work in each pod. Called after each ``step`` with its pods."""
    for pod in pods:
        if pod.report is not None:
            working = health.setdefault(pod.uid, set())
            working |= {
                name for name, task in pod.report.tasks.items() if task.state in states_of_class(GOOD)
            }
            working -= {name for name, task in pod.report.tasks.items() if _is_ill(task)}


def _complete(wanted: VersionRef, now: float) -> RolloutState:
    return RolloutState(Phase.COMPLETE, wanted, since=now)


def _grown(state: RolloutState, percent: int, pods: Sequence[SelectedPod], now: float) -> RolloutState:
    """Return the state with the target for ``percent`` of these pods, rounded up. Later pods get it by their place."""
    assert state.target is not None
    percent = min(100, percent)
    share = PLACES * percent // 100
    if percent < 100 and pods:
        places = sorted(place(pod.uid, state.target.digest) for pod in pods)
        share = places[-(-len(places) * percent // 100) - 1] + 1
    share = max(state.share, share)
    return replace(state, phase=Phase.PROGRESSING, percent=percent, share=share, since=now, message="")


def _proven(updated: Sequence[SelectedPod]) -> bool:
    """True if a pod runs the target, or if none of them ever reports."""
    return any(pod.running for pod in updated) or all(pod.report is None for pod in updated)


def _refusals(updated: Sequence[SelectedPod], strategy: Strategy) -> str:
    """Return the message of a halt because of refusals; empty if they are few enough."""
    refusing = [pod for pod in updated if pod.rejected]
    most = strategy.max_rejected
    if len(refusing) <= (_spared(updated) if most is None else most):
        return ""
    reasons = (pod.report.error for pod in refusing if pod.report and pod.report.error)
    reason = printable(next(reasons, "without a reason"), ERROR_WIDTH)
    bound = f" of {len(updated)} with it" if most is None else f", and maxRejected is {most}"
    return f"{_count(refusing, 'pod')} refused it{bound}: {_some([pod.pod for pod in refusing])}: {reason}"


def _failures(updated: Sequence[SelectedPod], health: Health, strategy: Strategy) -> str:
    """Return the message of a halt because of tasks that worked before and fail; empty if they are few enough."""
    failed = [
        (pod.pod, name, task)
        for pod in updated
        if pod.running and pod.report is not None
        for name, task in pod.report.tasks.items()
        if name in health.get(pod.uid, ()) and _is_ill(task)
    ]
    pods = {pod for pod, _, _ in failed}
    if len(pods) <= (_spared(updated) if strategy.max_rejected is None else 0):
        return ""
    _, _, first = failed[0]
    error = f": {printable(first.error, ERROR_WIDTH)}" if first.error else ""
    tasks = f"{_count(failed, 'task')} that {'was' if len(failed) == 1 else 'were'} well"
    names = _some([f'"{name}" of {pod}' for pod, name, _ in failed])
    return f"{tasks} with the version before: {names}, {first.state}{error}"


def _spared(updated: Sequence[SelectedPod]) -> int:
    """Return the number of pods that may refuse or fail without a halt if ``maxRejected`` is not set."""
    return min(1, len(updated) - 1)


def _is_ill(task: TaskReport) -> bool:
    return task.state in states_of_class(BAD) or (task.state == "due" and bool(task.error))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(sorted(names)[:NAMED]) + more


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"
