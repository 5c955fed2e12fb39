"""Collector ``network``: counts of the pod's network namespace, from /proc/net, which needs no privilege."""

from collections.abc import Iterator

from pidone.metrics import connections
from pidone.metrics.exposition import Family, counter

# columns of /proc/net/dev after the device's name: eight of receiving, then eight of transmitting
_RECEIVE_BYTES, _RECEIVE_ERRS, _RECEIVE_DROP = 0, 2, 3
_TRANSMIT_BYTES, _TRANSMIT_ERRS, _TRANSMIT_DROP = 8, 10, 11


def collect(folder: str = "/proc/net") -> Iterator[Family | None]:
    """Yield the families, and None between two pieces. Raises ``OSError`` if /proc/net cannot be read."""
    yield from _devices(_read(f"{folder}/dev"))
    yield from connections.collect(folder)
    snmp = _paired(_read(f"{folder}/snmp"))
    netstat = _paired(_read(f"{folder}/netstat"))
    yield counter(
        "pidone_tcp_retransmitted_segments_total",
        "TCP segments sent again in the pod's network namespace.",
        snmp.get("Tcp.RetransSegs"),
    )
    yield counter(
        "pidone_tcp_listen_overflows_total",
        "Connections refused because a listener's queue was full.",
        netstat.get("TcpExt.ListenOverflows"),
    )


def _devices(text: str) -> list[Family]:
    """Return the counts of each device, whose name may have any byte but "/", ":" and ASCII white space.

    ``dev_valid_name`` in net/core/dev.c has this rule. Two devices must not become one: their series would be equal,
    and Prometheus would refuse the whole page.
    """
    families = {
        _RECEIVE_BYTES: counter("pidone_network_receive_bytes_total", "Bytes received by network device."),
        _RECEIVE_ERRS: counter("pidone_network_receive_errs_total", "Receive errors by network device."),
        _RECEIVE_DROP: counter(
            "pidone_network_receive_drop_total", "Received packets dropped by network device."
        ),
        _TRANSMIT_BYTES: counter("pidone_network_transmit_bytes_total", "Bytes sent by network device."),
        _TRANSMIT_ERRS: counter("pidone_network_transmit_errs_total", "Transmit errors by network device."),
        _TRANSMIT_DROP: counter(
            "pidone_network_transmit_drop_total", "Packets to send dropped by network device."
        ),
    }
    for line in text.split("\n")[2:-1]:
        device, _, numbers = line.partition(":")
        columns = numbers.split()
        for index, family in families.items():
            family.add(int(columns[index]), device=device.strip(" "))
    return list(families.values())


def _paired(text: str) -> dict[str, int]:
    """Return ``Tcp.RtoAlgorithm: 1`` for a line ``Tcp: RtoAlgorithm ...`` followed by a line ``Tcp: 1 ...``."""
    lines = text.splitlines()
    values: dict[str, int] = {}
    for names, numbers in zip(lines[::2], lines[1::2], strict=False):
        prefix, *rest = names.split()
        for name, number in zip(rest, numbers.split()[1:], strict=False):
            values[f"{prefix.rstrip(':')}.{name}"] = int(number)
    return values


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="backslashreplace") as file:
        return file.read()
