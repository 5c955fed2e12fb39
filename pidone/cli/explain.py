"""``pidone explain PATH``: prints the description of a field from the schema, in the form of ``kubectl explain``."""

import sys

from pidone.cli.fields import NAMES, Field, every_field, facts, kind_field, paragraph, written
from pidone.language.findings import suggestion
from pidone.language.schemas import API_VERSION


def explain(path: str, *, recursive: bool) -> int:
    """Print the page of the field. Exit code 0, or 2 for an unknown path, with a suggestion."""
    target, problem = _find(path)
    if target is None:
        print(f"pidone explain: {problem}", file=sys.stderr)
        return 2
    kind, field = target
    print(_page(kind, field, recursive=recursive), end="")
    return 0


def _find(path: str) -> tuple[tuple[str, Field] | None, str]:
    """Return the kind and the field, or None and the message."""
    first, *rest = path.split(".")
    kind = next((kind for kind in NAMES if kind.lower() == first.lower().removesuffix("s")), None)
    if kind is None:
        return None, f'"{first}" is not a kind{_hint(path, list(NAMES))}'
    field, parent = kind_field(kind), kind
    for name in rest:
        fields = field.fields()
        if name not in fields:
            return None, f'{parent} has no field "{name}"{_hint(name, list(fields))}'
        field, parent = fields[name], f"{parent}.{name}"
    return (kind, field), ""


def _hint(name: str, names: list[str]) -> str:
    """Return the end of the message: a similar name here, else the same name elsewhere, else all names here."""
    hint = suggestion(name, names)
    if "did you mean" in hint:
        return hint
    paths = [path for path, _ in every_field() if path.endswith(f".{name}")]
    return f'; did you mean "{min(paths, key=len)}"?' if paths else hint


def _page(kind: str, field: Field, *, recursive: bool) -> str:
    lines = [f"KIND:     {kind}", f"VERSION:  {API_VERSION}", ""]
    if field.name != kind:
        required = " -required-" if field.required else ""
        lines += [f"FIELD: {field.name} <{field.type}>{required}", ""]

    lines += ["DESCRIPTION:", paragraph(field.description, 4)]
    if extra := facts(field):
        lines.append(paragraph(extra, 4))
    if field.form:
        lines.append(paragraph(field.form, 4))
    content = field.content()
    if content.description not in {field.description, ""}:
        lines.append(paragraph(content.description, 4))

    if content.states:
        states = ", ".join(content.states)
        lines += ["", "STATES:", paragraph(f"{states}. A plain needs waits for {_ready(content)}.", 4)]
    if defaults := content.part.get("x-pidone-task-defaults"):
        lines += ["", "DEFAULTS OF THE TASK:", paragraph(written(defaults), 4)]

    fields = field.fields()
    if fields:
        what, names = content.choice
        rule = f"Exactly one {what} of {', '.join(names)}."
        lines += ["", "FIELDS:", *([paragraph(rule, 2), ""] if names else [])]
        lines += _outline(field, 2) if recursive else _list(fields)
    return "\n".join(lines).rstrip() + "\n"


def _ready(action: Field) -> str:
    return str(action.part["x-pidone-ready"])


def _list(fields: dict[str, Field]) -> list[str]:
    lines = []
    for field in fields.values():
        required = " -required-" if field.required else ""
        text = " ".join(part for part in (field.description, facts(field)) if part)
        lines += [f"  {field.name}\t<{field.type}>{required}", *([paragraph(text, 4)] if text else []), ""]
    return lines


def _outline(field: Field, indent: int) -> list[str]:
    """Return names and types of all fields below, without descriptions."""
    lines = []
    for inner in field.fields().values():
        required = " -required-" if inner.required else ""
        lines.append(f"{' ' * indent}{inner.name}\t<{inner.type}>{required}")
        lines += _outline(inner, indent + 2)
    return lines
