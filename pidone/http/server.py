"""A small HTTP/1.1 server for the pod's metrics and status, and for the repo in the controller.

A request whose handler returns ``Held`` waits without a Trio task: its connection is parked until the held request
has an answer, its deadline comes, or the peer closes.
"""

import errno
import os
import select
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Any, TypeVar

import h11
import trio

from pidone.http.admission import Admission, Assign, Place, Room, one_room
from pidone.http.message import MAX_FIELDS, Held, Request, Response, text_response

Result = TypeVar("Result")
_Socket = socket.socket | trio.socket.SocketType
_Head = Any  # an event of h11, or the ``h11.RemoteProtocolError`` in its place
Handler = Callable[[Request], Awaitable[Response]]
HoldingHandler = Callable[[Request], Awaitable[Response | Held]]
Refuse = Callable[[Request], Awaitable[Response | None]]  # gets the head of a request that has a body
Fatal = Callable[[str, str], None]  # gets the peer's address and its last words
Secure = Callable[[trio.SocketStream], Awaitable[trio.abc.Stream]]  # makes the TLS handshake, returns TLS

# The time a connection may take to send a whole request, to read an answer, and to be idle between requests.
# Longer than a scraper's interval is pointless, shorter than a slow network's round trips is harmful.
REQUEST_TIMEOUT_SECONDS = 15.0

FATAL = (
    b"Fatal Python error: "  # the first words of faulthandler, in a peer that dies while its request is held
)
MAX_AHEAD_BYTES = 1 << 14  # that a peer may send before its request is answered
MAX_HEAD_BYTES = 1 << 14  # of a request
_PART_BYTES = 1 << 13  # that are received at once, until the body is welcome

ACCEPT_PAUSE_SECONDS = 0.1  # after an accept that failed for lack of descriptors or memory
_BATCH = 64  # connections that are accepted or read until other tasks have a turn
_BROKEN = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})  # the listener itself
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_BODILESS = frozenset({204, 304})


