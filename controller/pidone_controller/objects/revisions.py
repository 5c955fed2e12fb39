"""Keeps versions of sets as ControllerRevisions, as Kubernetes does for a DaemonSet.

A revision is owned by its set and is named ``<set>-<hash>``. ``revision`` counts up, and a spec that comes back gets
the next number instead of a second revision. ``data`` is a patch with the whole spec. Revisions of ClusterTaskSets are
in the controller's own namespace and are ignored in any other: a right to write there is a right to change all plans.

- ``read`` reads a ControllerRevision of a watch with the label selector ``SELECTOR``.
- ``History`` holds the versions that exist, in every replica.
- ``changes`` returns the revisions to create, renumber or delete. It is pure; the leader calls ``apply`` with each.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pidone.language.binding import Key
from pidone.language.extends import Sets
from pidone.language.model import TaskSet
from pidone_controller.kubernetes.client import Client
from pidone_controller.kubernetes.resources import (
    CLUSTER_TASK_SETS,
    CONTROLLER_REVISIONS,
    PIDONE,
    TASK_SETS,
)
from pidone_controller.objects.policy import runs_programs
from pidone_controller.objects.written import CAUSE, CLUSTER_KINDS, Written, check, version_digest

LABEL = "pidone.dev/task-set"
SELECTOR = LABEL  # a revision of a set has the label, with any value
LIMIT = 10  # revisions of a set beside the present one; those in use are kept beyond it
OWNERS = {resource.kind: resource for resource in (TASK_SETS, CLUSTER_TASK_SETS)}
_HASH = 10  # hexadecimal digits in a name
_CACHED = (
    "digest",
    "task_set",
)  # properties of the spec; a version may get another number, never another spec


@dataclass(frozen=True)
class Revision:
    """One kept version of a set."""

    kind: str
    set_name: str
    namespace: str  # of the ControllerRevision
    name: str
    owner: str  # the uid of the set
    number: int
    created: str
    cause: str  # the change cause, for people
    spec: Mapping[str, Any]
    resource_version: str = ""

    @property
    def key(self) -> Key:
        """The key of the set."""
        cluster = self.kind in CLUSTER_KINDS
        return cluster, "" if cluster else self.namespace, self.set_name

    @cached_property
    def digest(self) -> str:
        """The digest of the version, computed from the spec and not read from a label, which users can edit."""
        return version_digest(self.kind, self.set_name, self.spec)

    @cached_property
    def task_set(self) -> TaskSet | None:
        """The set; None if the present checker finds mistakes in it."""
        value, _, _ = check(self.kind, self.key[1], self.set_name, self.spec)
        return value if isinstance(value, TaskSet) else None


def read(value: Mapping[str, Any], home: str, before: Revision | None = None) -> Revision | None:
    """Read a ControllerRevision; None if it is not one of a set. ``home`` is the controller's namespace."""
    metadata = value["metadata"]
    owners = metadata.get("ownerReferences") or []
    owner = next((item for item in owners if item["apiVersion"].partition("/")[0] == PIDONE), None)
    data = value.get("data")
    spec = data.get("spec") if isinstance(data, dict) else None
    if owner is None or owner["kind"] not in OWNERS or not isinstance(spec, dict):
        return None
    if owner["kind"] in CLUSTER_KINDS and metadata["namespace"] != home:
        return None
    revision = Revision(
        kind=owner["kind"],
        set_name=owner["name"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        owner=owner["uid"],
        number=value.get("revision", 0),
        created=metadata.get("creationTimestamp", ""),
        cause=(metadata.get("annotations") or {}).get(CAUSE, ""),
        spec=spec,
        resource_version=metadata.get("resourceVersion", ""),
    )
    if before is not None and before.key == revision.key and before.spec == spec:
        revision.__dict__.update({name: before.__dict__[name] for name in _CACHED if name in before.__dict__})
    return revision


class History:
    """All present and all kept versions of sets, by the key of the set.

    A change costs the same at any number of sets. ``may_exec`` returns True if the TaskSets of a namespace may run
    programs at present; ``judge`` is called when that has changed.
    """

    def __init__(
        self,
        sets: Iterable[Written] = (),
        revisions: Iterable[Revision] = (),
        may_exec: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._may_exec = may_exec
        self.present: dict[Key, Written] = {}
        # The version that each set brings, with its digest: the present one, or the last kept one without findings.
        self.good: dict[Key, tuple[TaskSet, str]] = {}
        self.broken: dict[Key, Written] = {}  # the sets without a good version
        self._revisions: dict[Key, dict[str, Revision]] = {}  # by their name, of any owner
        self._sets: Sets | None = None
        for written in sets:
            self.put_set(written)
        for revision in revisions:
            self.put_revision(revision)

    def put_set(self, written: Written) -> None:
        self.present[written.key] = written
        self._update(written.key)

    def drop_set(self, key: Key) -> None:
        del self.present[key]
        self._update(key)

    def put_revision(self, revision: Revision) -> None:
        self._revisions.setdefault(revision.key, {})[revision.name] = revision
        self._update(revision.key)

    def drop_revision(self, revision: Revision) -> None:
        revisions = self._revisions.get(revision.key, {})
        revisions.pop(revision.name, None)
        if not revisions:
            self._revisions.pop(revision.key, None)
        self._update(revision.key)

    def revisions(self, key: Key) -> list[Revision]:
        """Return all revisions of sets with this key, present or deleted, the oldest first."""
        revisions = self._revisions.get(key, {}).values()
        return sorted(revisions, key=lambda revision: (revision.number, revision.name))

    def kept(self, key: Key) -> list[Revision]:
        """Return the revisions of a present set, the oldest first."""
        written = self.present.get(key)
        if written is None:
            return []
        return [revision for revision in self.revisions(key) if revision.owner == written.uid]

    def revision(self, key: Key, digest: str) -> Revision | None:
        """Return the revision of a present set that keeps this version; None if none does."""
        return next((revision for revision in self.kept(key) if revision.digest == digest), None)

    def task_set(self, key: Key, digest: str) -> TaskSet | None:
        """Return a version of a set; None if it is unknown, has findings, or is not allowed at present."""
        written = self.present.get(key)
        if written is not None and written.digest == digest and written.task_set is not None:
            return written.task_set
        revision = self.revision(key, digest)
        return revision.task_set if revision is not None and self.is_allowed(revision) else None

    def is_allowed(self, revision: Revision) -> bool:
        """True if the present policy allows a kept version."""
        cluster, namespace, _ = revision.key
        return cluster or self._may_exec(namespace) or not runs_programs(revision.spec)

    def judge(self, namespace: str) -> list[Key]:
        """Judge the kept versions of a namespace again. Return the keys of its sets."""
        keys = [key for key in self._revisions if key[:2] == (False, namespace)]
        for key in keys:
            self._update(key)
        return keys

    @property
    def sets(self) -> Sets:
        """The good version of each set. The same object until one of them changes."""
        if self._sets is None:
            self._sets = sets_of(self.good)
        return self._sets

    def starting(self, prefix: str, namespaces: Container[tuple[bool, str]]) -> Iterator[tuple[Key, str]]:
        """Yield the versions whose digest begins with these hexadecimal digits.

        ``namespaces`` are (True, "") for the cluster's sets and (False, namespace) for those of a namespace.
        """
        whole = f"sha256-{prefix}"
        for key, written in self.present.items():
            if key[:2] in namespaces:
                digests = {revision.digest for revision in self.kept(key)} | {written.digest}
                yield from ((key, digest) for digest in sorted(digests) if digest.startswith(whole))

    def _update(self, key: Key) -> None:
        """Update the good version of this set after a version was added or removed."""
        before, after = self.good.pop(key, None), self._good_version(key)
        self.broken.pop(key, None)
        if after is not None:
            self.good[key] = after
        elif key in self.present:
            self.broken[key] = self.present[key]
        if (before and before[0]) is not (after and after[0]):
            self._sets = None

    def _good_version(self, key: Key) -> tuple[TaskSet, str] | None:
        written = self.present.get(key)
        if written is None:
            return None
        if written.task_set is not None:
            return written.task_set, written.digest
        for revision in reversed(self.kept(key)):
            if revision.task_set is not None and self.is_allowed(revision):
                return revision.task_set, revision.digest
        return None


def sets_of(good: Mapping[Key, tuple[TaskSet, str]]) -> Sets:
    return Sets({key: task_set for key, (task_set, _) in good.items()})


# Changes, which the leader makes


@dataclass(frozen=True, slots=True)
class Create:
    """Create the revision of a set's present version."""

    written: Written
    number: int
    namespace: str

    @property
    def name(self) -> str:
        return revision_name(self.written.name, self.written.digest)

    def body(self) -> dict[str, Any]:
        resource, cause = OWNERS[self.written.kind], self.written.annotations.get(CAUSE)
        owner = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "name": self.written.name,
            "uid": self.written.uid,
            "controller": True,
        }
        return {
            "apiVersion": CONTROLLER_REVISIONS.api_version,
            "kind": CONTROLLER_REVISIONS.kind,
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": {LABEL: self.written.name},
                "annotations": {CAUSE: cause} if cause else {},
                "ownerReferences": [owner],
            },
            "data": {"spec": self.written.spec},
            "revision": self.number,
        }


