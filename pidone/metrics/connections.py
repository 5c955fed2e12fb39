"""Counts the TCP sockets of the pod's network namespace by state, in pieces, and keeps none of them."""

from collections import Counter
from collections.abc import Generator, Iterator
from itertools import islice

from pidone.metrics import sock_diag
from pidone.metrics.exposition import Family, gauge
from pidone.metrics.sock_diag import FIN_WAIT2, STATES, TIME_WAIT

MAX_SOCKETS = 10_000  # that one sample counts, without those in TIME_WAIT
_LINES = 500  # of /proc/net/tcp in one piece of work: 1 ms
# include/net/tcp_states.h
_NAMES = (
    "",
    "established",
    "syn_sent",
    "syn_recv",
    "fin_wait1",
    "fin_wait2",
    "time_wait",
    "close",
    "close_wait",
    "last_ack",
    "listen",
    "closing",
    "new_syn_recv",
)


def collect(folder: str) -> Iterator[Family | None]:
    """Yield the families, and None between two pieces. ``folder`` is /proc/net. Raises ``OSError``."""
    counts = Counter[int]()
    try:
        omitted = yield from _count_by_netlink(folder, counts)
    except OSError:  # the kernel's module tcp_diag is missing, or a filter forbids netlink
        counts.clear()
        omitted = yield from _count_lines(folder, counts)

    family = gauge("pidone_tcp_connections", "TCP sockets of the pod's network namespace by state.")
    by_name = Counter[str]()
    for state, count in counts.items():
        by_name[_NAMES[state] if 0 < state < len(_NAMES) else "other"] += count
    for name in sorted(by_name):
        family.add(by_name[name], state=name)
    yield family
    yield gauge(
        "pidone_tcp_connections_omitted", "TCP sockets that are not counted because of a limit.", omitted
    )


def _count_by_netlink(folder: str, counts: Counter[int]) -> Generator[None, None, int]:
    """Add the sockets to ``counts``, and return how many are omitted at least.

    The kernel knows the number of sockets in TIME_WAIT, often ten times that of all others, without a look at each.
    """
    in_use, time_wait = _totals(folder)
    states = [state for state in STATES if state != TIME_WAIT or time_wait is None]
    closed = 0  # the kernel counts a closed socket as waiting from FIN_WAIT2 on
    for piece in sock_diag.pieces(states):
        for state, is_closed in sock_diag.counts(piece):
            counts[state] += 1
            closed += is_closed and state == FIN_WAIT2
        if counts.total() >= MAX_SOCKETS:
            return max(1, in_use + closed - counts.total())
        yield
    if time_wait is not None and time_wait > closed:
        counts[TIME_WAIT] = time_wait - closed
    return 0


def _count_lines(folder: str, counts: Counter[int]) -> Generator[None, None, int]:
    """Do the same with the lines of ``folder``/tcp and tcp6."""
    for name in ("tcp", "tcp6"):
        try:
            with open(f"{folder}/{name}", "rb", buffering=4096) as file:
                next(file, None)  # the head
                while lines := list(islice(file, _LINES)):
                    if counts.total() >= MAX_SOCKETS:
                        return max(1, sum(number or 0 for number in _totals(folder)) - counts.total())
                    counts.update(int(line.split()[3], 16) for line in lines)
                    yield
        except FileNotFoundError:
            if name == "tcp":
                raise
    return 0


def _totals(folder: str) -> tuple[int, int | None]:
    """Return the number of sockets in the tables of this namespace, and in TIME_WAIT; None if that is unknown."""
    in_use, time_wait = 0, None
    for name in ("sockstat", "sockstat6"):
        try:
            with open(f"{folder}/{name}", encoding="utf-8", errors="replace") as file:
                for line in file:
                    words = line.split()
                    if words[:1] in (["TCP:"], ["TCP6:"]):
                        values = dict(zip(words[1::2], map(int, words[2::2]), strict=False))
                        in_use += values.get("inuse", 0)
                        time_wait = values.get("tw", time_wait)
        except OSError:
            pass  # no IPv6
    return in_use, time_wait
