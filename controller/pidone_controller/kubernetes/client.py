"""Requests to the API server: one method a verb, all errors in one tree, no retries but for a rotated token.

Who calls decides what to do about a failure: the reflector backs off, a lease has a deadline, a status is written
again when it is due.
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
from pidone_controller.kubernetes.wire import MAX_BODY, Lines, Page

MANAGER = "pidone-controller"  # who owns the fields that we apply
REQUESTS = 30, 1 / 20  # at once, and seconds until one more
PAGE = 500  # objects; client-go's, and the API server's own for its cache
CONNECT = 10.0  # seconds
ANSWER = 65.0  # seconds between two pieces of an answer; the API server gives up on a request itself after 60
SILENCE = 75.0  # seconds without a word after which a watch is dead: bookmarks come each minute

JSON = "application/json"
MERGE = "application/merge-patch+json"
APPLY = (
    "application/apply-patch+yaml"  # JSON is YAML, and every API server since 1.22 reads it under this name
)

# What YAML takes for the end of a line, or refuses where it stands as it is. Escaped it is read by YAML and JSON; and
# what stands above U+FFFF is not escaped, for YAML knows no pairs of surrogates.
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")

Object = dict[str, Any]


@asynccontextmanager
async def connect(
    config: Config, *, limit: RateLimit | None = None, transport: httpx.AsyncBaseTransport | None = None
) -> AsyncIterator["Client"]:
    """A client for as long as the block lasts; nothing is sent before the first request.

    Raises ``ConfigError`` for certificates that are none. ``transport`` is where tests come in.
    """
    if transport is None:
        transport = httpx.AsyncHTTPTransport(
            verify=tls(config) if config.server.startswith("https://") else False,
            # each watch keeps a connection of its own; the API server closes an idle one after 90 s
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=60.0),
        )
    http = httpx.AsyncClient(
        transport=transport,
        trust_env=False,  # the way to the API server is the cluster's, not the environment's
        timeout=httpx.Timeout(ANSWER, connect=CONNECT, pool=CONNECT),
        # gzip is for slow links: here it would cost both sides more than it saves
        headers={
            "accept-encoding": "identity",
            "user-agent": f"{MANAGER}/{__version__} ({platform.machine()})",
        },
    )
    async with http:
        yield Client(config, http, limit or RateLimit(*REQUESTS))


class Watch:
    """One watch, open. Lines come as they were sent; none is half of one."""

    def __init__(self, asked: str, pieces: AsyncIterator[bytes]) -> None:
        self._asked = asked
        self._pieces = pieces
        self._lines = Lines()

    async def read(self) -> list[bytes] | None:
        """The lines that the next piece completes, maybe none at all; None at the watch's own end.

        Raises ``Unreachable`` for ``SILENCE`` seconds without a word, an end in the middle of a line, a line too long.
        """
        with mapped(self._asked):
            piece = await anext(self._pieces, None)
        if piece is not None:
            return self._lines.feed(piece)
        if self._lines.cut:
            raise Unreachable(f"{self._asked}: the watch ended in the middle of an event")
        return None


class Client:
    """What ``connect`` gives. Every method raises ``ApiError`` or a child of it.

    On cancel the connection is closed, and whether a change was made is not known. ``requests`` counts by
    method and status (0: no answer).
    """

    def __init__(self, config: Config, http: httpx.AsyncClient, limit: RateLimit) -> None:
        self.config = config
        self.requests: Counter[tuple[str, int]] = Counter()
        self._http = http
        self._limit = limit
        self._token = Token(config)

    def families(self) -> Iterator[Family]:
        """Metrics, with client-go's name."""
        requests = counter("rest_client_requests_total", "Requests to the API server.")
        for (method, code), number in sorted(self.requests.items()):
            requests.add(number, code=str(code) if code else "<error>", method=method)
        yield requests

    def apart(self) -> "Client":
        """The same client with a limit of its own, for what must not queue behind the rest."""
        other = copy(self)
        other._limit = RateLimit(*REQUESTS)
        return other

    async def get(self, resource: Resource, name: str, namespace: str = "") -> Object:
        return await self._object(_Ask("GET", resource.path(namespace, name)))

    async def create(
        self,
        resource: Resource,
        body: Mapping[str, Any],
        namespace: str = "",
        *,
        name: str = "",
        subresource: str = "",
    ) -> Object:
        """``namespace`` where the body does not say it; a ``subresource`` is of the object ``name``.

        Raises ``AlreadyExists``.
        """
        namespace = namespace or body["metadata"].get("namespace", "")
        return await self._object(_Ask("POST", resource.path(namespace, name, subresource), body=body))

    async def replace(self, resource: Resource, body: Mapping[str, Any], *, subresource: str = "") -> Object:
        """The whole object; with its resourceVersion in it, ``Conflict`` where somebody was faster."""
        return await self._object(_Ask("PUT", _path(resource, body, subresource), body=body))

    async def apply(
        self, resource: Resource, body: Mapping[str, Any], *, subresource: str = "", force: bool = True
    ) -> Object:
        """Server-side apply: the fields in ``body`` are ours from now on.

        Without ``force``, ``Conflict`` where one of them is another manager's.
        """
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        query = {"fieldManager": MANAGER, "force": "true" if force else "false"}
        return await self._object(_Ask("PATCH", _path(resource, body, subresource), query, body, APPLY))

    async def merge(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any],
        *,
        namespace: str = "",
        subresource: str = "",
    ) -> Object:
        """A JSON merge patch: None removes a field."""
        path = resource.path(namespace, name, subresource)
        return await self._object(_Ask("PATCH", path, {"fieldManager": MANAGER}, patch, MERGE))

    async def delete(self, resource: Resource, name: str, namespace: str = "") -> None:
        """Ask for the end of an object. With finalizers, it stays until they are done."""
        await self._object(_Ask("DELETE", resource.path(namespace, name)))

    async def list(
        self, resource: Resource, *, namespace: str = "", label_selector: str = "", field_selector: str = ""
    ) -> list[Object]:
        """All of a small list at once. Raises ``Gone`` where a page was too late: then ask again."""
        found, more = list[Object](), ""
        while True:
            page = await self.page(
                resource,
                namespace=namespace,
                label_selector=label_selector,
                field_selector=field_selector,
                more=more,
            )
            found += page
            more = page.more
            if not more:
                return found

    async def page(
        self,
        resource: Resource,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        more: str = "",
    ) -> Page:
        """One page; the next is asked for with its ``more``, and is ``Gone`` after five minutes or so."""
        query = {"limit": str(PAGE), **_selected(label_selector, field_selector)}
        if more:
            query["continue"] = more
        return Page(resource, await self._body(_Ask("GET", resource.path(namespace), query)))

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
        """A watch for as long as the block lasts; ``query`` says from where, and for how long.

        It takes no place in the limit: there is one a reflector, and they wait by themselves.
        """
        selected = _selected(label_selector, field_selector)
        ask = _Ask("GET", resource.path(namespace), {"watch": "true", **query, **selected}, read=SILENCE)
        async with self._answer(ask) as pieces:
            yield Watch(f"WATCH {ask.path}", pieces)

    async def _object(self, ask: "_Ask") -> Object:
        answer = await self._body(ask)
        try:
            value = json.loads(answer)
        except ValueError as error:
            raise Unreachable(f"{ask}: the answer is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise Unreachable(f"{ask}: the answer is no object: {value!r:.40}")
        return value

    async def _body(self, ask: "_Ask") -> bytes:
        await trio.sleep_until(self._limit.turn(trio.current_time()))
        async with self._answer(ask) as pieces:
            return await _whole(ask, pieces, MAX_BODY)

    @asynccontextmanager
    async def _answer(self, ask: "_Ask") -> AsyncIterator[AsyncIterator[bytes]]:
        """The pieces of the answer to one request, once its head is there and says 2xx; else the error is raised."""
        response = await self._send(ask)
        try:
            if response.status_code == 401 and self._token.reread(trio.current_time()):
                await response.aclose()
                response = await self._send(ask)
            if response.status_code >= 300:
                raise await _refusal(ask, response)
            yield response.aiter_raw()
        finally:
            # httpcore closes under a shield of its own, and waits for nobody
            await response.aclose()

    async def _send(self, ask: "_Ask") -> httpx.Response:
        headers = {"accept": JSON}
        if token := self._token.current(trio.current_time()):
            headers["authorization"] = f"Bearer {token}"
        content = None
        if ask.body is not None:
            headers["content-type"] = ask.content
            content = _written(ask.body)
        request = self._http.build_request(
            ask.method,
            self.config.server + ask.path,
            params=ask.query,
            headers=headers,
            content=content,
            timeout=httpx.Timeout(ask.read, connect=CONNECT),
            extensions={"sni_hostname": self.config.server_name} if self.config.server_name else None,
        )
        status = 0
        try:
            with mapped(str(ask)):
                response = await self._http.send(request, stream=True)
            status = response.status_code
            return response
        finally:
            self.requests[ask.method, status] += 1


@dataclass(frozen=True, slots=True)
class _Ask:
    """One request, before it has headers."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    content: str = JSON
    read: float = ANSWER

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


async def _whole(ask: _Ask, pieces: AsyncIterator[bytes], most: int) -> bytes:
    body = bytearray()
    with mapped(str(ask)):
        async for piece in pieces:
            body += piece
            if len(body) > most:
                raise Unreachable(f"{ask}: an answer of more than {most >> 20} MiB")
    return bytes(body)


async def _refusal(ask: _Ask, response: httpx.Response) -> ApiError:
    text = await _whole(ask, response.aiter_raw(), 1 << 20)
    try:
        body = json.loads(text)
    except ValueError:
        body = None  # a proxy's words, which say less than the status
    return from_status(str(ask), response.status_code, body, response.headers.get("retry-after"))


def _path(resource: Resource, body: Mapping[str, Any], subresource: str) -> str:
    meta = body["metadata"]
    return resource.path(meta.get("namespace", ""), meta["name"], subresource)


def _selected(label: str, fields: str) -> dict[str, str]:
    selected = {"labelSelector": label, "fieldSelector": fields}
    return {key: value for key, value in selected.items() if value}


def _written(body: Any) -> bytes:
    """JSON that is the same to a reader of YAML, as which the API server reads what is applied."""
    text = json.dumps(body, ensure_ascii=False)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()
