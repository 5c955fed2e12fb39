"""Every version of a set that was ever applied, kept as Kubernetes keeps those of a DaemonSet: ControllerRevisions.

A revision is owned by its set and is named ``<set>-<hash>``; ``revision`` counts up, and a spec that comes back gets
the next number instead of a second revision; ``data`` is a patch with the whole spec. Those of a ClusterTaskSet live
in the controller's own namespace, and count in no other: who may write there may change plans everywhere.

Who calls what:

- ``read`` is what the store of ControllerRevisions reads with (a reflector with the label selector ``SELECTOR``).
- ``History`` is made of the stores whenever one of them changed, in every replica: which versions there are.
- ``changes`` says what is to be created, numbered anew or deleted. Pure; the leader does it with ``make``, one by
  one, and looks again when the watch has brought the result.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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
from pidone_controller.objects.written import CAUSE, CLUSTER_KINDS, Written, check, version_digest

LABEL = "pidone.dev/task-set"
SELECTOR = LABEL  # a revision of ours has the label, whatever its value
LIMIT = 10  # revisions of a set beside the present one; those that somebody counts on are kept beyond
OWNERS = {resource.kind: resource for resource in (TASK_SETS, CLUSTER_TASK_SETS)}
_HASH = 10  # hexadecimal digits in a name
_MADE = (
    "digest",
    "task_set",
)  # of the spec, once somebody asked; the number of a version may change, its spec never


@dataclass(frozen=True)
class Revision:
    """One version of a set, as it is kept."""

    kind: str
    set_name: str
    namespace: str  # of the object
    name: str
    owner: str  # the uid of the set
    number: int
    created: str
    cause: str  # for people: why it was made
    spec: Mapping[str, Any]
    resource_version: str = field(default="", compare=False)

    @property
    def key(self) -> Key:
        """Of the set."""
        cluster = self.kind in CLUSTER_KINDS
        return cluster, "" if cluster else self.namespace, self.set_name

    @cached_property
    def digest(self) -> str:
        """Made of what is there, and not read from a label that anybody could write."""
        return version_digest(self.kind, self.set_name, self.spec)

    @cached_property
    def task_set(self) -> TaskSet | None:
        """None where the checker of today finds mistakes in it."""
        value, _, _ = check(self.kind, self.key[1], self.set_name, self.spec)
        return value if isinstance(value, TaskSet) else None


def read(value: Mapping[str, Any], home: str, before: Revision | None = None) -> Revision | None:
    """A ControllerRevision; None where it is none of ours. ``home`` is the controller's namespace."""
    metadata = value["metadata"]
    owners = metadata.get("ownerReferences") or []
    owner = next((one for one in owners if one["apiVersion"].partition("/")[0] == PIDONE), None)
    data = value.get("data")
    spec = data.get("spec") if isinstance(data, dict) else None
    if owner is None or owner["kind"] not in OWNERS or not isinstance(spec, dict):
        return None
    if owner["kind"] in CLUSTER_KINDS and metadata["namespace"] != home:
        return None
    made = Revision(
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
    if before is not None and before.key == made.key and before.spec == spec:
        made.__dict__.update({name: before.__dict__[name] for name in _MADE if name in before.__dict__})
    return made


class History:
    """Which versions of the sets there are: the present ones, and those that are kept."""

    def __init__(self, sets: Iterable[Written], revisions: Iterable[Revision]) -> None:
        self.present: dict[Key, Written] = {one.key: one for one in sets}
        self.kept: dict[Key, list[Revision]] = {}  # of sets that there are, the oldest first
        for one in sorted(revisions, key=lambda one: (one.number, one.name)):
            there = self.present.get(one.key)
            if there is not None and there.uid == one.owner:
                self.kept.setdefault(one.key, []).append(one)

    def revision(self, key: Key, digest: str) -> Revision | None:
        return next((one for one in self.kept.get(key, ()) if one.digest == digest), None)

    def task_set(self, key: Key, digest: str) -> TaskSet | None:
        """A version of a set; None where it is not known, or does not pass the checker."""
        there = self.present.get(key)
        if there is not None and there.digest == digest and there.task_set is not None:
            return there.task_set
        kept = self.revision(key, digest)
        return kept.task_set if kept is not None else None

    @cached_property
    def good(self) -> dict[Key, tuple[TaskSet, str]]:
        """What counts of each set, with its digest: what is there, or its last version without findings."""
        found: dict[Key, tuple[TaskSet, str]] = {}
        for key, there in self.present.items():
            if there.task_set is not None:
                found[key] = there.task_set, there.digest
                continue
            for kept in reversed(self.kept.get(key, ())):
                if kept.task_set is not None:
                    found[key] = kept.task_set, kept.digest
                    break
        return found

    @cached_property
    def sets(self) -> Sets:
        """The same without digests."""
        return sets_of(self.good)

    @cached_property
    def broken(self) -> dict[Key, Written]:
        """The sets of which nothing counts."""
        return {key: there for key, there in self.present.items() if key not in self.good}

    def starting(self, prefix: str) -> Iterator[tuple[Key, str]]:
        """The versions whose digest begins with some hexadecimal digits."""
        whole = f"sha256-{prefix}"
        for key, there in self.present.items():
            digests = {one.digest for one in self.kept.get(key, ())} | {there.digest}
            yield from ((key, digest) for digest in sorted(digests) if digest.startswith(whole))


def sets_of(good: Mapping[Key, tuple[TaskSet, str]]) -> Sets:
    return Sets({key: task_set for key, (task_set, _) in good.items()})


# What the leader does


@dataclass(frozen=True, slots=True)
class Create:
    """Keep the present version of a set."""

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
    """A version that is the present one again, or whose change cause was written later."""

    revision: Revision
    number: int
    cause: str

    @property
    def name(self) -> str:
        return self.revision.name


@dataclass(frozen=True, slots=True)
class Delete:
    """A version beyond the limit, or of a set that is no more."""

    revision: Revision

    @property
    def name(self) -> str:
        return self.revision.name


Change = Create | Update | Delete


def revision_name(name: str, digest: str) -> str:
    return f"{name}-{digest.removeprefix('sha256-')[:_HASH]}"


def changes(
    sets: Iterable[Written],
    revisions: Iterable[Revision],
    in_use: Callable[[Key, str], bool],
    home: str,
    limit: int = LIMIT,
) -> list[Change]:
    """What is to be done until every present version is kept, and no more than ``limit`` others are.

    ``in_use`` says which versions a binding counts on, by its status or a pin; ``home`` is the controller's
    namespace. Nothing is to be done where nothing is wrong, so this may be asked at any time.
    """
    of: dict[Key, list[Revision]] = {}
    for one in sorted(revisions, key=lambda one: (one.number, one.name)):
        of.setdefault(one.key, []).append(one)
    found: list[Change] = []
    for written in sets:
        mine = [one for one in of.get(written.key, ()) if one.owner == written.uid]
        # What is newer than the set as we know it is of a set that we have not heard of yet.
        found += [
            Delete(one)
            for one in of.get(written.key, ())
            if one.owner != written.uid and one.created <= written.created
        ]
        if written.task_set is None:
            continue
        last = max((one.number for one in mine), default=0)
        present = next((one for one in mine if one.digest == written.digest), None)
        cause = written.annotations.get(CAUSE, "")
        if present is None:
            namespace = home if written.kind in CLUSTER_KINDS else written.namespace
            found.append(Create(written, last + 1, namespace))
        elif present.number != last:
            found.append(Update(present, last + 1, cause))
        elif present.cause != cause:
            found.append(Update(present, last, cause))
        older = [one for one in mine if one is not present]
        free = [one for one in older if not in_use(one.key, one.digest)]
        found += [Delete(one) for one in free[: max(0, len(older) - limit)]]
    return found


async def make(client: Client, change: Change) -> None:
    """Do it. Raises ``ApiError``; ``AlreadyExists``, ``NotFound`` and ``Conflict`` are news that the watch brings."""
    match change:
        case Create():
            await client.create(CONTROLLER_REVISIONS, change.body())
        case Update(revision=revision):
            # Replaced and not patched: data is immutable byte by byte, and a patch has it written anew, sorted.
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
