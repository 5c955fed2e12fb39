"""Reads and checks the case files of ``pidone test``, with the positions of all values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pidone.cli.rehearsal import Answer, words
from pidone.engine.core import Stage
from pidone.language import duration
from pidone.language.checking import check_schema
from pidone.language.findings import Finding, Span, ordered, shown, suggestion
from pidone.language.model import TaskSet
from pidone.language.reading import Document, read
from pidone.language.schemas import action_of, actions

Path = tuple[str | int, ...]
GONE, TERMINATES, STARTED = "gone", "terminates", "containersStarted"


@dataclass(frozen=True, slots=True)
class CaseFile:
    """One case file without findings, with the positions of its values."""

    document: Document

    @property
    def cases(self) -> Sequence[Mapping[str, Any]]:
        cases: Sequence[Mapping[str, Any]] = self.document.root.value["cases"]
        return cases

    @property
    def files(self) -> Sequence[str]:
        files: Sequence[str] = self.document.root.value.get("files", ())
        return files

    def finding(self, path: Path, message: str, rule: str) -> Finding:
        return self.document.source.finding(self.document.span(path), message, rule)


def read_cases(text: str, file: str) -> tuple[CaseFile | None, tuple[Finding, ...]]:
    """Return the cases, or None and the findings. ``check_names`` checks the names of tasks in them."""
    documents, findings = read(text, file)
    if findings:
        return None, ordered(findings)
    document = documents[0]
    if len(documents) > 1:
        document.say(
            documents[1].root.span, "a case file is one document; put the cases into one list", "cases"
        )
    check_schema(document, "Test")
    if not document.findings:
        _check_times(document)
    if document.findings:
        return None, ordered(document.findings)
    return CaseFile(document), ()


def _check_times(document: Document) -> None:
    for index, case in enumerate(document.root.value["cases"]):
        last = 0.0
        for place, step in enumerate(case.get("steps", ())):
            path: Path = ("cases", index, "steps", place)
            at = duration.seconds(step["at"]) or 0.0
            if at < last:
                message = f"{step['at']} is before the step above, at {duration.text(last)}; steps go by time"
                document.say(document.span((*path, "at")), message, "order")
            last = max(at, last)
            if isinstance(step.get("pod"), str) and step["pod"] not in {TERMINATES, STARTED}:
                known = f'"{TERMINATES}", "{STARTED}", or labels and annotations'
                message = f"{shown(step['pod'])} is not known here; expected {known}"
                document.say(document.span((*path, "pod")), message, "pod")
        if not case.keys() & {"rejected", "tasks", "plan", "steps"}:
            message = f"case {shown(case['name'])} expects nothing; add steps, tasks, plan or rejected"
            document.say(document.span(("cases", index, "name")), message, "no-expectation")


def task_actions(sets: Sequence[TaskSet]) -> dict[str, str]:
    """Return the names of the actions by the names of their tasks."""
    tasks = {task["name"]: action_of(task) for task_set in sets for task in task_set.tasks}
    return {name: action.name for name, action in tasks.items() if action is not None}


def check_names(cases: CaseFile, sets: Sequence[TaskSet]) -> tuple[Finding, ...]:
    """Return findings about unknown tasks, and about states and answers that the task's action does not have."""
    names = task_actions(sets)
    findings: list[Finding] = []

    def say(span: Span, message: str, rule: str) -> None:
        findings.append(cases.document.source.finding(span, message, rule))

    for path, name, value in _named(cases.cases):
        if name not in names:
            message = f'"{name}" is not a task of these sets{suggestion(name, names)}'
            say(cases.document.key((*path, name)), message, "unknown-task")
            continue
        action, span = names[name], cases.document.span((*path, name))
        states = [*actions()[action].states, *Stage, GONE]
        if path[-1] == "expect" and value not in states:
            can = ", ".join([*actions()[action].states, GONE])
            say(
                span,
                f'"{name}" is a {action} task and is never {shown(value)}; it can be {can}',
                "unknown-state",
            )
        elif path[-1] == "given" and Answer.of(value, action) is None:
            can = ", ".join(words(action)) or "nothing: it asks nobody"
            say(span, f'"{name}" is a {action} task; what can be given to it is {can}', "given")
    return ordered(findings)


def _named(cases: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Path, str, Any]]:
    for index, case in enumerate(cases):
        for name, value in case.get("plan", {}).items():
            yield ("cases", index, "plan"), name, value
        for place, step in enumerate(case.get("steps", ())):
            for key in ("given", "expect", "calls"):
                for name, value in step.get(key, {}).items():
                    yield ("cases", index, "steps", place, key), name, value
