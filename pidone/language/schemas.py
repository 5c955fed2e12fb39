"""Loads the JSON Schemas of the language, and makes validators and shapes of them.

A shape is one part of the TaskSet schema with its references resolved. The checks that a schema cannot state, and
rendering, walk a value together with its shape, so an action that is added to the schema is checked and rendered
without code here.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

API_VERSION = "pidone.dev/v1alpha1"
STATE_CLASSES = GOOD, BAD, NEUTRAL = ("good", "bad", "neutral")  # what a state means for a rollout
PART_OF = "partOf"  # prefix of the definitions of parts of tasks, which ``override: merge`` brings
KINDS = ("TaskSet", "ClusterTaskSet", "TaskBinding", "ClusterTaskBinding")
ANY_ACTION = "any"  # of a field that names a task with any action
MISSING: Any = object()  # the default of a field without a default

_REFERENCES = ({"$ref": "#/definitions/reference"}, {"$ref": "#/definitions/text"})


@cache
def schema(kind: str) -> dict[str, Any]:
    """Return the schema of a kind as in its file. Callers must not change it."""
    here = Path(__file__).parent
    packaged = here / "schema"  # in a wheel; in a clone the folder of that name at the top is the source
    folder = packaged if packaged.is_dir() else here.parent.parent / "schema"
    loaded: dict[str, Any] = json.loads((folder / f"{kind.lower()}.v1alpha1.schema.json").read_text("utf-8"))
    return loaded


def takes_reference(part: Mapping[str, Any]) -> bool:
    """True if a schema part takes a literal, or a reference to a value of its type."""
    branches = part.get("anyOf", ())
    return len(branches) == 2 and branches[1] in _REFERENCES


@cache
def validator(kind: str) -> Any:
    """Return a jsonschema validator that yields one short error for ``anyOf`` and ``oneOf``.

    jsonschema's own yield the errors of all branches, or the whole instance. The schema uses ``anyOf`` for "literal
    or reference", which ``$(`` tells apart, and for "at least one of these keys"; and ``oneOf`` for "exactly one of
    these keys", or none if its last branch is "none of them". Integers are integers (jsonschema's own type accepts
    8080.0), and ``$`` in a pattern is the end of the text.
    """
    from jsonschema import Draft202012Validator, validators
    from jsonschema.exceptions import ValidationError

    def any_of(validator: Any, branches: Any, instance: Any, _part: Any) -> Iterator[Any]:
        if "required" in branches[0]:
            if isinstance(instance, dict) and not any(
                branch["required"][0] in instance for branch in branches
            ):
                yield ValidationError(
                    "missing", validator="required", validator_value=branches[0]["required"]
                )
            return
        branch = branches[1] if isinstance(instance, str) and "$(" in instance else branches[0]
        if not validator.evolve(schema=branch).is_valid(instance):
            yield ValidationError("neither a value nor a reference")

    def one_of(_validator: Any, branches: Any, instance: Any, _part: Any) -> Iterator[Any]:
        if isinstance(instance, dict):
            names = [branch["required"][0] for branch in branches if "required" in branch]
            count = sum(name in instance for name in names)
            if count > 1 or not (count or len(names) < len(branches)):
                yield ValidationError("not exactly one", context=())

    types = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    extend: Any = validators.extend  # untyped in jsonschema
    strict = extend(
        Draft202012Validator,
        {"anyOf": any_of, "oneOf": one_of, "pattern": _pattern, "uniqueItems": _unique_items},
        type_checker=types,
    )
    return strict(schema(kind))


def _pattern(_validator: Any, pattern: Any, instance: Any, _part: Any) -> Iterator[Any]:
    from jsonschema.exceptions import ValidationError

    if isinstance(instance, str) and not regex(pattern).search(instance):
        yield ValidationError("does not match")


def _unique_items(_validator: Any, _wanted: Any, instance: Any, part: Any) -> Iterator[Any]:
    from jsonschema.exceptions import ValidationError

    if not isinstance(instance, list) or len(instance) > part.get("maxItems", 1000):
        return  # maxItems reports it; comparing all pairs of many items takes too long
    if any(item in instance[:index] for index, item in enumerate(instance)):
        yield ValidationError("an item twice")


def mismatch_of(definition: str, value: object) -> str:
    """Return why an unchecked value does not fit a definition of the schema; empty if it fits."""
    part = {"$ref": f"#/definitions/{definition}"}
    for error in validator("TaskSet").evolve(schema=part).iter_errors(value):
        path = ".".join(str(step) for step in error.absolute_path)
        if error.validator == "additionalProperties":
            unknown = next(key for key in error.instance if key not in error.schema["properties"])
            return f"{path}{'.' if path else ''}{unknown} is not known"
        if error.validator == "oneOf":
            names = [branch["required"][0] for branch in error.validator_value if "required" in branch]
            present = [name for name in names if name in error.instance]
            return f"{path or 'it'} has {' and '.join(present) or 'none of ' + ', '.join(names)}"
        if error.validator == "required":
            absent = next(name for name in error.validator_value if name not in error.instance)
            return f'{path or "it"} has no "{absent}"'
        scalar = not isinstance(error.instance, dict | list)
        what = error.schema.get("x-pidone-value", {}).get("what", "a value that fits")
        return f"{path}: {error.instance if scalar else 'this'} is not {what}" if path else "it does not fit"
    return ""


@cache
def regex(pattern: str) -> re.Pattern[str]:
    r"""Compile a schema's pattern. ``$`` at its end is the end of the text; Python's lets a newline follow."""
    if pattern.endswith("$") and not pattern.endswith(r"\$"):
        pattern = pattern[:-1] + r"\Z"
    return re.compile(pattern)


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """The rules of one position in a task: the type, its bounds, and the shapes of inner positions."""

    type: str  # object | array | string | integer | duration | boolean | port | literal
    properties: Mapping[str, "Shape"] = field(default_factory=dict)
    values: "Shape | None" = None  # of a map with free keys
    items: "Shape | None" = None
    default: Any = MISSING
    what: str = ""  # the name of such a value in messages; ``write``: how to write it
    write: str = ""
    rule: str = ""
    least: float | None = None  # of a duration, in seconds
    most: float | None = None
    task: str = ""  # the value names a task with this action, or with ANY_ACTION
    required: frozenset[str] = frozenset()  # the required properties
    edges: bool = False  # the value is a list of edges or events
    unused: bool = False  # left out of the plan
    program: bool = False  # the value is an argv
    environment: bool = False  # the value names a variable that a program is started with
    holds: str = ""  # the kind of content for which ``literals.problem`` checks the value
    without: str = ""  # a pattern of an end that the value must not have, since pidone adds it
    keys: str = ""  # the kind of the keys of the map: "header"
    literal: Any = None  # a validator of the value after its references are replaced

    @property
    def takes_references(self) -> bool:
        return self.type not in {"literal", "object", "array"}


@dataclass(frozen=True, slots=True)
class Action:
    """One action, as its file in ``schema/actions`` describes it; see ``pidone.generate.assembly``."""

    name: str
    states: Mapping[str, str]  # each with its class, one of STATE_CLASSES
    ready: str  # the state that a plain ``needs: [x]`` waits for
    defaults: Mapping[str, Any]  # of the task's common keys
    lasting: bool  # a run has no end
    listens: str  # the field with the port on which process 1 listens; empty: none
    simulation: str  # the interface that ``pidone test`` simulates; empty: the action as a whole
    aliases: tuple[str, ...]  # names of other tools for it


@dataclass(frozen=True, slots=True)
class Form:
    """The fields that a registry's fields need, or may have, beside a value of one of them."""

    needs: tuple[str, ...]
    takes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Registry:
    """One registry, as its file in ``schema/registries`` describes it; see ``pidone.generate.assembly``."""

    name: str
    instance: tuple[str, ...]  # the fields that identify an instance; the first has the servers
    port: str  # the field with the port that callers use; empty: none
    lease: str  # the field with the duration of the lease; empty: none
    renewal: str  # the field with the interval of renewals that is sent to the registry; empty: none
    forms: Mapping[str, Mapping[str, "Form"]]  # by a field and its value, "" for none


