"""The schemas and the CRDs in the clone are those that the parts in schema/ make, and each part says all it must."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from pidone.generate import assembly
from pidone.generate.assembly import TOP, files
from pidone.language.schemas import API_VERSION


def test_what_is_generated_is_what_its_parts_make() -> None:
    for file, text in files().items():
        assert (TOP / file).read_text("utf-8") == text, f"{file}: make schema"


def test_a_new_action_is_one_file_of_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(TOP / "schema", tmp_path / "schema")
    action = {
        "description": "Wait.",
        "type": "object",
        "additionalProperties": False,
        "required": ["seconds"],
        "x-pidone-states": {"waiting": "good"},
        "x-pidone-ready": "waiting",
        "properties": {"seconds": {"$ref": "#/definitions/seconds", "description": "How long."}},
    }
    (tmp_path / "schema/actions/wait.json").write_text(json.dumps(action))
    monkeypatch.setattr(assembly, "TOP", tmp_path)
    assembled = assembly.assembled("TaskSet")
    task = assembled["definitions"]["task"]
    assert task["properties"]["wait"] == {"$ref": "#/definitions/wait", "description": "Wait."}
    assert {"required": ["wait"]} in task["oneOf"]
    one = {"name": "a", "wait": {"seconds": 5}}
    whole = {
        "apiVersion": API_VERSION,
        "kind": "TaskSet",
        "metadata": {"name": "a"},
        "spec": {"tasks": [one, {"name": "b", "override": "merge", "wait": {}}]},
    }
    Draft202012Validator(assembled).validate(whole)
    with pytest.raises(ValidationError):
        Draft202012Validator(assembled).validate({**whole, "spec": {"tasks": [{"name": "a", "wait": {}}]}})


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of schema/ from which the schemas are assembled."""
    shutil.copytree(TOP / "schema", tmp_path / "schema")
    monkeypatch.setattr(assembly, "TOP", tmp_path)
    return tmp_path / "schema"


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | fields), "utf-8")


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (["registered", "lost"], "x-pidone-states: expected"),
        ({}, "x-pidone-states: expected"),
        ({"registered": "good", "lost": "unknown"}, 'is "lost" good or bad or neutral'),
        ({"registered": "good", "lost": None}, 'is "lost" good or bad or neutral'),
        ({"lost": "bad"}, "x-pidone-ready: expected one of lost"),
        ({"registered": "good", "failing": "good"}, 'the state "failing" is'),
    ],
)
def test_a_state_that_nobody_has_classified_is_refused(parts: Path, states: object, message: str) -> None:
    change(parts / "actions/register.json", **{"x-pidone-states": states})
    with pytest.raises(ValueError, match=message):
        assembly.assembled("TaskSet")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"x-pidone-instance": []}, "x-pidone-instance: expected"),
        ({"x-pidone-instance": ["url", "service"]}, 'no field "service"'),
        ({"x-pidone-lease": "ttl"}, 'no field "ttl"'),
    ],
)
def test_a_registry_names_the_fields_that_identify_an_instance(
    parts: Path, fields: dict[str, object], message: str
) -> None:
    change(parts / "registries/eureka.json", **fields)
    with pytest.raises(ValueError, match=message):
        assembly.assembled("TaskSet")
