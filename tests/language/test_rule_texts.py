"""Every rule is described, seen in the corpus, and is about something that the schema has."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pidone.language.checking import check_bytes
from pidone.language.reading import read
from pidone.language.rule_texts import ERRORS, WARNINGS, description
from pidone.language.safe_patterns import wrong_pattern
from pidone.language.schemas import KINDS, schema, value_rules
from tests.language.test_checking import BAD, GOOD

# Too large for a file in a repository, what nothing leads to as long as every keyword has its words, and of two files.
ELSEWHERE = {"too-many-aliases", "extends-size", "schema", "object-twice"}


@cache
def seen() -> frozenset[str]:
    """The rules that the corpus breaks."""
    return frozenset(
        finding.rule for file in BAD for finding in check_bytes(file.read_bytes(), file.name).all
    )


def test_the_corpus_is_large_enough() -> None:
    assert len(BAD) >= 160
    assert len(GOOD) >= 25


def test_every_rule_has_a_file_that_breaks_it() -> None:
    assert {*ERRORS, *WARNINGS, *value_rules()} - ELSEWHERE - seen() == set()


def test_every_rule_is_described_in_a_sentence_and_is_either_or() -> None:
    assert not set(ERRORS) & set(WARNINGS)
    for rule in {*seen(), *ERRORS, *WARNINGS}:
        assert description(rule) != rule
        assert description(rule).endswith(".")


def test_too_many_aliases() -> None:
    text = "a: &a x\nb: [" + "*a, " * 101 + "]\n"
    assert read(text, "x.yaml")[1][0].rule == "too-many-aliases"


def keywords(part: Any) -> Iterator[str]:
    """The names of all properties in a schema."""
    if isinstance(part, dict):
        yield from part.get("properties", {}) if isinstance(part.get("properties"), dict) else ()
        for inner in part.values():
            yield from keywords(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from keywords(inner)


def words(files: list[Path]) -> set[str]:
    return set(
        re.findall(r"[A-Za-z]+", "\n".join(file.read_text("utf-8", errors="replace") for file in files))
    )


def test_every_keyword_is_in_a_good_file_and_in_a_bad_one() -> None:
    servers = {"creationTimestamp", "finalizers", "generation", "managedFields", "ownerReferences"}
    known = (
        {word for kind in KINDS for word in keywords(schema(kind))}
        - servers
        - {"resourceVersion", "uid", "status"}
    )
    assert sorted(known - words(GOOD)) == []
    assert sorted(known - words(BAD)) == []


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "^/",
            "^https?://",
            "^.*$",
            "^(ab)+$",
            "^(a|b)+$",
            r"^(\d{1,3}\.){3}\d{1,3}$",
            r"^v\d+(\.\d+){0,2}$",
        ),
        r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        *("^([a-z]+\\.)*[a-z]+$", "^[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?$", "^(a+)+$", r"\bweb\b"),
    ],
)
def test_patterns_that_people_write_are_taken(pattern: str) -> None:
    assert wrong_pattern(pattern) == ""


@pytest.mark.parametrize(
    ("pattern", "place"),
    [("^(?!x)[a-z]+$", 2), ("(?<=a)b", 1), (r"^(a)\1$", 5), (r"^a\Z", 3), (r"\pL", 1), ("a++", 2), ("[a", 1)],
)
def test_patterns_of_no_linear_time_are_refused_with_the_place(pattern: str, place: int) -> None:
    assert f"at character {place} of the pattern" in wrong_pattern(pattern)
