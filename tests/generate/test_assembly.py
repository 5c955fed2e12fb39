"""The schemas and the CRDs in the clone are those that the parts in schema/ make."""

import json
import shutil
from pathlib import Path

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
        "x-pidone-states": ["waiting"],
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
