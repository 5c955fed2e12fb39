"""A small HTTP/1.1 server: the pod's metrics and the repo of the controller stand on it."""

import os
import select
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import h11
import trio

from pidone.http.message import Request, Response, text_response

Answer = TypeVar("Answer")
Handler = Callable[[Request], Awaitable[Response]]
Fatal = Callable[[str, str], None]  # the peer, and its last words
Secure = Callable[
    [trio.SocketStream], Awaitable[trio.abc.Stream]
]  # TLS over a connection, after the handshake

# Seconds a connection may take to send a whole request, to read an answer, and idle between two. Longer than
# a scraper's interval is pointless, shorter than a slow network's round trips is harmful.
REQUEST_TIMEOUT = 15.0

FATAL = b"Fatal Python error: "  # how faulthandler begins, in a peer that dies while its request is held
AHEAD = 1 << 16  # bytes that a peer may send ahead, before its request is answered

_BODILESS = frozenset({204, 304})


class _Peers:
    """Sees what those send or that they close whose requests are being answered.

    One task for all of them: a task for each would be a third of what a held request costs.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._heard: dict[int, Callable[[bytes], bool]] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self._epoll:
            task_status.started()
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for number, _ in self._epoll.poll(0):
                    self._read(number)

    @contextmanager
    def heard(self, stream: trio.SocketStream, heard: Callable[[bytes], bool]) -> Iterator[None]:
        """Within the block, ``heard`` gets what comes, and b"" when the peer has closed, until it returns False."""
        number = stream.socket.fileno()
        self._heard[number] = heard
        self._epoll.register(number, select.EPOLLIN)
        try:
            yield
        finally:
            self._forget(number)

    def _read(self, number: int) -> None:
        try:
            data = os.read(number, AHEAD)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not self._heard[number](data) or not data:
            self._forget(number)

    def _forget(self, number: int) -> None:
        if self._heard.pop(number, None):
            self._epoll.unregister(number)


async def serve(
    handler: Handler,
    listeners: Sequence[trio.SocketListener],
    *,
    max_connections: int,
    max_body: int = 1 << 16,
    fatal: Fatal | None = None,
    secure: Secure | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests until cancelled, then close listeners and connections at once.

    ``handler`` may take as long as it likes (a held request), and is cancelled when the peer closes; an error
    in it is a 500 for that request alone. ``fatal`` is told when a peer has died of a fatal signal meanwhile,
    with what ``pidone.repo.client`` lets faulthandler write into the connection. A connection beyond
    ``max_connections`` is closed unanswered, so that a flood costs no memory. With ``secure`` it is https; a
    handshake that fails or takes long ends its connection alone.
    """
    open_now, peers = 0, _Peers()

    async def connection(stream: trio.SocketStream) -> None:
        nonlocal open_now
        if open_now >= max_connections:
            await trio.aclose_forcefully(stream)
            return
        open_now += 1
        try:
            # a peer that goes away, or talks no HTTP, is no event: it may come back and do better
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                peer = stream.socket.getpeername()[0]
                over: trio.abc.Stream | None = stream
                if secure is not None:
                    over = None
                    with trio.move_on_after(REQUEST_TIMEOUT):
                        over = await secure(stream)
                if over is not None:
                    await _converse(over, peers, peer, handler, max_body=max_body, fatal=fatal)
        finally:
            open_now -= 1
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        await nursery.start(peers.run)
        await nursery.start(trio.serve_listeners, connection, list(listeners))
        task_status.started()


async def _converse(
    stream: trio.abc.Stream,
    peers: _Peers,
    peer: str,
    handler: Handler,
    *,
    max_body: int,
    fatal: Fatal | None,
) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=16384)
    while True:
        try:
            with trio.move_on_after(REQUEST_TIMEOUT) as waited:
                request = await _read(stream, connection, peer, max_body)
            if waited.cancelled_caught or request is None:
                return
            if isinstance(request, Request):
                answer = await _while_there(
                    stream, peers, partial(_answer, handler, request), partial(_ahead, connection)
                )
                ahead = connection.trailing_data[0]
                if fatal is not None and ahead.startswith(FATAL):
                    fatal(peer, ahead.decode(errors="replace"))
                if answer is None:
                    return
                response = answer
            else:
                response = request
        except h11.RemoteProtocolError as error:
            if connection.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
                return
            response = text_response(error.error_status_hint or 400, f"not a request: {error}")
            request = None
        with trio.move_on_after(REQUEST_TIMEOUT) as waited:  # who does not read must not hold a connection
            await _send(
                stream,
                connection,
                response,
                head_only=isinstance(request, Request) and request.method == "HEAD",
            )
        if waited.cancelled_caught:
            return
        if response.later is not None:
            await _send_later(stream, peers, response.later)
            return
        if connection.our_state is h11.MUST_CLOSE or connection.their_state is not h11.DONE:
            await _say_goodbye(stream)
            return
        connection.start_next_cycle()


