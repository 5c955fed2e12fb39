"""Collector ``cgroup``: the kernel's accounts of each container, where its own cgroup file system can be read.

A sandbox has no cgroup file system, but containers have one, with their own cgroup as its root. It is read through
/proc/PID/root, with the uid of a process of the container.

The files are described in the kernel's Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/memory.rst, cpuacct.rst
and Documentation/scheduler/sched-bwc.rst.
"""

import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pidone.metrics import proc
from pidone.metrics.exposition import Family, counter, gauge
from pidone.metrics.labels import POD, UNKNOWN, Facts, Labels

MAX_PROCESSES = 512  # that are looked at
_TRIES = 4  # processes of one container, of which some may belong to other users
_MAX_BYTES = 65536  # of a list of mounts
_UNLIMITED = 1 << 60  # in cgroup v1 no limit is the largest number of pages that fits
_RESOURCES = ("cpu", "memory", "io")  # of pressure


class Mount(NamedTuple):
    """A line of /proc/PID/mountinfo with a cgroup file system."""

    folder: str
    device: int  # ``st_dev`` of its files
    root: str  # the cgroup that is the root
    controllers: frozenset[str]  # empty: cgroup v2


class Figures(NamedTuple):
    """What the kernel has counted for a cgroup; None where it does not say it. Seconds and bytes."""

    memory: float | None = None
    memory_limit: float | None = None
    cpu: float | None = None
    throttled: float | None = None
    oom_kills: float | None = None
    waiting: Mapping[str, float] = {}  # by resource: time in which some tasks have waited for it
    stalled: Mapping[str, float] = {}  # time in which all have


class ContainerCgroups:
    """Samples the cgroups of the pod's containers."""

    def __init__(self, facts: Facts) -> None:
        self._labels = Labels(facts)

    def collect(self) -> Iterator[Family | None]:
        """Yield the families, and None between two pieces. Raises ``OSError`` if /proc cannot be read."""
        self._labels.update()
        figures: dict[str, Figures] = {}
        tries: dict[str, int] = {}
        for pid in proc.pids()[:MAX_PROCESSES]:
            yield None
            label = self._labels.of(proc.read(pid, "cgroup") or b"")
            if label in {None, POD, UNKNOWN} or label in figures or tries.get(label, 0) == _TRIES:
                continue
            tries[label] = tries.get(label, 0) + 1
            own = [each for each in mounts(pid) if self._labels.of(f"0::{each.root}".encode()) == label]
            if own:
                figures[label] = read(f"/proc/{pid}/root", own)
        self._labels.forget_unnamed(used=tries)
        yield from _families(figures)


def mounts(pid: int) -> list[Mount]:
    """Return the cgroup file systems of a process below /sys/fs/cgroup; none if it belongs to another user."""
    found: dict[str, Mount] = {}
    try:
        with open(f"/proc/{pid}/mountinfo", "rb") as file:
            text = file.read(_MAX_BYTES).decode(errors="replace")
    except OSError:
        return []
    for line in text.splitlines()[: text.count("\n")]:  # without a line that is cut
        fields, _, system = line.partition(" - ")
        _, _, device, root, folder, *_ = fields.split(" ")
        kind, _, options = (*system.split(" ", 2), "", "")[:3]
        # a later mount hides the earlier ones at and below its folder
        found = {path: mount for path, mount in found.items() if not f"{path}/".startswith(f"{folder}/")}
        if kind in {"cgroup", "cgroup2"} and folder.startswith("/sys/fs/cgroup"):
            major, _, minor = device.partition(":")
            controllers = frozenset(options.split(",")) if kind == "cgroup" else frozenset[str]()
            found[folder] = Mount(folder, os.makedev(int(major), int(minor)), root, controllers)
    return list(found.values())


def read(top: str, found: list[Mount]) -> Figures:
    """Return the figures of a cgroup that is the root of these mounts below ``top``."""
    for mount in found:
        if not mount.controllers and (figures := _version_2(top, mount)) != Figures():
            return figures
    return _version_1(top, {controller: mount for mount in found for controller in mount.controllers})


