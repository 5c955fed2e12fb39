"""The schemas of the four kinds, put together from their parts: ``make schema``.

    schema/actions/<action>.json        one file an action: its fields, states, defaults
    schema/registries/<registry>.json   one file a registry: its fields
    schema/parts/                       the kinds, the common keys of tasks, and values such as durations; status.json
                                        is for the CustomResourceDefinitions alone

An object whose properties hold ``x-pidone-variants: <folder>`` gets one property for each file of the folder,
of which a value has exactly one. ``partOfTask`` is the task without what must be there: what ``override: merge``
brings. The CustomResourceDefinitions are made of the result.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pidone.generate.crds import crd, manifest

TOP = Path(__file__).parent.parent.parent  # of a clone; the parts are in no wheel
GROUP, VERSION = "pidone.dev", "v1alpha1"
KINDS = {
    "TaskSet": "taskset",
    "ClusterTaskSet": "taskset",
    "TaskBinding": "taskbinding",
    "ClusterTaskBinding": "taskbinding",
}
_VARIANTS = "x-pidone-variants"
_COMMENT = (
    "Made by make schema; the source is in the folders beside. Inside the subset that draft-07 reads the same "
    "way: beside a $ref stand annotations only. A definition with x-pidone-states is an action, and a key of a "
    "task that refers to it is how the action is written. x-pidone-value says what a scalar is called, how it is "
    "written and which type of param may stand for it; x-pidone-task, x-pidone-program, x-pidone-least and "
    "x-pidone-most are rules of the checker that a schema cannot state."
)


def files() -> dict[Path, str]:
    """Everything that is made, by its path below the top."""
    made = {}
    for kind in KINDS:
        schema = assembled(kind)
        name = f"{kind.lower()}.{VERSION}.schema.json"
        made[Path("schema", name)] = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        made[Path("k3d/crds", f"{kind.lower()}s.yaml")] = manifest(crd(schema, status(kind)))
    return made


def status(kind: str) -> dict[str, Any]:
    """The status of a kind and its columns for kubectl. Nobody writes one, so no other schema has it."""
    parts = _read("parts", "status")
    own: dict[str, Any] = parts["set" if kind.endswith("TaskSet") else "binding"]
    own["schema"]["properties"] |= parts["common"]
    return own


def assembled(kind: str) -> dict[str, Any]:
    """The whole schema of a kind, in the order of its parts."""
    own = _read("parts", KINDS[kind])
    definitions: dict[str, Any] = {**_read("parts", "common"), **own["definitions"]}
    if KINDS[kind] == "taskset":
        definitions["task"] = _with_variants(_read("parts", "task"), definitions)
        definitions |= _parts_of(definitions)
    if kind.startswith("Cluster"):
        del definitions["metadata"]["properties"]["namespace"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"https://{GROUP}/schema/{kind.lower()}.{VERSION}.schema.json",
        "$comment": _COMMENT,
        "title": kind,
        "description": own[kind]["description"],
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"description": "The version of the language.", "const": f"{GROUP}/{VERSION}"},
            "kind": {"description": own[kind]["kind"], "const": kind},
            "metadata": {
                "$ref": "#/definitions/metadata",
                "description": definitions["metadata"]["description"],
            },
            "spec": own["spec"],
            "status": {"description": "What the controller says of it.", "type": "object"},
        },
        "definitions": _used(own["spec"], definitions),
    }


def _read(folder: str, name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((TOP / "schema" / folder / f"{name}.json").read_text("utf-8"))
    return read


def _with_variants(part: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """``part`` with one property for each file of the folder it names; the files become definitions."""
    folder = part.get("properties", {}).get(_VARIANTS)
    if folder is None:
        return part
    names = sorted(file.stem for file in (TOP / "schema" / folder).glob("*.json"))
    properties: dict[str, Any] = {}
    for key, value in part["properties"].items():
        if key != _VARIANTS:
            properties[key] = value
            continue
        for name in names:
            variant = _with_variants(_read(folder, name), definitions)
            if name in definitions:
                raise ValueError(f"schema/{folder}/{name}.json: there is a definition of this name already")
            definitions[name] = variant
            properties[name] = {"$ref": f"#/definitions/{name}", "description": variant["description"]}
    return {**part, "oneOf": [{"required": [name]} for name in names], "properties": properties}


def _parts_of(definitions: Mapping[str, Any]) -> dict[str, Any]:
    """``partOfTask`` and what it refers to: nothing must be there but the name, and a choice need not be made.

    Items of lists stay whole, for a list is taken as a whole.
    """
    made: dict[str, Any] = {}

    def name_of(name: str) -> str:
        return f"partOf{name[0].upper()}{name[1:]}"

    def refer(part: Mapping[str, Any]) -> dict[str, Any]:
        name = part["$ref"].removeprefix("#/definitions/")
        loose = loosened(definitions[name])
        if loose == definitions[name]:
            return dict(part)
        made[name_of(name)] = loose
        return {**part, "$ref": f"#/definitions/{name_of(name)}"}

    def loosened(part: Mapping[str, Any]) -> dict[str, Any]:
        if "$ref" in part:
            return refer(part)
        loose = {key: value for key, value in part.items() if key != "required"}
        if "oneOf" in part:
            loose["oneOf"] = [*part["oneOf"], {"not": {"anyOf": part["oneOf"]}}]
        if "properties" in part:
            loose["properties"] = {name: loosened(inner) for name, inner in part["properties"].items()}
        return loose

    task = loosened(definitions["task"])
    made[name_of("task")] = {
        **{key: value for key, value in task.items() if key not in {"oneOf", "properties"}},
        "description": "The fields of a task that count before its own in the sets that are extended.",
        "required": ["name", "override"],
        "oneOf": task["oneOf"],
        "properties": task["properties"],
    }
    return made


def _used(part: Any, definitions: Mapping[str, Any]) -> dict[str, Any]:
    """The definitions that a part of the schema needs, and metadata."""
    found = {"metadata"}
    waiting = [part, definitions["metadata"]]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            name = one.get("$ref", "").removeprefix("#/definitions/")
            if name and name not in found:
                found.add(name)
                waiting.append(definitions[name])
            waiting += one.values()
    return {name: value for name, value in definitions.items() if name in found}


def main() -> int:
    """Write what differs. With ``--check`` nothing is written, and 1 returned where anything would be."""
    stale = [
        file
        for file, text in files().items()
        if not (TOP / file).is_file() or (TOP / file).read_text("utf-8") != text
    ]
    if "--check" in sys.argv[1:]:
        for file in stale:
            print(f"{file} is not what its parts make; make schema", file=sys.stderr)
        return 1 if stale else 0
    for file, text in files().items():
        if file in stale:
            (TOP / file).parent.mkdir(parents=True, exist_ok=True)
            (TOP / file).write_text(text, "utf-8")
            print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
