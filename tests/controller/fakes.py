"""Fakes for the tests of the controller. The same claims are tested against a real API server in tests/cluster."""

import json
from collections.abc import Mapping
from random import Random
from typing import Any

import trio

from pidone.errors import PidoneError
from pidone_controller.kubernetes.errors import AlreadyExists, BadRequest, Conflict, NotFound
from pidone_controller.kubernetes.resources import (
    CLUSTER_TASK_BINDINGS,
    CLUSTER_TASK_SETS,
    CONTROLLER_REVISIONS,
    TASK_BINDINGS,
    TASK_SETS,
    Resource,
)
from pidone_controller.rollout.catalog import Catalog

HOME = "pidone-system"
KINDS = {one.kind: one for one in (TASK_SETS, CLUSTER_TASK_SETS, TASK_BINDINGS, CLUSTER_TASK_BINDINGS)}


class FakeClient:
    """A client of an API server whose objects are JSON in ``items``. ``catalog`` learns of changes in ``deliver``."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.items: dict[tuple[Resource, str, str], dict[str, Any]] = {}
        self.requests: list[str] = []
        self._version = 0
        self._undelivered: list[tuple[Resource, str, str]] = []

    def put(
        self,
        kind: str,
        name: str,
        spec: object,
        *,
        namespace: str = "shop",
        annotations: Mapping[str, str] = {},
    ) -> dict[str, Any]:
        """Apply an object as ``kubectl apply`` does."""
        resource = KINDS[kind]
        where = resource, "" if kind.startswith("Cluster") else namespace, name
        value = self.items.get(where) or {
            "kind": kind,
            "metadata": {
                "name": name,
                "uid": f"uid-{self._version}",
                "generation": 0,
                "creationTimestamp": "2026",
            },
        }
        if where[1]:
            value["metadata"]["namespace"] = where[1]
        value["metadata"]["annotations"] = dict(annotations)
        if value.get("spec") != spec:
            value["metadata"]["generation"] += 1
        value["spec"] = json.loads(json.dumps(spec))
        return self._put(where, value)

    def has(self, kind: str, name: str, namespace: str) -> bool:
        return (KINDS[kind], namespace, name) in self.items

    def put_rollout(self, kind: str, name: str, namespace: str, rollout: dict[str, Any]) -> None:
        """Write ``status.rollout`` as the leader does."""
        where = KINDS[kind], namespace, name
        self._put(where, {**self.items[where], "status": {"rollout": rollout}})

    def put_revision(self, body: dict[str, Any]) -> None:
        """Create a ControllerRevision as the leader does."""
        where = CONTROLLER_REVISIONS, body["metadata"]["namespace"], body["metadata"]["name"]
        self._put(where, json.loads(json.dumps(body)))

    def remove(self, where: tuple[Resource, str, str]) -> None:
        """Delete an object."""
        del self.items[where]
        self._undelivered.append(where)

    def replica(self, catalog: Catalog, random: Random) -> "FakeClient":
        """A client of the same API server for another replica, which has read the objects in another order."""
        other = FakeClient(catalog)
        other.items = self.items
        other._undelivered = list(self.items)
        random.shuffle(other._undelivered)
        other.deliver()
        return other

    def status(self, kind: str, name: str, namespace: str = "shop") -> dict[str, Any]:
        value = self.items[KINDS[kind], "" if kind.startswith("Cluster") else namespace, name]
        found: dict[str, Any] = value.get("status", {}).get("rollout", {})
        return found

    def revisions(self) -> list[str]:
        """Name and number of each ControllerRevision, in the order of the numbers."""
        found = [value for (resource, _, _), value in self.items.items() if resource is CONTROLLER_REVISIONS]
        return [
            f"{one['metadata']['name']} {one['revision']}"
            for one in sorted(found, key=lambda one: one["revision"])
        ]

    def deliver(self) -> None:
        for resource, namespace, name in self._undelivered:
            store, value = self.catalog.sinks[resource], self.items.get((resource, namespace, name))
            if value is None:
                store.removed((namespace, name))
                continue
            found = store.project(json.loads(json.dumps(value)))
            if found is not None:
                store.changed((namespace, name), found)
        self._undelivered.clear()

    def _put(self, where: tuple[Resource, str, str], value: dict[str, Any]) -> dict[str, Any]:
        self._version += 1
        value["metadata"]["resourceVersion"] = str(self._version)
        self.items[where] = value
        self._undelivered.append(where)
        return value

    # The methods of the client

    async def create(self, resource: Resource, body: dict[str, Any], namespace: str = "") -> dict[str, Any]:
        where = resource, body["metadata"]["namespace"], body["metadata"]["name"]
        self.requests.append(f"create {where[2]}")
        if where in self.items:
            raise AlreadyExists(where[2])
        return self._put(where, json.loads(json.dumps(body)))

    async def get(self, resource: Resource, name: str, namespace: str = "") -> dict[str, Any]:
        if (resource, namespace, name) not in self.items:
            raise NotFound(name)
        found: dict[str, Any] = json.loads(json.dumps(self.items[resource, namespace, name]))
        return found

    async def replace(self, resource: Resource, body: dict[str, Any]) -> dict[str, Any]:
        where = resource, body["metadata"]["namespace"], body["metadata"]["name"]
        self.requests.append(f"replace {where[2]}")
        there = await self.get(resource, where[2], where[1])
        if body["metadata"]["resourceVersion"] != there["metadata"]["resourceVersion"]:
            raise Conflict(where[2])
        if json.dumps(body["data"]) != json.dumps(there["data"]):  # byte by byte, in the real one
            raise BadRequest("data: field is immutable")
        return self._put(where, json.loads(json.dumps(body)))

    async def merge(
        self, resource: Resource, name: str, patch: Any, *, namespace: str = "", subresource: str = ""
    ) -> dict[str, Any]:
        self.requests.append(f"merge {name}")
        value = self.items.get((resource, namespace, name))
        if value is None:
            raise NotFound(name)
        version = patch["metadata"].get("resourceVersion", value["metadata"]["resourceVersion"])
        if version != value["metadata"]["resourceVersion"]:
            raise Conflict(name)
        return self._put((resource, namespace, name), merged(value, json.loads(json.dumps(patch))))

    async def delete(self, resource: Resource, name: str, namespace: str = "") -> None:
        self.requests.append(f"delete {name}")
        if (resource, namespace, name) not in self.items:
            raise NotFound(name)
        self.remove((resource, namespace, name))


def merged(value: Any, patch: Any) -> Any:
    """Apply a merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    found = dict(value) if isinstance(value, dict) else {}
    for name, inner in patch.items():
        if inner is None:
            found.pop(name, None)
        else:
            found[name] = merged(found.get(name), inner)
    return found


def fake_review(**tokens: Mapping[str, Any]) -> Any:
    """A TokenReview that knows these tokens; its attribute ``asked`` lists the tokens of all requests."""
    asked: list[str] = []

    async def answer(token: str) -> Mapping[str, Any]:
        await trio.lowlevel.checkpoint()
        asked.append(token)
        if token == "broken":
            raise PidoneError("connection refused")
        return {"authenticated": True, "user": tokens[token]} if token in tokens else {"authenticated": False}

    answer.asked = asked  # type: ignore[attr-defined]
    return answer


def user(name: str, uid: str, namespace: str = "shop") -> dict[str, Any]:
    prefix = "authentication.kubernetes.io/pod-"
    return {
        "username": f"system:serviceaccount:{namespace}:default",
        "extra": {f"{prefix}name": [name], f"{prefix}uid": [uid]},
    }


TOKENS = {
    "web": user("web", "uid-web"),
    "agent": user("agent", "uid-agent"),
    "gone": user("web", "uid-before"),
    "elsewhere": user("web", "uid-web", "bank"),
    "person": {"username": "jane"},
    "job": {"username": "system:serviceaccount:shop:job"},
}
