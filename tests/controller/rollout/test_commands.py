"""The command line of ``pidone-controller rollout``; what it does is tested on a real API server."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pidone_controller.__main__ import main
from pidone_controller.kubernetes.resources import (
    CLUSTER_TASK_BINDINGS,
    CLUSTER_TASK_SETS,
    TASK_BINDINGS,
    TASK_SETS,
    Resource,
)
from pidone_controller.objects.revisions import Revision
from pidone_controller.objects.written import Written, read
from pidone_controller.rollout import commands as history
from pidone_controller.rollout.commands import CommandError, Request, Subject, parse, shown_by

DOCUMENT = Path(__file__).parents[3] / "docs" / "language.md"


@pytest.mark.parametrize(
    ("text", "resource", "namespace"),
    [
        ("taskset/a", TASK_SETS, "shop"),
        ("TaskSets/a", TASK_SETS, "shop"),
        ("tasksets.pidone.dev/a", TASK_SETS, "shop"),
        ("clustertaskset/a", CLUSTER_TASK_SETS, ""),
        ("taskbinding.pidone.dev/a", TASK_BINDINGS, "shop"),
        ("clustertaskbindings/a", CLUSTER_TASK_BINDINGS, ""),
    ],
)
def test_a_kind_is_written_as_kubectl_takes_it(text: str, resource: Resource, namespace: str) -> None:
    assert parse(text, "shop", "home") == Subject(resource, "a", namespace, "home")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "taskset",
        "taskset/",
        "taskset/..",
        "taskset/%2e%2E",
        "/a",
        "pod/a",
        "taskset/a/b",
        "tasksets.apps/a",
    ],
)
def test_what_is_no_kind_and_name_is_said_with_what_to_write(text: str) -> None:
    with pytest.raises(CommandError, match="write taskset/NAME"):
        parse(text, "shop", "home")


@pytest.mark.parametrize(
    "words",
    [[], ["history"], ["forward", "taskset/a"], ["undo", "taskset/a", "--to-revision", "x"],
     ["status", "taskset/a", "--timeout", "5"], ["status", "taskset/a", "--revision", "1"]],
)  # fmt: skip
def test_wrong_usage_has_the_exit_code_for_it(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["rollout", *words])
    assert ended.value.code == 2
    assert "usage: pidone-controller" in capsys.readouterr().err


def test_an_api_server_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rollout", "history", "taskset/a", "--kubeconfig", str(tmp_path / "none")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("pidone-controller: ")
    assert said.count("\n") == 1


def test_every_command_in_the_documents_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []

    def run(request: Request) -> int:
        asked.append(request)
        return 0

    monkeypatch.setattr(history, "run", run)
    shown = re.findall(r"^\$ pidone-controller (rollout .*)$", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    for line in shown:
        assert main(line.split()) == 0
    assert {request.verb for request in asked} == {"history", "undo", "status", "resume"}
    assert [request.timeout for request in asked if request.verb == "status"] == [900.0]
    assert [request.revision for request in asked if request.verb == "undo"] == [3]


@pytest.mark.parametrize("verb", ["history", "undo", "status", "resume"])
def test_an_api_server_that_does_not_answer_is_named(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], free_port: Callable[[], int]
) -> None:
    server = f"http://127.0.0.1:{free_port()}"
    (tmp_path / "config").write_text(f"""
        apiVersion: v1
        kind: Config
        current-context: a
        clusters: [{{name: a, cluster: {{server: "{server}"}}}}]
        users: [{{name: a, user: {{token: secret}}}}]
        contexts: [{{name: a, context: {{cluster: a, user: a}}}}]
        """)
    kind = "taskbinding" if verb == "resume" else "taskset"
    assert main(["rollout", verb, f"{kind}/a", "--kubeconfig", str(tmp_path / "config")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"pidone-controller: {server} of the kubeconfig: ")
    assert "refused" in said
    assert said.count("\n") == 1


async def test_no_text_of_an_object_forges_a_row_or_moves_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "x\n9  0123456789ab  today  forged\x1b[2J\u202e"
    present = read(
        "TaskSet", {"metadata": {"name": "a", "namespace": "shop", "uid": "1"}, "spec": {"tasks": evil}}
    )
    kept = [
        Revision("TaskSet", "a", "shop", "a-1", "1", number, evil, evil, {"tasks": [evil]})
        for number in (1, 2)
    ]

    async def versions(*_: object) -> tuple[Written, list[Revision]]:
        return present, kept

    monkeypatch.setattr(history, "_versions", versions)
    lines = list[str]()
    subject = parse("taskset/a", "shop", "home")
    for number in (0, 1):
        await history.history(Any, subject, number, shown_by(lines.append))  # type: ignore[arg-type]
    rows = [line for line in lines if "forged" in line]
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("9 ") for line in lines)
    assert len(rows) >= 3
