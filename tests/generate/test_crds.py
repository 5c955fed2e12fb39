"""The CustomResourceDefinitions: structural, bounded, and of one opinion with the schema and the checker.

The API server's part is played by a reader of structural schemas below: pruning refused, as with strict field
validation, list types, int-or-string, and the small part of CEL that the rules are made of.
"""

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from pidone.generate.assembly import TOP
from pidone.language.checking import check_text
from pidone.language.reading import read
from pidone.language.schemas import KINDS, schema, validator
from tests.language.test_checking import BAD, GOOD
from tests.patience import ENDURANCE

VALUES = {
    "description", "type", "enum", "minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength", "required",
    "maxProperties", "pattern", "format", "items", "properties", "additionalProperties",
}  # fmt: skip
EXTENSIONS = {
    "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys", "x-kubernetes-validations",
}  # fmt: skip


@cache
def crd(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(TOP / "k3d/crds" / f"{kind.lower()}s.yaml")
    return found


def whole(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def parts(part: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, part
    for name, inner in part.get("properties", {}).items():
        yield from parts(inner, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if name in part:
            yield from parts(part[name], f"{path}[]")


# CEL, as far as the rules use it: has, ==, &&, ||, !, and the number of true ones in a list


def cel(rule: str) -> Callable[[Any], bool]:
    python = re.sub(r"has\(self((?:\.\w+)+)\)", r"has('\1')", rule)
    python = re.sub(r"(\[[^\]]*\])\.filter\(x, x\)\.size\(\)", r"sum(\1)", python)
    python = re.sub(r"self\.(\w+) ==", r"value['\1'] ==", python)
    python = (
        python.replace("&&", " and ")
        .replace("||", " or ")
        .replace("!has", " not has")
        .replace("true", "True")
    )
    code = compile(python.strip(), rule, "eval")
    allowed = {"has", "sum", "value"}
    assert set(code.co_names) <= allowed, rule

    def holds(value: Any) -> bool:
        def has(path: str) -> bool:
            *above, last = path.split(".")[1:]
            inner = value
            for step in above:
                inner = inner[step]  # as in CEL, it is an error to look into what is not there
            return last in inner

        return bool(eval(code, {"__builtins__": {}, "has": has, "sum": sum, "value": value}))

    return holds


def refused(value: Any, part: dict[str, Any], path: str = "") -> str:
    """Where the API server would refuse ``value``, and for what; empty where it would take it.

    Rules come last: where a type is wrong they are not asked.
    """
    return by_itself(value, part, path) or inside(value, part, path) or by_rule(value, part, path)


def by_itself(value: Any, part: dict[str, Any], path: str) -> str:
    types: dict[str, Any] = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    types["number"] = (int, float)
    if "x-kubernetes-int-or-string" in part:
        fits = isinstance(value, int | str) and not isinstance(value, bool)
    elif "type" in part:
        fits = isinstance(value, types[part["type"]]) and (part["type"] == "boolean") == isinstance(
            value, bool
        )
    else:
        fits = True
    if not fits:
        return f"{path}: type"
    plain = {
        key: part[key]
        for key in part.keys() & VALUES - {"items", "properties", "additionalProperties", "type"}
    }
    if "pattern" in plain:
        ours = re.sub(r"\\x\{(....)\}", r"\\u\1", plain["pattern"])
        plain["pattern"] = re.sub(r"\$(?=\)|$)", r"\\Z", ours)  # Go's $ is the very end
    return next(
        (f"{path}: {error.validator}" for error in Draft202012Validator(plain).iter_errors(value)), ""
    )


def inside(value: Any, part: dict[str, Any], path: str) -> str:
    found: Iterator[str] = iter(())
    if isinstance(value, list) and "items" in part:
        keys = part.get("x-kubernetes-list-map-keys")
        found = (refused(one, part["items"], f"{path}[]") for one in value)
        seen = [
            [item.get(key) for key in keys] if keys and isinstance(item, dict) else item for item in value
        ]
        if "x-kubernetes-list-type" in part and any(one in seen[:index] for index, one in enumerate(seen)):
            return next(filter(None, found), f"{path}: duplicate")
    elif (
        isinstance(value, dict) and "x-kubernetes-preserve-unknown-fields" not in part and path != ".metadata"
    ):
        known = part.get("properties", {})
        below = {name: known.get(name, part.get("additionalProperties")) for name in value}
        found = (
            refused(value[name], inner, f"{path}.{name}")
            if inner is not None
            else f"{path}.{name}: unknown field"
            for name, inner in below.items()
        )
    return next(filter(None, found), "")


def by_rule(value: Any, part: dict[str, Any], path: str) -> str:
    rules = part.get("x-kubernetes-validations", ())
    return next((f"{path}: {rule['message']}" for rule in rules if not cel(rule["rule"])(value)), "")


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_structural_and_bounded(kind: str) -> None:
    for path, part in parts(whole(kind)):
        assert part.keys() <= VALUES | EXTENSIONS, path
        untyped = {"x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"} & part.keys()
        assert ("type" in part) or untyped, path
        assert not {"properties", "additionalProperties"} <= part.keys(), path
        if path.startswith((".apiVersion", ".kind", ".metadata", ".status")):
            continue
        if part.get("type") == "string" or "x-kubernetes-int-or-string" in part:
            assert "maxLength" in part or "enum" in part, path
        if part.get("type") == "array":
            assert {"items", "maxItems"} <= part.keys(), path
        if "additionalProperties" in part:
            assert "maxProperties" in part, path
        pattern = part.get("pattern", "")
        assert not re.search(r"\\u|\(\?[^:]|\\[1-9]", pattern), f"{path}: Go does not read {pattern}"
        for key in part.get("x-kubernetes-list-map-keys", ()):
            assert key in part["items"]["required"], path


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_described_and_no_default_is_written_into_objects(kind: str) -> None:
    for path, part in parts(whole(kind)["properties"]["spec"], ".spec"):
        for name, inner in part.get("properties", {}).items():
            assert inner.get("description", "").endswith("."), f"{path}.{name}"


@pytest.mark.parametrize("kind", KINDS)
def test_its_names_are_those_of_the_kind(kind: str) -> None:
    spec = crd(kind)["spec"]
    assert spec["names"]["kind"] == kind
    assert (
        crd(kind)["metadata"]["name"]
        == f"{spec['names']['plural']}.{spec['group']}"
        == f"{kind.lower()}s.pidone.dev"
    )
    assert spec["scope"] == ("Cluster" if kind.startswith("Cluster") else "Namespaced")


def documents(file: Path) -> Iterator[dict[str, Any]]:
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError:
        return
    for document in read(text, file.name)[0]:
        value = document.root.value
        known = (
            isinstance(value, dict)
            and value.get("apiVersion") == "pidone.dev/v1alpha1"
            and value.get("kind") in KINDS
        )
        if known and not document.findings:  # what is doubtful as YAML is another value for the API server
            yield value


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_the_api_server_takes_what_the_checker_takes(file: Path) -> None:
    for value in documents(file):
        assert refused(value, whole(value["kind"])) == ""


# A scalar of any type is what no structural schema can say; the checker says it.
# The same holds for a name or a list of names. What metadata has is the API server's own.
LOOSER = re.compile(
    r"^(metadata(\..*)?|spec\.(tasks\.\d+\.(register\.(follow(\.\d+)?|eureka\.(p|secureP)ortEnabled)|report\.onChange)|params\.\d+\.(default|enum\.\d+)|params\.(?!\d+$)[^.]+))$"
)


def by_schema(value: dict[str, Any]) -> list[str]:
    """Where the schema, as an editor has it, finds mistakes that a CRD can find too."""
    paths = (".".join(map(str, error.absolute_path)) for error in validator(value["kind"]).iter_errors(value))
    return [path for path in paths if not LOOSER.match(path)]


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_the_api_server_refuses_what_the_schema_refuses_and_nothing_that_the_checker_takes(
    file: Path,
) -> None:
    for value in documents(file):
        wrong = refused(value, whole(value["kind"]))
        if by_schema(value):
            assert wrong
        elif wrong:
            assert wrong.endswith(": duplicate")  # the checker has a better word for it
            assert check_text(file.read_text("utf-8"), file.name).findings


SCALARS = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        80,
        70000,
        1.5,
        "",
        "a",
        "10s",
        "$(params.a)",
        "x$(pod.name)",
        "A b",
        "/",
        "merge",
        "\n",
    ]
)


@cache
def bases() -> list[dict[str, Any]]:
    return [value for file in GOOD for value in documents(file)]


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@settings(max_examples=100 * ENDURANCE, deadline=None)
@given(st.data())
def test_they_agree_about_damaged_objects(data: st.DataObject) -> None:
    value = deepcopy(data.draw(st.sampled_from(bases())))
    path = data.draw(st.sampled_from(list(places(value["spec"]))))
    around: Any = value["spec"]
    for step in path[:-1]:
        around = around[step]
    damage = data.draw(st.sampled_from(["remove", "replace", "add", "wrap"]))
    if damage == "remove":
        del around[path[-1]]
    elif damage == "wrap":
        around[path[-1]] = data.draw(st.sampled_from([[around[path[-1]]], {"name": around[path[-1]]}]))
    elif damage == "add" and isinstance(around, dict):
        around[
            data.draw(st.sampled_from(["override", "exec", "probe", "of", "unknown", "from", "value"]))
        ] = data.draw(SCALARS)
    else:
        around[path[-1]] = data.draw(SCALARS)
    wrong = refused(value, whole(value["kind"]))
    bare = not Draft202012Validator(schema(value["kind"])).is_valid(value)
    strict = [
        ".".join(map(str, error.absolute_path)) for error in validator(value["kind"]).iter_errors(value)
    ]
    assert bool(strict) >= bare  # what an editor marks the checker finds
    if not wrong.endswith(": duplicate"):
        assert bool(wrong) == bool(by_schema(value)) or all(LOOSER.match(one) for one in strict)
