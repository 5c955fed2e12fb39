"""ZooKeeper's protocol as values: frames to send, and what received frames say. No I/O.

A frame is four bytes of length and then records of jute, ZooKeeper's own format: big-endian integers, and strings,
buffers and vectors behind their lengths (org.apache.jute.BinaryOutputArchive, zookeeper.jute). A frame that a server
of ZooKeeper cannot have sent is ``MalformedError``.
"""

from collections.abc import Sequence
from typing import NamedTuple

# An answer is at most as long as a request may be, jute.maxbuffer: 0xfffff bytes by default, and some for the header.
MAX_FRAME = (1 << 20) + 4096
PASSWORD_BYTES = 16
MAX_SESSION_SECONDS = 86_400


class MalformedError(ValueError):
    """A frame that no server of ZooKeeper sends."""


# Classes of numbers and not enumerations, whose members take 15 KiB of a pod's memory


class Operation:
    """org.apache.zookeeper.ZooDefs.OpCode."""

    CREATE = 1
    DELETE = 2
    GET_DATA = 4
    SET_DATA = 5
    EXISTS = 3
    GET_CHILDREN = 8
    SYNC = 9
    CREATE_CONTAINER = 19
    AUTH = 100
    CLOSE = -11


class Code:
    """org.apache.zookeeper.KeeperException.Code, those that are told apart."""

    OK = 0
    UNIMPLEMENTED = -6
    BAD_ARGUMENTS = -8
    NO_NODE = -101
    NO_AUTH = -102
    BAD_VERSION = -103
    NO_CHILDREN_FOR_EPHEMERALS = -108
    NODE_EXISTS = -110
    NOT_EMPTY = -111
    SESSION_EXPIRED = -112
    INVALID_ACL = -114
    AUTH_FAILED = -115
    SESSION_MOVED = -118
    QUOTA_EXCEEDED = -125


class Flag:
    """org.apache.zookeeper.CreateMode."""

    PERSISTENT = 0
    EPHEMERAL = 1
    EPHEMERAL_SEQUENTIAL = 3
    CONTAINER = 4


# The xids of requests that are not numbered (org.apache.zookeeper.ClientCnxn)
NOTIFICATION_XID, AUTH_XID = -1, -4
ANY_VERSION = -1
# The bits of permissions (org.apache.zookeeper.ZooDefs.Perms)
READ, WRITE, CREATE, DELETE, ADMIN = 1, 2, 4, 8, 16
ALL = READ | WRITE | CREATE | DELETE | ADMIN


# One entry of an ACL: bits, a scheme and an identifier. ``auth`` is the user of the connection, ``world`` is everybody.
Permission = tuple[int, str, str]


class Session(NamedTuple):
    """What a client shows to take up its session at any server of the ensemble."""

    id: int
    password: bytes
    timeout: float  # seconds, as negotiated

    def __repr__(self) -> str:
        return f"Session({self.id:#x}, {self.timeout} s)"  # without the password


class Stat:
    """The parts of a node's state that are used."""

    __slots__ = ("created", "owner", "version")

    def __init__(self, created: int, version: int, owner: int) -> None:
        self.created = created  # the transaction that created it (czxid): two nodes of one path differ in it
        self.version = version  # of its data
        self.owner = owner  # the session of an ephemeral node, else 0


class Reply:
    """The head of an answer; ``rest`` is the operation's own part."""

    __slots__ = ("code", "rest", "xid")

    def __init__(self, xid: int, code: int, rest: bytes) -> None:
        self.xid, self.code, self.rest = xid, code, rest


def integer(value: int) -> bytes:
    return value.to_bytes(4, "big", signed=True)


def long(value: int) -> bytes:
    return value.to_bytes(8, "big", signed=True)


def buffer(value: bytes) -> bytes:
    return integer(len(value)) + value


def flag(*, set_: bool) -> bytes:
    return bytes([set_])


def text(value: str) -> bytes:
    return buffer(value.encode())


def frame(*parts: bytes) -> bytes:
    return buffer(b"".join(parts))


def connect(session: Session | None, timeout: float) -> bytes:
    """Return the first frame of a connection. ``timeout``: seconds, which the server brings within its bounds.

    The last transaction seen is given as 0: a server that is behind it, or was restarted without its data, would else
    hang up without an answer. A client that has changed its server sends ``sync`` before it reads.
    """
    password = session.password if session is not None else bytes(PASSWORD_BYTES)
    number = session.id if session is not None else 0
    read_only = b"\0"
    return frame(
        integer(0), long(0), integer(round(timeout * 1000)), long(number), buffer(password), read_only
    )


def request(xid: int, operation: int, *parts: bytes) -> bytes:
    return frame(integer(xid), integer(operation), *parts)


def digest(user: str, password: str) -> bytes:
    """Return the frame that adds a user to the connection. Servers accept any; a wrong one has no permissions."""
    return request(AUTH_XID, Operation.AUTH, integer(0), text("digest"), text(f"{user}:{password}"))


def creation(path: str, data: bytes, permissions: Sequence[Permission], flag: int) -> bytes:
    """Return the body of ``CREATE`` and ``CREATE_CONTAINER``."""
    entries = [integer(bits) + text(scheme) + text(identifier) for bits, scheme, identifier in permissions]
    return b"".join([text(path), buffer(data), integer(len(entries)), *entries, integer(flag)])


class Records:
    """Reads the records of a frame from its start. All raise ``MalformedError`` at its end."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if count < 0 or end > len(self._data):
            raise MalformedError("a frame that ends early")
        part, self._at = self._data[self._at : end], end
        return part

    def integer(self) -> int:
        return int.from_bytes(self.take(4), "big", signed=True)

    def long(self) -> int:
        return int.from_bytes(self.take(8), "big", signed=True)

    def buffer(self) -> bytes:
        count = self.integer()
        return b"" if count == -1 else self.take(count)  # -1 is null

    def text(self) -> str:
        try:
            return self.buffer().decode()
        except UnicodeDecodeError as error:
            raise MalformedError("a string that is not UTF-8") from error

    def texts(self) -> list[str]:
        return [self.text() for _ in range(self.integer())]

    def stat(self) -> Stat:
        created, _modified = self.long(), self.long()
        _times = self.take(16)
        version, _children, _permissions = self.integer(), self.integer(), self.integer()
        owner = self.long()
        _sizes, _children_modified = self.take(8), self.long()
        return Stat(created, version, owner)


def length(head: bytes) -> int:
    """Return the length of the frame that follows these four bytes. Raises ``MalformedError``."""
    count = int.from_bytes(head, "big", signed=True)
    if not 0 < count <= MAX_FRAME:
        raise MalformedError(f"a frame of {count} bytes")
    return count


def connected(data: bytes) -> Session | None:
    """Return the session that the first frame of a server gives; None if ours has expired."""
    records = Records(data)
    version, timeout, number, password = (
        records.integer(),
        records.integer(),
        records.long(),
        records.buffer(),
    )
    if version != 0:
        raise MalformedError(f"version {version} of the protocol")
    if number == 0 or timeout <= 0:
        return None
    if len(password) != PASSWORD_BYTES or timeout > MAX_SESSION_SECONDS * 1000:
        raise MalformedError("a session without a password of 16 bytes, or of more than a day")
    return Session(number, password, timeout / 1000)


def reply(data: bytes) -> Reply:
    records = Records(data)
    xid, _transaction, code = records.integer(), records.long(), records.integer()
    return Reply(xid, code, data[16:])
