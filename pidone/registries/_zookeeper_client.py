"""A session at an ensemble of ZooKeeper servers: one connection at a time, and calls in order.

The session outlives its connection. If the connection breaks, the next call takes the session up again at the next
server, within the session's timeout. A call that is cut off while it sends leaves half a frame, so its connection is
closed. One that is cut off while it waits leaves an answer, which is passed over later. A request that a broken
connection has carried cannot arrive late: once the session has moved, the ensemble refuses what its old connection
still sends (org.apache.zookeeper.server.SessionTracker).
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from random import Random
from typing import TypeVar

import trio

from pidone.errors import (
    ConnectError,
    ProtocolError,
    RegistryError,
    RegistryRefused,
    TransferError,
    TransferTimeout,
)
from pidone.http.client import CONNECT_SECONDS, reason
from pidone.http.connect import connect
from pidone.http.urls import authority
from pidone.registries import _zookeeper_wire as wire
from pidone.registries._zookeeper_wire import Code, MalformedError, Operation, Reply, Session

T = TypeVar("T")

MAX_SERVERS = 3  # for one call, beside the connection that is open
CLOSE_SECONDS = 1.0  # for the end of a session that holds nothing; else the server ends it after its timeout
MAX_SILENCE_SECONDS = 20.0
CHUNK = 1 << 14  # bytes
NO_NUMBERS: Collection[int] = ()


class ExpiredError(RegistryError):
    """The registry has ended our session, and with it deletes our nodes."""

    def __init__(self) -> None:
        super().__init__("the registry has ended our session")


class AnsweredError(RegistryError):
    """The registry's own error, which any server of the ensemble would give."""

    def __init__(self, code: int) -> None:
        self.code = code
        name = next((f" ({name})" for name, known in vars(Code).items() if known == code), "")
        super().__init__(f"answered error {code}{name}")


