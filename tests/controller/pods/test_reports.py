"""Reports and log lines: the small readers and writers."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from pidone.plan.report import MAX_ERROR_WIDTH, MAX_LINE_WIDTH, MAX_LINES, Report, TaskReport, encode
from pidone_controller.log import line
from pidone_controller.pods import reports

DIGEST = "sha256-" + "0" * 64


def test_a_whole_report() -> None:
    task = {"state": "healthy", "since": 1.5, "runs": 3, "failures": 1, "error": "refused", "new": {}}
    body = {
        "boot": "ab", "version": "0.1.0", "digest": DIGEST, "state": "rejected", "error": "no such action",
        "rejected": DIGEST, "tasks": {"ready": task}, "logs": ["one", "two"], "new": [1], "left": ["gone"],
    }  # fmt: skip
    report = reports.read(json.dumps(body).encode())
    assert report.tasks["ready"] == TaskReport("healthy", 1.5, 3, 1, "refused")
    assert (report.state, report.rejected, report.logs) == ("rejected", DIGEST, ("one", "two"))
    assert report.left == ("gone",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"state": "fine"}, 'state: expected applied, rejected, applying, not "fine"'),
        ({"state": 1}, "state: expected a string"),
        ({"digest": "sha256-x"}, "digest: expected"),
        ({"rejected": 5}, "rejected: expected"),
        ({"tasks": []}, "tasks: expected an object"),
        ({"tasks": {"a": 1}}, "tasks.a: expected an object"),
        ({"tasks": {"a": {"runs": -1}}}, "tasks.a.runs: expected a number"),
        ({"tasks": {"a": {"runs": True}}}, "tasks.a.runs: expected a number"),
        ({"tasks": {"a": {"since": "now"}}}, "tasks.a.since: expected seconds"),
        ({"tasks": {"a": {"since": 1e300}}}, "tasks.a.since: expected seconds"),
        ({"tasks": {str(i): {} for i in range(1001)}}, "tasks: at most 1000"),
        ({"logs": "line"}, "logs: expected a list"),
        ({"logs": [1]}, "logs: expected a list of strings"),
        ({"left": "gone"}, "left: expected a list of strings"),
    ],
)
def test_a_report_that_is_none(change: dict[str, Any], said: str) -> None:
    with pytest.raises(reports.ReportError) as raised:
        reports.read(json.dumps({"state": "applied", **change}).encode())
    assert said in str(raised.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 60000,
        b'{"state": NaN}',
        b"1" * 5000,
        b'{"state": "applied", "error": "\\ud800"}',
        b'{"state": "applied", "error": "\\uDFFF\\uD800"}',
        b'{"state": "applied", "tasks": {"\\udabc": {}}}',
        b'{"state": "applied", "logs": ["\xed\xa0\x80"]}',
        b'{"state": "applied", "tasks": {"a": {"since": 1e999}}}',
        b'{"state": "applied", "new": -1e999}',
        b'{"state": "applied", "new": -Infinity}',
        b"\xff\xfe{\x00",
        b"\x00",
    ],
    ids=lambda body: repr(body[:9]),
)
def test_what_is_not_json_is_refused_in_words(body: bytes) -> None:
    with pytest.raises(reports.ReportError):
        reports.read(body)


def test_maintenance_is_reported_and_an_older_pod_has_none() -> None:
    assert reports.of(encode(Report(maintenance=True))).maintenance
    assert not reports.of(encode(Report())).maintenance
    assert "maintenance" not in encode(Report())


def test_two_halves_are_one_character() -> None:
    assert reports.read(b'{"state": "applied", "error": "\\ud83d\\ude00"}').error == "\U0001f600"


def test_a_pod_never_sends_half_a_character() -> None:
    report = Report(error="a\udc80", tasks={"ready": TaskReport("failed", error="\ud800b")})
    read = reports.read(json.dumps(encode(report)).encode())
    assert (read.error, read.tasks["ready"].error) == ("a?", "?b")


def test_long_texts_are_cut() -> None:
    body = {"state": "applied", "error": "x" * 9999, "logs": [str(i) * 2000 for i in range(300)]}
    report = reports.read(json.dumps(body).encode())
    assert len(report.error) == MAX_ERROR_WIDTH
    assert len(report.logs) == MAX_LINES
    assert report.logs[-1] == ("299" * 2000)[:MAX_LINE_WIDTH]


def test_a_log_line() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    assert line(now, "plan", pod="shop/web", digest="sha256-ab12", tasks=3) == (
        "2026-01-02T03:04:05.678Z pod=shop/web event=plan digest=sha256-ab12 tasks=3"
    )


def test_nobody_forges_a_log_line() -> None:
    text = line(datetime(2026, 1, 2, tzinfo=UTC), "rejected", error='no\n2026 event=plan "x"\x1b[31m')
    assert "\n" not in text
    assert "\x1b" not in text
    assert text.endswith('error="no 2026 event=plan \\"x\\"\N{REPLACEMENT CHARACTER}[31m"')


def test_how_python_was_started_is_reported_and_an_older_pod_says_nothing() -> None:
    assert reports.of(encode(Report(snapshot="signal 4"))).snapshot == "signal 4"
    assert reports.of({"state": "applied"}).snapshot == ""
