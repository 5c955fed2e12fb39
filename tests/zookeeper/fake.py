"""An ensemble of ZooKeeper servers in memory: one tree and its sessions, and as many servers as a test wants.

It answers as ZooKeeper 3.8 does (the tests of the driver ask both the same questions), with simplifications: no
watches and no quorum, all servers know everything at once, ACLs know ``world``, ``auth`` and a digest in clear, and a
container is removed as soon as its last child is gone.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random

import trio

from pidone.registries._zookeeper_wire import (
    CREATE,
    DELETE,
    READ,
    WRITE,
    Code,
    Flag,
    MalformedError,
    Operation,
    Records,
    buffer,
    frame,
    integer,
    length,
    long,
    text,
)

LEAST_SECONDS, MOST_SECONDS = 0.4, 40.0  # of a session
ACL = list[tuple[int, str, str]]
OPEN: ACL = [(31, "world", "anyone")]


@dataclass(slots=True)
class FakeNode:
    data: bytes
    acl: ACL
    created: int
    owner: int = 0
    version: int = 0
    container: bool = False
    numbers: int = 0  # of sequential children so far


@dataclass(slots=True)
class FakeSession:
    password: bytes
    timeout: float
    heard: float


@dataclass(slots=True)
class _Connection:
    session: int = 0
    users: set[str] = field(default_factory=set)


class _RefusalError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class FakeZooKeeper:
    """The tree and the sessions. ``asked`` counts requests by operation; ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self.asked: Counter[int] = Counter()
        self.refused = frozenset[int]()  # operations that an older server does not have
        self.nodes: dict[str, FakeNode] = {"": FakeNode(b"", OPEN, 0)}
        self.sessions: dict[int, FakeSession] = {}
        self._clock = clock
        self._transactions, self._numbers, self._random = count(1), count(0x1000), Random(1)

    def wipe(self) -> None:
        """Forget everything, as a restart without data does."""
        self.nodes = {"": FakeNode(b"", OPEN, 0)}
        self.sessions.clear()

    def expire(self, session: int) -> None:
        """End a session and delete its nodes."""
        del self.sessions[session]
        for path in [path for path, node in self.nodes.items() if node.owner == session]:
            self._remove(path)

    def begin(self, connection: _Connection, data: bytes) -> bytes:
        """Answer the first frame of a connection."""
        self._expire_late()
        records = Records(data)
        records.take(12)
        timeout = min(max(records.integer() / 1000, LEAST_SECONDS), MOST_SECONDS)
        number, password = records.long(), records.buffer()
        if number == 0:
            number = next(self._numbers)
            self.sessions[number] = FakeSession(self._random.randbytes(16), timeout, self._clock())
        session = self.sessions.get(number)
        if session is None or (password != session.password and any(password)):
            return frame(integer(0), integer(0), long(0), buffer(bytes(16)), b"\0")
        session.timeout, session.heard = timeout, self._clock()
        connection.session = number
        return frame(
            integer(0), integer(round(timeout * 1000)), long(number), buffer(session.password), b"\0"
        )

    def answer(self, connection: _Connection, data: bytes) -> bytes | None:
        """Answer a request; None if the server hangs up instead, as it does after the end of a session."""
        self._expire_late()
        session = self.sessions.get(connection.session)
        if session is None:
            return None
        session.heard = self._clock()
        records = Records(data)
        xid, operation = records.integer(), records.integer()
        self.asked[operation] += 1
        try:
            code, rest = 0, self._do(connection, operation, records)
        except _RefusalError as error:
            code, rest = error.code, b""
        return frame(integer(xid), long(next(self._transactions)), integer(code), rest)

    def _do(self, connection: _Connection, operation: int, records: Records) -> bytes:
        if operation in self.refused:
            raise _RefusalError(Code.UNIMPLEMENTED)
        match operation:
            case Operation.AUTH:
                _, _scheme, user = records.integer(), records.text(), records.text()
                connection.users.add(user)
            case Operation.CLOSE:
                self.expire(connection.session)
            case Operation.SYNC:
                return text(records.text())
            case Operation.CREATE | Operation.CREATE_CONTAINER:
                return self._create(connection, operation, records)
            case Operation.DELETE:
                self._delete(connection, records.text(), records.integer())
            case _:
                return self._do_to_node(connection, operation, records)
        return b""

    def _do_to_node(self, connection: _Connection, operation: int, records: Records) -> bytes:
        path = records.text()
        node = self._node(path)
        match operation:
            case Operation.EXISTS:
                return self._stat(path, node)
            case Operation.GET_DATA:
                self._permit(connection, node, READ)
                return buffer(node.data) + self._stat(path, node)
            case Operation.GET_CHILDREN:
                self._permit(connection, node, READ)
                names = self._children(path)
                return integer(len(names)) + b"".join(map(text, names))
            case Operation.SET_DATA:
                self._permit(connection, node, WRITE)
                data, version = records.buffer(), records.integer()
                if version not in {-1, node.version}:
                    raise _RefusalError(Code.BAD_VERSION)
                node.data, node.version = data, node.version + 1
                return self._stat(path, node)
        raise _RefusalError(Code.UNIMPLEMENTED)

    def _create(self, connection: _Connection, operation: int, records: Records) -> bytes:
        path, data = records.text(), records.buffer()
        acl = [(records.integer(), records.text(), records.text()) for _ in range(records.integer())]
        flag = records.integer()
        if (
            not path.startswith("/")
            or path.endswith("/")
            or not {"", ".", ".."}.isdisjoint(path[1:].split("/"))
        ):
            raise _RefusalError(Code.BAD_ARGUMENTS)
        parent = self._node(path.rpartition("/")[0] or "/")
        self._permit(connection, parent, CREATE)
        if parent.owner:
            raise _RefusalError(Code.NO_CHILDREN_FOR_EPHEMERALS)
        if flag == Flag.EPHEMERAL_SEQUENTIAL:
            path, parent.numbers = f"{path}{parent.numbers:010}", parent.numbers + 1
        if path in self.nodes:
            raise _RefusalError(Code.NODE_EXISTS)
        owned = flag in {Flag.EPHEMERAL, Flag.EPHEMERAL_SEQUENTIAL}
        users = [
            (bits, "digest", user) for bits, scheme, _ in acl if scheme == "auth" for user in connection.users
        ]
        if any(scheme == "auth" for _, scheme, _ in acl) and not users:
            raise _RefusalError(Code.INVALID_ACL)
        kept = [each for each in acl if each[1] != "auth"] + users
        owner = connection.session if owned else 0
        node = FakeNode(data, kept, next(self._transactions), owner, container=flag == Flag.CONTAINER)
        self.nodes[path] = node
        return text(path) + (self._stat(path, node) if operation == Operation.CREATE_CONTAINER else b"")

    def _delete(self, connection: _Connection, path: str, version: int) -> None:
        parent = self.nodes.get(path.rpartition("/")[0])
        if parent is not None:
            self._permit(connection, parent, DELETE)
        node = self._node(path)
        if version not in {-1, node.version}:
            raise _RefusalError(Code.BAD_VERSION)
        if self._children(path):
            raise _RefusalError(Code.NOT_EMPTY)
        self._remove(path)

    def _remove(self, path: str) -> None:
        del self.nodes[path]
        parent = path.rpartition("/")[0]
        node = self.nodes.get(parent)
        if node is not None and node.container and not self._children(parent):
            self._remove(parent)

    def _node(self, path: str) -> FakeNode:
        node = self.nodes.get(path.rstrip("/"))
        if node is None:
            raise _RefusalError(Code.NO_NODE)
        return node

    def _children(self, path: str) -> list[str]:
        start = path.rstrip("/") + "/"
        return [
            each[len(start) :]
            for each in self.nodes
            if each.startswith(start) and "/" not in each[len(start) :]
        ]

    def _stat(self, path: str, node: FakeNode) -> bytes:
        numbers = integer(node.version) + integer(0) + integer(0)
        sizes = integer(len(node.data)) + integer(len(self._children(path)))
        created = long(node.created)
        return created + created + long(0) + long(0) + numbers + long(node.owner) + sizes + created

    def _permit(self, connection: _Connection, node: FakeNode, bit: int) -> None:
        for bits, scheme, name in node.acl:
            if bits & bit and (scheme == "world" or name in connection.users):
                return
        raise _RefusalError(Code.NO_AUTH)

    def _expire_late(self) -> None:
        now = self._clock()
        for number in [
            each for each, session in self.sessions.items() if now - session.heard > session.timeout
        ]:
            self.expire(number)


