"""A small HTTP/1.1 server: the pod's metrics and the repo of the controller stand on it."""

import errno
import os
import select
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import TypeVar

import h11
import trio

from pidone.http.message import Held, Request, Response, text_response

Answer = TypeVar("Answer")
Handler = Callable[[Request], Awaitable[Response]]
Holder = Callable[[Request], Awaitable[Response | Held]]
Fatal = Callable[[str, str], None]  # the peer, and its last words
Secure = Callable[
    [trio.SocketStream], Awaitable[trio.abc.Stream]
]  # TLS over a connection, after the handshake

# Seconds a connection may take to send a whole request, to read an answer, and idle between two. Longer than
# a scraper's interval is pointless, shorter than a slow network's round trips is harmful.
REQUEST_TIMEOUT = 15.0

FATAL = b"Fatal Python error: "  # how faulthandler begins, in a peer that dies while its request is held
AHEAD = 1 << 16  # bytes that a peer may send ahead, before its request is answered

NO_ROOM_PAUSE = 0.1  # seconds after a connection for which there was no descriptor or no memory
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_BODILESS = frozenset({204, 304})


async def serve(
    handler: Holder,
    listeners: Sequence[trio.SocketListener],
    *,
    max_connections: int,
    max_body: int = 1 << 16,
    fatal: Fatal | None = None,
    secure: Secure | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests until cancelled, then close listeners and connections at once.

    ``handler`` may take as long as it likes, and is cancelled when the peer closes; an error in it is a 500 for
    that request alone. Where it returns ``Held`` the connection waits without a task. ``fatal`` is told when a peer
    has died of a fatal signal meanwhile, with what ``pidone.repo.client`` lets faulthandler write into the
    connection. A connection beyond ``max_connections`` is closed unanswered, so that a flood costs no memory. With
    ``secure`` it is https; a handshake that fails or takes long ends its connection alone.
    """
    with closing(_Peers()) as peers:
        async with trio.open_nursery() as nursery:
            server = _Server(handler, nursery, peers, max_connections, max_body, fatal, secure)
            try:
                nursery.start_soon(peers.run)
                nursery.start_soon(server.clock)
                for listener in listeners:
                    nursery.start_soon(server.accept, listener)
                task_status.started()
                await trio.sleep_forever()
            finally:
                server.close()


async def waited(held: Held) -> Response:
    """The answer to a held request, for whoever has a task for it."""
    while True:
        answer = held.look()
        if answer:
            return answer
        change = trio.Event()
        held.subscribe(change.set)
        try:
            with trio.move_on_at(held.deadline):
                await change.wait()
        finally:
            held.unsubscribe(change.set)


class _Peers:
    """Sees what those send or that they close whose requests are being answered.

    One task for all of them: a task for each would be a third of what a held request costs.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._heard: dict[int, Callable[[bytes], bool]] = {}

    def close(self) -> None:
        self._epoll.close()

    async def run(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for number, _ in self._epoll.poll(0):
                self._read(number)

    def hear(self, number: int, heard: Callable[[bytes], bool]) -> None:
        """``heard`` gets what comes on this descriptor, and b"" when the peer has closed, until it returns False."""
        self._heard[number] = heard
        self._epoll.register(number, select.EPOLLIN)

    def forget(self, number: int) -> None:
        if self._heard.pop(number, None):
            self._epoll.unregister(number)

    def _read(self, number: int) -> None:
        heard = self._heard.get(number)
        if heard is None:  # forgotten since it was polled
            return
        try:
            data = os.read(number, AHEAD)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.forget(number)  # before ``heard``, which may close it
        if not heard(data):
            self.forget(number)


@dataclass(slots=True, eq=False)
class _Parked:
    """A connection whose request is held."""

    stream: trio.SocketStream
    connection: h11.Connection
    peer: str
    held: Held
    bare: bool = False  # the head was sent, and the body is all that is left
    due: float = inf  # the deadline that the clock knows of
    wake: Callable[[], object] = tuple  # as subscribed


class _Server:
    """The connections of one ``serve``."""

    def __init__(
        self,
        handler: Holder,
        nursery: trio.Nursery,
        peers: _Peers,
        max_connections: int,
        max_body: int,
        fatal: Fatal | None,
        secure: Secure | None,
    ) -> None:
        self._peers = peers
        self._handler, self._nursery, self._secure = handler, nursery, secure
        self._max_connections, self._max_body, self._fatal = max_connections, max_body, fatal
        self._open = 0
        self._parked: dict[_Parked, None] = {}
        self._due: list[
            tuple[float, int, _Parked]
        ] = []  # a heap; those that are no longer parked are passed over
        self._number = count()
        self._sooner = trio.Event()

    async def accept(self, listener: trio.SocketListener) -> None:
        """Not ``trio.serve_listeners``, which closes a connection when its task ends."""
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in _NO_ROOM:
                        raise
                    await trio.sleep(NO_ROOM_PAUSE)
                else:
                    self._nursery.start_soon(self.connection, stream)

    async def connection(self, stream: trio.SocketStream) -> None:
        """Until it ends, or is parked."""
        if self._open >= self._max_connections:
            await trio.aclose_forcefully(stream)
            return
        self._open += 1
        await self._guarded(stream, partial(self._begin, stream))

    async def clock(self) -> None:
        """Wakes what is held too long."""
        while True:
            while self._due and self._due[0][0] <= trio.current_time():
                _, _, parked = heappop(self._due)
                parked.due = inf
                self._resume(parked)
            self._sooner = trio.Event()
            with trio.move_on_at(self._due[0][0] if self._due else inf):
                await self._sooner.wait()

    def close(self) -> None:
        """Close what is parked; everything else has a task that does it."""
        for parked in list(self._parked):
            self._unpark(parked)
            parked.stream.socket.close()

    async def _guarded(
        self, stream: trio.SocketStream, talk: Callable[[], Awaitable[_Parked | None]]
    ) -> None:
        parked = None
        try:
            # a peer that goes away, or talks no HTTP, is no event: it may come back and do better
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                parked = await talk()
                if parked:
                    self._park(parked)
        finally:
            if parked is None:
                self._open -= 1
                await trio.aclose_forcefully(stream)

    async def _begin(self, stream: trio.SocketStream) -> _Parked | None:
        peer = stream.socket.getpeername()[0]
        over: trio.abc.Stream | None = stream
        if self._secure is not None:
            over = None
            with trio.move_on_after(REQUEST_TIMEOUT):
                over = await self._secure(stream)
        if over is None:
            return None
        return await self._converse(over, h11.Connection(h11.SERVER, max_incomplete_event_size=16384), peer)

    def _park(self, parked: _Parked) -> None:
        parked.wake = partial(self._resume, parked)
        parked.held.subscribe(parked.wake)
        self._parked[parked] = None
        self._peers.hear(parked.stream.socket.fileno(), partial(self._heard, parked))
        if parked.held.deadline < parked.due:
            parked.due = parked.held.deadline
            heappush(self._due, (parked.due, next(self._number), parked))
            if self._due[0][2] is parked:
                self._sooner.set()

    def _unpark(self, parked: _Parked) -> None:
        del self._parked[parked]
        parked.held.unsubscribe(parked.wake)
        self._peers.forget(parked.stream.socket.fileno())

    def _resume(self, parked: _Parked) -> None:
        if parked in self._parked:
            self._unpark(parked)
            self._nursery.start_soon(self._guarded, parked.stream, partial(self._go_on, parked))

    def _heard(self, parked: _Parked, data: bytes) -> bool:
        if data:
            return parked.bare or _ahead(parked.connection, data)
        self._last_words(parked.connection, parked.peer)
        self._unpark(parked)
        self._open -= 1
        parked.stream.socket.close()
        return False

    def _last_words(self, connection: h11.Connection, peer: str) -> None:
        ahead = connection.trailing_data[0]
        if self._fatal is not None and ahead.startswith(FATAL):
            self._fatal(peer, ahead.decode(errors="replace"))

    async def _go_on(self, parked: _Parked) -> _Parked | None:
        answer = _look(parked.held)
        if answer is None:
            return parked
        if parked.bare:
            await _send_bare(parked.stream, answer.body)
            return None
        return await self._converse(parked.stream, parked.connection, parked.peer, answer)

    async def _converse(
        self,
        stream: trio.abc.Stream,
        connection: h11.Connection,
        peer: str,
        response: Response | None = None,
    ) -> _Parked | None:
        """Answer one request after the other; the first is read already where there is a ``response``."""
        while True:
            head_only = False
            try:
                if response is None:
                    with trio.move_on_after(REQUEST_TIMEOUT) as waited_for:
                        request = await _read(stream, connection, peer, self._max_body)
                    if waited_for.cancelled_caught or request is None:
                        return None
                    answer: Response | Held | None
                    if isinstance(request, Request):
                        head_only = request.method == "HEAD"
                        answer = await self._answered(stream, connection, request)
                    else:
                        answer = request
                    if isinstance(answer, Held):
                        assert isinstance(stream, trio.SocketStream)
                        return _Parked(stream, connection, peer, answer)
                    if answer is None:
                        return None
                    response = answer
            except h11.RemoteProtocolError as error:
                if connection.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
                    return None
                response = text_response(error.error_status_hint or 400, f"not a request: {error}")
            with trio.move_on_after(
                REQUEST_TIMEOUT
            ) as waited_for:  # who does not read must not hold a connection
                await _send(stream, connection, response, head_only=head_only)
            if waited_for.cancelled_caught:
                return None
            if response.later is not None:
                return await self._later(stream, connection, peer, response.later)
            if connection.our_state is h11.MUST_CLOSE or connection.their_state is not h11.DONE:
                await _say_goodbye(stream)
                return None
            connection.start_next_cycle()
            response = None

    async def _answered(
        self, stream: trio.abc.Stream, connection: h11.Connection, request: Request
    ) -> Response | Held | None:
        """None where the peer has closed before. Held only where the connection can be parked."""
        ahead = partial(_ahead, connection)
        answer = await self._while_there(stream, partial(_answer, self._handler, request), ahead)
        if isinstance(answer, Held) and not isinstance(stream, trio.SocketStream):
            answer = await self._while_there(stream, partial(waited, answer), ahead)
        self._last_words(connection, request.peer)
        return answer

    async def _later(
        self,
        stream: trio.abc.Stream,
        connection: h11.Connection,
        peer: str,
        later: Callable[[], Awaitable[bytes]] | Held,
    ) -> _Parked | None:
        """The body, when there is one. A peer that goes away first, in whatever way, ends the wait."""
        if not isinstance(later, Held):
            body = await self._while_there(stream, later, bool)
        elif isinstance(stream, trio.SocketStream) and later.look() is None:
            return _Parked(stream, connection, peer, later, bare=True)
        else:
            answer = await self._while_there(stream, partial(waited, later), bool)
            body = answer.body if answer else None
        if body:
            await _send_bare(stream, body)
        return None

    async def _while_there(
        self,
        stream: trio.abc.Stream,
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
                number = stream.socket.fileno()
                self._peers.hear(number, heard)
                try:
                    return await work()
                finally:
                    self._peers.forget(number)
            async with trio.open_nursery() as nursery:  # what TLS has for us only TLS can read
                nursery.start_soon(_listen, stream, heard)
                done = await work()
                nursery.cancel_scope.cancel()
                return done
        return None


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


async def _answer(handler: Holder, request: Request) -> Response | Held:
    try:
        response = await handler(request)
        if isinstance(response, Response):
            _head(response)
    except Exception as error:  # noqa: BLE001 - one bad request must not end the server; the text says which bug
        return _bug(error)
    return response


def _look(held: Held) -> Response | None:
    try:
        response = held.look()
        if response:
            _head(response)
    except Exception as error:  # noqa: BLE001 - the same
        return _bug(error)
    return response


def _bug(error: Exception) -> Response:
    return text_response(500, f"internal error: {type(error).__name__}: {error}")


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


async def _send_bare(stream: trio.abc.Stream, body: bytes) -> None:
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