@cache
def task_shape() -> Shape:
    return _shape({"$ref": "#/definitions/task"}, schema("TaskSet"))


def scalars(value: Any, shape: Shape) -> Iterator[tuple[Any, Shape]]:
    """Yield the scalars in a value, each with its shape. Fields that the schema does not know are left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            below = shape.properties.get(key, shape.values)
            if below is not None:
                yield from scalars(inner, below)
    elif isinstance(value, list) and shape.items is not None:
        for inner in value:
            yield from scalars(inner, shape.items)
    elif not isinstance(value, list):
        yield value, shape


@cache
def actions() -> Mapping[str, Action]:
    """Return the actions of the language by name."""
    return {
        name: Action(
            name=name,
            states=part["x-pidone-states"],
            ready=part["x-pidone-ready"],
            defaults=part.get("x-pidone-task-defaults", {}),
            lasting=part.get("x-pidone-lasting", False),
            listens=part.get("x-pidone-listens", ""),
            simulation=part.get("x-pidone-simulation", ""),
            aliases=tuple(part.get("x-pidone-aliases", ())),
        )
        for name, part in _definitions("x-pidone-states").items()
    }


@cache
def action_aliases() -> Mapping[str, str]:
    """Return the names of actions by their names in other tools."""
    return {alias: action.name for action in actions().values() for alias in action.aliases}


@cache
def registries() -> Mapping[str, Registry]:
    """Return the registries of the language by name."""
    return {
        name: Registry(
            name=name,
            instance=tuple(part["x-pidone-instance"]),
            port=part.get("x-pidone-port", ""),
            lease=part.get("x-pidone-lease", ""),
            renewal=part.get("x-pidone-renewal", ""),
            forms={
                field: {
                    value: Form(tuple(form["needs"]), tuple(form["takes"])) for value, form in forms.items()
                }
                for field, forms in part.get("x-pidone-forms", {}).items()
            },
        )
        for name, part in _definitions("x-pidone-instance").items()
    }


@cache
def states_of_class(group: str) -> frozenset[str]:
    """Return the states of all actions that are of this class, one of ``STATE_CLASSES``."""
    return frozenset(
        state for action in actions().values() for state, label in action.states.items() if label == group
    )


def _definitions(key: str) -> dict[str, dict[str, Any]]:
    """Return the definitions of the TaskSet schema with this key, without the parts of tasks that are merged."""
    definitions = schema("TaskSet")["definitions"]
    return {name: part for name, part in definitions.items() if key in part and not name.startswith(PART_OF)}


def action_of(task: Mapping[str, Any]) -> Action | None:
    """Return the action of a task; None if it has none, or more than one."""
    present = [action for name, action in actions().items() if name in task]
    return present[0] if len(present) == 1 else None


@cache
def value_rules() -> Mapping[str, str]:
    """Return the rules of scalars that the schemas name, each with its description in one sentence."""
    rules: dict[str, str] = {}

    def look(part: Any) -> None:
        if isinstance(part, dict):
            value = part.get("x-pidone-value")
            if value is not None:
                rules.setdefault(value["rule"], f"Not {value['what']}: {value['write']}.")
            for inner in part.values():
                look(inner)
        elif isinstance(part, list):
            for inner in part:
                look(inner)

    for kind in KINDS:
        look(schema(kind))
    return rules


def _resolved(part: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``part`` merged into the definition that it refers to; its own keys take precedence."""
    if "$ref" not in part:
        return dict(part)
    target = whole["definitions"][part["$ref"].removeprefix("#/definitions/")]
    return _resolved(target, whole) | {key: value for key, value in part.items() if key != "$ref"}


