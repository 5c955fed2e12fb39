"""Results of the tests of registries, kept in build/registries.json, and their tables in docs/registries.md.

A plugin of pytest for the first, which tests/conftest.py loads. It notes the tests with
``@pytest.mark.check(registry, words)``, which is a row of the first table, and with
``@pytest.mark.fault(registry, fault)``, a row of the second one. A test tells the version of its server by
``serve_with``, how it made the fault by ``made_by`` if there are several ways, and why it has nothing to test by
``has_no_meaning``. A run of some tests replaces their results alone;
remove the file when tests have other names.

``python -m tests.results`` writes the tables (``make registries``); with ``--complete`` it only looks whether each cell
was executed, has passed, and is as in the document.
"""

import argparse
import fcntl
import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from tests.registries.checks import ROWS, is_built, row

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "build/registries.json"
DOCUMENT = ROOT / "docs/registries.md"
HEADING = "## Results of the tests"
FAKE = "fake"  # the server of a result that no real server gave
NOT_BUILT = "not built"
TITLES = {"checks": ("Checks", "check"), "faults": ("Faults", "fault")}
_MARKS = {"check": "checks", "fault": "faults"}  # names of markers, and of the tables
_INTRODUCTION = f"""{HEADING}

`make registries` writes these tables from the last run of the tests. Each result is that of a real server, read back by
the registry's own client, unless it says "fake". "n/a" is followed by the reason. The network is cut by unplugging the
virtual cable between two network namespaces; a run without the right to make these says that a proxy held all data.
"""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one test for one row of a table."""

    table: str
    registry: str
    row: str
    test: str
    outcome: str  # passed, failed or skipped
    server: str  # its name and version; empty if the test does not tell
    reason: str  # why the row has no meaning for this registry; empty if it has
    way: str = ""  # how the fault was made; empty if there is one way


def serve_with(request: pytest.FixtureRequest, server: str) -> None:
    """Tell the name and the version of the server, or ``FAKE``, with which a test works."""
    request.node.user_properties.append(("server", server))


def has_no_meaning(request: pytest.FixtureRequest, reason: str) -> None:
    """Tell that the row of a test does not apply to its registry."""
    request.node.user_properties.append(("reason", reason))


def made_by(request: pytest.FixtureRequest, way: str) -> None:
    """Tell how a test made its fault, where that depends on the rights of the user who runs it."""
    request.node.user_properties.append(("way", way))


# --- the plugin ---


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(RESULTS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name, table in _MARKS.items():
            for mark in item.iter_markers(name):
                registry, words = mark.args
                try:
                    item.user_properties.append(("row", [table, registry, row(table, registry, words)]))
                except ValueError as error:
                    raise pytest.UsageError(f"{item.nodeid}: {error}") from None


class Recorder:
    """Collects the results of a run, with pytest-xdist those of all workers, and adds them to a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._results: dict[tuple[str, ...], Result] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        properties = [(str(name), value) for name, value in report.user_properties]
        servers = dict.fromkeys(str(value) for name, value in properties if name == "server")
        reasons = dict.fromkeys(str(value) for name, value in properties if name == "reason")
        ways = dict.fromkeys(str(value) for name, value in properties if name == "way")
        for name, value in properties:
            if name == "row" and isinstance(value, (list, tuple)):
                table, registry, words = map(str, value)
                key = (table, registry, words, report.nodeid)
                if key in self._results and self._results[key].outcome == "failed":
                    continue  # its end passed; it itself had failed
                self._results[key] = Result(
                    *key, report.outcome, ", ".join(servers), "; ".join(reasons), ", ".join(ways)
                )

    def pytest_sessionfinish(self) -> None:
        if self._results:
            with _locked(self._file):
                kept = [known for known in read(self._file) if _key(known) not in self._results]
                write(self._file, [*kept, *self._results.values()])


def _key(result: Result) -> tuple[str, ...]:
    return result.table, result.registry, result.row, result.test


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read(file: Path) -> list[Result]:
    """Return the results in a file; none if there is no such file. Those of rows that are gone are left out."""
    if not file.is_file():
        return []
    results = [Result(**values) for values in json.loads(file.read_text("utf-8"))]
    return [result for result in results if result.row in ROWS[result.table].get(result.registry, ())]


