"""``pidone test``: runs test cases of sets, each in a pod of its own, on a fake clock; an hour takes milliseconds."""

import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import groupby
from typing import Any

import trio
import trio.testing
from trio._core import _run

from pidone.cli.cases import GONE, STARTED, TERMINATES, CaseFile, Path, check_names, read_cases, task_actions
from pidone.cli.files import read_text
from pidone.cli.output import complain, unreadable
from pidone.cli.rehearsal import Answer, World, Zeros
from pidone.cli.render import DeskPod, Objects, bundle_for, read_objects, task_sets
from pidone.errors import LanguageError, PidoneError
from pidone.journal import Journal
from pidone.language import duration
from pidone.language.findings import Finding, shown
from pidone.plan.digest import canonical
from pidone.plan.model import Phase
from pidone.pod.program import PodProgram
from pidone.pod.settings import Settings
from pidone.text import printable

ENDING = ".test.yaml"
ADDRESS = "10.0.0.1"  # of a pod whose case has no address
MOMENT_SECONDS = (
    0.001  # answers are set this long before the time of a step, and states are compared this long after
)


def test(paths: Sequence[str]) -> int:
    """Run the case files and those in the folders.

    Exit code 0, 1 for failed cases and for mistakes in files, 2 if there is no case file or it cannot be read.
    """
    try:
        files = list(dict.fromkeys(file for path in paths for file in _case_files(path)))
        results = [result for file in files for result in _test_file(file)]
    except OSError as error:
        return unreadable("test", error)
    if not files:
        complain(f"pidone test: no *{ENDING} in {', '.join(paths)}")
        return 2
    failed = results.count(False)
    number = f"{len(results)} case{'' if len(results) == 1 else 's'}"
    print(f"{number}: {failed} failed" if failed else f"{number}: all passed", file=sys.stderr)
    return 1 if failed else 0


def _case_files(path: str) -> Iterator[str]:
    if pathlib.Path(path).is_dir():
        yield from (str(file) for file in sorted(pathlib.Path(path).rglob(f"*{ENDING}")) if file.is_file())
    else:
        yield path


def _test_file(file: str) -> Iterator[bool]:
    """Run the cases; yield for each if it passed. Yield one False for a file with mistakes."""
    print(printable(file))
    case_file, findings = read_cases(read_text(file), file)
    objects: Objects = {}
    if case_file is not None:
        try:
            objects = read_objects(_sets_of(file, case_file))
            findings = check_names(case_file, task_sets(objects))
        except LanguageError as error:
            _print_lines(str(error).split("\n"))
            yield False
            return
    if case_file is None or findings:
        _print_lines(map(str, findings))
        yield False
        return

    for index, case in enumerate(case_file.cases):
        differences, history = Run(case_file, index, objects).outcome()
        print(printable(f"  {'FAIL' if differences else 'ok  '}  {case['name']}"))
        if differences:
            _print_lines([*map(str, differences), *(f"          {line}" for line in history)])
        yield not differences


def _print_lines(texts: Iterable[str]) -> None:
    for text in texts:
        print("\n".join(map(printable, text.split("\n"))))


def _sets_of(file: str, cases: CaseFile) -> list[str]:
    """Return the paths of the files that the cases test."""
    own = pathlib.Path(file)
    if not cases.files and not own.name.endswith(ENDING):
        raise LanguageError(f'{file}: "files" is missing; only NAME{ENDING} tests NAME.yaml without it')
    return [str(own.parent / name) for name in cases.files or [own.name.removesuffix(ENDING) + ".yaml"]]


