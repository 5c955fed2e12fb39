"""Sees the packets that need the application, with a packet socket and a classic BPF filter. Needs NET_RAW.

A packet needs the application if it opens a TCP connection (SYN), brings data on one, or is a UDP datagram, to one of
the ports. The kernel answers all others: acknowledgements, keep-alives, windows. FIN and RST are of interest while a
connection is followed to its end.

The filter decides in the kernel, so the socket costs nothing until such a packet comes. It is not hooked into the
network while nobody waits: a hook for all packets costs each of them.
"""

import array
import socket
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass

FIN, SYN, RST = 1, 2, 4  # flags of TCP
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
ALL_PROTOCOLS = 0x0003  # ETH_P_ALL
ATTACH_FILTER = 26  # SO_ATTACH_FILTER
SEEN_BYTES = 1024  # of a packet: the head of a request with its user agent
MAX_PORTS = 100

# The instructions of linux/filter.h
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30  # into A, from an offset in the packet
_LOAD_HALF_X, _LOAD_BYTE_X = 0x48, 0x50  # from an offset behind X
_X_HEADER, _X_IS = 0xB1, 0x01  # X becomes the length of an IPv4 header, or a number
_AND, _RIGHT, _ADD_X, _SUB_X, _X_IS_A = 0x54, 0x74, 0x0C, 0x1C, 0x07
_EQUAL, _GREATER, _ANY_BIT, _GO = 0x15, 0x25, 0x45, 0x05
_RETURN = 0x06
_PACKET_TYPE = 0xFFFFF000 + 4  # SKF_AD_OFF + SKF_AD_PKTTYPE
_OUTGOING = 4  # PACKET_OUTGOING

# IPv6: extension headers before the transport's. Fragments and routed packets are rare, so all of them count.
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION, _ICMPV6 = 0, 43, 44, 60, 58

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
    code: list[tuple[int, str, str, int] | str] = [
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
        # data: the length of the packet is more than that of both headers
        (_ADD_X, "", "", 0),
        (_X_IS_A, "", "", 0),
        (_LOAD_HALF, "", "", 2),
        (_SUB_X, "", "", 0),
        (_GREATER, "take", "drop", 0),
        "not 4",
        (_EQUAL, "", "drop", 0x60),
        (_X_IS, "", "", 40),
        (_LOAD_BYTE, "", "", 6),
        (_EQUAL, "udp", "", UDP),
        (_EQUAL, "ports 6", "", TCP),
        (_EQUAL, "take", "", _ROUTING),
        (_EQUAL, "take", "", _FRAGMENT),
        (_EQUAL, "take", "", _DESTINATION),
        (_EQUAL, "", "drop", _HOP_BY_HOP),
        (_LOAD_BYTE, "", "", 40),
        (_EQUAL, "drop", "take", _ICMPV6),  # a router's question for multicast groups
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
    return _assembled(code)


def _ports(ports: Iterable[int], then: str) -> list[tuple[int, str, str, int] | str]:
    """Go on at ``then`` if the destination's port is one of these. A jump of a condition spans 255 instructions."""
    return [
        (_LOAD_HALF_X, "", "", 2),
        *((_EQUAL, f"found {then}", "", port) for port in sorted(ports)),
        (_GO, "drop", "", 0),
        f"found {then}",
        (_GO, then, "", 0),
    ]


def _flags(flags: int) -> list[tuple[int, str, str, int] | str]:
    """Take a packet with one of the flags; else leave the length of the TCP header in A."""
    return [
        (_LOAD_BYTE_X, "", "", 13),
        (_ANY_BIT, "take", "", flags),
        (_LOAD_BYTE_X, "", "", 12),
        (_AND, "", "", 0xF0),
        (_RIGHT, "", "", 2),
    ]
