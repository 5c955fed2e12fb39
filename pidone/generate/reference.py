"""Writes the reference in docs/language.md, from its heading to the end of the file: ``make schema``."""

import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from pidone.cli.fields import Field, facts, kind_field, written
from pidone.language.schemas import KINDS, actions

HEADING = "## Reference"
_INTRODUCTION = f"""{HEADING}

`make schema` generates this reference from the JSON Schemas in [schema/](../schema/). `pidone explain PATH` prints the
same. Fields in **bold** are required. Every value that is not a name can be a reference `$(params.<name>)`.
"""


def with_reference(text: str) -> str:
    """The document with its reference made anew."""
    return text.partition(HEADING)[0] + reference()


def reference() -> str:
    parts = [_INTRODUCTION]
    described: dict[str, str] = {}
    for kind in KINDS:
        whole = kind_field(kind)
        spec = whole.fields()["spec"]
        twin = described.setdefault("\n".join(_rows(spec, "")), kind)
        parts.append(f"### {kind}\n\n{whole.description}\n")
        if twin != kind:
            parts.append(f"Its `spec` has the fields of {_link(twin)}.\n")
            continue
        parts.append(_table(spec, skip=("tasks",)))
        if "tasks" in spec.fields():
            parts += _tasks(spec.fields()["tasks"])
    return "\n".join(parts)


def _tasks(tasks: Field) -> Iterator[str]:
    yield f"### A task\n\n{tasks.description} {tasks.content().description}\n"
    yield _table(tasks, skip=actions())
    for name, field in tasks.fields().items():
        if name not in actions():
            continue
        content = field.content()
        lines = [f"### The action {name}", "", field.description]
        lines += ["", f"States: {', '.join(f'`{state}`' for state in content.states)}. "]
        lines[-1] += f"A plain `needs` waits for `{content.part['x-pidone-ready']}`."
        if defaults := content.part.get("x-pidone-task-defaults"):
            lines[-1] += f" Defaults of the task: `{written(defaults)}`."
        what, names = content.choice
        if names:
            lines += ["", f"Exactly one {what} of {', '.join(f'`{one}`' for one in names)}."]
        yield "\n".join([*lines, ""])
        yield _table(field)


def _link(heading: str) -> str:
    return f"[{heading}](#{heading.lower().replace(' ', '-')})"


def _table(field: Field, *, skip: Collection[str] = ()) -> str:
    return "\n".join(["| field | type | meaning |", "| --- | --- | --- |", *_rows(field, "", skip), ""])


def _rows(field: Field, path: str, skip: Collection[str] = ()) -> Iterator[str]:
    for name, inner in field.fields().items():
        if name in skip:
            continue
        here = f"{path}{name}"
        shown = f"**`{here}`**" if inner.required else f"`{here}`"
        text = " ".join(part for part in (inner.description, facts(inner)) if part)
        text = text.replace("|", "\\|").replace("<", "\\<")
        yield f"| {shown} | {inner.type} | {text} |"
        if not (path and "x-pidone-instance" in inner.part):  # whose fields are described once
            yield from _rows(inner, f"{here}.")


def main(path: str) -> int:
    file = Path(path)
    file.write_text(with_reference(file.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
