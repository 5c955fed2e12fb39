"""Adds up the counters of processes by label, such that nothing is lost or counted twice when a process ends.

The kernel keeps a counter in a process, and at its end passes it to the process that waits for it:

- to its parent, in the parent's counters of waited-for children (``cutime`` of proc_pid_stat(5)),
- to this process, if it was an orphan; the reaper then tells the final values (``reaped``),
- to nobody, if its parent ignores SIGCHLD, or is outside the PID namespace, as of a container's first process.

Only the last case is lost, except for the values that the last sample saw. Which case it was shows in the counters of
the parent. They are compared since the parent was first seen, and not from sample to sample, because the table of
processes is read one after the other: a child may end after its own line was read, and before its parent's.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from operator import add, neg
from typing import NamedTuple

# The counters of a process: clock ticks, page faults, context switches, bytes.
USER, SYSTEM, MAJOR_FAULTS, VOLUNTARY, INVOLUNTARY, READ_BYTES, WRITTEN_BYTES = range(7)
Values = tuple[float, ...]
ZERO: Values = (0,) * 7


class Reading(NamedTuple):
    """The counters of one process. A pid and a start time, in clock ticks since boot, identify it."""

    pid: int
    start: int
    parent: int
    label: str
    total: Values  # with those of children that it has waited for
    absorbed: Values  # as much of ``total`` as may come from children


@dataclass(slots=True)
class _Account:
    start: int
    parent: int
    label: str
    total: Values
    absorbed: Values
    opening: Values  # ``absorbed`` when it was first seen
    claims: Values = ZERO  # of children that are gone since then
    final: Values | None = None  # from the reaper

    @property
    def value(self) -> Values:
        """Its counters, and those of children that nobody has waited for."""
        value = self.total
        if self.claims is not ZERO:
            value = tuple(
                total + max(0, claim - (absorbed - opening))
                for total, claim, absorbed, opening in zip(
                    self.total, self.claims, self.absorbed, self.opening, strict=True
                )
            )
        return value if self.final is None else tuple(map(max, value, self.final))


class Ledger:
    """The counters of all processes that were seen, by label. They never go back.

    ``outsiders`` are the pids of processes whose counters of waited-for children are not read, because they adopt
    orphans of all labels: this process, and process 1.
    """

    def __init__(self, outsiders: Collection[int]) -> None:
        self._outsiders = outsiders
        self._accounts: dict[int, _Account] = {}  # by pid
        self._gone: list[tuple[int, _Account]] = []  # since the last sample, because another has their pid
        self._dead: dict[str, Values] = {}
        self._shown: dict[str, Values] = {}

    def label_of(self, pid: int, start: int) -> str | None:
        """Return the label of a process that was seen in the last sample."""
        account = self._accounts.get(pid)
        return account.label if account and account.start == start else None

    @property
    def pids(self) -> Collection[int]:
        """The pids of the last sample."""
        return self._accounts.keys()

    def sample(self, readings: Iterable[Reading], listed: Collection[int]) -> None:
        """Take a sample. ``listed`` are the pids that existed before the first and after the last reading."""
        for reading in readings:
            account = self._accounts.get(reading.pid)
            if account and account.start != reading.start:
                self._gone.append((reading.pid, self._accounts.pop(reading.pid)))
                account = None
            if account:
                self._update(account, reading)
            elif reading.pid in listed:  # otherwise its parent may already have its counters
                self._accounts[reading.pid] = _Account(
                    reading.start,
                    reading.parent,
                    reading.label,
                    reading.total,
                    reading.absorbed,
                    reading.absorbed,
                )
        self._gone += [
            (pid, self._accounts.pop(pid))
            for pid, account in list(self._accounts.items())
            if pid not in listed or account.final is not None
        ]
        self._settle()

    def reaped(self, pid: int, start: int, label: str, total: Values) -> None:
        """Note the end of a process that this process has waited for. ``label`` is used if it was never seen."""
        account = self._accounts.get(pid)
        if account and account.start == start:
            account.final = total
        else:
            self._add(label, total)

    def rename(self, label: str, name: str) -> None:
        """Give the counters of a label to another one."""
        for account in self._accounts.values():
            if account.label == label:
                account.label = name
        if label in self._dead:
            self._add(name, self._dead.pop(label))
        self._shown.pop(label, None)

    def forget(self, labels: Iterable[str]) -> None:
        """Forget the counters of labels without processes."""
        for label in labels:
            self._dead.pop(label, None)
            self._shown.pop(label, None)

    def totals(self) -> dict[str, Values]:
        """Return the counters of each label."""
        totals = dict(self._dead)
        for account in self._accounts.values():
            totals[account.label] = _sum(totals.get(account.label, ZERO), account.value)
        # A child that ended between the reading of its line and of the list may be counted twice until the next sample.
        self._shown = {
            label: tuple(map(max, values, self._shown.get(label, ZERO))) for label, values in totals.items()
        }
        return self._shown

    def _update(self, account: _Account, reading: Reading) -> None:
        if account.label != reading.label:  # both labels go on from where they are
            self._move(account.value, account.label, reading.label)
        account.parent, account.label = reading.parent, reading.label
        account.total, account.absorbed = reading.total, reading.absorbed

    def _settle(self) -> None:
        """Pass the counters of those that are gone to their parents, children first, or to the dead."""
        gone, self._gone = dict(self._gone), []
        waiting = Counter(account.parent for account in gone.values() if account.parent in gone)
        ready = [pid for pid in gone if not waiting[pid]]
        while gone:
            # a circle can only come from pids that were used again
            pid = ready.pop() if ready else next(iter(gone))
            account = gone.pop(pid, None)
            if account is None:
                continue
            heir = gone.get(account.parent) or self._accounts.get(account.parent)
            if account.parent in gone:
                waiting[account.parent] -= 1
                if not waiting[account.parent]:
                    ready.append(account.parent)
            if not heir or account.final or account.parent in self._outsiders or heir.start > account.start:
                self._add(account.label, account.value)
                continue
            heir.claims = _sum(heir.claims, account.value)
            if heir.label != account.label:
                self._move(account.value, account.label, heir.label)

    def _move(self, values: Values, before: str, after: str) -> None:
        """Keep these counters of a process with the label that it had, though it has another one now."""
        self._add(before, values)
        self._add(after, tuple(map(neg, values)))

    def _add(self, label: str, values: Values) -> None:
        self._dead[label] = _sum(self._dead.get(label, ZERO), values)


def _sum(left: Values, right: Values) -> Values:
    return tuple(map(add, left, right))
