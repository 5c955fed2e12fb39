"""Reads the TCP sockets of this network namespace from the kernel by netlink (sock_diag(7)).

``/proc/net/tcp`` has no filter by state, and its lines cost ten times as much. The kernel builds the answer piece by
piece, so a caller can let other work run between two pieces.
"""

import socket
from collections.abc import Collection, Iterator
from struct import Struct
from typing import NamedTuple

# include/net/tcp_states.h; requests of connections, NEW_SYN_RECV in the kernel, are SYN_RECV here
ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT = range(1, 7)
CLOSE, CLOSE_WAIT, LAST_ACK, LISTEN, CLOSING = range(7, 12)
STATES = range(ESTABLISHED, CLOSING + 1)

_NETLINK_SOCK_DIAG = 4  # linux/netlink.h
# linux/inet_diag.h. The newer SOCK_DIAG_BY_FAMILY answers for one family, and walks all sockets of the node for each.
_TCPDIAG_GETSOCK = 18
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_INFO = 2  # INET_DIAG_INFO: a struct tcp_info
_PIECE_BYTES = 32768  # the kernel makes no larger piece of an answer; about 300 sockets

_HEADER = Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_REQUEST = Struct("=xxxB48xI4x")  # struct inet_diag_req: extensions, no socket's id, states
# struct inet_diag_msg: family, state, timer; ports, addresses; receive and send queue, uid, inode
_MESSAGE = Struct("=BBBx2s2s16s16s12x4xIIII")
_ATTRIBUTE = Struct("=HH")  # struct nlattr: length, type
# struct tcp_info: tcpi_last_data_sent, tcpi_last_data_recv, tcpi_data_segs_out
_DATA = Struct("=44xI4xI100xI")
_TIMER = _HEADER.size + 2


class Socket(NamedTuple):
    """One TCP socket. For LISTEN the queues are the connections that wait for ``accept``, and the most that may wait.

    The ages are milliseconds since data was last sent and received, as in ``struct tcp_info``. Without ``info`` in the
    request, for LISTEN and TIME_WAIT, and with kernels before 4.6, they are None. A socket that has received nothing
    yet has the age of its connection or more.
    """

    state: int
    local: tuple[str, int]
    remote: tuple[str, int]
    receive_queue: int
    send_queue: int
    uid: int
    inode: int  # 0: no process has the socket any more, or none has accepted it yet
    sent_ms: int | None = None
    received_ms: int | None = None
    segments_sent: int | None = None  # with data


def sockets(states: Collection[int] = STATES, *, info: bool = False) -> Iterator[list[Socket]]:
    """Yield the IPv4 and IPv6 sockets in these states, in lists of about 300.

    Raises ``OSError`` if the kernel does not answer.
    """
    for piece in pieces(states, info=info):
        yield [_socket(piece, start, end) for start, end in _messages(piece)]


def counts(piece: bytes) -> Iterator[tuple[int, bool]]:
    """Yield the state of each socket in a piece, and whether the kernel keeps the full socket no more.

    Such a socket is in TIME_WAIT, or in FIN_WAIT2 after its process has closed it.
    """
    for start, _ in _messages(piece):
        yield piece[start + _HEADER.size + 1], piece[start + _TIMER] == 3


def pieces(states: Collection[int], *, info: bool = False) -> Iterator[bytes]:
    """Yield the kernel's answers as they are. Raises ``OSError`` without a module for it, or behind a filter."""
    # not blocking: each answer is ready before ``recv``, and process 1 must never wait for one that is not
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG) as connection:
        connection.send(_request(states, info=info))
        while True:
            piece = connection.recv(_PIECE_BYTES)
            kind = _HEADER.unpack_from(piece)[1]
            if kind == _DONE:
                break
            if kind == _ERROR:
                error = -int.from_bytes(piece[_HEADER.size : _HEADER.size + 4], "little", signed=True)
                raise OSError(error, "sock_diag")
            yield piece


def _request(states: Collection[int], *, info: bool) -> bytes:
    body = _REQUEST.pack(1 << (_INFO - 1) if info else 0, sum(1 << state for state in states))
    return _HEADER.pack(_HEADER.size + len(body), _TCPDIAG_GETSOCK, _REQUEST_DUMP, 1, 0) + body


def _messages(piece: bytes) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each message about a socket."""
    start = 0
    while start < len(piece):
        length, kind = _HEADER.unpack_from(piece, start)[:2]
        if kind == _TCPDIAG_GETSOCK:
            yield start, start + length
        start += (length + 3) & ~3


def _socket(piece: bytes, start: int, end: int) -> Socket:
    family, state, _timer, local_port, remote_port, local, remote, received, sent, uid, inode = (
        _MESSAGE.unpack_from(piece, start + _HEADER.size)
    )
    width = 4 if family == socket.AF_INET else 16
    return Socket(
        state,
        (socket.inet_ntop(family, local[:width]), int.from_bytes(local_port, "big")),
        (socket.inet_ntop(family, remote[:width]), int.from_bytes(remote_port, "big")),
        received,
        sent,
        uid,
        inode,
        *_data(piece, start + _HEADER.size + _MESSAGE.size, end),
    )


def _data(piece: bytes, start: int, end: int) -> tuple[int, ...]:
    while start + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(piece, start)
        if kind == _INFO and length >= _ATTRIBUTE.size + _DATA.size:
            return _DATA.unpack_from(piece, start + _ATTRIBUTE.size)
        start += max(_ATTRIBUTE.size, (length + 3) & ~3)
    return ()
