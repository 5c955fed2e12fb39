"""The fields of the language as the schema describes them, for ``explain`` and for the reference in docs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from pidone.language import duration
from pidone.language.schemas import KINDS, MISSING, schema, takes_reference

NAMES = (*KINDS, "Test")  # the schemas: the kinds, and the case files of ``pidone test``

_TYPES = {"port": "integer or string"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the language."""

    name: str
    part: Mapping[str, Any]  # its part of the schema, with references followed
    whole: Mapping[str, Any]  # the whole schema
    required: bool = False

    @property
    def type(self) -> str:
        """The type as kubectl explain writes it: ``Object``, ``[]string``, ``map[string]string``, ``duration``."""
        inner = self._inner()
        if "items" in self.part and inner is not None:
            return f"[]{inner.type}"
        if inner is not None:
            return f"map[string]{inner.type}"
        value = self.part.get("x-pidone-value", {}).get("type")
        types = self._literal.get("type", "string")
        if value or isinstance(types, str):
            name = types if value in {"literal", None} else _TYPES.get(value, value)
            return "Object" if name == "object" else str(name)
        return " or ".join(each for each in types if each != "null")

    @property
    def description(self) -> str:
        return str(self.part.get("description", ""))

    @property
    def default(self) -> Any:
        return self.part.get("default", MISSING)

    @property
    def options(self) -> list[str]:
        """The allowed values if they are enumerated; of a list, those of its items."""
        values = self._literal.get("enum") or self._literal.get("items", {}).get("enum") or ()
        return [str(value) for value in values]

    @property
    def limits(self) -> str:
        """The range of a number or of a duration, in words; empty if there is none."""
        literal = self._literal
        text = duration.text if "x-pidone-least" in self.part or "x-pidone-most" in self.part else str
        least = self.part.get("x-pidone-least", literal.get("minimum"))
        most = self.part.get("x-pidone-most", literal.get("maximum"))
        if least is None and most is None:
            return ""
        if most is None:
            return f"at least {text(least)}"
        return f"at most {text(most)}" if least is None else f"{text(least)} to {text(most)}"

    @property
    def form(self) -> str:
        """One or two sentences: how to write the value, and whether it may be a reference; may be empty."""
        write = self.part.get("x-pidone-value", {}).get("write", "")
        needless = "$(params" in write or not takes_reference(self.part)
        reference = "" if needless else "A reference, $(params.<name>), may stand here."
        return " ".join(
            part for part in (f"{write[:1].upper()}{write[1:]}." if write else "", reference) if part
        )

    @property
    def states(self) -> tuple[str, ...]:
        """The states of a task with this action; empty if the field is not an action."""
        return tuple(self.part.get("x-pidone-states", {}))

    @property
    def choice(self) -> tuple[str, tuple[str, ...]]:
        """The name of the choice (``action``, ``handler``, ``registry``), and the fields of which one must be set."""
        names = tuple(
            branch["required"][0] for branch in self.part.get("oneOf", ()) if branch.get("required")
        )
        return str(self.part.get("x-pidone-choice", "field")), names

    def fields(self) -> dict[str, "Field"]:
        """Return the fields of the object, or of the objects in the list or map, by name."""
        inner = self
        while (below := inner._inner()) is not None:
            inner = below
        required = inner.part.get("required", ())
        return {
            name: Field(name, _followed(part, self.whole), self.whole, name in required)
            for name, part in inner.part.get("properties", {}).items()
        }

    def content(self) -> "Field":
        """Return the object that ``choice`` and ``states`` belong to: of a list or a map, its items."""
        inner = self._inner()
        return self if inner is None else inner.content()

    @property
    def _literal(self) -> Mapping[str, Any]:
        literal: Mapping[str, Any] = self.part["anyOf"][0] if takes_reference(self.part) else self.part
        return literal

    def _inner(self) -> "Field | None":
        part = self.part.get("items") or self.part.get("additionalProperties")
        return Field("", _followed(part, self.whole), self.whole) if isinstance(part, Mapping) else None


def kind_field(kind: str) -> Field:
    """Return the object of a kind as a field."""
    whole = schema(kind)
    return Field(kind, whole, whole)


def walk(field: Field, path: str) -> Iterator[tuple[str, Field]]:
    """Yield ``field`` and all fields below it with their paths, in the order of the schema."""
    yield path, field
    for name, inner in field.fields().items():
        yield from walk(inner, f"{path}.{name}")


def every_field() -> Iterator[tuple[str, Field]]:
    """Yield all fields of all kinds with their paths."""
    for kind in NAMES:
        yield from walk(kind_field(kind), kind)


def facts(field: Field) -> str:
    """Return what the schema states beyond the description, in one line: values, range, default."""
    parts = []
    if field.options:
        parts.append(f"One of {', '.join(field.options)}.")
    elif field.limits:
        parts.append(f"Range: {field.limits}.")
    if field.default is not MISSING:
        parts.append(f"Default: {written(field.default)}.")
    return " ".join(parts)


def written(value: Any) -> str:
    """Return a default value as YAML in one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(written(item) for item in value)}]"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {written(item)}" for key, item in value.items())
    return str(value)


def paragraph(text: str, indent: int, width: int = 88) -> str:
    space = " " * indent
    return "\n".join(wrap(text, width, initial_indent=space, subsequent_indent=space, break_on_hyphens=False))


def _followed(part: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``part`` with its reference followed. Keys beside a reference override those of its target.

    Of an ``if`` the ``else`` is described, which is the usual case.
    """
    if "else" in part:
        return _followed(part["else"], whole)
    if "$ref" not in part:
        return dict(part)
    target = whole["definitions"][part["$ref"].removeprefix("#/definitions/")]
    return _followed(target, whole) | {key: value for key, value in part.items() if key != "$ref"}