@dataclass(frozen=True, slots=True)
class Update:
    """Give a revision another number or change cause: its version is present again, or the cause was written later."""

    revision: Revision
    number: int
    cause: str

    @property
    def name(self) -> str:
        return self.revision.name


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a revision beyond the limit, or of a deleted set."""

    revision: Revision

    @property
    def name(self) -> str:
        return self.revision.name


Change = Create | Update | Delete


def revision_name(name: str, digest: str) -> str:
    return f"{name}-{digest.removeprefix('sha256-')[:_HASH]}"


def changes(
    written: Written,
    revisions: Iterable[Revision],
    in_use: Callable[[Key, str], bool],
    home: str,
    limit: int = LIMIT,
) -> list[Change]:
    """Return the changes after which the present version of a set is kept, and at most ``limit`` others.

    ``revisions`` are all that have the set's key, the oldest first. ``in_use`` returns True if a binding needs a
    version, by its status or a pin. ``home`` is the controller's namespace.
    """
    revisions = list(revisions)
    own = [revision for revision in revisions if revision.owner == written.uid]
    # A revision that is newer than the set as last read may be one of a later set of the same name.
    result: list[Change] = [
        Delete(revision)
        for revision in revisions
        if revision.owner != written.uid and revision.created <= written.created
    ]
    if written.task_set is None:
        return result

    last = max((revision.number for revision in own), default=0)
    present = next((revision for revision in own if revision.digest == written.digest), None)
    cause = written.annotations.get(CAUSE, "")
    if present is None:
        namespace = home if written.kind in CLUSTER_KINDS else written.namespace
        result.append(Create(written, last + 1, namespace))
    elif present.number != last:
        result.append(Update(present, last + 1, cause))
    elif present.cause != cause:
        result.append(Update(present, last, cause))

    older = [revision for revision in own if revision is not present]
    if len(older) > limit:
        free = [revision for revision in older if not in_use(revision.key, revision.digest)]
        result += [Delete(revision) for revision in free[: len(older) - limit]]
    return result


async def apply(client: Client, change: Change) -> None:
    """Make a change. Raises ``ApiError``; ``AlreadyExists``, ``NotFound``, ``Conflict`` come with a watch event."""
    match change:
        case Create():
            await client.create(CONTROLLER_REVISIONS, change.body())
        case Update(revision=revision):
            # Replaced, not patched: data is immutable byte by byte, and a patch would write it again, sorted.
            value = await client.get(CONTROLLER_REVISIONS, revision.name, revision.namespace)
            metadata = value["metadata"]
            annotations = {**(metadata.get("annotations") or {}), CAUSE: change.cause}
            if not change.cause:
                del annotations[CAUSE]
            metadata = {**metadata, "annotations": annotations, "resourceVersion": revision.resource_version}
            await client.replace(
                CONTROLLER_REVISIONS, {**value, "metadata": metadata, "revision": change.number}
            )
        case Delete(revision=revision):
            await client.delete(CONTROLLER_REVISIONS, revision.name, revision.namespace)
