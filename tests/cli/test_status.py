"""``pidone status`` against what a pod says, and against what listens in its place."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio

from pidone.cli import main
from pidone.cli.status import seconds
from pidone.http.message import Request, Response
from tests.http.serving import http_server

DOCUMENT: dict[str, Any] = {
    "version": "0.1.0", "pid": 1, "processes": 3, "after": "",
    "repo": {"urls": ["http://repo:6060"], "reached": False},
    "digest": "sha256-1", "applied": 0.0, "phase": "Running", "ending": True, "reaped": 0,
    "tasks": {
        "ready": {
            "action": "probe", "stage": "running", "state": "healthy", "since": 0.0, "why": "", "next": None,
            "runs": 1, "failures": 0, "error": "", "lastDuration": None, "lastSuccess": None,
        },
        "beat": {
            "action": "heartbeat", "stage": "due", "state": "due", "since": 0.0, "why": "its period",
            "next": 12.3, "runs": 20, "failures": 2, "error": "503", "lastDuration": 0.0123, "lastSuccess": 1.0,
        },
    },
    "logs": ["a line"],
}  # fmt: skip


async def said(nursery: trio.Nursery, answer: Response, *options: str) -> int:
    async def handle(_: Request) -> Response:
        return answer

    port = await http_server(nursery, handle)
    return await trio.to_thread.run_sync(lambda: main.run(["status", "--port", str(port), *options]))


async def test_the_table_has_a_line_a_task_with_the_reasons(
    nursery: trio.Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await said(nursery, Response(200, {}, json.dumps(DOCUMENT).encode())) == 0
    head, table, logs = capsys.readouterr().out.split("\n\n")
    assert "pidone 0.1.0, process 1 of 3" in head
    assert "http://repo:6060, not reached" in head
    assert "phase: Running, and the end has begun" in head
    first, ready, beat = table.splitlines()
    assert first.split() == ["TASK", "ACTION", "STATE", "SINCE", "NEXT", "RUNS", "FAILED", "LAST", "WHY"]
    assert ready.split()[:3] == ["ready", "probe", "healthy"]
    assert beat.endswith("12s   20    2       12ms  its period; 503")
    assert logs == "a line\n"
    nursery.cancel_scope.cancel()


async def test_json_is_what_was_answered(nursery: trio.Nursery, capsys: pytest.CaptureFixture[str]) -> None:
    assert await said(nursery, Response(200, {}, json.dumps(DOCUMENT).encode()), "--json") == 0
    assert json.loads(capsys.readouterr().out) == DOCUMENT
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answer", [Response(404), Response(200, {}, b"hello"), Response(200, {}, b"[1]")])
async def test_another_program_at_the_port_is_told_apart(
    nursery: trio.Nursery, capsys: pytest.CaptureFixture[str], answer: Response
) -> None:
    assert await said(nursery, answer) == 1
    assert f"answers {answer.status}, and not as pidone does" in capsys.readouterr().err
    nursery.cancel_scope.cancel()


HOSTILE = "\x1b[2J\x1b]52;c;ZXZpbA==\x07\x9b31m\nbeat  heartbeat  registered\u202e\ud800"


async def test_what_others_have_written_moves_no_cursor_and_forges_no_row(
    nursery: trio.Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    for text in ("version", "digest", "phase", "after"):
        document[text] = HOSTILE
    document["repo"]["urls"] = document["logs"] = [HOSTILE]
    for text in ("action", "state", "why", "error"):
        document["tasks"]["beat"][text] = HOSTILE
    document["tasks"][HOSTILE] = document["tasks"]["ready"]
    assert await said(nursery, Response(200, {}, json.dumps(document).encode())) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 5 + 1 + 4 + 1 + 1
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": []}, {"tasks": {"a": None}}, {"tasks": {"a": {}}}, {"repo": None}, {"repo": {"urls": [1]}},
        {"repo": {"urls": ["a"], "reached": "maybe"}}, {"logs": None}, {"logs": [1]}, {"applied": 1e300},
        {"applied": "now"}, {"tasks": {"a": {**DOCUMENT["tasks"]["beat"], "next": "soon"}}},
        {"tasks": {"a": {**DOCUMENT["tasks"]["beat"], "state": 1}}},
    ],
)  # fmt: skip
async def test_a_document_of_another_form_is_of_another_program(
    nursery: trio.Nursery, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    assert await said(nursery, Response(200, {}, json.dumps(DOCUMENT | change).encode())) == 1
    error = capsys.readouterr().err
    assert "answers 200, and not as pidone does" in error
    assert error.count("\n") == 1
    nursery.cancel_scope.cancel()


async def test_a_deep_answer_is_of_another_program(
    nursery: trio.Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await said(nursery, Response(200, {}, b"[" * 100_000)) == 1
    assert "not as pidone does" in capsys.readouterr().err
    nursery.cancel_scope.cancel()


def test_nobody_there_is_told_with_the_remedy(
    free_port: Callable[[], int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIDONE_STATUS_PORT", str(port := free_port()))
    assert main.run(["status"]) == 1
    error = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in error
    assert "PIDONE_STATUS_PORT" in error
    monkeypatch.setenv("PIDONE_STATUS_PORT", "0")
    assert main.run(["status"]) == 1
    assert "PIDONE_STATUS_PORT is 0" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "x", "70000"])
def test_what_is_no_port_is_usage(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.run(["status", "--port", port])
    assert ended.value.code == 2
    assert "expected 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "text"), [(None, "-"), (0.0123, "12ms"), (3.14159, "3.1s"), (12.3, "12s"), (0.0, "0ms")]
)
def test_times_have_the_digits_that_matter(number: float | None, text: str) -> None:
    assert seconds(number) == text