class Run:
    """One case: a pod, from its start through all steps."""

    def __init__(self, file: CaseFile, index: int, objects: Objects) -> None:
        self._file = file
        self._path: Path = ("cases", index)
        self._case = file.cases[index]
        self._objects = objects
        self._actions = task_actions(task_sets(objects))
        self._pod: dict[str, Any] = deepcopy(dict(self._case.get("pod", {})))
        self._findings: list[Finding] = []
        self._history: list[str] = []
        self._states: dict[str, str] = {}  # the last state of each task in the history
        self._world = World()
        self._started = False  # all containers of the pod have been started

    def outcome(self) -> tuple[list[Finding], list[str]]:
        """Run the case. Return the differences from its expectations, and the history; both are empty if it passes."""
        try:
            bundle = self._bundle()
        except PidoneError as error:
            if self._case.get("rejected", "\0") not in str(error):
                self._say(("rejected",) if "rejected" in self._case else ("name",), str(error), "rejected")
            return self._findings, []
        if "rejected" in self._case:
            self._say(
                ("rejected",), "a plan can be made for this pod; expected that it is rejected", "rejected"
            )
            return self._findings, []
        self._compare_plan({task["name"]: task for task in bundle["tasks"]})
        if self._case.get("steps") and not self._findings:
            # Trio runs tasks that are due at the same time in random order. Here the order is the same in each run,
            # by the hook that Trio has for Hypothesis.
            _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
            _run._r.seed(0)
            trio.run(self._live, clock=trio.testing.MockClock(autojump_threshold=0))
        return self._findings, self._history if self._findings else []

    def _bundle(self) -> dict[str, Any]:
        pod = DeskPod(self._pod).with_facts(ADDRESS)
        return bundle_for(pod, self._objects, self._case.get("params", {}))

    def _say(self, path: Path, message: str, rule: str) -> None:
        self._findings.append(self._file.finding((*self._path, *path), message, rule))

    def _compare_plan(self, tasks: Mapping[str, Any]) -> None:
        if "tasks" in self._case and set(self._case["tasks"]) != set(tasks):
            got = ", ".join(tasks) or "none"
            self._say(
                ("tasks",), f"the pod gets the tasks {got}; expected {_listed(self._case['tasks'])}", "tasks"
            )
        for name, fields in self._case.get("plan", {}).items():
            if name not in tasks:
                self._say(("plan", name), f'the pod does not get the task "{name}"', "plan")
            else:
                self._compare_fields(("plan", name), fields, tasks[name])

    def _compare_fields(self, path: Path, expected: Any, got: Any) -> None:
        if isinstance(expected, dict) and isinstance(got, Mapping):
            for name, value in expected.items():
                if name in got:
                    self._compare_fields((*path, name), value, got[name])
                else:
                    self._say((*path, name), f'the plan has no "{name}" here; it has {_listed(got)}', "plan")
        elif expected != got:
            where = ".".join(map(str, path[1:]))
            self._say(path, f"{where} is {shown(got)}; expected {shown(expected)}", "plan")

    async def _live(self) -> None:
        """Run the pod's program through the steps, until one differs."""
        program = PodProgram(
            Settings(repos=()), Journal(lambda _: None), random=Zeros(), build=self._world.build
        )
        start = trio.current_time() + MOMENT_SECONDS
        program.changed = lambda: self._note(program, trio.current_time() - start)

        async with trio.open_nursery() as nursery:
            await nursery.start(program.engine.run)
            nursery.start_soon(self._begin, program, start)
            for place, step in enumerate(self._case["steps"]):
                at = start + float(duration.seconds(step["at"]) or 0.0)
                await trio.sleep_until(at - MOMENT_SECONDS)
                self._set_answers(step)
                if "pod" in step:
                    self._pod_changed(program, ("steps", place, "pod"), step["pod"])
                await trio.sleep_until(at + MOMENT_SECONDS)
                await trio.testing.wait_all_tasks_blocked()
                self._compare_step(program, ("steps", place), step)
                if self._findings:
                    break
            nursery.cancel_scope.cancel()

    async def _begin(self, program: PodProgram, start: float) -> None:
        await trio.sleep_until(start)
        self._take(program, ("name",))

    def _take(self, program: PodProgram, path: Path, phase: Phase = Phase.RUNNING) -> None:
        try:
            containers = {"all": {"id": "", "started": self._started}}
            bundle = {**self._bundle(), "phase": phase.value, "containers": containers}
            program.apply(canonical(bundle), trusted=True)
        except PidoneError as error:
            self._say(path, f"the pod does not get its plan: {error}", "rejected")

    def _set_answers(self, step: Mapping[str, Any]) -> None:
        for name, text in step.get("given", {}).items():
            answer = Answer.of(text, self._actions[name])
            assert answer is not None  # ``check_names`` has refused others
            self._world.give(name, answer)

    def _pod_changed(self, program: PodProgram, path: Path, change: Any) -> None:
        phase = Phase.RUNNING
        if change == TERMINATES:
            phase = Phase.TERMINATING
        elif change == STARTED:
            self._started = True
        else:
            metadata = self._pod.setdefault("metadata", {})
            for part, values in change.items():
                metadata[part] = {
                    key: value
                    for key, value in {**metadata.get(part, {}), **values}.items()
                    if value is not None
                }
        self._take(program, path, phase)

    def _note(self, program: PodProgram, now: float) -> None:
        """Add changed states to the history; the engine calls it after each change. Ends with the first difference."""
        if self._findings:
            return
        states = {state.task.name: state.shown for state in program.engine.tasks}
        for name in self._states.keys() | states.keys():
            state = states.get(name, GONE)
            if self._states.get(name) != state:
                self._history.append(
                    f"{duration.text(round(now, 2)) if now >= 0.01 else '0s':>8}  {name} is {state}"
                )
        self._states = states

    def _compare_step(self, program: PodProgram, path: Path, step: Mapping[str, Any]) -> None:
        states = {state.task.name: state for state in program.engine.tasks}
        for name, expected in step.get("expect", {}).items():
            got = states[name].shown if name in states else GONE
            if got != expected:
                error = f' ("{states[name].error}")' if name in states and states[name].error else ""
                message = f'at {step["at"]} "{name}" is {got}{error}; expected {expected}'
                self._say((*path, "expect", name), message, "state")
        for name, texts in step.get("calls", {}).items():
            calls, self._world.calls[name] = self._world.calls[name], []
            if calls != list(_unfolded(texts)):
                message = f'until {step["at"]} "{name}" made these calls: {_folded(calls)}; expected {_listed(texts)}'
                self._say((*path, "calls", name), message, "calls")


def _unfolded(texts: Sequence[str]) -> Iterator[str]:
    """Yield ``heartbeat`` four times for ``heartbeat x 4``."""
    for text in texts:
        what, times, number = text.rpartition(" x ")
        yield from [what] * int(number) if times and number.isdecimal() else [text]


def _folded(calls: Sequence[str]) -> str:
    groups = [(what, len(list(same))) for what, same in groupby(calls)]
    return _listed([f"{what} x {number}" if number > 1 else what for what, number in groups])


def _listed(items: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(items) or "none"
