"""Objects, their paths and parts, as an API server handles them."""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from pidone_controller.kubernetes import resources
from pidone_controller.kubernetes.resources import PIDONE, PODS, Resource
from tests.controller.kubernetes.selecting import selects
from tests.controller.kubernetes.wires import Answer, Request

Object = dict[str, Any]

KNOWN = {str(value): value for value in vars(resources).values() if isinstance(value, Resource)}
IDENTITY = {("metadata", "name"), ("metadata", "namespace")}


@dataclass(frozen=True)
class Change:
    version: int
    resource: Resource
    before: Object | None
    after: Object
    deleted: bool = False


def event(kind: str, value: Object) -> bytes:
    return json.dumps({"type": kind, "object": value}).encode() + b"\n"


def verb_of(request: Request) -> str:
    return "WATCH" if request.query.get("watch") == "true" else request.method


def place_of(path: str) -> tuple[Resource, str, str, str] | None:
    parts = path.strip("/").split("/")
    group, parts = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    namespace = ""
    if parts and parts[0] == "namespaces" and len(parts) > 2:
        namespace, parts = parts[1], parts[2:]
    resource = KNOWN.get(f"{parts[0]}.{group}" if group else parts[0]) if parts else None
    if resource is None:
        return None
    name, subresource, *_ = [*parts[1:], "", ""]
    return resource, namespace, name, subresource


def kind_of(resource: Resource) -> Object:
    return ({"group": resource.group} if resource.group else {}) | {"kind": resource.plural}


def has_status(resource: Resource) -> bool:
    return resource.group == PIDONE or resource is PODS


def within(body: Object, before: Object, subresource: str, *, whole: bool) -> Object:
    """What of ``body`` the path reaches: a status subresource nothing else, and the object all but the status."""
    if subresource == "status":
        kept = before if whole else {}
        return {**kept, "metadata": body.get("metadata", {}), "status": body.get("status", {})}
    body = deepcopy(body)
    resource_has_status = before.get("kind") in {known.kind for known in KNOWN.values() if has_status(known)}
    if resource_has_status or not before.get("kind"):
        body.pop("status", None)
        if whole and "status" in before:
            body["status"] = before["status"]
    return body


def merged(value: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(value) if isinstance(value, dict) else {}
    for key, part in patch.items():
        if part is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), part)
    return result


def leaves(value: Object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, part in value.items():
        if isinstance(part, dict) and part:
            yield from leaves(part, (*path, key))
        else:
            yield (*path, key), part


def put_at(value: Object, path: tuple[str, ...], part: Any) -> None:
    for key in path[:-1]:
        value = value.setdefault(key, {})
    value[path[-1]] = part


def remove_at(value: Object, path: tuple[str, ...]) -> None:
    for key in path[:-1]:
        value = value.get(key, {})
    value.pop(path[-1], None)


def as_seen(change: Change, namespace: str, query: Mapping[str, str]) -> bytes | None:
    """The event as one watcher sees it: what leaves its selection is deleted for it."""
    if namespace not in {"", change.after["metadata"].get("namespace", "")}:
        return None
    was = change.before is not None and selects(query, change.before)
    now = not change.deleted and selects(query, change.after)
    if now:
        return event("MODIFIED" if was else "ADDED", change.after)
    if not was:
        return None
    assert change.before is not None
    version = {"resourceVersion": change.after["metadata"]["resourceVersion"]}
    return event("DELETED", change.before | {"metadata": change.before["metadata"] | version})


def bookmark_of(resource: Resource, version: int, annotations: Object | None = None) -> Object:
    meta: Object = {"resourceVersion": str(version), "creationTimestamp": None}
    meta |= {"annotations": annotations} if annotations else {}
    rest: Object = {"spec": {"containers": None}, "status": {}} if resource is PODS else {}
    return {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": meta, **rest}


def json_answer(value: Object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode())
