"""Sends requests to the API server: a method for each verb, all errors in one tree, a retry for a rotated token only.

The caller handles failures: the reflector backs off, a lease has a deadline, a status is written again later.
"""

import json
import platform
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import httpx
import trio

from pidone import __version__
from pidone.metrics.exposition import Family, counter
from pidone.pacing import RateLimit
from pidone_controller.kubernetes.config import Config
from pidone_controller.kubernetes.credentials import Token, tls
from pidone_controller.kubernetes.errors import ApiError, Unreachable, from_status, mapped
from pidone_controller.kubernetes.resources import Resource
from pidone_controller.kubernetes.wire import MAX_BODY_BYTES, Lines, Page

MANAGER = "pidone-controller"  # the field manager of applied fields
REQUESTS = 30, 1 / 20  # at once, and seconds until one more
PAGE_SIZE = 500  # objects; client-go's, and the API server's own for its cache
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 65.0  # between two pieces of an answer; the API server itself gives up on a request after 60
SILENCE_SECONDS = 75.0  # without a byte, after which a watch counts as dead: bookmarks come once a minute

JSON = "application/json"
MERGE = "application/merge-patch+json"
APPLY = (
    "application/apply-patch+yaml"  # JSON is YAML, and every API server since 1.22 reads it under this name
)

# Characters that YAML reads as a line end or refuses. Both YAML and JSON read them escaped. Characters above U+FFFF are
# not escaped, since YAML has no surrogate pairs.
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")

Object = dict[str, Any]


@asynccontextmanager
async def connect(
    config: Config, *, limit: RateLimit | None = None, transport: httpx.AsyncBaseTransport | None = None
) -> AsyncIterator["Client"]:
    """Yield a client for the duration of the block. Nothing is sent before the first request.

    Raises ``ConfigError`` for bad certificates. Tests pass a ``transport``.
    """
    if transport is None:
        transport = httpx.AsyncHTTPTransport(
            verify=tls(config) if config.server.startswith("https://") else False,
            # Each watch has its own connection; the API server closes an idle one after 90 s.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=60.0),
        )
    http = httpx.AsyncClient(
        transport=transport,
        trust_env=False,  # proxies of the environment are not for the API server
        timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS),
        # gzip is for slow links: here it costs both sides more than it saves.
        headers={
            "accept-encoding": "identity",
            "user-agent": f"{MANAGER}/{__version__} ({platform.machine()})",
        },
    )
    async with http:
        yield Client(config, http, limit or RateLimit(*REQUESTS))


class Watch:
    """One open watch, read in whole lines."""

    def __init__(self, title: str, pieces: AsyncIterator[bytes]) -> None:
        self._title = title
        self._pieces = pieces
        self._lines = Lines()

    async def read(self) -> list[bytes] | None:
        """Return the lines that the next piece completes, possibly none; None at the regular end of the watch.

        Raises ``Unreachable`` after ``SILENCE_SECONDS`` without a byte, for an end in the middle of a line, and for a
        line that is too long.
        """
        with mapped(self._title):
            piece = await anext(self._pieces, None)
        if piece is not None:
            return self._lines.feed(piece)
        if self._lines.cut:
            raise Unreachable(f"{self._title}: the watch ended in the middle of an event")
        return None