class FakeServer:
    """One server. ``lost_answers``: it carries out that many requests and hangs up instead of answering them."""

    def __init__(self, ensemble: FakeZooKeeper) -> None:
        self.ensemble = ensemble
        self.port = 0
        self.connections = 0  # so far
        self.lost_answers = 0
        self.refuses = False  # it hangs up at once
        self.mute = False  # it reads, and neither acts nor answers
        self.takes = 0.0  # seconds from a request to its answer; it acts at once
        self._streams: set[trio.SocketStream] = set()

    async def start(self, nursery: trio.Nursery) -> "FakeServer":
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await nursery.start(trio.serve_listeners, self._serve, listeners)
        return self

    def hang_up(self) -> None:
        """Close all connections."""
        for stream in self._streams:
            stream.socket.close()
        self._streams.clear()

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self._streams.add(stream)
        connection, begun = _Connection(), False
        try:
            while not self.refuses:
                data = await received_frame(stream)
                if self.mute:
                    await trio.sleep_forever()
                answer = (
                    self.ensemble.answer(connection, data) if begun else self.ensemble.begin(connection, data)
                )
                if answer is None:
                    return
                if begun and self.lost_answers:
                    self.lost_answers -= 1
                    return
                await trio.sleep(self.takes)
                await stream.send_all(answer)
                if not begun and connection.session == 0:
                    return
                begun = True
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, MalformedError):
            pass
        finally:
            self._streams.discard(stream)
            stream.socket.close()


async def received_frame(stream: trio.SocketStream) -> bytes:
    async def exactly(number: int) -> bytes:
        received = b""
        while len(received) < number:
            data = await stream.receive_some(number - len(received))
            if not data:
                raise OSError("closed")
            received += data
        return received

    return await exactly(length(await exactly(4)))