async def _read(
    stream: trio.abc.Stream, connection: h11.Connection, peer: str, max_body: int
) -> Request | Response | None:
    """The next request; an answer where it is refused unread; None where the peer has closed."""
    head: h11.Request | None = None
    chunks, size = list[bytes](), 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                go_on = connection.send(h11.InformationalResponse(status_code=100, headers=[]))
                await stream.send_all(go_on or b"")
            connection.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            size += len(event.data)
            if size > max_body:
                return text_response(413, f"the body is larger than {max_body} bytes")
            chunks.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            headers = dict[str, str]()
            for raw, value in head.headers:
                name = raw.decode().lower()
                text = value.decode("latin-1")
                headers[name] = f"{headers[name]}, {text}" if name in headers else text
            return Request(
                head.method.decode(), head.target.decode("latin-1"), headers, b"".join(chunks), peer
            )
        else:  # the peer has closed
            return None


async def _while_there(
    stream: trio.abc.Stream,
    peers: _Peers,
    work: Callable[[], Awaitable[Answer]],
    ahead: Callable[[bytes], bool],
) -> Answer | None:
    """What ``work`` returns, None where the peer has closed before. ``ahead`` gets what it sends until then."""
    with trio.CancelScope() as scope:

        def heard(data: bytes) -> bool:
            if not data:
                scope.cancel()
            return ahead(data)

        if isinstance(stream, trio.SocketStream):
            with peers.heard(stream, heard):
                return await work()
        async with trio.open_nursery() as nursery:  # what TLS has for us only TLS can read
            nursery.start_soon(_listen, stream, heard)
            done = await work()
            nursery.cancel_scope.cancel()
            return done
    return None


async def _listen(stream: trio.abc.Stream, heard: Callable[[bytes], bool]) -> None:
    data = b"more"
    while data:
        try:
            data = bytes(await stream.receive_some())
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            data = b""
        if not heard(data):
            return


def _ahead(connection: h11.Connection, data: bytes) -> bool:
    """What a peer sends before it is answered; it is read up to a bound."""
    if data:
        connection.receive_data(data)
    return len(connection.trailing_data[0]) <= AHEAD


async def _answer(handler: Handler, request: Request) -> Response:
    try:
        response = await handler(request)
        _head(response)
    except Exception as error:  # noqa: BLE001 - one bad request must not end the server; the text says which bug
        return text_response(500, f"internal error: {type(error).__name__}: {error}")
    return response


def _head(response: Response) -> h11.Response:
    """Raises ``LocalProtocolError`` or ``UnicodeError`` for a status or a header that HTTP does not have."""
    fields = dict(response.headers)
    if response.later is not None:
        fields["connection"] = "close"  # the end of the connection is the end of the body
    elif response.status not in _BODILESS:
        fields["content-length"] = str(len(response.body))
    return h11.Response(status_code=response.status, headers=list(fields.items()))


async def _send(
    stream: trio.abc.Stream, connection: h11.Connection, response: Response, *, head_only: bool
) -> None:
    sent = [connection.send(_head(response))]
    if response.body and not head_only and response.status not in _BODILESS:
        sent.append(connection.send(h11.Data(data=response.body)))
    if response.later is None:
        sent.append(connection.send(h11.EndOfMessage()))
    await stream.send_all(b"".join(part for part in sent if part))


async def _send_later(stream: trio.abc.Stream, peers: _Peers, later: Callable[[], Awaitable[bytes]]) -> None:
    """The body, when there is one. A peer that goes away first, in whatever way, ends the wait."""
    body = await _while_there(stream, peers, later, lambda _: True)
    if body:
        with trio.move_on_after(REQUEST_TIMEOUT):
            await stream.send_all(body)


async def _say_goodbye(stream: trio.abc.Stream) -> None:
    """Let the peer read the answer before the close: unread input would turn it into a reset."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        if isinstance(stream, trio.abc.HalfCloseableStream):  # TLS has no such thing
            await stream.send_eof()
        with trio.move_on_after(1):
            while await stream.receive_some():
                pass
