"""Assembles the schemas of the four kinds from their parts: ``make schema``.

    schema/actions/<action>.json        one file per action
    schema/registries/<registry>.json   one file per registry
    schema/parts/                       the kinds, the common keys of tasks, and values such as durations; status.json
                                        is for the CustomResourceDefinitions alone

An object whose properties hold ``x-pidone-variants: <folder>`` gets one property for each file of the folder. A value
has exactly one of them. ``partOfTask`` is the task without required fields: the value of ``override: merge``. The
CustomResourceDefinitions are made of the result.

What the rest of pidone has to know of an action stands in its file:

    x-pidone-states         its states, each "good" (it does what it is for), "bad" or "neutral" for a rollout; a state
                            has the same class in all actions
    x-pidone-ready          the state that a plain ``needs`` waits for
    x-pidone-task-defaults  defaults of the task's common keys
    x-pidone-lasting        true: a run has no end
    x-pidone-listens        the field with the port on which process 1 listens
    x-pidone-simulation     which border to the world ``pidone test`` simulates, see ``pidone.cli.rehearsal``
    x-pidone-aliases        what other tools call it: the checker suggests the right name
    x-pidone-several        the key of a list, each of whose items has one of the variants; it stands instead of one

and of a registry:

    x-pidone-instance       the fields that identify an instance: two tasks that agree in all of them have the same one.
                            The first has the servers: URLs or host:port, separated by commas
    x-pidone-port           the field with the port that callers use
    x-pidone-lease          the field with the duration of the lease; none if there is no lease to renew
    x-pidone-renewal        the field with the interval of renewals that the registry is told, if there is one

    x-pidone-forms          fields that go with the value of another one: {"<field>": {"<value>": {"needs": [...],
                            "takes": [...]}}}; the value "" is for a registration without the field

and of a value, for the checker:

    x-pidone-holds          what the value is held to, a function of ``pidone.language.literals``
    x-pidone-keys           what the keys of a map are held to: "header", or such a function
    x-pidone-without        a pattern of the end of a URL that pidone adds itself
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pidone.generate.crds import crd, manifest
from pidone.language.schemas import PART_OF, STATE_CLASSES

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
    "Made by make schema; the source is in the folders beside. Draft-07 reads it in the same way: beside a $ref "
    "stand annotations alone. A definition with x-pidone-states is an action, and the key of a task that refers to "
    "it is the action's key. x-pidone-value is the name of a scalar in messages, its format, and the type of params "
    "that may replace it. x-pidone-task, x-pidone-program, x-pidone-environment, x-pidone-holds, x-pidone-keys, "
    "x-pidone-without, x-pidone-least and x-pidone-most are rules of the checker that a schema cannot express."
)


def files() -> dict[Path, str]:
    """Return the text of each generated file, by its path in the clone."""
    texts = {}
    for kind in KINDS:
        schema = assembled(kind)
        name = f"{kind.lower()}.{VERSION}.schema.json"
        texts[Path("schema", name)] = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        texts[Path("k3d/crds", f"{kind.lower()}s.yaml")] = manifest(crd(schema, status(kind)))
    return texts


def status(kind: str) -> dict[str, Any]:
    """Return the schema of a kind's status, for the CRD alone, and its columns for kubectl."""
    parts = _read("parts", "status")
    own: dict[str, Any] = parts["set" if kind.endswith("TaskSet") else "binding"]
    own["schema"]["properties"] |= parts["common"]
    return own


def assembled(kind: str) -> dict[str, Any]:
    """Return the schema of a kind, in the order of its parts."""
    own = _read("parts", KINDS[kind])
    definitions: dict[str, Any] = {**_read("parts", "common"), **own["definitions"]}
    if KINDS[kind] == "taskset":
        definitions["task"] = _with_variants(_read("parts", "task"), definitions)
        _check_classes(part for part in definitions.values() if "x-pidone-states" in part)
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
    """Return ``part`` with one property for each file of the folder that it names; each file becomes a definition."""
    folder = part.get("properties", {}).get(_VARIANTS)
    if folder is None:
        return part
    names = sorted(file.stem for file in (TOP / "schema" / folder).glob("*.json"))
    properties: dict[str, Any] = {}
    for key, value in part["properties"].items():
        if key != _VARIANTS:
            properties[key] = _with_variants_inside(value, definitions)
            continue
        for name in names:
            variant = _with_variants(_read(folder, name), definitions)
            if folder in _CHECKS:
                _CHECKS[folder](f"schema/{folder}/{name}.json", variant)
            if definitions.get(name, variant) != variant:
                raise ValueError(f"schema/{folder}/{name}.json: there is a definition of this name already")
            definitions[name] = variant
            properties[name] = {"$ref": f"#/definitions/{name}", "description": variant["description"]}
    options = [*names, part["x-pidone-several"]] if "x-pidone-several" in part else names
    return {**part, "oneOf": [{"required": [name]} for name in options], "properties": properties}


