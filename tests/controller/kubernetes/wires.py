"""HTTP/1.1 between httpx and a server in the same Trio run, without sockets: MockClock sees when all are waiting."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import h11
import httpcore
import httpx
import trio
import trio.testing
from httpcore._backends.trio import TrioStream


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """``pieces`` is a stream, sent as it comes; with ``cut`` the connection breaks before the answer has ended."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: AsyncGenerator[bytes, None] | None = None
    cut: bool = False


Handler = Callable[[Request], Awaitable[Answer]]


class Wires(httpcore.AsyncNetworkBackend):
    """Connects a client to ``handler``. ``refuses`` is a server that is not there; ``hang_up`` kills it."""

    def __init__(self, nursery: trio.Nursery, handler: Handler) -> None:
        self.refuses = False
        self.connections = 0
        self._nursery = nursery
        self.handler = handler  # as it is when a request comes
        self._open = set[trio.StapledStream[Any, Any]]()

    def transport(self) -> httpx.AsyncHTTPTransport:
        transport = httpx.AsyncHTTPTransport(verify=False)
        transport._pool = httpcore.AsyncConnectionPool(network_backend=self, max_connections=None)
        return transport

    def hang_up(self) -> None:
        for stream in self._open:
            stream.send_stream.close()
            stream.receive_stream.close()
        self._open.clear()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        await trio.lowlevel.checkpoint()
        if self.refuses:
            raise httpcore.ConnectError("connection refused")
        self.connections += 1
        ours, theirs = trio.testing.memory_stream_pair()
        self._open.add(theirs)
        self._nursery.start_soon(self._serve, theirs)
        return _Stream(ours)

    async def _answer(self, request: Request) -> Answer:
        return await self.handler(request)

    async def _serve(self, stream: trio.StapledStream[Any, Any]) -> None:
        try:
            await _converse(stream, self._answer)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass  # the client has gone
        finally:
            self._open.discard(stream)
            await trio.aclose_forcefully(stream)


class _Stream(TrioStream):
    def get_extra_info(self, info: str) -> Any:
        return None  # not a socket: an idle connection that the server has closed is found out by using it


async def _converse(stream: trio.StapledStream[Any, Any], handler: Handler) -> None:
    connection = h11.Connection(h11.SERVER)
    while True:
        request = await _read(stream, connection)
        if request is None:
            return
        answer = await handler(request)
        headers = {"content-type": "application/json", **answer.headers}
        headers |= (
            {"transfer-encoding": "chunked"} if answer.pieces else {"content-length": str(len(answer.body))}
        )
        await stream.send_all(
            connection.send(h11.Response(status_code=answer.status, headers=list(headers.items()))) or b""
        )
        if answer.pieces is None:
            await stream.send_all(connection.send(h11.Data(answer.body)) or b"")
        else:
            async with aclosing(answer.pieces) as pieces:
                async for piece in pieces:
                    await stream.send_all(connection.send(h11.Data(piece)) or b"")
        if answer.cut:
            return
        await stream.send_all(connection.send(h11.EndOfMessage()) or b"")
        connection.start_next_cycle()


async def _read(stream: trio.StapledStream[Any, Any], connection: h11.Connection) -> Request | None:
    head, body = None, b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            where = urlsplit(head.target.decode())
            headers = {name.decode().lower(): value.decode() for name, value in head.headers}
            return Request(head.method.decode(), where.path, dict(parse_qsl(where.query)), headers, body)
        else:
            return None