async def serve(
    handler: HoldingHandler,
    listeners: Sequence[trio.SocketListener],
    *,
    max_connections: int,
    max_body: int = 1 << 16,
    assign: Assign | None = None,
    refuse: Refuse | None = None,
    fatal: Fatal | None = None,
    secure: Secure | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests until cancelled, then close listeners and connections at once.

    ``handler`` may take any time, and is cancelled when the peer closes. An exception in it is answered with 500.
    If it returns ``Held``, the connection waits without a task.

    ``max_connections``: the most at once. For a further one the longest silent one is closed; if all are being
    answered, the further one is closed, so that a flood costs no memory.
    ``max_body``: the largest request body in bytes; a larger one is answered with 413.
    ``assign``: in place of ``max_connections``, bounds for each kind of peer; see ``pidone.http.admission``.
    ``refuse``: called with the head of a request before its body is read. Its answer, if any, is sent at once, and the
    connection is closed.
    ``fatal``: called when a peer died of a fatal signal during its request. ``pidone.repo.client`` lets faulthandler
    write the last words into the connection.
    ``secure``: serve https. A handshake that fails or exceeds the timeout ends its own connection only.
    """
    with closing(_Peers()) as peers:
        async with trio.open_nursery() as nursery:
            admission = Admission(assign or one_room(Room(max_connections, max_connections)))
            server = _Server(handler, nursery, peers, admission, max_body, refuse, fatal, secure)
            try:
                nursery.start_soon(peers.run)
                nursery.start_soon(server.clock)
                for listener in listeners:
                    nursery.start_soon(server.accept, listener)
                task_status.started()
                await trio.sleep_forever()
            finally:
                server.close()


async def wait_for_answer(held: Held) -> Response:
    """Wait in the calling task until the held request has an answer, and return it."""
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
    """Reads what peers send while their requests are answered, and notices when they close.

    One task watches all connections. A task for each would be a third of the cost of a held request.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._receivers: dict[int, Callable[[bytes], bool]] = {}

    def close(self) -> None:
        self._epoll.close()

    async def run(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for number, _ in self._epoll.poll(0, _BATCH):
                self._read(number)

    def watch(self, number: int, receive: Callable[[bytes], bool]) -> None:
        """Call ``receive`` with the data of this descriptor (b"": the peer has closed) until it returns False."""
        self._receivers[number] = receive
        self._epoll.register(number, select.EPOLLIN)

    def replace(self, number: int, receive: Callable[[bytes], bool]) -> None:
        """Call another function for this descriptor from now on."""
        self._receivers[number] = receive

    def unwatch(self, number: int) -> None:
        if self._receivers.pop(number, None):
            self._epoll.unregister(number)

    def _read(self, number: int) -> None:
        receive = self._receivers.get(number)
        if receive is None:  # unwatched since the poll
            return
        try:
            data = os.read(number, MAX_AHEAD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.unwatch(number)  # before ``receive``, which may close the descriptor
        if not receive(data):
            self.unwatch(number)


@dataclass(slots=True, eq=False)
class _Client:
    """One connection that has sent something, or speaks TLS."""

    socket: trio.socket.SocketType
    stream: trio.abc.Stream
    place: Place
    connection: h11.Connection = field(
        default_factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    )


@dataclass(slots=True, eq=False)
class _Parked:
    """A connection whose request is held. No Trio task belongs to it.

    Its methods are the callbacks of thousands of held requests. A bound method has 64 bytes, a ``partial`` 200.
    """

    server: "_Server"
    client: _Client
    held: Held
    body_only: bool = False  # the head of the answer was sent already
    due: float = inf  # the deadline that is in the heap of ``_Server``

    def resume(self) -> None:
        self.server.resume(self)

    def close(self) -> None:
        self.server.close_parked(self)

    def receive(self, data: bytes) -> bool:
        return self.server.receive_parked(self, data)


class _Server:
    """The connections of one ``serve``."""

    def __init__(
        self,
        handler: HoldingHandler,
        nursery: trio.Nursery,
        peers: _Peers,
        admission: Admission,
        max_body: int,
        refuse: Refuse | None,
        fatal: Fatal | None,
        secure: Secure | None,
    ) -> None:
        self._peers = peers
        self._handler, self._nursery, self._secure = handler, nursery, secure
        self._admission, self._max_body, self._refuse, self._fatal = admission, max_body, refuse, fatal
        self._parked: dict[_Parked, None] = {}
        # a heap of deadlines; entries of connections that are no longer parked are skipped
        self._due: list[tuple[float, int, _Parked]] = []
        self._number = count()
        # connections without a task that wait for a request, with their deadlines, in the order of these
        self._idle: dict[Place, float] = {}
        self._sooner = trio.Event()  # an earlier deadline was added

    async def accept(self, listener: trio.SocketListener) -> None:
        """Accept connections, several at once. ``trio.serve_listeners`` would make a task for each."""
        async with listener:
            with socket.socket(fileno=os.dup(listener.socket.fileno())) as accepting:
                accepting.settimeout(0)
                while True:
                    await trio.lowlevel.wait_readable(accepting)
                    try:
                        for _ in range(_BATCH):
                            accepted, address = accepting.accept()
                            self._admit(accepted, address[0])
                    except BlockingIOError:
                        pass
                    except (
                        OSError
                    ) as error:  # of one connection that is gone, or of the network, if not of this process
                        if error.errno in _BROKEN:
                            raise
                        if error.errno in _EXHAUSTED:
                            await trio.sleep(ACCEPT_PAUSE_SECONDS)

    def _admit(self, accepted: socket.socket, address: str) -> None:
        place = self._admission.admit(address, accepted.close)
        if place is None:
            accepted.close()
        elif self._secure is not None:
            sock = trio.socket.from_stdlib_socket(accepted)
            self._start(place, sock, partial(self._begin, sock, place))
        else:
            accepted.settimeout(0)
            self._wait(place, accepted, partial(self._first, place, accepted))

    def _wait(self, place: Place, sock: _Socket, receive: Callable[[bytes], bool]) -> None:
        """Wait without a task until the connection sends something."""
        place.close = partial(self._stop_waiting, place, sock)
        if not self._idle:
            self._sooner.set()
        self._idle[place] = trio.current_time() + REQUEST_TIMEOUT_SECONDS
        self._peers.watch(sock.fileno(), receive)

    def _stop_waiting(self, place: Place, sock: _Socket) -> None:
        """Close a connection without a task."""
        del self._idle[place]
        self._peers.unwatch(sock.fileno())
        sock.close()

    def _first(self, place: Place, accepted: socket.socket, data: bytes) -> bool:
        """Take the first bytes of a connection and create its client. Return as ``_receive_idle``."""
        if not data:
            self._close(place)
            return False
        sock = trio.socket.from_stdlib_socket(accepted)
        client = _Client(sock, trio.SocketStream(sock), place)
        self._peers.replace(sock.fileno(), partial(self._receive_idle, client))
        return self._receive_idle(client, data)

    def _receive_idle(self, client: _Client, data: bytes) -> bool:
        """Take a part of the next request. Start a task when its head is complete or invalid.

        Return True while more is awaited from the peer without a task.
        """
        if not data:
            self._close(client.place)
            return False
        if not self._admission.receive(client.place, len(data)):
            return False
        client.connection.receive_data(data)
        head = _next(client.connection)
        if head is h11.NEED_DATA:
            return True
        del self._idle[client.place]
        self._start(client.place, client.socket, partial(self._converse, client, head))
        return False

    def _close(self, place: Place) -> None:
        self._admission.leave(place)
        place.close()

    async def clock(self) -> None:
        """Resume parked connections at their deadlines, and close those that have sent no request in time."""
        while True:
            now = trio.current_time()
            while self._due and self._due[0][0] <= now:
                _, _, parked = heappop(self._due)
                parked.due = inf
                self.resume(parked)
            while next(iter(self._idle.values()), inf) <= now:
                self._close(next(iter(self._idle)))
            self._sooner = trio.Event()
            with trio.move_on_at(
                min(self._due[0][0] if self._due else inf, next(iter(self._idle.values()), inf))
            ):
                await self._sooner.wait()

    def close(self) -> None:
        """Close the connections without a task. Each other connection is closed by its task."""
        for parked in list(self._parked):
            self.close_parked(parked)
        for place in list(self._idle):
            self._close(place)

    def _start(
        self,
        place: Place,
        sock: trio.socket.SocketType,
        talk: Callable[[], Awaitable[_Parked | _Client | None]],
    ) -> None:
        """Run ``talk`` in a task; then park the connection, wait for its next request, or close it, as it returns."""
        scope = trio.CancelScope()
        place.close = scope.cancel
        self._nursery.start_soon(self._guarded, place, sock, scope, talk)

    async def _guarded(
        self,
        place: Place,
        sock: trio.socket.SocketType,
        scope: trio.CancelScope,
        talk: Callable[[], Awaitable[_Parked | _Client | None]],
    ) -> None:
        result = None
        try:
            # a peer that closes, or does not speak HTTP, is not logged: it may connect again
            with scope, suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                result = await talk()
        finally:
            if result is None or place.left:
                self._admission.leave(place)
                sock.close()
            elif isinstance(result, _Parked):
                self._park(result)
            else:
                self._wait(place, sock, partial(self._receive_idle, result))

    async def _begin(self, sock: trio.socket.SocketType, place: Place) -> _Parked | _Client | None:
        assert self._secure is not None
        transport: trio.abc.Stream | None = None
        with trio.move_on_after(REQUEST_TIMEOUT_SECONDS):
            transport = await self._secure(trio.SocketStream(sock))
        return await self._converse(_Client(sock, transport, place)) if transport is not None else None

    def _park(self, parked: _Parked) -> None:
        parked.held.subscribe(parked.resume)
        self._parked[parked] = None
        parked.client.place.close = parked.close
        self._admission.hold(parked.client.place)
        self._peers.watch(parked.client.socket.fileno(), parked.receive)
        if parked.held.deadline < parked.due:
            parked.due = parked.held.deadline
            heappush(self._due, (parked.due, next(self._number), parked))
            if self._due[0][2] is parked:
                self._sooner.set()

    def _unpark(self, parked: _Parked) -> None:
        del self._parked[parked]
        parked.held.unsubscribe(parked.resume)
        self._peers.unwatch(parked.client.socket.fileno())

    def close_parked(self, parked: _Parked) -> None:
        self._unpark(parked)
        self._admission.leave(parked.client.place)
        parked.client.socket.close()

    def resume(self, parked: _Parked) -> None:
        if parked in self._parked:
            self._unpark(parked)
            client = parked.client
            self._admission.answer(client.place)
            self._start(client.place, client.socket, partial(self._continue, parked))

    def receive_parked(self, parked: _Parked, data: bytes) -> bool:
        """Take the data that the peer of a parked connection sent; close the connection if the peer has."""
        if data:
            return parked.body_only or self._read_ahead(parked.client, data)
        self._last_words(parked.client)
        self.close_parked(parked)
        return False

    def _last_words(self, client: _Client) -> None:
        data = client.connection.trailing_data[0]
        if self._fatal is not None and data.startswith(FATAL):
            self._fatal(client.place.address, data.decode(errors="replace"))

    async def _continue(self, parked: _Parked) -> _Parked | _Client | None:
        answer = _look(parked.held)
        if answer is None:
            return parked
        if parked.body_only:
            await _send_body(parked.client.stream, answer.body)
            return None
        return await self._converse(parked.client, response=answer)

    async def _converse(
        self, client: _Client, head: _Head = h11.NEED_DATA, response: Response | None = None
    ) -> _Parked | _Client | None:
        """Answer one request after the other.

        ``head`` is the head of the first request, ``response`` the answer to it; None: not yet. Return the connection
        to park, or the client whose next request is waited for, or None if the connection is to be closed.
        """
        stream, connection, place = client.stream, client.connection, client.place
        while True:
            head_only = False
            if response is None:
                if head is h11.NEED_DATA:
                    self._admission.listen(place, len(connection.trailing_data[0]))
                    head = _next(connection)
                if head is h11.NEED_DATA and isinstance(stream, trio.SocketStream):
                    return client
                request = await self._read(client, head)
                head = h11.NEED_DATA
                if request is None:
                    return None

                self._admission.answer(place)
                answer: Response | Held | None = request if isinstance(request, Response) else None
                if isinstance(request, Request):
                    head_only = request.method == "HEAD"
                    answer = await self._answered(client, request)
                if isinstance(answer, Held):
                    return _Parked(self, client, answer)
                if answer is None:
                    return None
                response = answer

            self._admission.send(place)
            if not await _sent(stream, connection, response, head_only=head_only):
                return None
            if response.later is not None:
                self._admission.answer(place)
                return await self._later(client, response.later)
            if connection.our_state is h11.MUST_CLOSE or connection.their_state is not h11.DONE:
                self._admission.listen(place, 0)
                await _close_gracefully(stream)
                return None
            connection.start_next_cycle()
            response = None

    async def _read(self, client: _Client, head: _Head) -> Request | Response | None:
        """Return the next request, an answer that refuses it, or None if the peer has closed or takes too long."""
        connection = client.connection
        try:
            with trio.move_on_after(REQUEST_TIMEOUT_SECONDS):
                return await self._read_in_time(client, head)
        except h11.RemoteProtocolError as error:
            if connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                return text_response(error.error_status_hint or 400, f"not a request: {error}")
        return None

    async def _read_in_time(self, client: _Client, event: _Head) -> Request | Response | None:
        """Read as ``_read`` does, without a limit of time. Raises ``h11.RemoteProtocolError``."""
        connection = client.connection
        request: Request | None = None
        chunks, size = list[bytes](), 0
        while True:
            if isinstance(event, h11.RemoteProtocolError):
                raise event
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    response = connection.send(h11.InformationalResponse(status_code=100, headers=[]))
                    await client.stream.send_all(response or b"")
                data = bytes(await client.stream.receive_some(_PART_BYTES if request is None else None))
                if not self._admission.receive(client.place, len(data)):
                    return None
                connection.receive_data(data)
            elif isinstance(event, h11.Request):
                request = _request(event, client.place.address)
                answer = await self._refusal(request)
                if answer is not None:
                    return answer
            elif isinstance(event, h11.Data):
                size += len(event.data)
                if size > self._max_body:
                    return _too_large(self._max_body)
                chunks.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                return replace(request, body=b"".join(chunks))
            else:  # the peer has closed
                return None
            event = _next(connection)

    async def _refusal(self, head: Request) -> Response | None:
        """Return the answer to a request whose body is not wanted, or None."""
        chunked, length = "transfer-encoding" in head.headers, head.headers.get("content-length", "0")
        if not chunked and int(length) == 0:
            return None
        if chunked and "content-length" in head.headers:  # RFC 9112 6.3: it may be an attempt at smuggling
            return text_response(400, "a request has either Content-Length or Transfer-Encoding, not both")
        if int(length) > self._max_body:
            return _too_large(self._max_body)
        return await _refused(self._refuse, head) if self._refuse is not None else None

    async def _answered(self, client: _Client, request: Request) -> Response | Held | None:
        """Return the handler's answer, or None if the peer has closed before.

        ``Held`` is returned only if the connection can be parked; over TLS this waits for the answer.
        """
        stream, receive = client.stream, partial(self._read_ahead, client)
        answer = await self._while_connected(stream, partial(_answer, self._handler, request), receive)
        if isinstance(answer, Held) and not isinstance(stream, trio.SocketStream):
            self._admission.hold(client.place)
            answer = await self._while_connected(stream, partial(wait_for_answer, answer), receive)
            self._admission.answer(client.place)
        self._last_words(client)
        return answer

    async def _later(self, client: _Client, later: Callable[[], Awaitable[bytes]] | Held) -> _Parked | None:
        """Send the body of ``Response.later`` when it is complete, or park the connection until then.

        The wait ends when the peer closes.
        """
        stream = client.stream
        if not isinstance(later, Held):
            body = await self._while_connected(stream, later, bool)
        elif isinstance(stream, trio.SocketStream) and later.look() is None:
            return _Parked(self, client, later, body_only=True)
        else:
            self._admission.hold(client.place)
            answer = await self._while_connected(stream, partial(wait_for_answer, later), bool)
            self._admission.answer(client.place)
            body = answer.body if answer else None
        if body:
            await _send_body(stream, body)
        return None

    async def _while_connected(
        self,
        stream: trio.abc.Stream,
        work: Callable[[], Awaitable[Result]],
        receive: Callable[[bytes], bool],
    ) -> Result | None:
        """Return the result of ``work``, or cancel it and return None when the peer closes.

        ``receive`` gets the data that the peer sends meanwhile, until it returns False.
        """
        with trio.CancelScope() as scope:

            def receive_or_cancel(data: bytes) -> bool:
                if not data:
                    scope.cancel()
                return receive(data)

            if isinstance(stream, trio.SocketStream):
                number = stream.socket.fileno()
                self._peers.watch(number, receive_or_cancel)
                try:
                    return await work()
                finally:
                    self._peers.unwatch(number)
            async with trio.open_nursery() as nursery:  # only the TLS stream can read what the peer sends
                nursery.start_soon(_receive_all, stream, receive_or_cancel)
                result = await work()
                nursery.cancel_scope.cancel()
                return result
        return None

    def _read_ahead(self, client: _Client, data: bytes) -> bool:
        """Keep what a peer sends before its request is answered; False if it is more than ``MAX_AHEAD_BYTES``."""
        if data:
            if not self._admission.receive_ahead(client.place, len(data)):
                return False
            client.connection.receive_data(data)
        return len(client.connection.trailing_data[0]) <= MAX_AHEAD_BYTES


def _next(connection: h11.Connection) -> _Head:
    try:
        return connection.next_event()
    except h11.RemoteProtocolError as error:
        return error


def _request(head: h11.Request, peer: str) -> Request:
    if len(head.headers) > MAX_FIELDS:
        raise h11.RemoteProtocolError(f"more than {MAX_FIELDS} header fields", error_status_hint=431)
    headers = dict[str, str]()
    for raw, value in head.headers:
        name = raw.decode().lower()
        text = value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    return Request(head.method.decode(), head.target.decode("latin-1"), headers, b"", peer)


def _too_large(max_body: int) -> Response:
    return text_response(413, f"the body is larger than {max_body} bytes")


async def _receive_all(stream: trio.abc.Stream, receive: Callable[[bytes], bool]) -> None:
    data = b"more"
    while data:
        try:
            data = bytes(await stream.receive_some(_PART_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            data = b""
        if not receive(data):
            return


async def _answer(handler: HoldingHandler, request: Request) -> Response | Held:
    try:
        response = await handler(request)
        if isinstance(response, Response):
            _head(response)
    except Exception as error:  # noqa: BLE001 - an exception must not end the server; the answer names it
        return _internal_error(error)
    return response


async def _refused(refuse: Refuse, head: Request) -> Response | None:
    try:
        response = await refuse(head)
        if response:
            _head(response)
    except Exception as error:  # noqa: BLE001 - the same
        return _internal_error(error)
    return response


def _look(held: Held) -> Response | None:
    try:
        response = held.look()
        if response:
            _head(response)
    except Exception as error:  # noqa: BLE001 - the same
        return _internal_error(error)
    return response


def _internal_error(error: Exception) -> Response:
    return text_response(500, f"internal error: {type(error).__name__}: {error}")


def _head(response: Response) -> h11.Response:
    """Return the head. Raises ``LocalProtocolError`` or ``UnicodeError`` for an invalid status or header."""
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


async def _sent(
    stream: trio.abc.Stream, connection: h11.Connection, response: Response, *, head_only: bool
) -> bool:
    """Send the response. False if the peer does not read it: it must not hold a connection."""
    with trio.move_on_after(REQUEST_TIMEOUT_SECONDS):
        await _send(stream, connection, response, head_only=head_only)
        return True
    return False


async def _send_body(stream: trio.abc.Stream, body: bytes) -> None:
    with trio.move_on_after(REQUEST_TIMEOUT_SECONDS):
        await stream.send_all(body)


async def _close_gracefully(stream: trio.abc.Stream) -> None:
    """Let the peer read the answer before the close: with unread input the kernel would send a reset."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        if isinstance(stream, trio.abc.HalfCloseableStream):  # TLS cannot be half closed
            await stream.send_eof()
        with trio.move_on_after(1):
            while await stream.receive_some(_PART_BYTES):
                pass
