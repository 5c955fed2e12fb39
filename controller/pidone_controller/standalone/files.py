"""The files of the standalone repo: read when they have changed, with every mistake in the log.

Each file is checked by ``stat`` five times a second, which works everywhere and costs next to nothing. inotify would
report sooner, and not at all for network file systems, bind mounts of single files and the symlinks of a ConfigMap.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pidone.errors import LanguageError
from pidone.language.binding import Rules, collect, shown
from pidone.language.checking import check_parsed, extended_sets, parse_bytes
from pidone.language.model import Param, TaskBinding, TaskSet
from pidone.language.pods import PodProblem, read_inventory, shown_pod
from pidone.language.secrets import NO_SECRETS, FileSecrets, SecretError, Secrets, file_reference
from pidone_controller.log import Log
from pidone_controller.pods.model import Pod, Pool
from pidone_controller.pods.projection import ProjectionError, project

Signature = tuple[int, int, int]  # mtime in ns, size, inode
Print = Callable[[str], None]

MAX_PROBLEMS = 20  # of one version of a file that are logged
SUFFIXES = {".yaml", ".yml", ".json"}
CASES = ".test.yaml"  # the end of the names of case files, which ``pidone test`` reads


@dataclass(slots=True)
class WatchedFile:
    """One file. ``look`` returns each version once, when it was the same in two looks.

    A file that changes between two looks is being written by an editor or a copy; it is never read half-way.
    """

    path: Path
    last: Signature | None = None  # at the last look
    read: Signature | None = None  # when it was read last

    @property
    def pending(self) -> bool:
        """Whether there is a version that was not read yet."""
        return self.last != self.read

    def look(self) -> bytes | None:
        """The bytes of a new version; None if there is none yet. Raises ``OSError``."""
        now = _signature(self.path.stat())
        stable, self.last = now == self.last, now
        if not stable or now == self.read:
            return None
        with self.path.open("rb") as opened:
            data = opened.read()
            if _signature(os.fstat(opened.fileno())) != now:
                return None
        self.read = now
        return data


class WatchedSecrets(FileSecrets):
    """Files with values of Secrets, of one folder. Without a folder none is read here, and pods read their own.

    ``look`` returns True if a file that was read has changed since.
    """

    def __init__(self, folder: Path | None) -> None:
        super().__init__(folder)
        self._off = folder is None
        self._read_files: dict[Path, Signature | None] = {}  # None: it could not be read

    def text(self, param: Param, namespace: str) -> str | None:
        if self._off and param.file:
            return file_reference(param)
        if self._off:
            raise SecretError("is not read, since the repo was started without --secrets DIR")
        return super().text(param, namespace)

    def look(self) -> bool:
        changed = [path for path, before in self._read_files.items() if _signature_of(path) != before]
        for path in changed:
            del self._read_files[path]  # plans that need it read it again
        return bool(changed)

    def _data(self, path: Path) -> bytes:
        self._read_files[path] = _signature_of(path)
        return super()._data(path)


@dataclass(slots=True)
class TaskFiles:
    """The folders of TaskSets and TaskBindings. The last good version of each file counts."""

    folders: Sequence[Path]
    log: Log
    say: Print
    secrets: Secrets = NO_SECRETS
    files: dict[Path, WatchedFile] = field(default_factory=dict)
    good: dict[Path, tuple[TaskSet | TaskBinding, ...]] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)
    complaints: tuple[str, ...] = ()
    problems: dict[Path, str] = field(default_factory=dict)  # the last one that was logged for each path
    missing: set[Path] = field(default_factory=set)  # at the last look

    @property
    def pending(self) -> bool:
        """Whether a file may be readable at the next look that was not read yet."""
        return any(file.pending and path not in self.problems for path, file in self.files.items())

    def look(self) -> None:
        """Look at all files once. ``rules`` is another object afterwards if an object has changed."""
        before = dict(self.good)
        present: dict[Path, None] = {}
        for folder in self.folders:
            try:
                present.update(dict.fromkeys(_listed(folder)))
                self.problems.pop(folder, None)
            except OSError as error:
                # Its files stay in force: an unmounted volume does not withdraw them.
                self._problem(folder, f"cannot be listed: {error.strerror}; what was read from it stays")
                present.update(dict.fromkeys(path for path in self.files if path.parent == folder))

        # A file counts as removed after two looks: an editor may rename the old one before it writes the new one.
        missing = self.files.keys() - present.keys()
        removed, self.missing = missing & self.missing, missing - self.missing
        for path in removed:
            del self.files[path]
            self.problems.pop(path, None)
            if self.good.pop(path, None):
                self.log("withdrawn", file=path)

        for path in present:
            self._look_at(path)
        if self.good != before:
            self._collect()

    def _collect(self) -> None:
        """Make rules of the good versions. Of two objects with one name the first file by name counts."""
        paths = sorted(self.good, key=lambda path: (path.name, path))
        rules, complaints = collect((str(path), self.good[path]) for path in paths)
        self.rules = replace(rules, secrets=self.secrets)
        for complaint in complaints:
            if complaint not in self.complaints:
                self.log("duplicate", error=complaint)
        self.complaints = complaints

    def _look_at(self, path: Path) -> None:
        file = self.files.setdefault(path, WatchedFile(path))
        try:
            data = file.look()
        except OSError as error:
            self._problem(path, f"cannot be read: {error.strerror}")
            return
        if data is None:
            return

        self.problems.pop(path, None)
        kept = "the version before stays in force" if path in self.good else "nothing of it is in force"
        parsed = parse_bytes(data, str(path))
        checked = check_parsed(parsed, extended_sets([parsed]))
        if checked.findings:
            self.log("broken", file=path, findings=len(checked.findings), error=kept)
            for finding in checked.findings[:MAX_PROBLEMS]:
                self.say(str(finding))
            if len(checked.findings) > MAX_PROBLEMS:
                self.say(f"and {len(checked.findings) - MAX_PROBLEMS} more: pidone check {path}")
            return
        if self.good.get(path) and not checked.objects:
            # An editor that crashed while saving leaves an empty file, and so does commenting everything out.
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
    """The file of pods. Of each pod the last good version counts; ``pods`` is None until there is one."""

    path: Path
    log: Log
    file: WatchedFile = field(init=False)
    pods: Sequence[Pod] | None = None
    problem: str = ""

    def __post_init__(self) -> None:
        self.file = WatchedFile(self.path)

    @property
    def pending(self) -> bool:
        """Whether the file may be readable at the next look and was not read yet."""
        return self.file.pending and not self.problem

    def look(self) -> None:
        """Look once. ``pods`` is another object afterwards if the file has changed."""
        try:
            data = self.file.look()
        except OSError as error:
            self._problem(f"cannot be read: {error.strerror}")
            return
        if data is None:
            return
        try:
            objects, problems = read_inventory(data)
        except LanguageError as error:
            self._problem(str(error))
            return
        pods, more = listed_pods(objects)
        problems += more
        kept = _kept(self.pods or (), pods, problems)
        if problems and not pods and not kept:
            self._problem(problems[0].text)
            return
        self.pods, self.problem = [*pods, *kept], ""
        self.log("read", file=self.path, pods=len(self.pods))
        for problem in problems[:MAX_PROBLEMS]:
            self.log(
                "broken", file=self.path, error=f"{problem.text}; the pods without mistakes are in force"
            )
        without_effect = [pod for pod in pods if pod.maintenance_problem]
        for pod in without_effect[:MAX_PROBLEMS]:
            self.log("unknown-maintenance", pod=pod.path, error=pod.maintenance_problem)

    def _problem(self, text: str) -> None:
        if text != self.problem:
            kept = "; the version before stays in force" if self.pods is not None else ""
            self.log("broken", file=self.path, error=text + kept)
        self.problem = text


def listed_pods(objects: Iterable[Mapping[str, Any]]) -> tuple[list[Pod], list[PodProblem]]:
    """Return the pods of their objects, and why others are left out. Of two pods with one name the first counts."""
    pods: dict[str, Pod] = {}
    names: set[str] = set()
    problems: list[PodProblem] = []
    pool = Pool()
    for item in objects:
        try:
            pod = project(item, pool)
        except ProjectionError as error:
            problems.append(PodProblem(str(error), shown_pod(item).removeprefix("pod ")))
            continue
        if pod.path in names:
            problems.append(PodProblem(f"pod {pod.path} is there twice", pod.path))
        elif pod.key in pods:
            text = f"pods {pods[pod.key].path} and {pod.path} have the same uid {pod.uid}"
            problems.append(PodProblem(text, pod.path))
        else:
            names.add(pod.path)
            pods[pod.key] = pod
    return list(pods.values()), problems


def _kept(before: Iterable[Pod], pods: Sequence[Pod], problems: Sequence[PodProblem]) -> list[Pod]:
    """Return the pods of the version before that stay: a mistake takes nothing away that was good."""
    unknown = any(not problem.name for problem in problems)
    names = {problem.name for problem in problems}
    taken = {pod.path for pod in pods} | {pod.key for pod in pods}
    return [
        pod
        for pod in before
        if (unknown or pod.path in names) and pod.path not in taken and pod.key not in taken
    ]


def _signature(stat: os.stat_result) -> Signature:
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _signature_of(path: Path) -> Signature | None:
    try:
        return _signature(path.stat())
    except OSError:
        return None


def _listed(folder: Path) -> list[Path]:
    """The files of a folder. Names that begin with a dot belong to editors and ConfigMap volumes."""
    with os.scandir(folder) as entries:
        paths = [Path(entry) for entry in entries if not entry.name.startswith(".")]
    return sorted(
        path
        for path in paths
        if path.suffix in SUFFIXES and not path.name.endswith(CASES) and not path.is_dir()
    )
