"""Collector ``process``: metrics of this process, from /proc/self, named as in the Prometheus client libraries."""

import os
from collections.abc import Iterator

from pidone.metrics.exposition import Family, counter, gauge

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def collect() -> Iterator[Family]:
    """Yield the families. Raises ``OSError`` if /proc cannot be read."""
    ticks = os.sysconf("SC_CLK_TCK")
    fields = _fields()
    yield counter(
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
        (int(fields[11]) + int(fields[12])) / ticks,
    )
    yield gauge(
        "process_resident_memory_bytes", "Resident memory size in bytes.", int(fields[21]) * _PAGE_BYTES
    )
    yield gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", int(fields[20]))
    yield gauge(
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
        start_seconds(),
    )
    yield gauge("process_open_fds", "Number of open file descriptors.", len(os.listdir("/proc/self/fd")))
    yield from _max_fds()


def start_seconds() -> float:
    """Return the start of this process in seconds since the epoch. Raises ``OSError`` if /proc cannot be read."""
    boot = next(line for line in _read("/proc/stat").splitlines() if line.startswith("btime "))
    return int(boot.split()[1]) + int(_fields()[19]) / os.sysconf("SC_CLK_TCK")


def _fields() -> list[str]:
    """Return the fields of /proc/self/stat from the third on; the name before them may contain any character."""
    return _read("/proc/self/stat").rpartition(") ")[2].split()


def _max_fds() -> Iterator[Family]:
    for line in _read("/proc/self/limits").splitlines():
        if line.startswith("Max open files"):
            soft = line.split()[3]
            value = float("inf") if soft == "unlimited" else int(soft)
            yield gauge("process_max_fds", "Maximum number of open file descriptors.", value)


def _read(path: str) -> str:
    # the default is 128 KiB in Python 3.15, and stays in the heap
    with open(path, encoding="utf-8", errors="replace", buffering=4096) as file:
        return file.read()
