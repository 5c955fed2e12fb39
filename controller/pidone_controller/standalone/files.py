"""Files that people edit, looked at again and again: what stands still is read, what is broken is told.

inotify would tell sooner, and not at all on network file systems, bind mounts of single files and the
symlinks of a ConfigMap; one ``stat`` a file each fifth of a second works everywhere and costs nothing.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pidone.errors import LanguageError
from pidone.language.binding import Rules, collect, shown
from pidone.language.checking import check_bytes
from pidone.language.model import TaskBinding, TaskSet
from pidone.language.pods import read_pods
from pidone_controller.log import Log
from pidone_controller.pods.model import Pod, Pool
from pidone_controller.pods.projection import ProjectionError, project

Signature = tuple[int, int, int]  # mtime in ns, size, inode
Say = Callable[[str], None]

SUFFIXES = {".yaml", ".yml", ".json"}


@dataclass(slots=True)
class Watched:
    """One path. ``look`` returns its bytes once for each version, when that stood still for one look.

    An editor or a copy in progress is a file that changes between two looks; half of it is never read.
    """

    path: Path
    seen: Signature | None = None  # at the last look
    taken: Signature | None = None  # when it was last read

    @property
    def pending(self) -> bool:
        """There is a version that was not read yet."""
        return self.seen != self.taken

    def look(self) -> bytes | None:
        """May raise ``OSError``: gone, or not to be read."""
        now = _signature(self.path.stat())
        stood, self.seen = now == self.seen, now
        if not stood or now == self.taken:
            return None
        with self.path.open("rb") as opened:
            data = opened.read()
            if _signature(os.fstat(opened.fileno())) != now:
                return None
        self.taken = now
        return data


@dataclass(slots=True)
class TaskFiles:
    """The folders of TaskSets and TaskBindings: of each file its last good version counts."""

    folders: Sequence[Path]
    log: Log
    say: Say
    files: dict[Path, Watched] = field(default_factory=dict)
    good: dict[Path, tuple[TaskSet | TaskBinding, ...]] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)
    complaints: tuple[str, ...] = ()
    problems: dict[Path, str] = field(default_factory=dict)  # the last one told of each path
    missing: set[Path] = field(default_factory=set)  # not there at the last look

    @property
    def pending(self) -> bool:
        """There is something to read that may be readable at the next look."""
        return any(watched.pending and path not in self.problems for path, watched in self.files.items())

    def look(self) -> None:
        """Look once; ``rules`` is another object afterwards where anything changed that counts."""
        before = dict(self.good)
        there: dict[Path, None] = {}
        for folder in self.folders:
            try:
                there.update(dict.fromkeys(_listed(folder)))
                self.problems.pop(folder, None)
            except OSError as error:
                # A folder that is away takes nothing with it: an unmounted volume is not a withdrawal.
                self._problem(folder, f"cannot be listed: {error.strerror}; what was read from it stays")
                there.update(dict.fromkeys(path for path in self.files if path.parent == folder))
        # An editor may rename the old file away before it writes the new one: gone is what is gone twice.
        missing = self.files.keys() - there.keys()
        gone, self.missing = missing & self.missing, missing - self.missing
        for path in gone:
            del self.files[path]
            self.problems.pop(path, None)
            if self.good.pop(path, None):
                self.log("withdrawn", file=path)
        for path in there:
            self._look_at(path)
        if self.good != before:
            # "first file by name wins" for what is there twice
            self.rules, complaints = collect(
                (str(path), self.good[path]) for path in sorted(self.good, key=lambda path: (path.name, path))
            )
            for complaint in complaints:
                if complaint not in self.complaints:
                    self.log("duplicate", error=complaint)
            self.complaints = complaints

    def _look_at(self, path: Path) -> None:
        watched = self.files.setdefault(path, Watched(path))
        try:
            data = watched.look()
        except OSError as error:
            self._problem(path, f"cannot be read: {error.strerror}")
            return
        if data is None:
            return
        self.problems.pop(path, None)
        kept = "the version before stays in force" if path in self.good else "nothing of it is in force"
        checked = check_bytes(data, str(path))
        if checked.findings:
            self.log("broken", file=path, findings=len(checked.findings), error=kept)
            for finding in checked.findings:
                self.say(str(finding))
            return
        if self.good.get(path) and not checked.objects:
            # What an editor that died in mid-save leaves, or everything commented out.
            self.log("broken", file=path, error=f"no TaskSet, no TaskBinding; to withdraw, remove it; {kept}")
            return
        self.good[path] = checked.objects
        self.log("read", file=path, objects=", ".join(shown(item) for item in checked.objects))

    def _problem(self, path: Path, text: str) -> None:
        if self.problems.get(path) != text:
            self.problems[path] = text
            self.log("broken", file=path, error=text)


@dataclass(slots=True)
class InventoryFile:
    """The pods. The last good version counts, and there is none until there is a good one."""

    path: Path
    log: Log
    watched: Watched = field(init=False)
    pods: Sequence[Pod] | None = None
    problem: str = ""

    def __post_init__(self) -> None:
        self.watched = Watched(self.path)

    def look(self) -> None:
        """Look once; ``pods`` is another object afterwards where anything changed."""
        try:
            data = self.watched.look()
        except OSError as error:
            self._problem(f"cannot be read: {error.strerror}")
            return
        if data is None:
            return
        try:
            self.pods = listed_pods(read_pods(data.decode(errors="replace")))
        except (LanguageError, ProjectionError) as error:
            self._problem(str(error))
            return
        self.problem = ""
        self.log("read", file=self.path, pods=len(self.pods))

    def _problem(self, text: str) -> None:
        if text != self.problem:
            kept = "; the version before stays in force" if self.pods is not None else ""
            self.log("broken", file=self.path, error=text + kept)
        self.problem = text


def listed_pods(objects: Iterable[Mapping[str, Any]]) -> list[Pod]:
    """Pods from their objects, each once. Raises ``ProjectionError``."""
    pods: dict[str, Pod] = {}
    names: set[str] = set()
    pool = Pool()
    for item in objects:
        pod = project(item, pool)
        if pod.path in names:
            raise ProjectionError(f"pod {pod.path} is there twice")
        if pod.key in pods:
            raise ProjectionError(f"pods {pods[pod.key].path} and {pod.path} have the same uid {pod.uid}")
        names.add(pod.path)
        pods[pod.key] = pod
    return list(pods.values())


def _signature(found: os.stat_result) -> Signature:
    return found.st_mtime_ns, found.st_size, found.st_ino


def _listed(folder: Path) -> list[Path]:
    """Names with a dot in front are editors' and ConfigMap volumes' own."""
    with os.scandir(folder) as entries:
        found = [Path(entry) for entry in entries if not entry.name.startswith(".")]
    return sorted(path for path in found if path.suffix in SUFFIXES and not path.is_dir())
