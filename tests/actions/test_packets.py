"""The filter in the kernel, against made packets and against those of real connections."""

import array
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pidone.actions import _packets
from pidone.actions._packets import FIN, MAX_PORTS, RST, SYN, Packet, PacketSocket, parse, program
from tests.patience import PATIENCE_SECONDS


def may_listen() -> bool:
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0).close()
    except PermissionError:
        return False
    return True


needs_packets = pytest.mark.skipif(not may_listen(), reason="no right to packets (NET_RAW): sudo make test")


class Kernel:
    """Runs a filter in the kernel: on a pair of local sockets, which needs no right."""

    def __init__(self, code: bytes) -> None:
        self._in, self._out = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        program = array.array("B", code)
        address, size = program.buffer_info()
        self._out.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", size // 8, address))
        self._out.setblocking(False)

    def close(self) -> None:
        self._in.close()
        self._out.close()

    def takes(self, packet: bytes) -> bool:
        self._in.send(packet)
        try:
            return self._out.recv(65536)[: len(packet)] == packet[: _packets.SEEN_BYTES]
        except BlockingIOError:
            return False


def ip(packet: Packet, options: bytes = b"", *, extension: int | None = None, fragment: int = 0) -> bytes:
    """Write a packet, with options in the TCP header, and with one extension header of IPv6."""
    ports = struct.pack("!HH", packet.source_port, packet.port)
    if packet.tcp:
        offset = (5 + len(options) // 4) << 4
        body = ports + bytes(8) + bytes([offset, packet.flags]) + bytes(6) + options + packet.data
    else:
        body = ports + struct.pack("!HH", 8 + len(packet.data), 0) + packet.data
    protocol = socket.IPPROTO_TCP if packet.tcp else socket.IPPROTO_UDP
    if len(packet.source) == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, fragment, 64, protocol, 0)
        return head + packet.source + packet.destination + body
    if extension is not None:
        body = bytes([protocol]) + bytes(7) + body
        protocol = extension
    head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64)
    return head + packet.source + packet.destination + body


PORTS = st.sets(st.integers(1, 65535), max_size=MAX_PORTS // 2)


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    size = draw(st.sampled_from([4, 16]))
    address = st.binary(min_size=size, max_size=size)
    return Packet(
        source=draw(address),
        source_port=draw(st.integers(1, 65535)),
        destination=draw(address),
        port=draw(st.integers(1, 65535)),
        flags=draw(st.integers(0, 255)),
        tcp=draw(st.booleans()),
        data=draw(st.binary(max_size=40)),
    )


@given(packets(), PORTS, PORTS, st.booleans(), st.sampled_from([b"", bytes(12)]))
def test_the_kernel_takes_what_the_application_is_needed_for(
    packet: Packet, tcp: set[int], udp: set[int], wanted: bool, options: bytes
) -> None:
    """With ``wanted`` the packet's port is one of the ports, which it would hardly ever be otherwise."""
    ports = tcp if packet.tcp else udp
    if wanted:
        ports.add(packet.port)
    packet = packet if packet.tcp else replace(packet, flags=0)
    written = ip(packet, options)
    with closing(Kernel(program(tcp, udp))) as kernel:
        followed = not packet.tcp or bool(packet.flags & (SYN | FIN | RST) or packet.data)
        assert kernel.takes(written) == (packet.port in ports and followed)
    assert parse(written) == packet
    with closing(Kernel(program(tcp, udp, SYN))) as kernel:
        assert kernel.takes(written) == (packet.port in ports and packet.needs_application)


REQUEST = Packet(bytes(4), 40000, bytes(4), 8080, 0x18, tcp=True, data=b"GET / HTTP/1.1\r\n\r\n")


def test_a_later_fragment_has_no_port() -> None:
    with closing(Kernel(program({8080}, {8080}))) as kernel:
        assert kernel.takes(ip(REQUEST, fragment=0x2000))
        assert not kernel.takes(ip(REQUEST, fragment=0x2001))


@pytest.mark.parametrize("header", [0, 43, 44, 60])
def test_extension_headers_hide_the_port_so_the_packet_counts(header: int) -> None:
    packet = replace(REQUEST, source=bytes(16), destination=bytes(16), port=9)
    written = ip(packet, extension=header)
    with closing(Kernel(program({8080}, set()))) as kernel:
        assert kernel.takes(written)
        assert not kernel.takes(ip(packet))
    seen = parse(written)
    assert seen is not None
    assert seen.port == 0
    assert seen.needs_application


def test_multicast_reports_and_other_protocols_are_no_traffic() -> None:
    listener_query = struct.pack("!IHBB", 6 << 28, 32, 0, 1) + bytes(32) + bytes([58]) + bytes(31)
    ping = struct.pack("!BBHHHBBH", 0x45, 0, 84, 0, 0, 64, 1, 0) + bytes(72)
    with closing(Kernel(program({8080}, {8080}))) as kernel:
        assert not any(map(kernel.takes, (listener_query, ping, b"\0\1\x08\0", b"\x45", b"\x60")))


@pytest.mark.parametrize("cut", range(0, 58, 3))
def test_a_cut_packet_is_no_error(cut: int) -> None:
    parse(ip(REQUEST)[:cut] or b"\0")


@pytest.fixture
def port(free_port: Callable[[], int]) -> int:
    return free_port()


@pytest.fixture
def packet_socket(port: int) -> Iterator[PacketSocket]:
    opened = PacketSocket({port}, {port})
    opened.open()
    yield opened
    opened.close()


async def following(packets: PacketSocket) -> Packet:
    with trio.fail_after(PATIENCE_SECONDS):
        return await packets.wait()


@needs_packets
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_a_real_connection_is_seen_from_its_begin_to_its_end(
    packet_socket: PacketSocket, port: int, address: str
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as server:
        client = socket.create_connection((address, port))
        accepted, _ = server.accept()
        opened = await following(packet_socket)
        assert (opened.flags & SYN, opened.data) == (SYN, b"")
        assert opened.source == socket.inet_pton(family, address)
        assert opened.source_port == client.getsockname()[1]
        client.sendall(b"hello")
        seen = await following(packet_socket)
        assert (seen.flow, seen.data, seen.needs_application) == (opened.flow, b"hello", True)
        client.close()
        last = await following(packet_socket)
        while not last.flags & (FIN | RST):
            last = await following(packet_socket)
        assert last.flow == opened.flow
        assert not last.needs_application
        accepted.close()


@needs_packets
async def test_datagrams_are_seen_and_nothing_while_it_is_closed(
    packet_socket: PacketSocket, port: int
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        packet_socket.close()
        sender.sendto(b"unseen", ("127.0.0.1", port))
        packet_socket.open()
        sender.sendto(b"seen", ("127.0.0.1", port))
        seen = await following(packet_socket)
        assert (seen.data, seen.tcp, seen.port) == (b"seen", False, port)


@needs_packets
async def test_acknowledgements_and_keep_alives_are_not_seen(packet_socket: PacketSocket, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        await following(packet_socket)
        for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1)):
            client.setsockopt(socket.IPPROTO_TCP, option, value)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        accepted.sendall(b"answer")  # which the client's kernel acknowledges
        assert client.recv(10) == b"answer"
        assert packet_socket.take() is None
        client.sendall(b"question")
        assert (await following(packet_socket)).data == b"question"
        accepted.close()
        client.close()
