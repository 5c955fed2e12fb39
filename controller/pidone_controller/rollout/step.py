"""Which version of its sets a binding brings to which pod, and when that changes.

What is served is a function of the cluster's state, and of nothing else:

- A binding without ``spec.rollout`` brings the sets as they are.
- A binding with it brings what its ``status.rollout`` says: ``current``, and to the pods whose place is below
  ``share`` the ``target``. The leader moves it; until it does, pods keep what they have.
- ``pidone.dev/pin`` on a binding names versions of sets, and these count, at once and whatever comes.
- A set with findings is what it was before, if that is kept; a binding with findings leaves its pods as they are.

Who calls what:

- ``Objects`` has the stores that reflectors fill (``sinks``), in every replica. ``changed`` is called whenever
  something in them differs; some time later ``rules()`` is asked, and answers with the same object as before where
  nothing changed that a plan is made of.
- ``Objects.wanted(written, objects.history())`` is what a binding should come to, and ``Objects.progress(written)``
  how far it is, in words: what is under way, and why it is halted.
- ``step`` is the next state of one binding. Pure; ``leading.Leader`` asks it, and writes what it says.

A rollout begins when a binding comes to something else than ``current``: ``canary`` percent of the pods have it, one
at least, after each ``pause`` there are ``step`` percent more, and it is complete when all have had it for one pause.
It goes no further while none of the pods that report has it. It is halted when more than ``maxRejected`` pods refuse
it or a task that was well fails in a pod that has it; then all pods have ``current`` again. It begins anew, from the
same ``current``, when something changes again, and when somebody says so (``pidone.dev/resume``). A binding that is
new begins with nothing as ``current``.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Any

from pidone.errors import PidoneError
from pidone.language.binding import PLACES, Key, Rollout, Rules, Version, place
from pidone.language.extends import Sets
from pidone.language.model import Strategy, TaskBinding, TaskSet
from pidone.plan.digest import digest
from pidone.plan.report import TaskReport
from pidone_controller.kubernetes.resources import (
    CLUSTER_TASK_BINDINGS,
    CLUSTER_TASK_SETS,
    CONTROLLER_REVISIONS,
    TASK_BINDINGS,
    TASK_SETS,
    Resource,
)
from pidone_controller.objects import revisions
from pidone_controller.objects.revisions import History, Revision, sets_of
from pidone_controller.objects.written import CLUSTER_KINDS, PIN, RESUME, Store, Written, read
from pidone_controller.repo.selection import SelectedPod

PIN_LEAST = 8  # hexadecimal digits of a pin
SHOWN = 3  # pods and tasks that a text names

# The states of all actions that say "it does what it is for", and those that say that it does not. "started" is
# in neither: a probe is started before the application was ever healthy.
WELL = {"healthy", "registered", "listening", "reporting", "succeeded"}
ILL = {"unhealthy", "lost", "failing", "failed"}

NOT_BEGUN = "its rollout has not begun yet; the leader of the controllers begins it"


class RolloutError(PidoneError):
    """What a binding should come to is not known; the text says why."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A version of a binding by name: enough to make it again of what is kept."""

    task_sets: tuple[str, ...]
    params: Mapping[str, Any]
    sets: tuple[tuple[str, str, str], ...]  # kind, name and digest of every set that it reaches, in order

    @property
    def digest(self) -> str:
        return digest({"taskSets": self.task_sets, "params": self.params, "sets": self.sets})

    def keys(self, namespace: str) -> list[tuple[Key, str]]:
        """The sets and their digests, for a binding of a namespace."""
        return [
            ((kind in CLUSTER_KINDS, "" if kind in CLUSTER_KINDS else namespace, name), found)
            for kind, name, found in self.sets
        ]

    def value(self) -> dict[str, Any]:
        """As it stands in a status."""
        return {
            "digest": self.digest,
            "taskSets": list(self.task_sets),
            "params": dict(self.params),
            "sets": [{"kind": kind, "name": name, "digest": found} for kind, name, found in self.sets],
        }

    @classmethod
    def of(cls, value: object) -> "Recorded | None":
        """None for what nobody wrote who knows how."""
        if not isinstance(value, dict):
            return None
        names, params, items = (value.get(key, {}) for key in ("taskSets", "params", "sets"))
        if not isinstance(names, list) or not isinstance(items, list) or not isinstance(params, dict):
            return None
        named = [
            [one.get(key) for key in ("kind", "name", "digest")] for one in items if isinstance(one, dict)
        ]
        if len(named) < len(items) or not all(
            isinstance(text, str) for one in (names, *named) for text in one
        ):
            return None
        return cls(
            tuple(names), params, tuple((str(kind), str(name), str(made)) for kind, name, made in named)
        )


