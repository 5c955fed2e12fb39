"""A session at an ensemble of ZooKeeper servers: one connection at a time, and calls in order.

The session outlives its connection. If the connection breaks, the next call takes the session up again at the next
server, within the session's timeout. A call that was cut off in the middle of a frame leaves a connection that cannot
be used, so it is closed. A request that a broken connection has carried cannot arrive late: once the session has
moved, the ensemble refuses what its old connection still sends (org.apache.zookeeper.server.SessionTracker).
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
        known = {each.value: each.name for each in Code}
        super().__init__(f"answered error {code}" + (f" ({known[code]})" if code in known else ""))


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
        else:
            previous.drop()

    async def run(self, steps: Callable[[], Awaitable[T]], *, within: float, anew: bool) -> T:
        """Run the steps, and from their start at another server if the connection breaks.

        ``within`` is seconds for all servers, of which each has an equal part at least. ``anew``: with a new session
        if ours has expired; else that is an ``ExpiredError``. Raises ``AnsweredError``, which ends the call,
        ``RegistryRefused``, and ``TransferError`` if no server answered.
        """
        now = trio.current_time()
        # before the deadline of the caller, so that the error can be raised
        until = now + min(within, 0.95 * (trio.current_effective_deadline() - now))
        errors: list[TransferError | ExpiredError] = []
        # Twice at the only server: it may close our new connection when it reads what an earlier one has sent last.
        tries = max(2, min(len(self._servers), MAX_SERVERS) + (self._stream is not None))
        for left in range(tries, 0, -1):
            seconds = max(0.1, (until - trio.current_time()) / left)
            server = self.server
            connected = False
            try:
                with trio.fail_after(seconds):
                    await self._attach(anew=anew)
                    connected = True
                    return await steps()
            except ExpiredError as error:
                if not anew:
                    raise
                errors.append(error)
                continue
            except (AnsweredError, RegistryRefused):
                if not connected:
                    self.drop()
                raise
            except MalformedError as error:
                errors.append(
                    ProtocolError(f"{server}: not an answer of ZooKeeper ({error}); is it its client port?")
                )
            except trio.TooSlowError:
                errors.append(TransferTimeout(f"{server}: no answer within {seconds:.3g} s", sent=connected))
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                errors.append(ConnectError(f"{server}: {reason(error)}", sent=connected))
            except BaseException:
                self.drop()
                raise
            self.drop()
            self._current = (self._current + 1) % len(self._servers)
        last = errors[-1]
        if isinstance(last, ExpiredError):
            raise last
        text = "; ".join(dict.fromkeys(map(str, errors)))
        raise type(last)(text, sent=any(isinstance(error, TransferError) and error.sent for error in errors))

    async def call(
        self, operation: Operation, *parts: bytes, expected: Collection[int] = NO_NUMBERS
    ) -> Reply:
        """Send a request and return its answer, if its code is OK or ``expected``. Only within ``run``.

        Raises ``AnsweredError`` for another code, and ``ExpiredError``.
        """
        self._xid = self._xid % 0x7FFFFFFF + 1
        return await self._exchange(self._xid, wire.request(self._xid, operation, *parts), expected)

    async def ping(self) -> None:
        """Renew the session, and do nothing else."""
        await self._exchange(wire.PING_XID, wire.ping(), NO_NUMBERS)

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

    async def _attach(self, *, anew: bool) -> None:
        """Connect and take the session up, or begin one. Does nothing if there is a connection."""
        if self._stream is not None:
            return
        again = self.session is not None
        if not await self._begin():
            self.drop()
            self.session = None
            if not anew:
                raise ExpiredError
            again = False
            if not await self._begin():
                raise MalformedError("a new session that has expired")
        user = self._user()
        if user is not None:
            await self._exchange(wire.AUTH_XID, wire.digest(*user), NO_NUMBERS)
        if again:
            # This server may be behind the one that was used before. For a new session it is not: it has taken part
            # in the transaction that has made the session.
            await self.call(Operation.SYNC, wire.text("/"))

    async def _begin(self) -> bool:
        """Connect and send the first frame. Returns False if our session has expired."""
        host, port = self._servers[self._current]
        with trio.move_on_after(CONNECT_SECONDS):
            self._stream = await connect(host, port, source=self._source)
        if self._stream is None:
            raise OSError(f"no connection within {CONNECT_SECONDS:g} s")
        await self._stream.send_all(wire.connect(self.session, self._timeout))
        try:
            session = wire.connected(await self._frame())
        except EndedError:
            raise OSError(
                "hung up instead of an answer; is it the client port of ZooKeeper, is it part of a quorum, and has "
                "this address maxClientCnxns connections?"
            ) from None
        if session is not None:
            self.session = session
        return session is not None

    async def _exchange(self, xid: int, request: bytes, expected: Collection[int]) -> Reply:
        assert self._stream is not None
        try:
            await self._stream.send_all(request)
            reply = wire.reply(await self._frame())
            while reply.xid == wire.NOTIFICATION_XID:
                reply = wire.reply(await self._frame())
        except BaseException:
            self.drop()
            raise
        if reply.xid != xid:
            self.drop()
            raise MalformedError(f"an answer to request {reply.xid} instead of {xid}")
        return self._judged(reply, expected)

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
        length = wire.length(await self._exactly(4))
        return await self._exactly(length)

    async def _exactly(self, count: int) -> bytes:
        assert self._stream is not None
        received = bytearray()
        while len(received) < count:
            data = await self._stream.receive_some(min(count - len(received), CHUNK))
            if not data:
                raise EndedError
            received += data
        return bytes(received)


class EndedError(OSError):
    def __str__(self) -> str:
        return "the connection ended"
