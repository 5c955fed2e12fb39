"""Labels processes by the containers that their cgroups belong to."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from pidone.metrics import proc
from pidone.pid1.claims import pod_uid
from pidone.plan.model import Container

# Names of containers have no capital letters (RFC 1123), so these two are none.
POD = "POD"  # the cgroup of this process, as cAdvisor calls a sandbox: also the commands of tasks
UNKNOWN = "UNKNOWN"
_REMEMBERED = 100  # IDs of earlier containers, whose processes may still end
_ID_LENGTH, _SHORT_LENGTH = 64, 12


class Facts(NamedTuple):
    """The facts of the pod by which its processes are known."""

    uid: str
    containers: Callable[[], Mapping[str, Container]]  # by name, as in the last bundle


class Labels:
    """The labels of cgroups: the name of a container, its short ID while it has no name, ``POD``, or ``UNKNOWN``."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._alone = os.getpid() == 1  # then all processes in /proc are of this pod
        self._cgroup = proc.read("self", "cgroup") or b""
        self.own = POD  # the label of this process
        self._uid = facts.uid or pod_uid(self._cgroup.decode(errors="replace"))
        self._names: dict[str, str] = {}  # by container ID, also of earlier containers
        self._unnamed: dict[str, str] = {}  # short IDs, by container ID

    def update(self) -> list[tuple[str, str]]:
        """Take the containers of the last bundle. Return the labels that have got a name, with it."""
        current = {
            container.id.rpartition("/")[2]: name
            for name, container in self._facts.containers().items()
            if container.id
        }
        earlier = [item for item in self._names.items() if item[0] not in current]
        self._names = {**dict(earlier[-_REMEMBERED:]), **current}
        self.own = self.named(self._cgroup) or POD
        named = current.keys() & self._unnamed.keys()
        return [(self._unnamed.pop(container), current[container]) for container in named]

    def of(self, cgroup: bytes) -> str | None:
        """Return the label of a cgroup, as in /proc/PID/cgroup; None for one of another pod."""
        label = self.known(cgroup)
        if label:
            return label
        if not self._alone and not self._is_of_pod(cgroup):
            return None
        container = next(filter(_is_id, _segments(cgroup)), None)
        return self._unnamed.setdefault(container, container[:_SHORT_LENGTH]) if container else UNKNOWN

    def known(self, cgroup: bytes) -> str | None:
        """Return the label of a cgroup if it is that of this process, or of a container with a name."""
        return self.own if cgroup and cgroup == self._cgroup else self.named(cgroup)

    def named(self, cgroup: bytes) -> str | None:
        """Return the name of the container whose cgroup this is, or contains it."""
        return next((self._names[each] for each in _segments(cgroup) if each in self._names), None)

    @property
    def only(self) -> str | None:
        """The name of the pod's container, if it has one only."""
        names = set(self._names.values())
        return names.pop() if len(names) == 1 and not self._unnamed else None

    def forget_unnamed(self, used: Collection[str]) -> Iterable[str]:
        """Forget the short IDs that are not used, and return them: nothing gives them a name any more."""
        unused = {container: short for container, short in self._unnamed.items() if short not in used}
        for container in unused:
            del self._unnamed[container]
        return unused.values()

    def _is_of_pod(self, cgroup: bytes) -> bool:
        """True for a cgroup of this pod: it has the pod's uid, or is beside that of this process's namespace."""
        text = cgroup.decode(errors="replace")
        if self._uid and pod_uid(text) == self._uid:
            return True
        paths = [line.split(":", 2)[-1] for line in text.splitlines()]
        return any(path.startswith("/../") and not path.startswith("/../..") for path in paths)


def _segments(cgroup: bytes) -> Iterator[str]:
    """Yield what may be the ID of a container, outermost first.

    Runtimes call a cgroup ``ID``, ``docker-ID.scope``, ``cri-containerd-ID.scope`` and the like.
    """
    for line in cgroup.decode(errors="replace").splitlines():
        for segment in line.split(":", 2)[-1].split("/"):
            yield segment.removesuffix(".scope").rpartition("-")[2]


def _is_id(segment: str) -> bool:
    return len(segment) == _ID_LENGTH and all(sign in "0123456789abcdef" for sign in segment)


def sees_other_cgroups() -> bool:
    """True if /proc has a process of another cgroup. Then the PID namespace is that of the pod, or the node's."""
    own = proc.read("self", "cgroup")
    return any(
        cgroup != own
        for cgroup in (proc.read(pid, "cgroup") for pid in proc.pids())
        # in cgroup v1 a zombie has left its cgroup
        if cgroup and any(not line.endswith(b":/") for line in cgroup.splitlines())
    )