def _with_variants_inside(part: Any, definitions: dict[str, Any]) -> Any:
    """Return a property; if it is a list, its items have one property for each file of the folder that they name."""
    if not isinstance(part, dict) or "items" not in part:
        return part
    return {**part, "items": _with_variants(part["items"], definitions)}


def _check_action(file: str, part: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if the rest of pidone would not know what a state of the action means."""
    states = part.get("x-pidone-states")
    if not isinstance(states, dict) or not states:
        raise ValueError(f'{file}: x-pidone-states: expected {{"<state>": "good", "bad" or "neutral", ...}}')
    for state, group in states.items():
        if group not in STATE_CLASSES:
            raise ValueError(
                f'{file}: x-pidone-states: is "{state}" {" or ".join(STATE_CLASSES)}? not {group!r}'
            )
    if part.get("x-pidone-ready") not in states:
        raise ValueError(f"{file}: x-pidone-ready: expected one of {', '.join(states)}")


def _check_registry(file: str, part: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if the rest of pidone would not know what identifies an instance."""
    if not part.get("x-pidone-instance"):
        raise ValueError(f"{file}: x-pidone-instance: expected the fields that identify an instance")
    for name in (
        *part["x-pidone-instance"],
        *(part.get(f"x-pidone-{key}") for key in ("port", "lease", "renewal")),
        *part.get("x-pidone-forms", {}),
        *(
            field
            for forms in part.get("x-pidone-forms", {}).values()
            for form in forms.values()
            for field in (*form["needs"], *form["takes"])
        ),
    ):
        if name is not None and name not in part["properties"]:
            raise ValueError(f'{file}: it has no field "{name}"')


def _check_classes(actions: Iterable[Mapping[str, Any]]) -> None:
    """Raise ``ValueError`` for a state that is good for one action and bad for another: reports name states alone."""
    classes: dict[str, str] = {}
    for action in actions:
        for state, group in action["x-pidone-states"].items():
            if classes.setdefault(state, group) != group:
                raise ValueError(f'the state "{state}" is {group} here and {classes[state]} there')


_CHECKS = {"actions": _check_action, "registries": _check_registry}


def _parts_of(definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``partOfTask`` and the definitions that it refers to: no field is required except the name.

    Items of lists keep their required fields, because a list is never merged.
    """
    parts: dict[str, Any] = {}

    def name_of(name: str) -> str:
        return f"{PART_OF}{name[0].upper()}{name[1:]}"

    def refer(part: Mapping[str, Any]) -> dict[str, Any]:
        name = part["$ref"].removeprefix("#/definitions/")
        loose = loosened(definitions[name])
        if loose == definitions[name]:
            return dict(part)
        parts[name_of(name)] = loose
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
    parts[name_of("task")] = {
        **{key: value for key, value in task.items() if key not in {"oneOf", "properties"}},
        "description": "The fields of a task that count before its own in the sets that are extended.",
        "required": ["name", "override"],
        "oneOf": task["oneOf"],
        "properties": task["properties"],
    }
    return parts


def _used(part: Any, definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the definitions that a part of the schema refers to, directly or not, and metadata."""
    names = {"metadata"}
    queue = [part, definitions["metadata"]]
    while queue:
        value = queue.pop()
        if isinstance(value, list):
            queue += value
        elif isinstance(value, dict):
            name = value.get("$ref", "").removeprefix("#/definitions/")
            if name and name not in names:
                names.add(name)
                queue.append(definitions[name])
            queue += value.values()
    return {name: value for name, value in definitions.items() if name in names}


def main() -> int:
    """Write the files that differ. With ``--check`` write nothing, and return 1 if a file differs."""
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