def _shape(part: Mapping[str, Any], whole: Mapping[str, Any]) -> Shape:
    part = _resolved(part, whole)
    value = part.get("x-pidone-value", {})
    literal = part["anyOf"][0] if takes_reference(part) else part
    kind = value.get("type") or ("literal" if "enum" in part else part["type"])
    extra = part.get("additionalProperties")
    return Shape(
        type=kind,
        properties={name: _shape(inner, whole) for name, inner in part.get("properties", {}).items()},
        values=_shape(extra, whole) if isinstance(extra, Mapping) else None,
        items=_shape(part["items"], whole) if "items" in part else None,
        default=part.get("default", MISSING),
        what=value.get("what", ""),
        write=value.get("write", ""),
        rule=value.get("rule", ""),
        least=part.get("x-pidone-least"),
        most=part.get("x-pidone-most"),
        task=part.get("x-pidone-task", ""),
        required=frozenset(part.get("required", ())),
        edges=part.get("x-pidone-edges", False),
        unused=part.get("x-pidone-unused", False),
        program=part.get("x-pidone-program", False),
        environment=part.get("x-pidone-environment", False),
        holds=part.get("x-pidone-holds", ""),
        without=part.get("x-pidone-without", ""),
        keys=part.get("x-pidone-keys", ""),
        literal=validator("TaskSet").evolve(schema=literal) if kind not in {"object", "array"} else None,
    )