class Phase(StrEnum):
    """How far a rollout is."""

    COMPLETE = "Complete"
    PROGRESSING = "Progressing"
    HALTED = "Halted"


@dataclass(frozen=True, slots=True)
class State:
    """``status.rollout``. Without a target, ``current`` is everything; None is nothing of the binding."""

    phase: Phase
    current: Recorded | None
    target: Recorded | None = None
    percent: int = 0
    share: int = 0  # of PLACES: below it pods have the target
    since: float = 0.0  # seconds since 1970: when the phase or the percentage became what it is
    message: str = ""  # why it is halted

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "State | None":
        """None where there is none, or none that is understood."""
        try:
            phase = Phase(value["phase"])
            since = datetime.fromisoformat(value.get("since", "1970-01-01T00:00:00Z")).timestamp()
        except (KeyError, ValueError, TypeError):
            return None
        current, target = (Recorded.of(value.get(name)) for name in ("current", "target"))
        percent, share = value.get("percent", 0), value.get("share", 0)
        if (
            not isinstance(percent, int)
            or not isinstance(share, int)
            or (phase, target) == (Phase.PROGRESSING, None)
        ):
            return None
        if phase is Phase.COMPLETE and current is None:
            return None
        return cls(phase, current, target, percent, share, since, str(value.get("message", "")))

    def value(self) -> dict[str, Any]:
        """As it stands in a status; what is empty is left out."""
        found: dict[str, Any] = {"phase": self.phase.value, "since": written_time(self.since)}
        if self.current is not None:
            found["current"] = self.current.value()
        if self.target is not None:
            found |= {"target": self.target.value(), "percent": self.percent, "share": self.share}
        if self.message:
            found["message"] = self.message
        return found

    @property
    def moving(self) -> str:
        """What is under way, for people; empty where nothing is."""
        if self.phase is not Phase.PROGRESSING or self.target is None:
            return ""
        return f"{self.percent}% of the pods have version {short(self.target.digest)}"

    @property
    def halted(self) -> str:
        return self.message if self.phase is Phase.HALTED else ""


Health = dict[str, set[str]]  # by a pod's uid the tasks that were seen well


