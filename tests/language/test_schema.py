"""The schemas themselves: valid, described, and of one opinion with each other and with the code."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from pidone.language.reading import read
from pidone.language.schemas import KINDS, MISSING, Shape, actions, schema, task_shape
from tests.language.test_checking import GOOD

DRAFT_07 = {
    *(
        "$schema",
        "$id",
        "$ref",
        "$comment",
        "title",
        "description",
        "default",
        "definitions",
        "type",
        "enum",
        "const",
    ),
    *(
        "properties",
        "required",
        "additionalProperties",
        "maxProperties",
        "items",
        "minItems",
        "maxItems",
        "uniqueItems",
    ),
    *(
        "pattern",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
    ),
}
ANNOTATIONS = {"description", "default"}
BY_OVERRIDE = {"required": ["override"], "properties": {"override": {"const": "merge"}}}


def parts(part: Any) -> Iterator[dict[str, Any]]:
    """Every schema in a schema."""
    yield part
    for name in ("properties", "definitions"):
        for inner in part.get(name, {}).values():
            yield from parts(inner)
    for name in ("items", "additionalProperties", "not", "if", "then", "else"):
        if isinstance(part.get(name), dict):
            yield from parts(part[name])
    for name in ("anyOf", "oneOf"):
        for inner in part.get(name, ()):
            yield from parts(inner)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_2020_12_and_what_draft_07_reads_the_same_way(kind: str) -> None:
    Draft202012Validator.check_schema(schema(kind))
    Draft7Validator.check_schema({**schema(kind), "$schema": "http://json-schema.org/draft-07/schema#"})
    for part in parts(schema(kind)):
        unknown = {name for name in part if name not in DRAFT_07 and not name.startswith("x-pidone-")}
        assert not unknown
        if "$ref" in part:  # draft-07 ignores what stands beside a reference
            assert not {name for name in part if not name.startswith("x-")} - {"$ref", *ANNOTATIONS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_property_has_a_description_and_no_object_is_open(kind: str) -> None:
    for part in parts(schema(kind)):
        for name, inner in part.get("properties", {}).items():
            assert part == BY_OVERRIDE or inner.get("description", "").endswith("."), f"{kind}: {name}"
        if "properties" in part and part != BY_OVERRIDE:
            assert part["additionalProperties"] is False


def test_the_choice_of_an_action_is_between_all_actions() -> None:
    branches = [branch["required"] for branch in schema("TaskSet")["definitions"]["task"]["oneOf"]]
    assert branches == [[name] for name in actions()]
    for action in actions().values():
        assert action.ready in action.states


def test_one_of_is_always_a_choice_of_keys() -> None:
    for part in parts(schema("TaskSet")):
        branches = part.get("oneOf", [])
        if branches and "not" in branches[-1]:  # none is a choice too
            assert branches[-1] == {"not": {"anyOf": branches[:-1]}}
            branches = branches[:-1]
        for branch in branches:
            assert list(branch) == ["required"]
            assert branch["required"][0] in part["properties"]
        assert ("oneOf" in part) == ("x-pidone-choice" in part)


def shapes(shape: Shape) -> Iterator[Shape]:
    yield shape
    for inner in [*shape.properties.values(), shape.values, shape.items]:
        if inner is not None:
            yield from shapes(inner)


def test_every_default_fits_its_position() -> None:
    for shape in shapes(task_shape()):
        if shape.default is not MISSING and shape.literal is not None and "$(" not in str(shape.default):
            assert shape.literal.is_valid(shape.default), shape


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
@pytest.mark.parametrize("draft", [Draft7Validator, Draft202012Validator])
def test_the_bare_schema_takes_what_the_checker_takes(file: Path, draft: type[Draft202012Validator]) -> None:
    for document in read(file.read_text("utf-8"), file.name)[0]:
        value = document.root.value
        if isinstance(value, dict) and value.get("kind") in KINDS:
            draft({**schema(value["kind"]), "$schema": str(draft.META_SCHEMA["$id"])}).validate(value)


def test_schemas_are_json_without_duplicate_keys() -> None:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)

    for file in (Path(__file__).parent.parent.parent / "schema").glob("*.json"):
        json.loads(file.read_text("utf-8"), object_pairs_hook=unique)


ROOT = Path(__file__).parents[2]
MODELINE = re.compile(r"# yaml-language-server: \$schema=(\S+)")


@pytest.mark.parametrize(
    "file",
    sorted(file for folder in ("examples", "tasks") for file in (ROOT / folder).glob("*.yaml")),
    ids=lambda file: file.name,
)
def test_every_document_of_a_file_fits_the_schema_in_its_first_line(file: Path) -> None:
    """Some editors apply the line to all documents of the file."""
    text = file.read_text("utf-8")
    named = MODELINE.match(text)
    assert named, "the first line names no schema"
    validator = Draft202012Validator(json.loads((file.parent / named[1]).resolve().read_text("utf-8")))
    for document in read(text, file.name)[0]:
        validator.validate(document.root.value)
