"""Collector ``network``: counts of the pod's network namespace, from /proc/net, which needs no privilege."""

from collections import Counter
from collections.abc import Iterator

from pidone.metrics.exposition import Family, counter, gauge

# include/net/tcp_states.h
_TCP_STATES = {
    "01": "established",
    "02": "syn_sent",
    "03": "syn_recv",
    "04": "fin_wait1",
    "05": "fin_wait2",
    "06": "time_wait",
    "07": "close",
    "08": "close_wait",
    "09": "last_ack",
    "0A": "listen",
    "0B": "closing",
    "0C": "new_syn_recv",
}
# Columns of /proc/net/dev after the device's name: eight of receiving, then eight of transmitting.
_DEVICE_COLUMNS = {
    "receive_bytes": (0, "Bytes received"),
    "receive_errs": (2, "Receive errors"),
    "receive_drop": (3, "Received packets dropped"),
    "transmit_bytes": (8, "Bytes sent"),
    "transmit_errs": (10, "Transmit errors"),
    "transmit_drop": (11, "Packets to send dropped"),
}


def collect() -> Iterator[Family]:
    """Yield the families. Raises ``OSError`` if /proc/net cannot be read."""
    yield from _devices(_read("/proc/net/dev"))
    yield from _connections(_read("/proc/net/tcp") + _read("/proc/net/tcp6", missing=""))
    snmp = _paired(_read("/proc/net/snmp"))
    netstat = _paired(_read("/proc/net/netstat"))
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
    families = [
        counter(f"pidone_network_{name}_total", f"{words} by network device.")
        for name, (_, words) in _DEVICE_COLUMNS.items()
    ]
    for line in text.split("\n")[2:-1]:
        device, _, numbers = line.partition(":")
        columns = numbers.split()
        for family, (index, _) in zip(families, _DEVICE_COLUMNS.values(), strict=True):
            family.add(int(columns[index]), device=device.strip(" "))
    return families


def _connections(text: str) -> Iterator[Family]:
    sockets = Counter(_TCP_STATES.get(line.split()[3], "other") for line in text.splitlines() if ":" in line)
    family = gauge("pidone_tcp_connections", "TCP sockets of the pod's network namespace by state.")
    for state in sorted(sockets):
        family.add(sockets[state], state=state)
    yield family


def _paired(text: str) -> dict[str, int]:
    """Return ``Tcp.RtoAlgorithm: 1`` for a line ``Tcp: RtoAlgorithm ...`` followed by a line ``Tcp: 1 ...``."""
    lines = text.splitlines()
    values: dict[str, int] = {}
    for names, numbers in zip(lines[::2], lines[1::2], strict=False):
        prefix, *rest = names.split()
        for name, number in zip(rest, numbers.split()[1:], strict=False):
            values[f"{prefix.rstrip(':')}.{name}"] = int(number)
    return values


def _read(path: str, *, missing: str | None = None) -> str:
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            return file.read()
    except FileNotFoundError:
        if missing is None:
            raise
        return missing
