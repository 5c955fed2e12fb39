"""An API server in the same Trio run: objects, versions, watches, and any trouble that a test asks for.

It behaves as the recordings beside it (``test_recordings.py`` holds it to them) in what the controller uses: lists in
pages, watches with bookmarks and streamed lists, compaction, optimistic concurrency, server-side apply with owned
fields, status subresources, TokenReview. What it does not know it refuses.
"""

import json
import math
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import trio

from pidone_controller.kubernetes.client import Client, connect
from pidone_controller.kubernetes.config import Config
from pidone_controller.kubernetes.reflector import INITIAL_END
from pidone_controller.kubernetes.resources import PIDONE, PODS, SECRETS, TOKEN_REVIEWS, Resource
from tests.controller.kubernetes.objects import (
    IDENTITY,
    Change,
    Object,
    as_seen,
    bookmark_of,
    event,
    has_status,
    json_answer,
    kind_of,
    leaves,
    merged,
    place_of,
    put_at,
    remove_at,
    verb_of,
    within,
)
from tests.controller.kubernetes.selecting import selects
from tests.controller.kubernetes.wires import Answer, Request, Wires

Fault = Callable[[Request], Answer | None]  # None: answered as ever

BOOKMARK = 60.0  # seconds
CREATED = "2026-01-02T03:04:05Z"


