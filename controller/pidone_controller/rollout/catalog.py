"""Indexes all sets, bindings and kept versions by key, and derives the rules for the plans from them.

The plan of a pod depends on the state of the cluster alone, so it is the same in all replicas:

- A binding without ``spec.rollout`` brings the present versions of its sets.
- A binding with it brings the versions in its ``status.rollout``: ``current``, and to the pods whose place is below
  ``share`` the ``target``. The leader moves it; until then pods keep their plans.
- ``pidone.dev/pin`` on a binding names versions of sets. They apply at once, whatever else changes.
- A set with findings counts as its last kept version without findings. A binding with findings leaves the plans of
  its pods as they are.

A change costs the same at any number of objects: each object is found by its key, and the objects that depend on a set
are found by its name.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

from pidone.language.binding import Key, Rollout, Rules, Version
from pidone.language.model import TaskBinding
from pidone.language.secrets import NO_SECRETS, Secrets
from pidone_controller.kubernetes.resources import (
    CLUSTER_TASK_BINDINGS,
    CLUSTER_TASK_SETS,
    CONTROLLER_REVISIONS,
    TASK_BINDINGS,
    TASK_SETS,
    Resource,
)
from pidone_controller.objects import revisions
from pidone_controller.objects.revisions import History, Revision
from pidone_controller.objects.store import Store
from pidone_controller.objects.written import PIN, RESUME, Written, read
from pidone_controller.rollout.resolve import BrokenSetError, RolloutError, pinned, pins, resolve, version_of
from pidone_controller.rollout.state import Phase, RolloutState, VersionRef, micro_time

SHOWN_FINDINGS = 3
NOT_BEGUN = "its rollout has not begun yet; the leader of the controllers begins it"


@dataclass(slots=True)
class Affected:
    """The keys of the sets and bindings that a change concerns."""

    sets: set[Key] = field(default_factory=set)
    bindings: set[Key] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.sets or self.bindings)

    def add(self, other: "Affected") -> None:
        self.sets |= other.sets
        self.bindings |= other.bindings


@dataclass(frozen=True, slots=True)
class RulesChange:
    """New rules, and the bindings through which plans may change, as before and as after the change."""

    rules: Rules
    bindings: Collection[TaskBinding]


@dataclass(frozen=True, slots=True)
class _Rule:
    """One binding in the rules."""

    binding: TaskBinding
    rollout: Rollout | str | None  # None: the present sets; a text: why its version is unknown


class Catalog:
    """The index of all objects. ``changed`` is called with each change, before ``update`` derives the rules."""

    def __init__(
        self,
        home: str,
        changed: Callable[[Affected], None] = lambda _: None,
        *,
        judging: bool = False,
        secrets: Secrets = NO_SECRETS,
    ) -> None:
        """``home`` is the controller's namespace.

        With ``judging`` a kept version that runs programs counts only in a namespace of ``exec_namespaces``. Without it
        these are not watched.
        """
        self.home = home
        self.exec_namespaces: Store[str] = Store(
            lambda value, _: str(value["metadata"]["name"]), self._namespace_changed
        )
        self.history = History(may_exec=self._may_exec if judging else lambda _: True)
        self._secrets = secrets
        self.rules = Rules(secrets=secrets)
        self._on_change = changed
        self._revisions: Store[Revision] = Store(
            lambda value, before: revisions.read(value, home, before), self._revision_changed
        )
        self._sets, self._bindings = (
            {cluster: self._store(resource, on_change) for cluster, resource in resources.items()}
            for resources, on_change in (
                ({True: CLUSTER_TASK_SETS, False: TASK_SETS}, self._set_changed),
                ({True: CLUSTER_TASK_BINDINGS, False: TASK_BINDINGS}, self._binding_changed),
            )
        )
        self._users = _Users()
        self._needed: dict[Key, _Needed] = {}  # by the binding's key
        self._needed_versions: Counter[tuple[Key, str]] = Counter()  # of sets, by digest
        self._needed_prefixes: Counter[str] = Counter()  # of digests
        # For ``update``
        self._outdated = Affected()
        self._rules_of: dict[Key, _Rule] = {}  # by the binding's key
        self._keys_in: dict[str, set[Key]] = {}  # the same keys by namespace, "" of the cluster's
        self._versions: dict[Key, dict[str, Version]] = {}  # of bindings, by digest

    @property
    def sinks(self) -> Mapping[Resource, Store[Any]]:
        """The kinds to watch, with their sinks. ControllerRevisions need the label selector ``revisions.SELECTOR``."""
        return {
            CLUSTER_TASK_SETS: self._sets[True],
            TASK_SETS: self._sets[False],
            CLUSTER_TASK_BINDINGS: self._bindings[True],
            TASK_BINDINGS: self._bindings[False],
            CONTROLLER_REVISIONS: self._revisions,
        }

    # Objects

    @property
    def sets(self) -> Iterator[Written]:
        """Iterate over all sets: the cluster's first, then by namespace and name."""
        for cluster in (True, False):
            yield from self._sets[cluster]

    @property
    def bindings(self) -> Iterator[Written]:
        """Iterate over all bindings in the order of their tasks: the cluster's first, then by namespace and name."""
        for cluster in (True, False):
            yield from self._bindings[cluster]

    @property
    def revisions(self) -> Iterator[Revision]:
        return iter(self._revisions)

    def find_set(self, key: Key) -> Written | None:
        cluster, namespace, name = key
        return self._sets[cluster].get(namespace, name)

    def find_binding(self, key: Key) -> Written | None:
        cluster, namespace, name = key
        return self._bindings[cluster].get(namespace, name)

    def everything(self) -> Affected:
        """Return the keys of all objects."""
        return Affected({written.key for written in self.sets}, {written.key for written in self.bindings})

    def naming(self, key: Key) -> int:
        """Return the number of bindings of the same namespace, or of the cluster, that name this set."""
        return self._users.naming(key)

    def in_use(self, key: Key, digest: str) -> bool:
        """True if a binding needs this version of a set, by its status or a pin: it must be kept."""
        return (key, digest) in self._needed_versions or digest.startswith(tuple(self._needed_prefixes))

    # Rules

    def update(self) -> RulesChange | None:
        """Update ``rules`` and return the change. None if no plan can change; ``rules`` is the same object then."""
        outdated, self._outdated = self._outdated, Affected()
        before, sets = self.rules.sets.by_key, self.history.sets.by_key
        changed: dict[Key, None] = {}
        bindings: list[TaskBinding] = []

        for key in sorted(outdated.bindings):
            old, new = self._rules_of.get(key), self._rule(key)
            if new is not None:
                self._rules_of[key] = new
            else:
                self._rules_of.pop(key, None)
            if new != old:
                changed[key] = None
                bindings += [rule.binding for rule in (old, new) if rule is not None]

        # A set that was not written again is the same object.
        other_sets = [key for key in outdated.sets if before.get(key) is not sets.get(key)]
        for key in sorted(self._users.dependents(other_sets).bindings - changed.keys()):
            rule = self._rules_of.get(key)
            if rule is not None and rule.rollout is None:
                bindings.append(rule.binding)

        if not changed and not other_sets:
            return None
        self.rules = self._updated_rules(changed)
        return RulesChange(self.rules, bindings)

    def wanted(self, written: Written) -> VersionRef:
        """Return the version that a binding should bring to all its pods. Raises ``RolloutError`` if it is unknown."""
        binding = written.binding
        if binding is None or written.findings:
            raise RolloutError(_mistakes(written))
        pin = written.annotations.get(PIN)
        return resolve(binding, self.history) if pin is None else pinned(binding, pin, self.history)

    def progress(self, written: Written, wanted: VersionRef | None = None) -> tuple[str, str]:
        """Return the progress of a binding's rollout and why it is halted, for people; both empty without a rollout.

        ``wanted`` avoids resolving it again. Both are also empty if the wanted version is unknown: that is reported
        with the plans that cannot be derived.
        """
        binding = written.binding
        if binding is None or binding.rollout is None or PIN in written.annotations:
            return "", ""
        try:
            wanted = self.wanted(written) if wanted is None else wanted
        except RolloutError:
            return "", ""

        state = RolloutState.of(written.rollout)
        if state is None:
            return NOT_BEGUN, ""
        if state.phase is Phase.COMPLETE and state.current == wanted:
            return "", ""
        resumed = state.phase is Phase.HALTED and written.annotations.get(RESUME) == micro_time(state.since)
        if state.target != wanted or resumed:
            return NOT_BEGUN, ""
        return state.progress, state.halt_reason

    def _updated_rules(self, changed: Iterable[Key]) -> Rules:
        """Return the rules with the present sets, and with the present rule of each changed binding."""
        rollouts = dict(self.rules.rollouts)
        by_namespace = dict(self.rules.by_namespace)
        for key in changed:
            rule = self._rules_of.get(key)
            keys = self._keys_in.setdefault(key[1], set())
            (keys.discard if rule is None else keys.add)(key)
            rollouts.pop(key, None)
            if rule is not None and rule.rollout is not None:
                rollouts[key] = rule.rollout

        for namespace in {namespace for _, namespace, _ in changed}:
            keys = self._keys_in[namespace]
            if keys:
                by_namespace[namespace] = [self._rules_of[key].binding for key in sorted(keys)]
            else:
                del self._keys_in[namespace]
                by_namespace.pop(namespace, None)
        # The namespace of the cluster's bindings is empty and sorts first.
        bindings = tuple(chain.from_iterable(by_namespace[namespace] for namespace in sorted(by_namespace)))
        return Rules(self.history.sets, bindings, rollouts, self._secrets, by_namespace=by_namespace)

    def _rule(self, key: Key) -> _Rule | None:
        written = self.find_binding(key)
        binding = written.binding if written is not None else None
        if written is None or binding is None:
            self._versions.pop(key, None)
            return None
        try:
            return _Rule(binding, self._rollout(written, binding))
        except RolloutError as error:
            return _Rule(binding, str(error))

    def _rollout(self, written: Written, binding: TaskBinding) -> Rollout | None:
        """Return the rollout of a binding; None if it brings the present sets. Raises ``RolloutError``."""
        before = self._versions.pop(binding.key, {})

        def version(ref: VersionRef | None) -> Version | None:
            if ref is None:
                return None
            # Built again in any case, since a set may have been deleted; kept as one object for equal digests.
            built = version_of(ref, binding, self.history)
            digest = ref.digest
            return self._versions.setdefault(binding.key, {}).setdefault(digest, before.get(digest, built))

        if written.findings:
            raise RolloutError(_mistakes(written))
        pin = written.annotations.get(PIN)
        if pin is not None:
            return Rollout(version(pinned(binding, pin, self.history)))
        if binding.rollout is None:
            if self.history.broken:
                self._check_broken(binding)
            return None
        state = RolloutState.of(written.rollout)
        if state is None:
            raise RolloutError(NOT_BEGUN)
        if state.target is None:
            return Rollout(version(state.current))
        return Rollout(version(state.current), version(state.target), state.share, state.target.digest)

    def _check_broken(self, binding: TaskBinding) -> None:
        """Raise ``BrokenSetError`` for a set without a good version; the rules report a missing set."""
        try:
            resolve(binding, self.history)
        except BrokenSetError:
            raise
        except RolloutError:
            pass

    # Changes

    def _may_exec(self, namespace: str) -> bool:
        return self.exec_namespaces.get("", namespace) is not None

    def _namespace_changed(self, before: str | None, after: str | None) -> None:
        keys = self.history.judge(after or before or "")
        self._changed(self._users.dependents(keys))

    def _store(
        self, resource: Resource, changed: Callable[[Written | None, Written | None], None]
    ) -> Store[Written]:
        return Store(partial(read, resource.kind), changed)

    def _set_changed(self, before: Written | None, after: Written | None) -> None:
        written = after or before
        assert written is not None
        if after is not None:
            self.history.put_set(after)
        else:
            self.history.drop_set(written.key)
        self._users.set_extends(written.key, after.task_set.extends if after and after.task_set else ())
        self._changed(self._users.dependents([written.key]))

    def _revision_changed(self, before: Revision | None, after: Revision | None) -> None:
        affected = Affected()
        if before is not None:
            self.history.drop_revision(before)
            affected.add(self._users.dependents([before.key]))
        if after is not None:
            self.history.put_revision(after)
            affected.add(self._users.dependents([after.key]))
        self._changed(affected)

    def _binding_changed(self, before: Written | None, after: Written | None) -> None:
        written = after or before
        assert written is not None
        key = written.key
        affected = Affected(bindings={key})
        affected.sets |= self._users.set_names(
            key, after.binding.task_sets if after and after.binding else ()
        )

        old = self._needed.pop(key, _Needed())
        new = _Needed.of(after) if after is not None else _Needed()
        self._users.set_needed(key, {set_key for set_key, _ in new.versions}, pinned=bool(new.prefixes))
        if new != old:
            self._needed_versions.update(new.versions)
            self._needed_versions.subtract(old.versions)
            self._needed_prefixes.update(new.prefixes)
            self._needed_prefixes.subtract(old.prefixes)
            for counter in (self._needed_versions, self._needed_prefixes):
                _drop_zeros(counter, (*old.versions, *old.prefixes))
            # Versions that are no longer needed may be deleted by the leader.
            affected.sets |= {set_key for set_key, _ in {*old.versions} ^ {*new.versions}}
        if new.versions or new.prefixes:
            self._needed[key] = new
        self._changed(affected)

    def _changed(self, affected: Affected) -> None:
        self._outdated.add(affected)
        self._on_change(affected)