def write(file: Path, results: Iterable[Result]) -> None:
    values = [asdict(result) for result in sorted(results, key=_key)]
    file.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", "utf-8")


# --- the tables ---

Cells = dict[tuple[str, str, str], tuple[str, str]]  # result and server, by table, registry and row


def cells(results: Iterable[Result]) -> Cells:
    """Return the cells of the rows that were executed. A row's tests are taken together.

    A test with a fake does not count where the same row has one with the real server.
    """
    by_row: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        if result.outcome != "skipped":
            by_row.setdefault((result.table, result.registry, result.row), []).append(result)
    return {key: _cell(found) for key, found in by_row.items()}


def _cell(results: list[Result]) -> tuple[str, str]:
    real = [result for result in results if FAKE not in result.server.split()]
    used = real or results
    servers = ", ".join(sorted({result.server for result in used} - {""}))
    if any(result.outcome == "failed" for result in results):
        return "failed", servers
    if reasons := sorted({result.reason for result in used} - {""}):
        return f"n/a: {'; '.join(reasons)}", servers
    ways = [*([] if real else [FAKE]), *sorted({result.way for result in used} - {""})]
    return f"passed ({', '.join(ways)})" if ways else "passed", servers


def parsed(text: str) -> Cells:
    """Return the cells of the tables in the document."""
    found: Cells = {}
    table = ""
    for line in text.partition(HEADING)[2].splitlines():
        table = next((name for name, (title, _) in TITLES.items() if line == f"### {title}"), table)
        columns = [column.strip() for column in line.strip("|").split("|")]
        if line.startswith("|") and len(columns) == 4 and columns[0] in ROWS.get(table, ()):
            registry, words, result, server = columns
            found[table, registry, words] = result, server
    return found


def with_tables(text: str, results: Iterable[Result]) -> str:
    """Return the document with its tables made anew. A cell that was not executed stays as it was."""
    known = parsed(text) | cells(results)
    parts = [text.partition(HEADING)[0] + _INTRODUCTION]
    for table, (title, noun) in TITLES.items():
        lines = [f"### {title}", "", f"| registry | {noun} | result | server |", "| --- | --- | --- | --- |"]
        for registry, rows in ROWS[table].items():
            for words in rows:
                result, server = known.get((table, registry, words), ("", ""))
                if not result and not is_built(registry):
                    result = NOT_BUILT
                lines.append(f"| {registry} | {words} | {result} | {server} |")
        parts.append("\n".join([*lines, ""]))
    return "\n".join(parts)


def findings(text: str, results: Iterable[Result] | None = None) -> list[str]:
    """Return what is wrong with the tables in the document, and with the results of a whole run, if there are any."""
    shown = parsed(text)
    executed = None if results is None else cells(results)
    wrong: list[str] = []
    for table, registries in ROWS.items():
        for registry, rows in registries.items():
            for words in rows:
                where = f"{registry}, {words}"
                result, server = shown.get((table, registry, words), ("", ""))
                if result == NOT_BUILT and not is_built(registry):
                    continue
                if not re.fullmatch(r"passed|passed \(\S[^()]*\)|n/a: \S.*", result):
                    wrong.append(f'{where}: the document says "{result}"')
                elif result.startswith("passed") and FAKE not in result and not server:
                    wrong.append(f"{where}: the version of the server is not told")
                if executed is None:
                    continue
                now = executed.get((table, registry, words), ("not executed", ""))
                if now[0] != result:
                    wrong.append(f'{where}: {now[0]}, and the document says "{result}"')
    return wrong


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.results", description="Writes docs/registries.md.")
    parser.add_argument(
        "--complete", action="store_true", help="only report cells that are missing or differ"
    )
    options = parser.parse_args(arguments)
    text, results = DOCUMENT.read_text("utf-8"), read(RESULTS)
    if options.complete:
        wrong = findings(text, results)
        print("\n".join(wrong) or "docs/registries.md has the results of this run")
        return bool(wrong)
    DOCUMENT.write_text(with_tables(text, results), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
