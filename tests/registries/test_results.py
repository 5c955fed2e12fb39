"""The tables of docs/registries.md: each check and each fault of each registry has a cell."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from tests import results
from tests.registries.checks import CHECKS, FAULTS, is_built, row
from tests.results import FAKE, Recorder, Result, cells, findings, parsed, read, with_tables

GOOD = Result("checks", "etcd", "minimum TTL", "test_a", "passed", "etcd 3.4.23", "")
KEY = ("checks", "etcd", "minimum TTL")
Phase = Literal["setup", "call", "teardown"]
Outcome = Literal["passed", "failed", "skipped"]
PHASES: tuple[Phase, ...] = ("setup", "call", "teardown")


def test_every_cell_of_the_document_has_a_result() -> None:
    text = results.DOCUMENT.read_text("utf-8")
    assert findings(text) == []
    expected = {("checks", name, words) for name, rows in CHECKS.items() for words in rows}
    expected |= {("faults", name, fault) for name in CHECKS for fault in FAULTS}
    assert parsed(text).keys() == expected


def test_the_document_is_as_it_is_generated() -> None:
    text = results.DOCUMENT.read_text("utf-8")
    assert with_tables(text, []) == text


@pytest.mark.parametrize("words", ["the 400 list", "Newer dirty -> 404, older  -> 200", "lease x2 expiry"])
def test_words_of_a_check_may_be_written_in_ascii(words: str) -> None:
    assert row("checks", "eureka", words) in CHECKS["eureka"]


@pytest.mark.parametrize(("registry", "words"), [("eureka", "minimum TTL"), ("doozer", "minimum TTL")])
def test_a_check_that_is_not_in_the_list_is_named(registry: str, words: str) -> None:
    with pytest.raises(
        ValueError, match="is no registry" if registry == "doozer" else '"minimum TTL" is not'
    ):
        row("checks", registry, words)


@pytest.mark.parametrize(
    ("others", "result"),
    [
        ([], ("passed", "etcd 3.4.23")),
        ([{"server": "etcd 3.6.1"}], ("passed", "etcd 3.4.23, etcd 3.6.1")),
        ([{"server": FAKE}], ("passed", "etcd 3.4.23")),
        ([{"server": "etcd 3.6.1", "outcome": "failed"}], ("failed", "etcd 3.4.23, etcd 3.6.1")),
        ([{"server": FAKE, "outcome": "failed"}], ("failed", "etcd 3.4.23")),
        ([{"server": "etcd 3.6.1", "outcome": "skipped"}], ("passed", "etcd 3.4.23")),
    ],
)
def test_the_tests_of_a_row_are_taken_together(others: list[dict[str, Any]], result: tuple[str, str]) -> None:
    more = [replace(GOOD, test=f"test_{number}", **changes) for number, changes in enumerate(others)]
    assert cells([GOOD, *more]) == {KEY: result}


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({"server": FAKE}, ("passed (fake)", FAKE)),
        ({"server": ""}, ("passed", "")),
        ({"reason": "one node"}, ("n/a: one node", "etcd 3.4.23")),
        ({"way": "proxy"}, ("passed (proxy)", "etcd 3.4.23")),
        ({"way": "proxy", "server": FAKE}, ("passed (fake, proxy)", FAKE)),
        ({"way": "proxy", "outcome": "failed"}, ("failed", "etcd 3.4.23")),
        ({"outcome": "skipped"}, None),
    ],
)
def test_a_row_with_one_test(changes: dict[str, Any], result: tuple[str, str] | None) -> None:
    assert cells([replace(GOOD, **changes)]).get(KEY) == result


def test_a_cell_that_was_not_executed_keeps_its_result_in_the_document() -> None:
    text = with_tables("# Registries\n", [GOOD])
    assert parsed(text)[KEY] == ("passed", "etcd 3.4.23")
    other = replace(GOOD, row="put on dead lease 404", server="etcd 3.6.1")
    text = with_tables(text, [other])
    assert parsed(text)[KEY] == ("passed", "etcd 3.4.23")
    assert parsed(text)["checks", "etcd", other.row] == ("passed", "etcd 3.6.1")
    assert with_tables(text, []) == text


def test_a_cell_of_the_document_that_a_whole_run_does_not_confirm_is_found() -> None:
    text = with_tables("", [GOOD])
    assert [line for line in findings(text, [GOOD]) if "minimum TTL" in line] == []
    (line,) = (line for line in findings(text, []) if "minimum TTL" in line)
    assert line == 'etcd, minimum TTL: not executed, and the document says "passed"'
    failed = replace(GOOD, outcome="failed")
    (line,) = (line for line in findings(text, [failed]) if "minimum TTL" in line)
    assert line == 'etcd, minimum TTL: failed, and the document says "passed"'


def test_a_fault_that_was_made_in_another_way_than_the_document_says_is_found() -> None:
    text = with_tables("", [replace(GOOD, way="network namespace")])
    assert [line for line in findings(text) if "minimum TTL" in line] == []
    (line,) = (line for line in findings(text, [replace(GOOD, way="proxy")]) if "minimum TTL" in line)
    assert line == 'etcd, minimum TTL: passed (proxy), and the document says "passed (network namespace)"'


def test_the_way_of_a_test_is_kept(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "results.json")
    for when in PHASES:
        recorder.pytest_runtest_logreport(
            report("a", when, "passed", row=list(KEY), server="etcd 1", way="proxy")
        )
    recorder.pytest_sessionfinish()
    assert cells(read(tmp_path / "results.json"))[KEY] == ("passed (proxy)", "etcd 1")


def test_registries_without_servers_are_not_built() -> None:
    shown = parsed(with_tables("", []))
    for registry in CHECKS:
        expected = "" if is_built(registry) else "not built"
        assert {shown["faults", registry, fault][0] for fault in FAULTS} == {expected}


def report(
    test: str,
    when: Phase,
    outcome: Outcome,
    **properties: Any,
) -> pytest.TestReport:
    values = list(properties.items())
    return pytest.TestReport(test, (test, 1, test), {}, outcome, None, when, user_properties=values)


def test_a_run_of_some_tests_replaces_their_results_alone(tmp_path: Path) -> None:
    file = tmp_path / "build/results.json"
    for server in ("etcd 1", "etcd 2"):
        recorder = Recorder(file)
        for test in ("a", "b") if server == "etcd 1" else ("b",):
            for when in PHASES:
                recorder.pytest_runtest_logreport(report(test, when, "passed", row=list(KEY), server=server))
        recorder.pytest_sessionfinish()
    assert [(result.test, result.server) for result in read(file)] == [("a", "etcd 1"), ("b", "etcd 2")]


def test_a_test_whose_end_fails_has_failed(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    recorder = Recorder(file)
    for test, failing in (("a", "call"), ("b", "teardown")):
        for when in PHASES:
            outcome: Outcome = "failed" if when == failing else "passed"
            recorder.pytest_runtest_logreport(report(test, when, outcome, row=list(KEY)))
    recorder.pytest_sessionfinish()
    assert [result.outcome for result in read(file)] == ["failed", "failed"]
    assert all(json.loads(file.read_text("utf-8")))