@dataclass(frozen=True, slots=True)
class _Needed:
    """The versions of sets that one binding needs: those in its status, and prefixes of digests in its pin."""

    versions: tuple[tuple[Key, str], ...] = ()
    prefixes: tuple[str, ...] = ()

    @classmethod
    def of(cls, written: Written) -> "_Needed":
        state = RolloutState.of(written.rollout)
        versions: dict[tuple[Key, str], None] = {}
        for ref in (state.current, state.target) if state is not None else ():
            versions.update(dict.fromkeys(ref.keys(written.namespace)) if ref is not None else {})
        try:
            digits = pins(written.annotations[PIN]) if PIN in written.annotations else []
        except RolloutError:
            digits = []  # reported with the binding's plans
        return cls(tuple(versions), tuple(f"sha256-{prefix}" for prefix in digits))


class _Users:
    """Indexes the objects that depend on a set: those that name it, or versions of it in a status or pin."""

    def __init__(self) -> None:
        # By the name of a set, then by the namespace of the objects that name it ("" of the cluster's)
        self._bindings: dict[str, dict[str, set[Key]]] = {}
        self._heirs: dict[str, dict[str, set[Key]]] = {}
        self._names: dict[Key, tuple[str, ...]] = {}  # of sets, by the key of the binding that names them
        self._extends: dict[Key, tuple[str, ...]] = {}  # the same by the key of the set that extends them
        self._needing: dict[Key, set[Key]] = {}  # bindings by the key of the set whose versions they need
        self._needed: dict[Key, set[Key]] = {}  # the reverse
        self._pinned: dict[str, set[Key]] = {}  # bindings with a pin, by their namespace

    def set_names(self, binding: Key, names: tuple[str, ...]) -> set[Key]:
        """Set the sets that a binding names. Return the keys of those that were added or removed."""
        changed = _reindex(self._bindings, self._names, binding, names)
        cluster, namespace, _ = binding
        return {(cluster, namespace, name) for name in changed}

    def set_extends(self, task_set: Key, names: tuple[str, ...]) -> None:
        """Set the sets that a set extends."""
        _reindex(self._heirs, self._extends, task_set, names)

    def set_needed(self, binding: Key, sets: set[Key], *, pinned: bool) -> None:
        """Set the sets of which a binding needs versions. ``pinned``: it is pinned to any."""
        before = self._needed.pop(binding, set())
        for key in before - sets:
            self._needing[key].discard(binding)
            if not self._needing[key]:
                del self._needing[key]
        for key in sets - before:
            self._needing.setdefault(key, set()).add(binding)
        if sets:
            self._needed[binding] = sets
        _, namespace, _ = binding
        pinned_bindings = self._pinned.setdefault(namespace, set())
        (pinned_bindings.add if pinned else pinned_bindings.discard)(binding)
        if not pinned_bindings:
            del self._pinned[namespace]

    def naming(self, key: Key) -> int:
        """Return the number of bindings of the set's namespace, or of the cluster for the cluster's, that name it."""
        _, namespace, name = key
        return len(self._bindings.get(name, {}).get(namespace, ()))

    def dependents(self, sets: Iterable[Key]) -> Affected:
        """Return these sets and all objects whose version or status may change with them."""
        affected = Affected()
        waiting = list(sets)
        for key in waiting:  # grows meanwhile
            if key in affected.sets:
                continue
            affected.sets.add(key)
            cluster, namespace, name = key
            affected.bindings |= self._needing.get(key, set())
            for index, dependents in ((self._bindings, affected.bindings), (self._heirs, waiting)):
                by_namespace = index.get(name, {})
                # Objects of a namespace may name a set of the cluster; those of the cluster name no set of a namespace.
                for other in list(by_namespace) if cluster else [namespace]:
                    add = dependents.update if isinstance(dependents, set) else dependents.extend
                    add(by_namespace.get(other, ()))
            # A pin means any version that begins with its digits.
            for other in list(self._pinned) if cluster else [namespace]:
                affected.bindings |= self._pinned.get(other, set())
        return affected


def _reindex(
    index: dict[str, dict[str, set[Key]]],
    names_of: dict[Key, tuple[str, ...]],
    key: Key,
    names: tuple[str, ...],
) -> set[str]:
    """Index ``key`` by these names alone. Return the names that were added or removed."""
    before = {*names_of.pop(key, ())}
    if names:
        names_of[key] = names
    namespace = key[1]
    for name in before - {*names}:
        keys = index[name][namespace]
        keys.discard(key)
        if not keys:
            del index[name][namespace]
            if not index[name]:
                del index[name]
    for name in {*names} - before:
        index.setdefault(name, {}).setdefault(namespace, set()).add(key)
    return before ^ {*names}


def _drop_zeros(counter: Counter[Any], keys: Iterable[Any]) -> None:
    for key in keys:
        if key in counter and not counter[key]:
            del counter[key]


def _mistakes(written: Written) -> str:
    return (
        f"it has mistakes, and its pods keep what they have: {'; '.join(written.findings[:SHOWN_FINDINGS])}"
    )
