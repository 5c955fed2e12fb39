"""Mistakes that people make, written from the README and habits of Kubernetes alone, without looking at the checker.

``mistakes/index.json`` lists for each its files, the places at which a finding is right, and what is wrong. An entry is
never changed so that the checker finds it.
"""

import json
from pathlib import Path
from typing import Any

from pidone.language.checking import check_files, parse_bytes

HERE = Path(__file__).parent / "mistakes"
MISTAKES: list[dict[str, Any]] = json.loads((HERE / "index.json").read_text("utf-8"))
LEAST_FOUND = 0.97

# The first file of each mistake that is not found at its place, with the reason.
NOT_FOUND: dict[str, str] = {}  # by file, each with what is found instead


def places(mistake: dict[str, Any]) -> set[str]:
    """Where something is said of the files of a mistake."""
    checked = check_files([parse_bytes((HERE / file).read_bytes(), file) for file in mistake["files"]])
    said = [one for file in checked for one in (*file.all, *file.passed_over)]
    return {f"{one.file}:{one.line}" for one in said}


def test_there_are_three_hundred_of_many_kinds() -> None:
    assert len(MISTAKES) == 300
    assert len({mistake["kind"] for mistake in MISTAKES}) > 50


def test_mistakes_are_found_at_their_places() -> None:
    missed = {mistake["files"][0] for mistake in MISTAKES if not places(mistake) & set(mistake["at"])}
    assert sorted(missed) == sorted(NOT_FOUND)
    assert len(missed) <= (1 - LEAST_FOUND) * len(MISTAKES)


def test_nothing_is_said_about_what_is_right_together() -> None:
    """The ready-made sets, and the examples that bind them."""
    top = HERE.parents[2]
    files = [file for folder in ("tasks", "examples") for file in sorted((top / folder).glob("*.yaml"))]
    checked = check_files([parse_bytes(file.read_bytes(), str(file)) for file in files])
    assert [str(one) for file in checked for one in (*file.all, *file.passed_over)] == []
