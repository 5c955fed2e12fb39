"""Resolves the version that a binding should bring to its pods: the present sets, or those in its pin."""

from collections.abc import Mapping

from pidone.errors import PidoneError
from pidone.language.binding import Key, Version
from pidone.language.extends import Sets
from pidone.language.model import TaskBinding, TaskSet
from pidone_controller.objects.policy import EXEC_SELECTOR
from pidone_controller.objects.revisions import History, sets_of
from pidone_controller.objects.written import PIN
from pidone_controller.rollout.state import VersionRef, short_version

MIN_PIN_DIGITS = 8  # hexadecimal digits


class RolloutError(PidoneError):
    """The version of a binding cannot be resolved; the text is the reason."""


class BrokenSetError(RolloutError):
    """A set that a binding reaches has mistakes, and no version without mistakes is kept."""


def resolve(
    binding: TaskBinding, history: History, good: Mapping[Key, tuple[TaskSet, str]] | None = None
) -> VersionRef:
    """Return a binding with all sets that it reaches, in their present versions or those in ``good``.

    Raises ``RolloutError`` if a set does not exist.
    """
    sets = history.sets if good is None else sets_of(good)
    good = history.good if good is None else good
    reached: dict[Key, TaskSet] = {}
    waiting = []
    for name in binding.task_sets:
        task_set = sets.find(name, binding.namespace, cluster=binding.cluster)
        if task_set is None:
            raise _missing(f'the set "{name}"', name, binding, history)
        waiting.append(task_set)

    for task_set in waiting:  # grows meanwhile
        if task_set.key in reached:
            continue
        reached[task_set.key] = task_set
        for name in task_set.extends:
            base = sets.base(name, task_set)
            if base is None:
                raise _missing(f'{task_set.title} extends "{name}", which', name, task_set, history)
            waiting.append(base)

    named = sorted((task_set.kind, task_set.name, good[key][1]) for key, task_set in reached.items())
    return VersionRef(binding.task_sets, binding.params, tuple(named))


def _missing(subject: str, name: str, user: TaskBinding | TaskSet, history: History) -> RolloutError:
    """Return the error for a set that ``user`` names and that has no good version."""
    for key in ((user.cluster, user.namespace, name), (True, "", name)):
        broken = history.broken.get(key)
        if broken is not None:
            mistake = f"{broken} {broken.findings[0]}"
            return BrokenSetError(f"{subject} has mistakes, and no version without is kept: {mistake}")
    return RolloutError(f"{subject} is not there")


def pins(annotation: str) -> list[str]:
    """Return the hexadecimal digits of a ``pidone.dev/pin``. Raises ``RolloutError``."""
    pins = []
    for text in annotation.split(","):
        digits = text.strip().lower().removeprefix("sha256-").removeprefix("sha256:")
        if not MIN_PIN_DIGITS <= len(digits) <= 64 or set(digits) - set("0123456789abcdef"):
            raise RolloutError(
                f'{PIN}: "{text.strip()[:80]}" is no digest; give {MIN_PIN_DIGITS} to 64 hexadecimal digits of one '
                "that pidone-controller rollout history shows"
            )
        pins.append(digits)
    return pins


def pinned(binding: TaskBinding, annotation: str, history: History) -> VersionRef:
    """Return a binding with the versions in its pin. Raises ``RolloutError``."""
    namespaces = {(True, "")} if binding.cluster else {(True, ""), (False, binding.namespace)}
    good = dict(history.good)
    named: dict[Key, str] = {}
    for digits in pins(annotation):
        matches = list(history.starting(digits, namespaces))
        if len(matches) != 1:
            versions = " and ".join(f"{title(key)} {short_version(digest)}" for key, digest in matches)
            raise RolloutError(f'{PIN}: "{digits}" is {versions or "no version that is kept"}')
        ((key, digest),) = matches
        task_set = history.task_set(key, digest)
        if task_set is None:
            raise _forbidden(key, digest, history) or RolloutError(
                f'{PIN}: {title(key)} has mistakes in version "{digits}"'
            )
        if named.setdefault(key, digest) != digest:
            raise RolloutError(f"{PIN}: two versions of {title(key)}; pin one")
        good[key] = task_set, digest

    version = resolve(binding, history, good)
    reached = {key for key, _ in version.keys(binding.namespace)}
    for key in named:
        if key not in reached:
            raise RolloutError(f"{PIN}: this binding does not reach {title(key)}")
    return version


def version_of(ref: VersionRef, binding: TaskBinding, history: History) -> Version:
    """Build a version from the sets that are kept. Raises ``RolloutError``."""
    sets: dict[Key, TaskSet] = {}
    for key, digest in ref.keys(binding.namespace):
        task_set = history.task_set(key, digest)
        if task_set is None:
            if key not in history.present:
                raise RolloutError(f"{title(key)} is not there any more")
            forbidden = _forbidden(key, digest, history)
            if forbidden is not None:
                raise forbidden
            raise RolloutError(f"version {short_version(digest)} of {title(key)} is not kept any more")
        sets[key] = task_set
    return Version(ref.task_sets, ref.params, Sets(sets))


def _forbidden(key: Key, digest: str, history: History) -> RolloutError | None:
    """Return the error for a kept version that the present policy does not allow; None for any other."""
    revision = history.revision(key, digest)
    if revision is None or history.is_allowed(revision):
        return None
    return RolloutError(
        f"version {short_version(digest)} of {title(key)} runs programs, which namespace {key[1]} does not allow any "
        f"more: pin another version, or ask a cluster administrator for the label {EXEC_SELECTOR}"
    )


def title(key: Key) -> str:
    """Return the title of a set by its key: ``TaskSet "web"``."""
    cluster, _, name = key
    return f'{"ClusterTaskSet" if cluster else "TaskSet"} "{name}"'