def _version_2(top: str, mount: Mount) -> Figures:
    cpu = _keyed(_file(top, mount, "cpu.stat"))
    pressure = {name: _pressure(_file(top, mount, f"{name}.pressure")) for name in _RESOURCES}
    return Figures(
        memory=_number(_file(top, mount, "memory.current")),
        memory_limit=_number(_file(top, mount, "memory.max")),  # "max" without a limit
        cpu=_scaled(cpu.get("usage_usec"), 1e6),
        throttled=_scaled(cpu.get("throttled_usec"), 1e6),
        oom_kills=_keyed(_file(top, mount, "memory.events")).get("oom_kill"),
        waiting={name: lines["some"] for name, lines in pressure.items() if "some" in lines},
        stalled={name: lines["full"] for name, lines in pressure.items() if "full" in lines},
    )


def _version_1(top: str, by_controller: Mapping[str, Mount]) -> Figures:
    memory, cpu, cpuacct = (by_controller.get(name) for name in ("memory", "cpu", "cpuacct"))
    limit = _number(_file(top, memory, "memory.limit_in_bytes"))
    return Figures(
        memory=_number(_file(top, memory, "memory.usage_in_bytes")),
        memory_limit=None if limit is None or limit >= _UNLIMITED else limit,
        cpu=_scaled(_number(_file(top, cpuacct, "cpuacct.usage")), 1e9),
        throttled=_scaled(_keyed(_file(top, cpu, "cpu.stat")).get("throttled_time"), 1e9),
        oom_kills=_keyed(_file(top, memory, "memory.oom_control")).get("oom_kill"),
    )


def _file(top: str, mount: Mount | None, name: str) -> str:
    """Return the content of a file; "" without it.

    The container may have put anything in its place. A pipe is not waited for, a link is not followed, and a file of
    another file system is not read.
    """
    if mount is None:
        return ""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        descriptor = os.open(f"{top}{mount.folder}/{name}", flags)
    except OSError:
        return ""
    try:
        if os.fstat(descriptor).st_dev != mount.device:
            return ""
        return os.read(descriptor, _MAX_BYTES).decode("ascii", "replace")
    except OSError:  # ENOTSUP: pressure is switched off
        return ""
    finally:
        os.close(descriptor)


def _number(text: str) -> float | None:
    word = text.strip()
    return int(word) if word.isdecimal() else None


def _keyed(text: str) -> dict[str, float]:
    """Return the numbers of lines ``KEY NUMBER``."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _pressure(text: str) -> dict[str, float]:
    """Return the seconds by kind, of lines ``some avg10=0.00 avg60=0.00 avg300=0.00 total=MICROSECONDS``."""
    totals = ((line.partition(" ")[0], line.rpartition("total=")[2]) for line in text.splitlines())
    return {kind: int(total) / 1e6 for kind, total in totals if total.isdecimal()}


def _scaled(number: float | None, unit: float) -> float | None:
    return None if number is None else number / unit


def _families(figures: Mapping[str, Figures]) -> Iterator[Family]:
    memory = gauge("pidone_cgroup_memory_bytes", "Memory of the container's cgroup, with its page cache.")
    limit = gauge("pidone_cgroup_memory_limit_bytes", "Limit of memory of the container's cgroup.")
    cpu = counter("pidone_cgroup_cpu_seconds_total", "CPU time of the container's cgroup.")
    throttled = counter(
        "pidone_cgroup_cpu_throttled_seconds_total",
        "Time in which the CPU limit stopped the container's cgroup.",
    )
    waiting = counter(
        "pidone_cgroup_pressure_waiting_seconds_total", "Time in which some tasks waited for the resource."
    )
    stalled = counter(
        "pidone_cgroup_pressure_stalled_seconds_total", "Time in which all tasks waited for the resource."
    )
    kills = counter(
        "pidone_cgroup_oom_kills_total", "Processes that were killed because the cgroup was out of memory."
    )
    for label, found in sorted(figures.items()):
        for family, value in (
            (memory, found.memory),
            (limit, found.memory_limit),
            (cpu, found.cpu),
            (throttled, found.throttled),
            (kills, found.oom_kills),
        ):
            if value is not None:
                family.add(value, container=label)
        for family, by_resource in ((waiting, found.waiting), (stalled, found.stalled)):
            for resource, seconds in by_resource.items():
                family.add(seconds, container=label, resource=resource)
    yield from (memory, limit, cpu, throttled, waiting, stalled, kills)
