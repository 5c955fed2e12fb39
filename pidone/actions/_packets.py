"""Sees the packets that need the application, with a packet socket and a classic BPF filter. Needs NET_RAW.

A packet needs the application if it opens a TCP connection (SYN), brings data on one, or is a UDP datagram, to one of
the ports. The kernel answers all others: acknowledgements, keep-alives, windows. FIN and RST are of interest while a
connection is followed to its end.

The filter decides in the kernel, so the socket costs nothing until such a packet comes. There is no
socket while nobody waits: a hook for all packets costs each of them.
"""

import array
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass

import trio

FIN, SYN, RST = 1, 2, 4  # flags of TCP
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
_ALL_PROTOCOLS = 0x0003  # ETH_P_ALL
_ATTACH_FILTER = 26  # SO_ATTACH_FILTER
SEEN_BYTES = 1024  # of a packet: the head of a request with its user agent
MAX_PORTS = 32  # of both protocols: a conditional jump spans 255 instructions

# The instructions of linux/filter.h
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30  # into A, from an offset in the packet
_LOAD_HALF_X, _LOAD_BYTE_X = 0x48, 0x50  # from an offset behind X
_X_HEADER, _X_IS = 0xB1, 0x01  # X becomes the length of an IPv4 header, or a number
_AND, _RIGHT, _ADD_X, _SUB_X, _X_IS_A = 0x54, 0x74, 0x0C, 0x1C, 0x07
_EQUAL, _GREATER, _ANY_BIT = 0x15, 0x25, 0x45
_RETURN = 0x06
_PACKET_TYPE = 0xFFFFF000 + 4  # SKF_AD_OFF + SKF_AD_PKTTYPE
_OUTGOING = 4  # PACKET_OUTGOING

_Code = list[
    "tuple[int, str, str, int] | str"
]  # instruction, labels of both jumps (empty: the next one), number

# IPv6: extension headers before the transport's. Fragments and routed packets are rare, so all of them count.
_IPV6_HEADER_BYTES = 40
_RARE = (43, 44, 60)  # routing, fragment, destination options
_HOP_BY_HOP, _ICMPV6 = 0, 58

Flow = tuple[bytes, int, bytes, int]  # of a TCP connection: the peer's address and port, and the pod's


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet to one of the ports, or one whose port the filter cannot see (0)."""

    source: bytes  # 4 or 16 bytes
    source_port: int
    destination: bytes
    port: int
    flags: int  # of TCP; 0 for other protocols
    tcp: bool
    data: bytes  # as much as was read

    @property
    def flow(self) -> Flow:
        return (self.source, self.source_port, self.destination, self.port)

    @property
    def needs_application(self) -> bool:
        """True if the kernel does not answer it alone."""
        return not self.tcp or bool(self.flags & SYN or self.data)


def program(tcp: Collection[int], udp: Collection[int], flags: int = SYN | FIN | RST) -> bytes:
    """Return the filter for these ports: TCP with one of ``flags`` or with data, and all of UDP.

    Offsets count from the IP header, as on a socket of type SOCK_DGRAM.
    """
    return _assembled(
        [
            (_LOAD_BYTE, "", "", _PACKET_TYPE),
            (_EQUAL, "drop", "", _OUTGOING),  # this pod's own request to such a port of another
            (_LOAD_BYTE, "", "", 0),
            (_AND, "", "", 0xF0),
            (_EQUAL, "", "not 4", 0x40),
            (_LOAD_HALF, "", "", 6),
            (_ANY_BIT, "drop", "", 0x1FFF),  # a fragment that is not the first
            (_X_HEADER, "", "", 0),
            (_LOAD_BYTE, "", "", 9),
            (_EQUAL, "udp", "", UDP),
            (_EQUAL, "", "drop", TCP),
            *_ports(tcp, "tcp 4"),
            "tcp 4",
            *_flags(flags),
            # data: the packet is longer than both headers
            (_ADD_X, "", "", 0),
            (_X_IS_A, "", "", 0),
            (_LOAD_HALF, "", "", 2),
            (_SUB_X, "", "", 0),
            (_GREATER, "take", "drop", 0),
            "not 4",
            (_EQUAL, "", "drop", 0x60),
            (_X_IS, "", "", _IPV6_HEADER_BYTES),
            (_LOAD_BYTE, "", "", 6),
            (_EQUAL, "udp", "", UDP),
            (_EQUAL, "ports 6", "", TCP),
            *((_EQUAL, "take", "", header) for header in _RARE),
            (_EQUAL, "", "drop", _HOP_BY_HOP),
            (_LOAD_BYTE, "", "", _IPV6_HEADER_BYTES),
            (_EQUAL, "drop", "take", _ICMPV6),  # a router asks for multicast groups
            "ports 6",
            *_ports(tcp, "tcp 6"),
            "tcp 6",
            *_flags(flags),
            (_X_IS_A, "", "", 0),
            (_LOAD_HALF, "", "", 4),
            (_SUB_X, "", "", 0),
            (_GREATER, "take", "drop", 0),
            "udp",
            *_ports(udp, "take"),
            "take",
            (_RETURN, "", "", SEEN_BYTES),
            "drop",
            (_RETURN, "", "", 0),
        ]
    )


def _ports(ports: Collection[int], label: str) -> _Code:
    """Go on at the label if the destination's port is one of these; else drop the packet."""
    if not ports:
        return [(_RETURN, "", "", 0)]
    *others, last = ((_EQUAL, label, "", port) for port in sorted(ports))
    return [(_LOAD_HALF_X, "", "", 2), *others, (*last[:2], "drop", last[3])]