class Client:
    """The connection and the session. ``session`` is None before the first connection, and after its end."""

    def __init__(
        self,
        servers: Sequence[tuple[str, int]],
        *,
        timeout: float,
        user: Callable[[], tuple[str, str] | None],
        source: str | None,
        random: Random,
    ) -> None:
        self._servers = list(servers)
        self._timeout = timeout  # of the session, that we ask for
        self._user = user  # name and password of now
        self._source = source
        # A random first server, so that not all clients of an ensemble use the same one.
        self._current = random.randrange(len(self._servers))
        self._stream: trio.SocketStream | None = None
        self._xid = 0
        self._received = bytearray()  # of the next frame
        self._unanswered = set[int]()  # numbers of requests
        self._heard = 0.0  # the time of the last frame, or of the first request after it
        self.session: Session | None = None

    @property
    def timeout(self) -> float:
        """The timeout of the session in seconds, as negotiated; before that, as we ask for it."""
        return self.session.timeout if self.session is not None else self._timeout

    @property
    def server(self) -> str:
        """The server in use, as host:port."""
        return authority(*self._servers[self._current])

    def take_over(self, previous: "Client", *, connection: bool) -> None:
        """Continue the session of ``previous``, with its connection or with one of our own."""
        server = previous._servers[previous._current]
        self.session, self._xid = previous.session, previous._xid
        if server in self._servers:
            self._current = self._servers.index(server)
        if connection and server in self._servers and previous._timeout == self._timeout:
            self._stream, previous._stream = previous._stream, None
            self._received, self._unanswered = previous._received, previous._unanswered
            self._heard = previous._heard
            previous._received, previous._unanswered = bytearray(), set()
        else:
            previous.drop()

    async def run(self, steps: Callable[[], Awaitable[T]], *, within: float, anew: bool) -> T:
        """Run the steps, and from their start at another server if the connection breaks.

        ``within`` is seconds for all servers. ``anew``: with a new session if ours has expired; else that is an
        ``ExpiredError``. Raises ``AnsweredError``, which ends the call, ``RegistryRefused``, and ``TransferError`` if
        no server answered.
        """
        now = trio.current_time()
        # before the deadline of the caller, so that the error can be raised
        within = min(within, 0.95 * (trio.current_effective_deadline() - now))
        errors: list[TransferError | ExpiredError] = []
        # Twice at the only server: it may close our new connection when it reads what an earlier one has sent last.
        tries = max(2, min(len(self._servers), MAX_SERVERS) + (self._stream is not None))
        with trio.move_on_after(within):
            for _ in range(tries):
                try:
                    return await self._try(steps, anew=anew)
                except ExpiredError as error:
                    if not anew:
                        raise
                    errors.append(error)
                except TransferError as error:
                    errors.append(error)
                    self._current = (self._current + 1) % len(self._servers)
            within = 0.0
        if within:
            # A connection that is slow is kept: the next call goes on with it.
            errors.append(
                TransferTimeout(
                    f"{self.server}: no answer within {within:.3g} s", sent=self._stream is not None
                )
            )
        last = errors[-1]
        if isinstance(last, ExpiredError):
            raise last
        text = "; ".join(dict.fromkeys(map(str, errors)))
        raise type(last)(text, sent=any(isinstance(error, TransferError) and error.sent for error in errors))

    async def _try(self, steps: Callable[[], Awaitable[T]], *, anew: bool) -> T:
        """Run the steps at the current server. A ``TransferError`` leaves no connection."""
        connected = False
        try:
            await self._attach(anew=anew)
            connected = True
            return await steps()
        except MalformedError as error:
            self.drop()
            raise ProtocolError(
                f"{self.server}: not an answer of ZooKeeper ({error}); is it its client port?", sent=connected
            ) from error
        except SilentError as error:
            self.drop()
            raise TransferTimeout(f"{self.server}: {error}", sent=connected) from error
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.drop()
            raise ConnectError(f"{self.server}: {reason(error)}", sent=connected) from error
        except BaseException:
            if not connected:
                self.drop()
            raise

    async def call(self, operation: int, *parts: bytes, expected: Collection[int] = NO_NUMBERS) -> Reply:
        """Send a request and return its answer, if its code is OK or ``expected``. Only within ``run``.

        Raises ``AnsweredError`` for another code, and ``ExpiredError``.
        """
        xid = await self._send(operation, *parts)
        return self._judged(await self._reply(xid), expected)

    async def end(self) -> bool:
        """End the session and close the connection. Raises nothing.

        Returns True if the server says that the session has ended. With it the server has deleted all its nodes,
        whatever their ACLs are.
        """
        ended = False
        try:
            if self._stream is not None and self.session is not None:
                with trio.move_on_after(CLOSE_SECONDS):
                    await self.call(Operation.CLOSE)
                    ended = True
        except (RegistryError, MalformedError, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the server ends it after its timeout
        finally:
            self.drop()
            if ended:
                self.session = None
        return ended

    def drop(self) -> None:
        """Close the connection. The session stays."""
        if self._stream is not None:
            self._stream.socket.close()
            self._stream = None
        self._received.clear()
        self._unanswered.clear()

    async def _attach(self, *, anew: bool) -> None:
        """Connect and take the session up, or begin one. Does nothing if there is a connection."""
        if self._stream is not None:
            return
        if not await self._begin():
            self.drop()
            self.session = None
            if not anew:
                raise ExpiredError
            if not await self._begin():
                raise MalformedError("a new session that has expired")

    async def _begin(self) -> bool:
        """Connect, and send all that a connection begins with. Returns False if our session has expired."""
        user = self._user()
        host, port = self._servers[self._current]
        with trio.move_on_after(CONNECT_SECONDS):
            self._stream = await connect(host, port, source=self._source)
        if self._stream is None:
            raise OSError(f"no connection within {CONNECT_SECONDS:g} s")
        self._heard = trio.current_time()
        again = self.session is not None
        await self._stream.send_all(wire.connect(self.session, self._timeout))
        if user is not None:
            await self._stream.send_all(wire.digest(*user))
            self._unanswered.add(wire.AUTH_XID)
        # This server may be behind the one that was used before. For a new session it is not: it has taken part in the
        # transaction that has made the session.
        sync = await self._send(Operation.SYNC, wire.text("/")) if again else None
        try:
            session = wire.connected(await self._frame())
        except EndedError:
            raise OSError(
                "hung up instead of an answer; is it the client port of ZooKeeper, is it part of a quorum, and has "
                "this address maxClientCnxns connections?"
            ) from None
        if session is None:
            return False
        self.session = session
        if user is not None:
            self._judged(await self._reply(wire.AUTH_XID), NO_NUMBERS)
        if sync is not None:
            self._judged(await self._reply(sync), NO_NUMBERS)
        return True

    async def _send(self, operation: int, *parts: bytes) -> int:
        """Send a request and return its number."""
        assert self._stream is not None
        self._xid = self._xid % 0x7FFFFFFF + 1
        if not self._unanswered:
            self._heard = trio.current_time()
        self._unanswered.add(self._xid)
        try:
            await self._stream.send_all(wire.request(self._xid, operation, *parts))
        except BaseException:
            self.drop()  # half a frame may be sent
            raise
        return self._xid

    async def _reply(self, xid: int) -> Reply:
        """Return the answer to a request. Those to calls that were cancelled are passed over."""
        while True:
            reply = wire.reply(await self._frame())
            if reply.xid == wire.NOTIFICATION_XID:
                continue
            if reply.xid not in self._unanswered:
                raise MalformedError(f"an answer to request {reply.xid}, and none to {xid}")
            self._unanswered.discard(reply.xid)
            if reply.xid == xid:
                return reply

    def _judged(self, reply: Reply, expected: Collection[int]) -> Reply:
        if reply.code in {Code.OK, *expected}:
            return reply
        if reply.code in {Code.SESSION_EXPIRED, Code.SESSION_MOVED, Code.AUTH_FAILED}:
            self.drop()
        match reply.code:
            case Code.SESSION_EXPIRED:
                self.session = None
                raise ExpiredError
            case Code.SESSION_MOVED:
                raise OSError("the session is at another server")
            case Code.AUTH_FAILED:
                raise RegistryRefused("the registry has no digest authentication; remove user and password")
        raise AnsweredError(reply.code)

    async def _frame(self) -> bytes:
        """Return the next frame. If this is cancelled, what was received of it is kept."""
        received = self._received
        while True:
            if len(received) >= 4:
                end = 4 + wire.length(bytes(received[:4]))
                if len(received) >= end:
                    frame = bytes(received[4:end])
                    del received[:end]
                    self._heard = trio.current_time()
                    return frame
            await self._receive()

    async def _receive(self) -> None:
        """Receive some bytes. The server has until the half of the session's timeout has passed in silence."""
        assert self._stream is not None
        patience = min(self.timeout / 2, MAX_SILENCE_SECONDS)
        with trio.CancelScope(deadline=self._heard + patience):
            data = await self._stream.receive_some(CHUNK)
            if not data:
                raise EndedError
            self._received += data
            return
        raise SilentError(f"no answer within {patience:.3g} s")


class SilentError(OSError):
    """A server that does not answer."""


class EndedError(OSError):
    def __str__(self) -> str:
        return "the connection ended"