class Client:
    """A client, which ``connect`` yields. Every method raises ``ApiError`` or a subclass.

    When a method is cancelled its connection is closed, and the change may have been made. ``requests`` counts by
    method and status (0: no answer).
    """

    def __init__(self, config: Config, http: httpx.AsyncClient, limit: RateLimit) -> None:
        self.config = config
        self.requests: Counter[tuple[str, int]] = Counter()
        self._http = http
        self._limit = limit
        self._token = Token(config)

    def families(self) -> Iterator[Family]:
        """Yield the metrics, with client-go's name."""
        requests = counter("rest_client_requests_total", "Requests to the API server.")
        for (method, code), number in sorted(self.requests.items()):
            requests.add(number, code=str(code) if code else "<error>", method=method)
        yield requests

    def apart(self) -> "Client":
        """Return the client with a rate limit of its own, for requests that must not wait behind others."""
        other = copy(self)
        other._limit = RateLimit(*REQUESTS)
        return other

    async def get(self, resource: Resource, name: str, namespace: str = "") -> Object:
        return await self._object(_Request("GET", resource.path(namespace, name)))

    async def create(
        self,
        resource: Resource,
        body: Mapping[str, Any],
        namespace: str = "",
        *,
        name: str = "",
        subresource: str = "",
    ) -> Object:
        """Create an object, in ``namespace`` if the body names none, or a ``subresource`` of the object ``name``.

        Raises ``AlreadyExists``.
        """
        namespace = namespace or body["metadata"].get("namespace", "")
        return await self._object(_Request("POST", resource.path(namespace, name, subresource), body=body))

    async def replace(self, resource: Resource, body: Mapping[str, Any], *, subresource: str = "") -> Object:
        """Replace an object. With a resourceVersion in the body, raises ``Conflict`` if it has changed meanwhile."""
        return await self._object(_Request("PUT", _path(resource, body, subresource), body=body))

    async def apply(
        self, resource: Resource, body: Mapping[str, Any], *, subresource: str = "", force: bool = True
    ) -> Object:
        """Apply ``body`` on the server: this controller owns its fields from now on.

        Without ``force``, raises ``Conflict`` if another manager owns one of them.
        """
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        query = {"fieldManager": MANAGER, "force": "true" if force else "false"}
        return await self._object(_Request("PATCH", _path(resource, body, subresource), query, body, APPLY))

    async def merge(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any],
        *,
        namespace: str = "",
        subresource: str = "",
    ) -> Object:
        """Apply a JSON merge patch (RFC 7396): None removes a field."""
        path = resource.path(namespace, name, subresource)
        return await self._object(_Request("PATCH", path, {"fieldManager": MANAGER}, patch, MERGE))

    async def delete(self, resource: Resource, name: str, namespace: str = "") -> None:
        """Delete an object. With finalizers, it exists until they are done."""
        await self._object(_Request("DELETE", resource.path(namespace, name)))

    async def list(
        self, resource: Resource, *, namespace: str = "", label_selector: str = "", field_selector: str = ""
    ) -> list[Object]:
        """Return all objects of a small list. Raises ``Gone`` if a page was requested too late: then list again."""
        objects, more = list[Object](), ""
        while True:
            page = await self.page(
                resource,
                namespace=namespace,
                label_selector=label_selector,
                field_selector=field_selector,
                more=more,
            )
            objects += page
            more = page.more
            if not more:
                return objects

    async def page(
        self,
        resource: Resource,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        more: str = "",
    ) -> Page:
        """Return one page. Pass its ``more`` for the next one, which is ``Gone`` after about five minutes."""
        query = {"limit": str(PAGE_SIZE), **_selected(label_selector, field_selector)}
        if more:
            query["continue"] = more
        return Page(resource, await self._body(_Request("GET", resource.path(namespace), query)))

    @asynccontextmanager
    async def watch(
        self,
        resource: Resource,
        query: Mapping[str, str],
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
    ) -> AsyncIterator[Watch]:
        """Yield a watch for the duration of the block; ``query`` has its first version and its duration.

        The rate limit does not count it: each reflector has one watch and paces itself.
        """
        selected = _selected(label_selector, field_selector)
        request = _Request(
            "GET", resource.path(namespace), {"watch": "true", **query, **selected}, read=SILENCE_SECONDS
        )
        async with self._answer(request) as pieces:
            yield Watch(f"WATCH {request.path}", pieces)

    async def _object(self, request: "_Request") -> Object:
        answer = await self._body(request)
        try:
            value = json.loads(answer)
        except ValueError as error:
            raise Unreachable(f"{request}: the answer is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise Unreachable(f"{request}: the answer is no object: {value!r:.40}")
        return value

    async def _body(self, request: "_Request") -> bytes:
        await trio.sleep_until(self._limit.turn(trio.current_time()))
        async with self._answer(request) as pieces:
            return await _whole(request, pieces, MAX_BODY_BYTES)

    @asynccontextmanager
    async def _answer(self, request: "_Request") -> AsyncIterator[AsyncIterator[bytes]]:
        """Yield the pieces of the answer to one request if its status is 2xx; raise other statuses as errors."""
        response = await self._send(request)
        try:
            if response.status_code == 401 and self._token.reread(trio.current_time()):
                await response.aclose()
                response = await self._send(request)
            if response.status_code >= 300:
                raise await _refusal(request, response)
            yield response.aiter_raw()
        finally:
            # httpcore closes under its own shield and does not block.
            await response.aclose()

    async def _send(self, request: "_Request") -> httpx.Response:
        headers = {"accept": JSON}
        if token := self._token.current(trio.current_time()):
            headers["authorization"] = f"Bearer {token}"
        content = None
        if request.body is not None:
            headers["content-type"] = request.content
            content = _written(request.body)
        http_request = self._http.build_request(
            request.method,
            self.config.server + request.path,
            params=request.query,
            headers=headers,
            content=content,
            timeout=httpx.Timeout(request.read, connect=CONNECT_SECONDS),
            extensions={"sni_hostname": self.config.server_name} if self.config.server_name else None,
        )
        status = 0
        try:
            with mapped(str(request)):
                response = await self._http.send(http_request, stream=True)
            status = response.status_code
            return response
        finally:
            self.requests[request.method, status] += 1


@dataclass(frozen=True, slots=True)
class _Request:
    """One request without its headers."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    content: str = JSON
    read: float = ANSWER_SECONDS

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


async def _whole(request: _Request, pieces: AsyncIterator[bytes], most: int) -> bytes:
    body = bytearray()
    with mapped(str(request)):
        async for piece in pieces:
            body += piece
            if len(body) > most:
                raise Unreachable(f"{request}: an answer of more than {most >> 20} MiB")
    return bytes(body)


async def _refusal(request: _Request, response: httpx.Response) -> ApiError:
    text = await _whole(request, response.aiter_raw(), 1 << 20)
    try:
        body = json.loads(text)
    except ValueError:
        body = None  # a proxy's page; the status is clearer
    return from_status(str(request), response.status_code, body, response.headers.get("retry-after"))


def _path(resource: Resource, body: Mapping[str, Any], subresource: str) -> str:
    meta = body["metadata"]
    return resource.path(meta.get("namespace", ""), meta["name"], subresource)


def _selected(label: str, fields: str) -> dict[str, str]:
    selected = {"labelSelector": label, "fieldSelector": fields}
    return {key: value for key, value in selected.items() if value}


def _written(body: Any) -> bytes:
    """Return JSON that is also YAML with the same value: the API server reads applied objects as YAML."""
    text = json.dumps(body, ensure_ascii=False)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()
