"""CustomResourceDefinitions, generated from the JSON Schemas, so that the API server refuses what an editor marks.

A CRD's schema is structural and has fewer features than JSON Schema: no references, no choices between types, a type
everywhere, a bound on every list and text. So a number or a reference becomes an int-or-string. A choice of keys
becomes an ``x-kubernetes-validations`` rule. A required field of a task becomes a rule that allows for ``override:
merge``.

Defaults are in the descriptions: the API server would write them into the object, and a part of a task that is merged
would override with them.
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
    """Return the CustomResourceDefinition of a kind; ``status`` is its part of schema/parts/status.json."""
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
    """Return the YAML for ``kubectl apply``."""
    from ruamel.yaml import YAML

    text = StringIO()
    writer: Any = YAML(typ="safe", pure=True)  # its attributes are typed as None
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False
    writer.width = 1 << 16
    writer.dump(definition, text)
    return f"# Made by make schema of schema/; kubectl apply -f\n{text.getvalue()}"


def _structural(part: Part, definitions: Mapping[str, Part]) -> dict[str, Any]:
    """Return the structural schema for a part of a JSON Schema."""
    part = _resolved(part, definitions)
    if "if" in part:  # the two forms of a task
        return _task(part, definitions)
    if "anyOf" in part and "properties" not in part:
        return _value_or_reference(part, definitions)
    if isinstance(part.get("type"), list):
        return _any_scalar(part)
    result = _described(part) | {key: part[key] for key in _KEPT if key in part}
    if "pattern" in part:
        result["pattern"] = _go(part["pattern"])
    if "enum" in part:
        result["type"] = "string"
    if "items" in part:
        result |= _list_of(part)
        result["items"] = _structural(part["items"], definitions)
    if "properties" in part:
        result["properties"] = {
            name: _structural(inner, definitions) for name, inner in part["properties"].items()
        }
        rules = list(_choices(part, ""))
        result |= {"x-kubernetes-validations": rules} if rules else {}
    if isinstance(part.get("additionalProperties"), Mapping):
        result["additionalProperties"] = _structural(part["additionalProperties"], definitions)
    return result


def _described(part: Part) -> dict[str, Any]:
    if "description" not in part:
        return {}
    default = f" The default is {_written(part['default'])}." if "default" in part else ""
    return {"description": f"{part['description']}{default}"}


def _list_of(part: Part) -> dict[str, Any]:
    """Return the list type: items must differ, or their names must, or neither."""
    if "x-pidone-named" in part:
        return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
    return {"x-kubernetes-list-type": "set"} if part.get("uniqueItems") else {}


def _resolved(part: Part, definitions: Mapping[str, Part]) -> Part:
    if "$ref" not in part:
        return part
    target = _resolved(definitions[part["$ref"].removeprefix("#/definitions/")], definitions)
    return {**target, **{key: value for key, value in part.items() if key != "$ref"}}


def _value_or_reference(part: Part, definitions: Mapping[str, Part]) -> dict[str, Any]:
    """Return a string with either pattern, an int-or-string if the value is a number, or no type for true or false."""
    value, reference = (_resolved(branch, definitions) for branch in part["anyOf"])
    if value["type"] == "boolean":
        return _any_scalar(part)
    result = _described(part)
    if value["type"] == "string":
        result["type"] = "string"
    else:
        result["x-kubernetes-int-or-string"] = True
    result |= {key: value[key] for key in ("minimum", "maximum") if key in value}
    patterns = [one["pattern"] for one in (value, reference) if "pattern" in one]
    result["pattern"] = _go("|".join(f"({one})" for one in patterns))
    result["maxLength"] = max(one.get("maxLength", 0) for one in (value, reference))
    return result


def _any_scalar(part: Part) -> dict[str, Any]:
    """Return a schema without a type: no type of a CRD means string, integer or boolean, so the checker checks it."""
    return {**_described(part), "x-kubernetes-preserve-unknown-fields": True}


def _task(part: Part, definitions: Mapping[str, Part]) -> dict[str, Any]:
    """Return the schema of a part of a task, with rules for the required fields of a whole task."""
    result = _structural(part["then"], definitions)
    result["description"] = _resolved(part["else"], definitions)["description"]
    result["required"] = ["name"]
    result["x-kubernetes-validations"] = list(_task_rules(part["else"], definitions, ""))
    _without_rules(result["properties"])
    return result


def _without_rules(properties: Mapping[str, dict[str, Any]]) -> None:
    """Remove the rules of objects in a task, which are rules of the task. Those in lists stay: lists are not merged."""
    for inner in properties.values():
        inner.pop("x-kubernetes-validations", None)
        _without_rules(inner.get("properties", {}))


def _task_rules(part: Part, definitions: Mapping[str, Part], path: str) -> Iterator[dict[str, str]]:
    part = _resolved(part, definitions)
    yield from _choices(part, path, partial=_PARTIAL)
    for name in part.get("required", ()) if path else ():
        yield {
            "rule": f"{_PARTIAL} || {_absent(path)}has(self{path}.{name})",
            "message": f"{path.removeprefix('.')}.{name} is missing",
        }
    for name, inner in part.get("properties", {}).items():
        if "properties" in _resolved(inner, definitions):
            yield from _task_rules(inner, definitions, f"{path}.{name}")


def _choices(part: Part, path: str, *, partial: str = "") -> Iterator[dict[str, str]]:
    """Return the rules for ``oneOf``, exactly one of these keys, and ``anyOf``, at least one of them."""
    exclusive = [branch["required"][0] for branch in part.get("oneOf", ()) if "required" in branch]
    if exclusive:
        given = f"[{', '.join(f'has(self{path}.{name})' for name in exclusive)}].filter(x, x).size()"
        rule = f"{given} == 1"
        if partial or len(exclusive) < len(part["oneOf"]):
            rule = f"({given} == 1 || ({partial or 'true'} && {given} == 0))"
        where = path.removeprefix(".")
        yield {
            "rule": f"{_absent(path)}{rule}",
            "message": f"{where}{' takes' if where else 'give'} exactly one of {', '.join(exclusive)}",
        }
    some = [branch["required"][0] for branch in part.get("anyOf", ()) if "required" in branch]
    if some:
        rule = " || ".join(f"has(self{path}.{name})" for name in some)
        yield {"rule": rule, "message": f"give {' or '.join(some)}"}


def _absent(path: str) -> str:
    """Return ``!has(self.a) || !has(self.a.b) || ``: a rule about ``.a.b`` holds without ``.a.b``."""
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
