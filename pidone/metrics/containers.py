"""Collector ``containers``: the visible processes of the pod by container, from /proc.

A container's counters include its processes that have ended; see ``pidone.metrics.ledger``.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from time import CLOCK_BOOTTIME, clock_gettime, time
from typing import TYPE_CHECKING

from pidone.metrics import proc
from pidone.metrics.exposition import Family, counter, gauge
from pidone.metrics.labels import POD, UNKNOWN, Facts, Labels
from pidone.metrics.ledger import (
    INVOLUNTARY,
    MAJOR_FAULTS,
    READ_BYTES,
    SYSTEM,
    USER,
    VOLUNTARY,
    WRITTEN_BYTES,
    ZERO,
    Ledger,
    Reading,
    Values,
)
from pidone.metrics.proc import Details, Stat
from pidone.pid1.reaper import Reaper

if TYPE_CHECKING:
    from resource import struct_rusage

MAX_PROCESSES = 512  # that one sample reads
MAX_EXAMINED = 4096  # where /proc has processes of other pods too

_TICKS = os.sysconf("SC_CLK_TCK")
_BLOCK_BYTES = 512  # of getrusage(2)
# proc_pid_stat(5); others are "other"
_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "blocked",
    "I": "idle",
    "T": "stopped",
    "t": "stopped",
    "Z": "zombie",
    "X": "zombie",
}


@dataclass(slots=True)
class _Group:
    """The sums of one container in one sample."""

    states: Counter[str] = field(default_factory=Counter)
    threads: int = 0
    resident: int = 0
    swap: int = 0
    descriptors: int = 0
    worst: float = 0.0  # the highest part of its limit of descriptors that a process uses
    oldest: int = 0  # clock ticks since boot
    unreadable: Counter[str] = field(default_factory=Counter)  # processes by file

    def add(self, stat: Stat, details: Details, descriptors: int | None) -> None:
        self.states[_STATES.get(stat.state, "other")] += 1
        self.oldest = min(self.oldest or stat.start, stat.start)
        if stat.ended:
            return
        self.threads += stat.threads
        self.resident += (details.resident_kib or 0) * 1024  # a thread of the kernel has none
        self.swap += (details.swap_kib or 0) * 1024
        self.descriptors += descriptors or 0
        if descriptors and details.descriptors_limit:
            self.worst = max(self.worst, descriptors / details.descriptors_limit)


class ContainerProcesses:
    """Samples the processes. The reaper of this process tells it the ends of orphans."""

    def __init__(self, reaper: Reaper, facts: Facts) -> None:
        self._reaper = reaper
        self._labels = Labels(facts)
        self._pid = os.getpid()
        self._boot = round(time() - clock_gettime(CLOCK_BOOTTIME), 2)  # seconds since 1970
        self._ledger = Ledger(outsiders={1, self._pid})
        self._sessions: dict[int, str] = {}  # labels by the ID of a session, of the last sample
        self._waited_bytes = (0, 0)  # read and written by processes that the reaper has waited for
        self._seen = False  # a process that is neither this one nor the command of a task
        reaper.observe = self._observe

    def collect(self) -> Iterator[Family | None]:
        """Yield the families, and None between two pieces. Raises ``OSError`` if /proc cannot be read."""
        for short, name in self._labels.update():
            self._ledger.rename(short, name)

        known = self._ledger.pids
        # those of the last sample first, so that the same ones are read each time if there are too many
        queue = sorted(proc.pids(), key=lambda pid: (pid not in known, pid))
        omitted, foreign = len(queue), False
        commands = {child.pid for child in self._reaper.started}
        groups: dict[str, _Group] = {}
        readings: list[Reading] = []
        sessions: dict[int, str] = {}
        unreadable: list[tuple[int, _Group, str]] = []
        for pid in queue[:MAX_EXAMINED]:
            if len(readings) == MAX_PROCESSES:
                break
            omitted -= 1
            yield None
            stat = proc.stat(pid)
            label = self._label(pid, stat) if stat else None
            if stat is None or label is None:
                continue
            details = proc.details(pid)
            descriptors = yield from proc.open_files(pid)
            group = groups.setdefault(label, _Group())
            group.add(stat, details, descriptors)
            readings.append(self._reading(pid, stat, details, label))
            if stat.session and label != UNKNOWN:  # session 0 is one outside of the PID namespace
                sessions[stat.session] = label
            foreign = foreign or not (pid == self._pid or stat.session in commands)
            if not stat.ended:
                unreadable += [(pid, group, file) for file in _unreadable(details, descriptors)]

        # One that is listed for the first time may have the pid of a process that has ended meanwhile.
        listed = set(queue).intersection(
            proc.pids()
        )  # no piece of work may end between this and the ledger's sample
        for pid, group, file in unreadable:
            if pid in listed:  # otherwise it has ended
                group.unreadable[file] += 1
        self._seen = self._seen or foreign
        self._sessions = sessions
        self._ledger.sample(readings, listed)
        yield None
        totals = self._ledger.totals()
        self._ledger.forget(self._labels.forget_unnamed(used=groups))
        yield None

        yield from _gauges(groups, self._boot)
        yield from _counters(totals, groups)
        yield gauge(
            "pidone_processes_visible",
            "Whether processes of the pod's containers have been seen; 0 without a shared PID namespace.",
            self._seen,
        )
        yield gauge("pidone_processes_omitted", "Processes that are not read because of a limit.", omitted)

    def _reading(self, pid: int, stat: Stat, details: Details, label: str) -> Reading:
        own = (stat.user, stat.system, stat.major_faults)
        waited = (stat.waited_user, stat.waited_system, stat.waited_major_faults)
        switches = (details.voluntary_switches or 0, details.involuntary_switches or 0)
        read, written = details.read_bytes or 0, details.written_bytes or 0
        total: Values
        absorbed = ZERO
        if pid == self._pid:
            # the kernel adds the bytes of waited-for children to those of the process itself
            total = (*own, *switches, read - self._waited_bytes[0], written - self._waited_bytes[1])
        elif pid == 1:  # of another program than this one, which reaps the orphans of all containers
            total = (*own, *switches, 0, 0)
        else:
            total = (*map(sum, zip(own, waited, strict=True)), *switches, read, written)
            absorbed = (*waited, 0, 0, read, written)
        return Reading(pid, stat.start, stat.parent, label, total, absorbed)

    def _label(self, pid: int, stat: Stat) -> str | None:
        """Return the label of a process; None if it belongs to another pod."""
        label = self._ledger.label_of(pid, stat.start)
        if stat.ended:
            return label or self._label_of_ended(pid, stat)
        # a process that a runtime has just started may not be in its container's cgroup yet
        if label is None or label in {POD, UNKNOWN}:
            cgroup = proc.read(pid, "cgroup")
            label = self._labels.of(cgroup) if cgroup else None
            if label == UNKNOWN:  # or it is just ending
                label = self._label_of_ended(pid, stat)
        return label

    def _label_of_ended(self, pid: int, stat: Stat) -> str:
        """Return the label of a process that was never seen alive, by its session or its cgroup.

        In cgroup v1 it has left its cgroup (proc_cgroup_show in kernel/cgroup/cgroup.c).
        """
        return (
            self._sessions.get(stat.session)
            # the leader of the session has its ID as pid, if it still lives
            or self._labels.known(proc.read(stat.session, "cgroup") or b"")
            or self._labels.named(proc.read(pid, "cgroup") or b"")
            or self._labels.only
            or UNKNOWN
        )

    def _observe(self, pid: int) -> "Callable[[struct_rusage], None]":
        """Return a function that notes the counters of a process that is about to be reaped."""
        stat = proc.stat(pid)
        if stat is None:
            return lambda _usage: None
        if any(child.pid == pid for child in self._reaper.started):
            label = self._labels.own
        else:
            label = self._ledger.label_of(pid, stat.start) or self._label_of_ended(pid, stat)

        def note(usage: "struct_rusage") -> None:
            read, written = usage.ru_inblock * _BLOCK_BYTES, usage.ru_oublock * _BLOCK_BYTES
            self._waited_bytes = (self._waited_bytes[0] + read, self._waited_bytes[1] + written)
            ticks = (usage.ru_utime * _TICKS, usage.ru_stime * _TICKS)
            self._ledger.reaped(pid, stat.start, label, (*ticks, usage.ru_majflt, 0, 0, read, written))

        return note


def _unreadable(details: Details, descriptors: int | None) -> Iterator[str]:
    """Yield the names of the files of a process that cannot be read."""
    if details.voluntary_switches is None:
        yield "status"
    if details.written_bytes is None:
        yield "io"
    if descriptors is None:
        yield "fd"


def _gauges(groups: Mapping[str, _Group], boot: float) -> Iterator[Family]:
    processes = gauge("pidone_processes", "Processes by container and state.")
    threads = gauge("pidone_threads", "Threads by container.")
    resident = gauge(
        "pidone_memory_resident_bytes",
        "Resident memory by container; a page that several processes share counts for each.",
    )
    swap = gauge("pidone_memory_swap_bytes", "Swapped-out memory by container.")
    descriptors = gauge("pidone_open_fds", "Open file descriptors by container.")
    worst = gauge(
        "pidone_fd_worst_ratio",
        "The most of its limit of file descriptors that a process uses, by container.",
    )
    oldest = gauge(
        "pidone_oldest_process_start_time_seconds",
        "Start time of the oldest process since unix epoch in seconds, by container.",
    )
    unreadable = gauge(
        "pidone_processes_unreadable", "Processes of another user, whose files cannot be read, by container."
    )
    for label, group in sorted(groups.items()):
        for state, count in sorted(group.states.items()):
            processes.add(count, container=label, state=state)
        threads.add(group.threads, container=label)
        oldest.add(round(boot + group.oldest / _TICKS, 2), container=label)
        if not group.unreadable["status"]:
            resident.add(group.resident, container=label)
            swap.add(group.swap, container=label)
        if not group.unreadable["fd"]:
            descriptors.add(group.descriptors, container=label)
            worst.add(group.worst, container=label)
        for file, count in sorted(group.unreadable.items()):
            if count:
                unreadable.add(count, container=label, file=file)
    yield from (processes, threads, resident, swap, descriptors, worst, oldest, unreadable)
    zombies = sum(group.states["zombie"] for group in groups.values())
    yield gauge("pidone_zombies", "Processes that have ended and are not reaped yet.", zombies)


def _counters(totals: Mapping[str, Values], groups: Mapping[str, _Group]) -> Iterator[Family]:
    cpu = counter(
        "pidone_cpu_seconds_total", "CPU time by container, with that of processes that have ended."
    )
    faults = counter("pidone_major_page_faults_total", "Page faults that had to read a disk, by container.")
    switches = counter("pidone_context_switches_total", "Context switches of first threads by container.")
    read = counter("pidone_disk_read_bytes_total", "Bytes read from disks by container.")
    written = counter("pidone_disk_written_bytes_total", "Bytes written to disks by container.")
    for label, values in sorted(totals.items()):
        unreadable = groups[label].unreadable if label in groups else Counter[str]()
        cpu.add(values[USER] / _TICKS, container=label, mode="user")
        cpu.add(values[SYSTEM] / _TICKS, container=label, mode="system")
        faults.add(values[MAJOR_FAULTS], container=label)
        if not unreadable["status"]:
            switches.add(values[VOLUNTARY], container=label, kind="voluntary")
            switches.add(values[INVOLUNTARY], container=label, kind="involuntary")
        if not unreadable["io"]:
            read.add(values[READ_BYTES], container=label)
            written.add(values[WRITTEN_BYTES], container=label)
    yield from (cpu, faults, switches, read, written)
