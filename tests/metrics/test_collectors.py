import errno
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pidone.metrics import connections, network, process, sock_diag
from pidone.metrics.exposition import Family, render

NET = {
    "dev": """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier
    lo: 1000      10    0    0    0     0          0         0     1000      10    0    0    0     0       0
  eth0:123456789012 22    3    4    5     6          7         8  9001      31   11   12   13    14      15
""",
    "tcp": """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:0016 0100007F:A000 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
   2: 0100007F:0017 0100007F:A001 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 20 4 30 10 -1
   3: 0100007F:0018 0100007F:A002 7F 00000000:00000000 00:00000000 00000000     0        0 4 1 0 20 4 30 10 -1
""",
    "tcp6": """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000
""",
    "snmp": """\
Ip: Forwarding DefaultTTL
Ip: 1 64
Tcp: RtoAlgorithm MaxConn RetransSegs
Tcp: 1 -1 77
""",
    "netstat": """\
TcpExt: SyncookiesSent ListenOverflows ListenDrops
TcpExt: 0 5 6
IpExt: InNoRoutes
IpExt: 0
""",
}


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A folder in place of /proc/net."""
    for name, text in NET.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def families_of(pieces: Iterable[Family | None]) -> list[Family]:
    return [family for family in pieces if family is not None]


def refuse(*_: object) -> Iterator[bytes]:
    raise PermissionError(errno.EPERM, "a filter of system calls")


@pytest.fixture
def no_netlink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sock_diag, "pieces", refuse)


def values(families: list[Family]) -> dict[str, float]:
    """``name{label values}`` to value."""
    return {
        f"{family.name}{{{','.join(labels.values())}}}": value
        for family in families
        for labels, value in family.samples
    }


def test_traffic_of_every_device_is_read_from_its_columns(net: Path) -> None:
    read = values(families_of(network.collect(str(net))))
    assert read["pidone_network_receive_bytes_total{eth0}"] == 123456789012  # no blank behind the colon
    assert read["pidone_network_receive_errs_total{eth0}"] == 3
    assert read["pidone_network_receive_drop_total{eth0}"] == 4
    assert read["pidone_network_transmit_bytes_total{eth0}"] == 9001
    assert read["pidone_network_transmit_errs_total{eth0}"] == 11
    assert read["pidone_network_transmit_drop_total{eth0}"] == 12
    assert read["pidone_network_transmit_bytes_total{lo}"] == 1000


def test_devices_whose_names_are_odd_are_several(net: Path) -> None:
    names = [
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
        "a\N{LINE SEPARATOR}b",
        "\N{EM SPACE}a",
        'q"\\',
        "a\x1cb",
        "\x85",
    ]
    lines = [f"{name}: {number} {'0 ' * 15}".encode() for number, name in enumerate(names)]
    odd = [b"\xff: 7" + b" 0" * 15, b"\xfe: 8" + b" 0" * 15]
    (net / "dev").write_bytes(b"\n".join([b"head", b"head", *lines, *odd, b""]))
    families = families_of(network.collect(str(net)))
    page = render(families).decode()
    (family,) = [
        family
        for family in text_string_to_metric_families(page)
        if family.name == "pidone_network_receive_bytes"
    ]
    assert [(sample.labels["device"], sample.value) for sample in family.samples] == [
        *zip(names, range(6), strict=True), ("\\xff", 7), ("\\xfe", 8),
    ]  # fmt: skip


def connections_of(folder: Path | str) -> dict[str, float]:
    read = values(families_of(connections.collect(str(folder))))
    return {name.removeprefix("pidone_tcp_connections"): value for name, value in read.items()}


@pytest.mark.usefixtures("no_netlink")
def test_without_netlink_sockets_of_both_families_are_counted_by_line(net: Path) -> None:
    assert connections_of(net) == {
        "{listen}": 2,
        "{established}": 2,
        "{other}": 1,  # a state that a later kernel has
        "_omitted{}": 0,
    }


@pytest.mark.usefixtures("no_netlink")
def test_lines_above_the_limit_are_omitted(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = NET["tcp"].splitlines()[2] + "\n"
    (net / "tcp").write_text(NET["tcp"] + line * 20_000)
    (net / "sockstat").write_text("sockets: used 9\nTCP: inuse 20000 orphan 0 tw 4 alloc 9 mem 9\n")
    (net / "sockstat6").write_text("TCP6: inuse 1\n")
    monkeypatch.setattr(connections, "_LINES", 1000)
    read = connections_of(net)
    counted = sum(value for state, value in read.items() if state != "_omitted{}")
    assert connections.MAX_SOCKETS <= counted < connections.MAX_SOCKETS + 1000
    assert read["_omitted{}"] == 20_005 - counted


def test_sockets_that_wait_are_not_looked_at(net: Path) -> None:
    (net / "sockstat").write_text("TCP: inuse 3 orphan 0 tw 24000 alloc 9 mem 9\n")
    read = connections_of(net)
    assert 0 < read["{time_wait}"] <= 24_000  # those that are closed, and in FIN_WAIT2, are among the 24,000
    assert read["_omitted{}"] == 0


def test_sockets_above_the_limit_are_omitted(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (net / "sockstat").write_text("TCP: inuse 1000000 orphan 0 tw 0 alloc 9 mem 9\n")
    monkeypatch.setattr(connections, "MAX_SOCKETS", 1)
    with socket.create_server(("127.0.0.1", 0)):
        read = connections_of(net)
    assert read["_omitted{}"] >= 900_000


async def test_netlink_and_lines_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a namespace whose sockets are our own, or nearly: other tests run beside this one."""
    with socket.create_server(("127.0.0.1", 0), backlog=300) as server:
        clients = [socket.create_connection(server.getsockname()) for _ in range(300)]
        accepted = [server.accept()[0] for _ in clients]
        by_netlink = connections_of("/proc/net")
        with monkeypatch.context() as patch:
            patch.setattr(sock_diag, "pieces", refuse)
            by_line = connections_of("/proc/net")
        for each in clients + accepted:
            each.close()
    assert min(by_netlink["{established}"], by_line["{established}"]) >= 600
    assert min(by_netlink["{listen}"], by_line["{listen}"]) >= 1