def written_time(seconds: float) -> str:
    """Seconds since 1970 as Kubernetes writes a MicroTime, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def short(found: str) -> str:
    """A digest as people write it, and as a pin may be written."""
    return found.removeprefix("sha256-")[:12]


# The next state


def step(
    strategy: Strategy | None,
    state: State | None,
    wanted: Recorded,
    pods: Sequence[SelectedPod],
    health: Health,
    now: float,
    resumed: str = "",
    not_before: float = 0.0,
) -> State:
    """The next state of a binding that should come to ``wanted``; the same one where nothing is to be done.

    ``strategy`` is None where nothing is to be careful about: no ``spec.rollout``, or a pin. ``pods`` are all live
    ones that it chooses, and ``now`` is seconds since 1970. ``health`` is what ``remember`` made of the same pods
    before; it is the leader's memory, and what a new leader did not see well it holds against nobody. ``resumed`` is
    the annotation ``pidone.dev/resume``: the halt of that time is over. ``not_before`` is when a new leader has heard
    what pods told the other replicas: more pods get nothing until then.
    """
    current = state.current if state is not None else None
    if current == wanted:
        assert state is not None
        # also where a change was taken back, while it was under way or after it was halted
        return state if state.phase is Phase.COMPLETE else _complete(wanted, now)
    again = state is not None and state.phase is Phase.HALTED and resumed == written_time(state.since)
    if state is None or state.target != wanted or again:
        if strategy is None or not pods:
            return _complete(wanted, now)
        return _grown(State(Phase.PROGRESSING, current, wanted), strategy.canary, pods, now)
    if strategy is None:
        return _complete(wanted, now)
    return (
        _further(strategy, state, pods, health, now, not_before)
        if state.phase is Phase.PROGRESSING
        else state
    )


def _further(
    strategy: Strategy,
    state: State,
    pods: Sequence[SelectedPod],
    health: Health,
    now: float,
    not_before: float,
) -> State:
    """The next state of a rollout that is under way to the target that it should have."""
    assert state.target is not None
    having = [one for one in pods if place(one.uid, state.target.digest) < state.share]
    wrong = _refusals(having, strategy) or _failures(having, health)
    if wrong:
        return replace(state, phase=Phase.HALTED, percent=0, share=0, since=now, message=wrong)
    if now < max(not_before, state.since + strategy.pause) or not _anybody(having):
        return state
    if state.share >= PLACES:
        return _complete(state.target, now)
    return _grown(state, state.percent + strategy.step, pods, now)


def next_look(strategy: Strategy | None, state: State, not_before: float = 0.0) -> float:
    """When time alone may change a state: seconds since 1970, or infinity."""
    if strategy is None or state.phase is not Phase.PROGRESSING:
        return math.inf
    return max(not_before, state.since + strategy.pause)


def remember(health: Health, pods: Iterable[SelectedPod]) -> None:
    """Keep what is well in each pod. Called after each ``step`` with its pods."""
    for one in pods:
        if one.report is not None:
            known = health.setdefault(one.uid, set())
            known |= {name for name, task in one.report.tasks.items() if task.state in WELL}
            known -= {name for name, task in one.report.tasks.items() if _ill(task)}


def _complete(wanted: Recorded, now: float) -> State:
    return State(Phase.COMPLETE, wanted, since=now)


def _grown(state: State, percent: int, pods: Sequence[SelectedPod], now: float) -> State:
    """With so many percent of these pods, rounded up; pods that come later fall to either side by their place."""
    assert state.target is not None
    percent = min(100, percent)
    share = PLACES * percent // 100
    if percent < 100 and pods:
        places = sorted(place(one.uid, state.target.digest) for one in pods)
        share = places[-(-len(places) * percent // 100) - 1] + 1
    share = max(state.share, share)
    return replace(state, phase=Phase.PROGRESSING, percent=percent, share=share, since=now, message="")


def _anybody(having: Sequence[SelectedPod]) -> bool:
    """Whether the rollout has been seen to work: a pod has it, or none of them ever reports."""
    return any(one.running for one in having) or all(one.report is None for one in having)


def _refusals(having: Sequence[SelectedPod], strategy: Strategy) -> str:
    refused = [one for one in having if one.rejected]
    if len(refused) <= strategy.max_rejected:
        return ""
    reason = next(
        (one.report.error for one in refused if one.report and one.report.error), "without a reason"
    )
    names = _some([one.pod for one in refused])
    return f"{_count(refused, 'pod')} refused it, and maxRejected is {strategy.max_rejected}: {names}: {reason[:500]}"


def _failures(having: Sequence[SelectedPod], health: Health) -> str:
    failed = [
        (f'"{name}" of {one.pod}', task)
        for one in having
        if one.running and one.report is not None
        for name, task in one.report.tasks.items()
        if name in health.get(one.uid, ()) and _ill(task)
    ]
    if not failed:
        return ""
    _, first = failed[0]
    why = f": {first.error[:500]}" if first.error else ""
    were = f"{_count(failed, 'task')} that {'was' if len(failed) == 1 else 'were'} well"
    names = _some([name for name, _ in failed])
    return f"{were} with the version before: {names}, {first.state}{why}"


def _ill(task: TaskReport) -> bool:
    return task.state in ILL or (task.state == "due" and bool(task.error))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


def _count(items: Sequence[object], what: str) -> str:
    return f"{len(items)} {what}{'' if len(items) == 1 else 's'}"


# What a binding comes to


def resolve(
    binding: TaskBinding, history: History, good: Mapping[Key, tuple[TaskSet, str]] | None = None
) -> Recorded:
    """A binding with all sets that it reaches, as they are, or as ``good`` has them.

    Raises ``RolloutError`` where one is not there.
    """
    sets = history.sets if good is None else sets_of(good)
    good = history.good if good is None else good
    found: dict[Key, TaskSet] = {}
    waiting = []
    for name in binding.task_sets:
        first = sets.find(name, binding.namespace, cluster=binding.cluster)
        if first is None:
            raise RolloutError(f'the set "{name}" {_absent(name, history)}')
        waiting.append(first)
    for one in waiting:
        if one.key in found:
            continue
        found[one.key] = one
        for name in one.extends:
            base = sets.base(name, one)
            if base is None:
                raise RolloutError(f'{one.title} extends "{name}", which {_absent(name, history)}')
            waiting.append(base)
    reached = tuple(sorted((one.kind, one.name, good[key][1]) for key, one in found.items()))
    return Recorded(binding.task_sets, binding.params, reached)


def _absent(name: str, history: History) -> str:
    for written in history.broken.values():
        if written.name == name:
            return f"has mistakes, and no version without is kept: {written} {written.findings[0]}"
    return "is not there"


def pins(annotation: str) -> list[str]:
    """The hexadecimal digits of a ``pidone.dev/pin``. Raises ``RolloutError``."""
    found = []
    for text in annotation.split(","):
        digits = text.strip().lower().removeprefix("sha256-").removeprefix("sha256:")
        if not PIN_LEAST <= len(digits) <= 64 or set(digits) - set("0123456789abcdef"):
            raise RolloutError(
                f'{PIN}: "{text.strip()[:80]}" is no digest; give {PIN_LEAST} to 64 hexadecimal digits of one that '
                "pidone-controller rollout history shows"
            )
        found.append(digits)
    return found


def pinned(binding: TaskBinding, annotation: str, history: History) -> Recorded:
    """What a binding comes to with the versions that its pin names. Raises ``RolloutError``."""
    spaces = {(True, "")} if binding.cluster else {(True, ""), (False, binding.namespace)}
    chosen = dict(history.good)
    named: dict[Key, str] = {}
    for digits in pins(annotation):
        found = [one for one in history.starting(digits) if one[0][:2] in spaces]
        if len(found) != 1:
            what = (
                " and ".join(f"{_title(key)} {short(made)}" for key, made in found)
                or "no version that is kept"
            )
            raise RolloutError(f'{PIN}: "{digits}" is {what}')
        ((key, made),) = found
        task_set = history.task_set(key, made)
        if task_set is None:
            raise RolloutError(f'{PIN}: {_title(key)} has mistakes in version "{digits}"')
        if named.setdefault(key, made) != made:
            raise RolloutError(f"{PIN}: two versions of {_title(key)}; pin one")
        chosen[key] = task_set, made
    recorded = resolve(binding, history, chosen)
    reached = {key for key, _ in recorded.keys(binding.namespace)}
    for key in named:
        if key not in reached:
            raise RolloutError(f"{PIN}: this binding does not reach {_title(key)}")
    return recorded


def _title(key: Key) -> str:
    cluster, _, name = key
    return f'{"ClusterTaskSet" if cluster else "TaskSet"} "{name}"'


class Objects:
    """Everything that people wrote and the versions of it that are kept, as last heard; and the rules it makes."""

    def __init__(self, home: str, changed: Callable[[], None] = lambda: None) -> None:
        """``home`` is the controller's namespace."""
        self.home = home
        self.changes = 0  # how often something was another than before
        self._changed = changed
        self.revisions: Store[Revision] = Store(
            lambda value, before: revisions.read(value, home, before), self._count
        )
        self._written: dict[Resource, Store[Written]] = {
            resource: Store(partial(read, resource.kind), self._count)
            for resource in (CLUSTER_TASK_SETS, TASK_SETS, CLUSTER_TASK_BINDINGS, TASK_BINDINGS)
        }
        self._rules = Rules()
        self._versions: dict[tuple[Key, str], Version] = {}
        self._history: tuple[int, History] | None = None

    def _count(self) -> None:
        self.changes += 1
        self._changed()

    @property
    def sinks(self) -> Mapping[Resource, Store[Any]]:
        """What to reflect, and whereto. ControllerRevisions with the label selector ``revisions.SELECTOR``."""
        return {**self._written, CONTROLLER_REVISIONS: self.revisions}

    @property
    def sets(self) -> list[Written]:
        """The cluster's first, then by namespace and name."""
        return [*self._written[CLUSTER_TASK_SETS], *self._written[TASK_SETS]]

    @property
    def bindings(self) -> list[Written]:
        """In the order in which they bring their tasks: the cluster's first, then by namespace and name."""
        return [*self._written[CLUSTER_TASK_BINDINGS], *self._written[TASK_BINDINGS]]

    def history(self) -> History:
        if self._history is None or self._history[0] != self.changes:
            self._history = self.changes, History(self.sets, self.revisions)
        return self._history[1]

    def rules(self) -> Rules:
        """The rules of now: the object of the last call where they are the same."""
        history = self.history()
        bindings: list[TaskBinding] = []
        rollouts: dict[Key, Rollout | str] = {}
        versions: dict[tuple[Key, str], Version] = {}
        for written in self.bindings:
            binding = written.binding
            if binding is None:
                continue
            bindings.append(binding)
            try:
                found = self._rollout(written, binding, history, versions)
            except RolloutError as error:
                rollouts[binding.key] = str(error)
            else:
                if found is not None:
                    rollouts[binding.key] = found
        made = Rules(history.sets, tuple(bindings), rollouts)
        self._versions = versions
        if not _same(made, self._rules):
            self._rules = made
        return self._rules

    def wanted(self, written: Written, history: History) -> Recorded:
        """What a binding should come to. Raises ``RolloutError`` where that is not known."""
        binding = written.binding
        if binding is None or written.findings:
            raise RolloutError(_mistakes(written))
        pin = written.annotations.get(PIN)
        return resolve(binding, history) if pin is None else pinned(binding, pin, history)

    def progress(self, written: Written, wanted: Recorded | None = None) -> tuple[str, str]:
        """What is under way with a binding, and why it is halted; both empty where it brings what is there.

        ``wanted`` for who knows it already. Both are also empty where it is not known what it should come to: that
        is told with the plans that cannot be derived.
        """
        binding = written.binding
        if binding is None or binding.rollout is None or PIN in written.annotations:
            return "", ""
        try:
            wanted = self.wanted(written, self.history()) if wanted is None else wanted
        except RolloutError:
            return "", ""
        state = State.of(written.rollout)
        if state is None:
            return NOT_BEGUN, ""
        if state.phase is Phase.COMPLETE and state.current == wanted:
            return "", ""
        if state.target != wanted or (
            state.phase is Phase.HALTED and written.annotations.get(RESUME) == written_time(state.since)
        ):
            return NOT_BEGUN, ""
        return state.moving, state.halted

    def _rollout(
        self,
        written: Written,
        binding: TaskBinding,
        history: History,
        versions: dict[tuple[Key, str], Version],
    ) -> Rollout | None:
        """None where a binding brings the sets as they are. Raises ``RolloutError``."""

        def version(recorded: Recorded | None) -> Version | None:
            if recorded is None:
                return None
            key = binding.key, recorded.digest
            made = _version(
                recorded, binding, history
            )  # also where it was made before: a set may be gone since
            versions[key] = self._versions.get(key, made)
            return versions[key]

        if written.findings:
            raise RolloutError(_mistakes(written))
        pin = written.annotations.get(PIN)
        if pin is not None:
            return Rollout(version(pinned(binding, pin, history)))
        if binding.rollout is None:
            if history.broken:
                resolve(binding, history)
            return None
        state = State.of(written.rollout)
        if state is None:
            raise RolloutError(NOT_BEGUN)
        if state.target is None:
            return Rollout(version(state.current))
        return Rollout(version(state.current), version(state.target), state.share, state.target.digest)

    def in_use(self) -> Callable[[Key, str], bool]:
        """Which versions of sets a binding counts on: they are to be kept."""
        named: set[tuple[Key, str]] = set()
        prefixes: set[str] = set()
        for written in self.bindings:
            state = State.of(written.rollout)
            for recorded in (state.current, state.target) if state is not None else ():
                named.update(recorded.keys(written.namespace) if recorded is not None else ())
            if PIN in written.annotations:
                try:
                    prefixes.update(f"sha256-{digits}" for digits in pins(written.annotations[PIN]))
                except RolloutError:
                    continue  # it is told where the binding is
        return lambda key, found: (key, found) in named or found.startswith(tuple(prefixes))


def _mistakes(written: Written) -> str:
    return f"it has mistakes, and its pods keep what they have: {'; '.join(written.findings[:SHOWN])}"


def _version(recorded: Recorded, binding: TaskBinding, history: History) -> Version:
    """Of what is kept. Raises ``RolloutError``."""
    sets: dict[Key, TaskSet] = {}
    for key, made in recorded.keys(binding.namespace):
        found = history.task_set(key, made)
        if found is None:
            if key not in history.present:
                raise RolloutError(f"{_title(key)} is not there any more")
            raise RolloutError(f"version {short(made)} of {_title(key)} is not kept any more")
        sets[key] = found
    return Version(recorded.task_sets, recorded.params, Sets(sets))


def _same(one: Rules, other: Rules) -> bool:
    """Whether plans made by both are the same. Sets are compared by identity: what was not written anew is the same."""
    mine, theirs = one.sets.by_key, other.sets.by_key
    return (
        mine.keys() == theirs.keys()
        and all(mine[key] is theirs[key] for key in mine)
        and one.bindings == other.bindings
        and one.rollouts == other.rollouts
    )