def _flags(flags: int) -> _Code:
    """Take a packet with one of the flags; else leave the length of the TCP header in A."""
    return [
        (_LOAD_BYTE_X, "", "", 13),
        (_ANY_BIT, "take", "", flags),
        (_LOAD_BYTE_X, "", "", 12),
        (_AND, "", "", 0xF0),
        (_RIGHT, "", "", 2),
    ]


def _assembled(code: _Code) -> bytes:
    """Return the instructions with the labels as distances."""
    places: dict[str, int] = {}
    instructions: list[tuple[int, str, str, int]] = []
    for item in code:
        if isinstance(item, str):
            places[item] = len(instructions)
        else:
            instructions.append(item)
    assembled = b""
    for place, (operation, jump, other, number) in enumerate(instructions, start=1):
        distances = (places[label] - place if label else 0 for label in (jump, other))
        assembled += struct.pack("=HBBI", operation, *distances, number)
    return assembled


def parse(packet: bytes) -> Packet | None:
    """Read a packet that has passed the filter, from its IP header on; None if it is too short."""
    try:
        if packet[0] >> 4 == 4:
            source, destination = packet[12:16], packet[16:20]
            protocol, begin = packet[9], (packet[0] & 15) * 4
            end = int.from_bytes(packet[2:4]) or len(packet)
        else:
            source, destination = packet[8:24], packet[24:40]
            protocol, begin = packet[6], _IPV6_HEADER_BYTES
            end = begin + (int.from_bytes(packet[4:6]) or len(packet))
        if protocol not in {TCP, UDP}:
            return Packet(source, 0, destination, 0, 0, tcp=False, data=b"")
        source_port, port = struct.unpack_from("!HH", packet, begin)
        flags = packet[begin + 13] if protocol == TCP else 0
        data = begin + ((packet[begin + 12] >> 4) * 4 if protocol == TCP else 8)
    except (IndexError, struct.error):
        return None
    return Packet(source, source_port, destination, port, flags, protocol == TCP, packet[data:end])


class PacketSocket:
    """A packet socket with the filter. It exists, and is hooked into the network, from ``open`` to ``close``."""

    def __init__(self, tcp: Collection[int], udp: Collection[int]) -> None:
        self._filter = array.array("B", program(tcp, udp))
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Begin to see packets. Raises ``PermissionError`` without NET_RAW."""
        if self._socket is not None:
            return
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_PACKET, kind, socket.htons(_ALL_PROTOCOLS))
        address, size = self._filter.buffer_info()
        self._socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", size // 8, address))
        while self.take() is not None:
            pass  # packets that came before the filter was there

    def close(self) -> None:
        """See no more packets, and drop those that were not taken."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def take(self) -> Packet | None:
        """Return the next packet that has come; None if there is none."""
        assert self._socket is not None
        while True:
            try:
                packet = parse(self._socket.recv(SEEN_BYTES))
            except OSError:  # there is none, or an interface has gone down, and the hook stays
                return None
            if packet is not None:
                return packet

    async def wait(self) -> Packet:
        """Wait for the next packet."""
        while (packet := self.take()) is None:
            assert self._socket is not None
            await trio.lowlevel.wait_readable(self._socket)
        return packet