def test_counters_are_found_by_the_names_above_them(net: Path) -> None:
    read = values(families_of(network.collect(str(net))))
    assert read["pidone_tcp_retransmitted_segments_total{}"] == 77
    assert read["pidone_tcp_listen_overflows_total{}"] == 5


@pytest.mark.usefixtures("no_netlink")
def test_without_ipv6_the_rest_is_read(net: Path) -> None:
    (net / "tcp6").unlink()
    assert values(families_of(network.collect(str(net))))["pidone_tcp_connections{listen}"] == 1


def test_a_counter_that_the_kernel_does_not_have_is_missing_and_not_zero(net: Path) -> None:
    (net / "netstat").write_text("")
    read = values(families_of(network.collect(str(net))))
    assert "pidone_tcp_listen_overflows_total{}" not in read
    assert "pidone_tcp_retransmitted_segments_total{}" in read


def test_this_process_is_described_as_it_is() -> None:
    with Path("/dev/null").open():
        read = values(list(process.collect()))
        assert read["process_open_fds{}"] == pytest.approx(len(os.listdir("/proc/self/fd")), abs=1)
    assert 0 < read["process_cpu_seconds_total{}"] <= sum(os.times()[:2]) + 0.02
    assert 1e6 < read["process_resident_memory_bytes{}"] < read["process_virtual_memory_bytes{}"]
    assert read["process_start_time_seconds{}"] == pytest.approx(psutil.Process().create_time(), abs=2)
    assert read["process_max_fds{}"] >= read["process_open_fds{}"]