class Refusal(Exception):
    """Becomes a Status."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.status: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        self.status |= {"message": message, "reason": reason} | ({"details": details} if details else {})
        self.status["code"] = code

    def answer(self) -> Answer:
        return json_answer(self.status, self.status["code"])


@dataclass
class FakeAPIServer:
    """The state of one cluster. ``asked`` is every request in its order."""

    objects: dict[tuple[Resource, str, str], Object] = field(default_factory=dict)
    version: int = 100
    compacted: int = 0
    streams: bool = True  # whether sendInitialEvents is known
    token: str = ""  # the only good one; "" lets everybody in
    tokens: dict[str, Object] = field(default_factory=dict)  # what TokenReview says of each
    granted: set[tuple[str, str]] | None = None  # Secrets that may be read, by namespace and name; None: all
    asked: list[Request] = field(default_factory=list)
    _faults: deque[tuple[str, Fault]] = field(default_factory=deque)
    _history: list[Change] = field(default_factory=list)
    _snapshots: dict[int, list[Object]] = field(default_factory=dict)
    _owners: dict[tuple[Resource, str, str], dict[tuple[str, ...], str]] = field(default_factory=dict)
    _news: trio.Event = field(default_factory=trio.Event)

    # What a test does to it

    def put(self, resource: Resource, name: str, namespace: str = "", **fields: Any) -> Object:
        """An object made or changed by somebody else; fields are replaced whole, metadata is added to."""
        before = self.objects.get((resource, namespace, name), {})
        meta = {"name": name} | ({"namespace": namespace} if resource.namespaced else {})
        meta |= before.get("metadata", {}) | fields.pop("metadata", {})
        return self._store(resource, {**before, **fields, "metadata": meta})

    def drop(self, resource: Resource, name: str, namespace: str = "") -> Object:
        before = self.objects.pop((resource, namespace, name))
        self.version += 1
        gone = deepcopy(before)
        gone["metadata"]["resourceVersion"] = str(self.version)
        self._commit(Change(self.version, resource, before, gone, deleted=True))
        return gone

    def compact(self) -> None:
        """Forget what was: a watch or a page from before is 410 from now on."""
        self.version += 1
        self.compacted = self.version

    def fail(self, end: str, *faults: Fault) -> None:
        """Answer the next requests of ``METHOD path`` (its end; a watch is WATCH) with these, one each."""
        self._faults.extend((end, fault) for fault in faults)

    def requests(self, end: str) -> list[Request]:
        return [request for request in self.asked if f"{verb_of(request)} {request.path}".endswith(end)]

    # What a client sees

    async def handle(self, request: Request) -> Answer:
        self.asked.append(request)
        await trio.lowlevel.checkpoint()
        for index, (end, fault) in enumerate(self._faults):
            if f"{verb_of(request)} {request.path}".endswith(end):
                del self._faults[index]
                if (answer := fault(request)) is not None:
                    return answer
                break
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return Refusal(401, "Unauthorized", "Unauthorized").answer()
        try:
            return self._answer(request)
        except Refusal as refusal:
            return refusal.answer()

    def _answer(self, request: Request) -> Answer:
        place = place_of(request.path)
        if place is None:
            return Answer(404, b"404 page not found\n", {"content-type": "text/plain; charset=utf-8"})
        resource, namespace, name, subresource = place
        body = json.loads(request.body) if request.body else {}
        status = 200
        selected = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
        if (
            resource is SECRETS
            and self.granted is not None
            and (namespace, name or selected) not in self.granted
        ):
            raise Refusal(403, "Forbidden", f'secrets "{name or selected}" is forbidden')
        match verb_of(request):
            case "WATCH":
                return Answer(200, pieces=self._watch(resource, namespace, request.query))
            case "GET" if not name:
                value = self._list(resource, namespace, request.query)
            case "GET":
                value = self._found(resource, namespace, name)
            case "POST" if resource is TOKEN_REVIEWS:
                value, status = self._review(body), 201
            case "POST":
                value, status = self._create(resource, namespace, body), 201
            case "PUT":
                value = self._replace(resource, namespace, name, subresource, body)
            case "PATCH" if "apply" in request.headers["content-type"]:
                status = 200 if (resource, namespace, name) in self.objects else 201
                value = self._apply(resource, namespace, name, subresource, request)
            case "PATCH" if "merge-patch" in request.headers["content-type"]:
                value = self._merge(resource, namespace, name, subresource, request)
            case "DELETE":
                value = self._delete(resource, namespace, name)
            case _:
                raise Refusal(
                    405, "MethodNotAllowed", "the server does not allow this method on the resource"
                )
        return json_answer(value, status)

    def _found(self, resource: Resource, namespace: str, name: str) -> Object:
        found = self.objects.get((resource, namespace, name))
        if found is None:
            raise Refusal(404, "NotFound", f'{resource} "{name}" not found', name=name, **kind_of(resource))
        return found

    def _list(self, resource: Resource, namespace: str, query: Mapping[str, str]) -> Object:
        version, start = self.version, 0
        if token := query.get("continue"):
            version, start = json.loads(b64decode(token))
            if version < self.compacted:
                gone = Refusal(
                    410,
                    "Expired",
                    "The provided continue parameter is too old to display a consistent list result. You can start a "
                    "new list without the continue parameter, or use the continue token in this response to retrieve "
                    "the remainder of the results. Continuing with the provided token results in an inconsistent list",
                )
                gone.status["metadata"]["continue"] = b64encode(b"[-1, 0]").decode()
                raise gone
        else:
            self._snapshots[version] = self._selected(resource, namespace, query)
        items = self._snapshots[version]
        # a custom kind's fields come in the order of the alphabet, its items say what they are, and nothing is left out
        custom = resource.group == PIDONE
        meta: Object = {"resourceVersion": str(version)} | ({"continue": ""} if custom else {})
        end = start + int(query.get("limit") or len(items) or 1)
        if end < len(items):
            meta["continue"] = b64encode(json.dumps([version, end]).encode()).decode()
            if not query.get("labelSelector") and not query.get("fieldSelector"):
                meta["remainingItemCount"] = len(items) - end
        shown = items[start:end]
        head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": meta}
        if custom:
            return {"apiVersion": head["apiVersion"], "items": shown, "kind": head["kind"], "metadata": meta}
        bare = [{key: item[key] for key in item if key not in {"kind", "apiVersion"}} for item in shown]
        return head | {"items": bare}

    def _selected(self, resource: Resource, namespace: str, query: Mapping[str, str]) -> list[Object]:
        return [
            value
            for (kind, place, _), value in sorted(self.objects.items(), key=lambda item: item[0][1:])
            if kind is resource and namespace in {"", place} and selects(query, value)
        ]

    async def _watch(
        self, resource: Resource, namespace: str, query: Mapping[str, str]
    ) -> AsyncGenerator[bytes, None]:
        now = trio.current_time()
        seen, bookmark, end = self.version, now + BOOKMARK, now + float(query.get("timeoutSeconds", 1800))
        if "sendInitialEvents" in query:
            for value in self._selected(resource, namespace, query):
                yield event("ADDED", value)
            yield event("BOOKMARK", bookmark_of(resource, self.version, {INITIAL_END: "true"}))
        elif "resourceVersion" not in query:  # the present objects first, and then each change
            for value in self._selected(resource, namespace, query):
                yield event("ADDED", value)
        else:
            seen = int(query["resourceVersion"])
            if seen < self.compacted:
                message = f"too old resource version: {seen} ({self.compacted})"
                yield event("ERROR", Refusal(410, "Expired", message).status)
                return
        while True:
            news = self._news
            for change in [change for change in self._history if change.version > seen]:
                seen = change.version
                if change.resource is resource and (line := as_seen(change, namespace, query)):
                    yield line
            with trio.move_on_at(min(bookmark, end)):
                await news.wait()
            if trio.current_time() >= end:
                return
            if trio.current_time() >= bookmark:
                bookmark += BOOKMARK
                if query.get("allowWatchBookmarks") == "true":
                    yield event("BOOKMARK", bookmark_of(resource, self.version))

    def _review(self, body: Object) -> Object:
        known = self.tokens.get(body["spec"]["token"])
        wanted = body["spec"].get("audiences")
        status: Object = {"user": {}, "error": "[invalid bearer token]"}
        if known is not None:
            status = {"authenticated": True, **known}
            if wanted:
                status["audiences"] = [audience for audience in known["audiences"] if audience in wanted]
                if not status["audiences"]:
                    status = {"user": {}, "error": f"token audiences are not in {wanted}"}
        return body | {"metadata": {}, "status": status}

    # Writing

    def _create(self, resource: Resource, namespace: str, body: Object) -> Object:
        body = deepcopy(body)
        meta = body["metadata"]
        if resource.namespaced:
            meta["namespace"] = namespace
        if "name" not in meta:
            meta["name"] = f"{meta['generateName']}{self.version:05}"
        name = meta["name"]
        if (resource, meta.get("namespace", ""), name) in self.objects:
            raise Refusal(
                409, "AlreadyExists", f'{resource} "{name}" already exists', name=name, **kind_of(resource)
            )
        if has_status(resource):
            body.pop("status", None)
        return self._store(resource, body)

    def _replace(
        self, resource: Resource, namespace: str, name: str, subresource: str, body: Object
    ) -> Object:
        before = self._found(resource, namespace, name)
        self._expect(resource, before, body["metadata"])
        body = within(body, before, subresource, whole=True)
        return self._store(resource, body | {"metadata": before["metadata"] | body["metadata"]})

    def _expect(self, resource: Resource, before: Object, meta: Object) -> None:
        """What a write says of the object that it is meant for has to be so."""
        has, name = before["metadata"], before["metadata"]["name"]
        if meta.get("uid", has.get("uid")) != has.get("uid"):
            detail = f'Invalid value: "{meta["uid"]}": field is immutable'
            cause = {"reason": "FieldValueInvalid", "message": detail, "field": "metadata.uid"}
            kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
            message = f'{kind} "{name}" is invalid: metadata.uid: {detail}'
            details = {"name": name, "group": resource.group, "kind": resource.kind}
            raise Refusal(422, "Invalid", message, **details, causes=[cause, cause])
        if (meta.get("resourceVersion") or has.get("resourceVersion")) != has.get("resourceVersion"):
            raise Refusal(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {resource} "{name}": the object has been modified; please apply '
                "your changes to the latest version and try again",
                name=name,
                **kind_of(resource),
            )

    def _merge(
        self, resource: Resource, namespace: str, name: str, subresource: str, request: Request
    ) -> Object:
        before = self._found(resource, namespace, name)
        self._expect(resource, before, json.loads(request.body).get("metadata", {}))
        after = merged(before, within(json.loads(request.body), before, subresource, whole=False))
        self._own((resource, namespace, name), before, after, request.query.get("fieldManager", "unknown"))
        return self._store(resource, after)

    def _delete(self, resource: Resource, namespace: str, name: str) -> Object:
        self._found(resource, namespace, name)
        gone = self.drop(resource, name, namespace)
        done: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        done["details"] = {"name": name, **kind_of(resource), "uid": gone["metadata"]["uid"]}
        return gone if resource is PODS else done

    def _apply(
        self, resource: Resource, namespace: str, name: str, subresource: str, request: Request
    ) -> Object:
        """Lists are values; an owned field that is not applied again goes."""
        key, manager = (resource, namespace, name), request.query["fieldManager"]
        before = self.objects.get(key)
        if before is None:
            if subresource:
                self._found(*key)
            meta = {"name": name} | ({"namespace": namespace} if resource.namespaced else {})
            before = {"metadata": meta}
        body = json.loads(request.body)
        self._expect(resource, before, body["metadata"])
        body = within(body, before, subresource, whole=False)
        for precondition in ("resourceVersion", "uid"):
            body["metadata"].pop(precondition, None)
        wanted = {path: value for path, value in leaves(body) if path[0] not in {"apiVersion", "kind"}}
        wanted = {path: value for path, value in wanted.items() if path not in IDENTITY}
        has, owners = dict(leaves(before)), self._owners.get(key, {})
        theirs = {
            path: owners[path]
            for path, value in wanted.items()
            if owners.get(path, manager) != manager and has.get(path, value) != value
        }
        if theirs and request.query.get("force") != "true":
            who = sorted(set(theirs.values()))
            causes = [
                {
                    "reason": "FieldManagerConflict",
                    "message": f'conflict with "{owner}"',
                    "field": "." + ".".join(path),
                }
                for path, owner in theirs.items()
            ]
            message = (
                f"Apply failed with {len(theirs)} conflict{'s' * (len(theirs) > 1)}: conflicts with {who}"
            )
            raise Refusal(409, "Conflict", message, causes=causes)
        after = deepcopy(before)
        part = subresource or "spec"
        for path in [path for path, owner in owners.items() if owner == manager and path not in wanted]:
            if (path[0] == "status") == (part == "status"):
                remove_at(after, path)
        for path, value in wanted.items():
            put_at(after, path, value)
        self._owners[key] = owners | dict.fromkeys(wanted, manager)
        return self._store(resource, after)

    def _own(self, key: tuple[Resource, str, str], before: Object, after: Object, manager: str) -> None:
        has = dict(leaves(before))
        changed = [path for path, value in leaves(after) if path not in has or has[path] != value]
        self._owners.setdefault(key, {}).update(dict.fromkeys(changed, manager))

    def _store(self, resource: Resource, value: Object) -> Object:
        meta = value["metadata"]
        key = (resource, meta.get("namespace", ""), meta["name"])
        before = self.objects.get(key)
        value = {"apiVersion": resource.api_version, "kind": resource.kind, **value}
        if before is not None and value == before:
            return before  # nothing to write, so no new version and no event
        self.version += 1
        meta = {"uid": f"00000000-0000-4000-8000-{self.version:012}", "creationTimestamp": CREATED, **meta}
        if resource.group == PIDONE or resource is PODS:
            same = before is not None and before.get("spec") == value.get("spec")
            meta["generation"] = meta.get("generation", 0) + (not same)
        meta = {key: part for key, part in meta.items() if part != {}}  # no labels are no field
        value["metadata"] = meta | {"resourceVersion": str(self.version)}
        self.objects[key] = value = deepcopy(value)
        self._commit(Change(self.version, resource, before, value))
        return value

    def _commit(self, change: Change) -> None:
        self._history.append(change)
        news, self._news = self._news, trio.Event()
        news.set()


# Trouble


def refused(code: int, reason: str, message: str = "no", *, retry_after: int | None = None) -> Fault:
    def fault(_: Request) -> Answer:
        answer = Refusal(code, reason, message).answer()
        headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        return Answer(code, answer.body, headers)

    return fault


def stream(*pieces: bytes, cut: bool = False, silent: bool = False, lasts: float = 0.0) -> Fault:
    """A watch that sends ``pieces`` and, after ``lasts`` seconds, ends; or is cut off; or is never heard of again."""

    async def send() -> AsyncGenerator[bytes, None]:
        for piece in pieces:
            yield piece
        await trio.sleep(math.inf if silent else lasts)

    return lambda _: Answer(200, pieces=send(), cut=cut)


@asynccontextmanager
async def fake_server(config: Config | None = None) -> AsyncIterator[tuple[FakeAPIServer, Client, Wires]]:
    """A fake, a client of it, and the wires between them."""
    server = FakeAPIServer()
    async with trio.open_nursery() as nursery:
        wires = Wires(nursery, server.handle)
        async with connect(config or Config("http://fake"), transport=wires.transport()) as client:
            yield server, client, wires
        nursery.cancel_scope.cancel()
