"""docs/engine.md names a test in each row; each of them is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_row_of_the_document_names_tests_that_are_there() -> None:
    text = (ROOT / "docs/engine.md").read_text()
    there = {
        name
        for file in (ROOT / "tests").glob("**/test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named - there == set()
    tables = re.findall(r"^\| [^|\n]*\|[^|\n]*\| test \|\n\|[- |]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert len(tables) == 8
    assert all("`test_" in row for table in tables for row in table.splitlines())
