"""CustomResourceDefinitions, made of the JSON Schemas: what the API server refuses is what an editor marks.

A CRD's schema is structural, and takes less than JSON Schema: no references, no choices between types, a type
everywhere, a bound on every list and text. So a number or a reference becomes an int-or-string, a choice of keys
an ``x-kubernetes-validations`` rule, and what must be there in a task a rule that knows of ``override: merge``.
Defaults stand in the descriptions: the API server would write them into the object, and a part of a task that is
merged would bring them along.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import Any

Part = Mapping[str, Any]

_KEPT = (
    *("type", "enum", "required", "minimum", "maximum"),
    *("minItems", "maxItems", "minLength", "maxLength", "maxProperties"),
)
_PARTIAL = "(has(self.override) && self.override == 'merge')"


def crd(schema: Part, status: Part) -> dict[str, Any]:
    """The CustomResourceDefinition of one kind; ``status`` is what schema/parts/status.json has for it."""
    group, version = schema["properties"]["apiVersion"]["const"].split("/")
    kind = schema["title"]
    spec = _structural(schema["properties"]["spec"], schema["definitions"])
    name = _structural(schema["definitions"]["metadata"]["properties"]["name"], schema["definitions"])
    del name["description"]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.lower()}s.{group}"},
        "spec": {
            "group": group,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": f"{kind.lower()}s",
                "singular": kind.lower(),
                "categories": ["pidone"],
            },
            "scope": "Cluster" if kind.startswith("Cluster") else "Namespaced",
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": status["columns"],
                    "schema": {
                        "openAPIV3Schema": {
                            "description": schema["description"],
                            "type": "object",
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object", "properties": {"name": name}},
                                "spec": spec,
                                "status": status["schema"],
                            },
                        }
                    },
                }
            ],
        },
    }


def manifest(definition: Part) -> str:
    """YAML for ``kubectl apply``."""
    from ruamel.yaml import YAML

    text = StringIO()
    writer: Any = YAML(typ="safe", pure=True)  # its attributes are typed as None
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False
    writer.width = 1 << 16
    writer.dump(definition, text)
    return f"# Made by make schema of schema/; kubectl apply -f\n{text.getvalue()}"


def _structural(part: Part, definitions: Mapping[str, Part]) -> dict[str, Any]:
    """A part of a schema as a CRD has it."""
    part = _resolved(part, definitions)
    if "if" in part:  # the two forms of a task
        return _task(part, definitions)
    if "anyOf" in part and "properties" not in part:
        return _value_or_reference(part, definitions)
    if isinstance(part.get("type"), list):
        return _any_scalar(part)
    made = _described(part) | {key: part[key] for key in _KEPT if key in part}
    if "pattern" in part:
        made["pattern"] = _go(part["pattern"])
    if "enum" in part:
        made["type"] = "string"
    if "items" in part:
        made |= _list_of(part)
        made["items"] = _structural(part["items"], definitions)
    if "properties" in part:
        made["properties"] = {
            name: _structural(inner, definitions) for name, inner in part["properties"].items()
        }
        rules = list(_choices(part, ""))
        made |= {"x-kubernetes-validations": rules} if rules else {}
    if isinstance(part.get("additionalProperties"), Mapping):
        made["additionalProperties"] = _structural(part["additionalProperties"], definitions)
    return made


def _described(part: Part) -> dict[str, Any]:
    if "description" not in part:
        return {}
    default = f" The default is {_written(part['default'])}." if "default" in part else ""
    return {"description": f"{part['description']}{default}"}


def _list_of(part: Part) -> dict[str, Any]:
    """What must differ in a list: the items, or their names."""
    if "x-pidone-named" in part:
        return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
    return {"x-kubernetes-list-type": "set"} if part.get("uniqueItems") else {}


def _resolved(part: Part, definitions: Mapping[str, Part]) -> Part:
    if "$ref" not in part:
        return part
    target = _resolved(definitions[part["$ref"].removeprefix("#/definitions/")], definitions)
    return {**target, **{key: value for key, value in part.items() if key != "$ref"}}


def _value_or_reference(part: Part, definitions: Mapping[str, Part]) -> dict[str, Any]:
    """One string with either pattern, or an int-or-string where the value is a number."""
    value, reference = (_resolved(branch, definitions) for branch in part["anyOf"])
    made = _described(part)
    if value["type"] == "string":
        made["type"] = "string"
    else:
        made["x-kubernetes-int-or-string"] = True
    made |= {key: value[key] for key in ("minimum", "maximum") if key in value}
    patterns = [one["pattern"] for one in (value, reference) if "pattern" in one]
    made["pattern"] = _go("|".join(f"({one})" for one in patterns))
    made["maxLength"] = max(one.get("maxLength", 0) for one in (value, reference))
    return made


def _any_scalar(part: Part) -> dict[str, Any]:
    """A string, an integer or a boolean: no type of a CRD says that, so the checker does."""
    return {**_described(part), "x-kubernetes-preserve-unknown-fields": True}


def _task(part: Part, definitions: Mapping[str, Part]) -> dict[str, Any]:
    """A part of a task, and rules for what makes a whole one of it."""
    made = _structural(part["then"], definitions)
    made["description"] = _resolved(part["else"], definitions)["description"]
    made["required"] = ["name"]
    made["x-kubernetes-validations"] = list(_whole(part["else"], definitions, ""))
    _without_rules(made["properties"])
    return made


def _without_rules(properties: Mapping[str, dict[str, Any]]) -> None:
    """Choices of objects in a task are rules of the task; those in lists stay, for lists are taken as a whole."""
    for inner in properties.values():
        inner.pop("x-kubernetes-validations", None)
        _without_rules(inner.get("properties", {}))


def _whole(part: Part, definitions: Mapping[str, Part], path: str) -> Iterator[dict[str, str]]:
    part = _resolved(part, definitions)
    yield from _choices(part, path, partial=_PARTIAL)
    for name in part.get("required", ()) if path else ():
        yield {
            "rule": f"{_PARTIAL} || {_absent(path)}has(self{path}.{name})",
            "message": f"{path.removeprefix('.')}.{name} is missing",
        }
    for name, inner in part.get("properties", {}).items():
        if "properties" in _resolved(inner, definitions):
            yield from _whole(inner, definitions, f"{path}.{name}")


def _choices(part: Part, path: str, *, partial: str = "") -> Iterator[dict[str, str]]:
    """Rules for ``oneOf``, exactly one of these keys, and ``anyOf``, one of them at least."""
    whole = [branch["required"][0] for branch in part.get("oneOf", ()) if "required" in branch]
    if whole:
        given = f"[{', '.join(f'has(self{path}.{name})' for name in whole)}].filter(x, x).size()"
        rule = f"{given} == 1"
        if partial or len(whole) < len(part["oneOf"]):
            rule = f"({given} == 1 || ({partial or 'true'} && {given} == 0))"
        where = path.removeprefix(".")
        yield {
            "rule": f"{_absent(path)}{rule}",
            "message": f"{where}{' takes' if where else 'give'} exactly one of {', '.join(whole)}",
        }
    some = [branch["required"][0] for branch in part.get("anyOf", ()) if "required" in branch]
    if some:
        rule = " || ".join(f"has(self{path}.{name})" for name in some)
        yield {"rule": rule, "message": f"give {' or '.join(some)}"}


def _absent(path: str) -> str:
    """``!has(self.a) || !has(self.a.b) || ``: a rule about ``.a.b`` holds where there is none."""
    steps: Sequence[str] = path.split(".")[1:]
    ways = [".".join(steps[: length + 1]) for length in range(len(steps))]
    return "".join(f"!has(self.{way}) || " for way in ways)


def _go(pattern: str) -> str:
    r"""The API server matches with Go's RE2, which writes ``\u0020`` as ``\x{0020}``."""
    return re.sub(r"\\u([0-9a-fA-F]{4})", r"\\x{\1}", pattern)


def _written(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_written, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
