"""Judges traffic: what comes from where probes come, and which connections are in use."""

import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pidone.actions._packets import Flow, Packet
from pidone.metrics import sock_diag
from pidone.metrics.sock_diag import CLOSE_WAIT, ESTABLISHED, LISTEN, SYN_RECV

KUBELET = "kube-probe/"  # the user agent of the kubelet's HTTP probes, before its version
_METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"PATCH ", b"DELETE ", b"OPTIONS ")
_MAPPED = bytes(10) + b"\xff\xff"  # IPv4 in IPv6


def packed(address: str) -> bytes:
    """Return the 4 or 16 bytes of an address. Raises ``OSError``."""
    address = address.partition("%")[0]
    if ":" not in address:
        return socket.inet_pton(socket.AF_INET, address)
    long = socket.inet_pton(socket.AF_INET6, address)
    return long[12:] if long.startswith(_MAPPED) else long


def text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def is_loopback(address: bytes) -> bool:
    return address[:1] == b"\x7f" if len(address) == 4 else address == bytes(15) + b"\1"


@dataclass(frozen=True, slots=True)
class Network:
    """A CIDR."""

    address: int
    shift: int  # the bits of a host
    size: int  # bytes of an address

    @classmethod
    def of(cls, cidr: str) -> "Network":
        """Read ``10.0.0.0/8`` or ``fd00::/8``. Raises ``ValueError`` or ``OSError``."""
        address, _, length = cidr.partition("/")
        begin = packed(address)
        bits = int(length or len(begin) * 8)
        if not 0 <= bits <= len(begin) * 8:
            raise ValueError(f"{cidr}: at most {len(begin) * 8} bits")
        shift = len(begin) * 8 - bits
        return cls(int.from_bytes(begin) >> shift, shift, len(begin))

    def __contains__(self, address: bytes) -> bool:
        return len(address) == self.size and int.from_bytes(address) >> self.shift == self.address


@dataclass(frozen=True, slots=True)
class Ignored:
    """The traffic that wakes the application and does not keep it awake."""

    probes: bool
    nodes: frozenset[bytes]  # where the kubelet and pidone's own probes come from, besides loopback
    networks: tuple[Network, ...]
    agents: tuple[bytes, ...]  # user agents of HTTP probes

    def comes_from(self, address: bytes) -> bool:
        """True if ignored traffic may come from this address."""
        return self._is_node(address) or self._is_listed(address)

    def covers(self, packet: Packet) -> bool:
        """True if the packet is ignored: it belongs to a probe, as far as one can see, or comes from a network.

        From where probes come, HTTP with another user agent is traffic: the node translates clients of its ports to its
        own address. Data that cannot be read, as TLS, is taken for a probe; its connection is followed.
        """
        if self._is_listed(packet.source):
            return True
        if not packet.tcp or not self._is_node(packet.source):
            return False
        head = packet.data.partition(b"\r\n\r\n")[0]
        return not head.startswith(_METHODS) or any(agent in head for agent in self.agents)

    def _is_node(self, address: bytes) -> bool:
        return self.probes and (address in self.nodes or is_loopback(address))

    def _is_listed(self, address: bytes) -> bool:
        return any(address in network for network in self.networks)


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection that a process has, or that waits for one."""

    flow: Flow
    quiet_seconds: float  # since data was last sent or received
    half_closed: bool  # the peer has ended its direction
    unanswered: bool  # data has come since data was sent last


def connections(ports: Collection[int]) -> list[Connection]:
    """Return the open connections to these ports. Raises ``OSError`` if the kernel does not tell."""
    if not ports:
        return []
    states = (ESTABLISHED, SYN_RECV, CLOSE_WAIT)
    return [_connection(each) for each in _sockets(ports, states, info=True)]


def _connection(each: sock_diag.Socket) -> Connection:
    sent, received = each.sent_ms or 0, each.received_ms or 0
    # The clock has ticks of some ms. In the tick of its begin, a connection on which nothing was sent has both ages.
    unanswered = received < sent or each.receive_queue > 0 or (received == sent and not each.segments_sent)
    return Connection(
        (packed(each.remote[0]), each.remote[1], packed(each.local[0]), each.local[1]),
        min(sent, received) / 1000,
        each.state == CLOSE_WAIT,
        unanswered,
    )


def waiting(ports: Collection[int]) -> bool:
    """True if a connection to one of these ports waits for ``accept``. Raises ``OSError``."""
    return bool(ports) and any(each.receive_queue for each in _sockets(ports, (LISTEN,)))


def _sockets(
    ports: Collection[int], states: Collection[int], *, info: bool = False
) -> Iterable[sock_diag.Socket]:
    for piece in sock_diag.sockets(states, info=info):
        for each in piece:
            if each.local[1] in ports:
                yield each
