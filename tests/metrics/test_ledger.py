"""The ledger beside a model of the kernel, which knows where the counters of each process go at its end."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pidone.metrics.ledger import MAJOR_FAULTS, READ_BYTES, USER, VOLUNTARY, ZERO, Ledger, Reading, Values
from tests.patience import ENDURANCE

US = 1
FIELDS = (USER, MAJOR_FAULTS, READ_BYTES)


def values(amount: float) -> Values:
    return tuple(amount if index in FIELDS else 0 for index in range(len(ZERO)))


@dataclass
class Process:
    pid: int
    start: int
    parent: int  # 0: outside of the PID namespace
    label: str
    ignores_children: bool
    subreaper: bool = False
    own: int = 0
    waited: int = 0
    zombie: bool = False

    @property
    def total(self) -> int:
        return self.own + self.waited


class Kernel(RuleBasedStateMachine):
    """Forks, runs, ends and waits at random.

    ``truth`` is what the processes of each label have used, and ``hidden`` what nobody could see of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.processes: dict[int, Process] = {}
        self.ledger = Ledger(outsiders={US})
        self.truth = {"a": 0, "b": 0}
        self.hidden = {"a": 0, "b": 0}
        self.shown = {"a": 0.0, "b": 0.0}
        self.bytes = {"a": 0.0, "b": 0.0}
        self.clock = 0
        self.queue: list[int] | None = None  # pids that the running sample has not read yet
        self.readings: list[Reading] = []
        self.first: dict[
            tuple[int, int], int
        ] = {}  # as ``seen``, of processes that were not in the last sample
        self.listed: set[int] = set()  # pids at the beginning of the running sample
        self.used: set[int] = set()  # pids that the running sample may have read
        self.seen: dict[tuple[int, int], int] = {}  # ``total`` when it was read last
        self.fork_root("a", ignores=False)

    def new(self, parent: int, label: str, *, ignores: bool, subreaper: bool = False) -> Process:
        self.clock += 1
        pid = next(
            pid for pid in range(2, 100) if pid not in self.processes
        )  # the lowest: used again at once
        self.processes[pid] = process = Process(pid, self.clock, parent, label, ignores, subreaper)
        return process

    @rule(label=st.sampled_from("ab"), ignores=st.booleans())
    @precondition(lambda self: len(self.processes) < 12)
    def fork_root(self, label: str, *, ignores: bool) -> None:
        self.new(0, label, ignores=ignores)

    @rule(data=st.data(), ignores=st.booleans(), subreaper=st.booleans())
    @precondition(lambda self: self.alive() and len(self.processes) < 12)
    def fork(self, data: st.DataObject, *, ignores: bool, subreaper: bool) -> None:
        parent = data.draw(st.sampled_from(self.alive()))
        self.new(parent.pid, parent.label, ignores=ignores, subreaper=subreaper)

    @rule(data=st.data(), amount=st.integers(1, 50))
    @precondition(lambda self: self.alive())
    def run(self, data: st.DataObject, amount: int) -> None:
        process = data.draw(st.sampled_from(self.alive()))
        process.own += amount
        self.truth[process.label] += amount

    @rule(data=st.data())
    @precondition(lambda self: self.alive())
    def end(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.alive()))
        process.zombie = True
        for child in self.children(process.pid):
            child.parent = self.adopter(process)
            if child.zombie and child.parent in self.processes:
                self.release_if_ignored(child)
        self.release_if_ignored(process)

    @rule(data=st.data())
    @precondition(lambda self: any(process.zombie for process in self.processes.values()))
    def wait(self, data: st.DataObject) -> None:
        zombie = data.draw(st.sampled_from([each for each in self.processes.values() if each.zombie]))
        if zombie.parent == US:
            self.ledger.reaped(zombie.pid, zombie.start, zombie.label, values(zombie.total))
        elif zombie.parent == 0:
            self.lose(zombie)
        else:
            self.processes[zombie.parent].waited += zombie.total
        del self.processes[zombie.pid]

    @rule(data=st.data())
    @precondition(lambda self: self.queue is None)
    def begin(self, data: st.DataObject) -> None:
        """Begin a sample, in whose course the processes go on."""
        self.queue, self.readings = data.draw(st.permutations(list(self.processes))), []
        self.first, self.used, self.listed = {}, set(self.processes), set(self.processes)

    @rule()
    @precondition(lambda self: self.queue)
    def read(self) -> None:
        assert self.queue
        process = self.processes.get(self.queue.pop())
        if process:
            self.readings.append(self.reading(process))
            key = process.pid, process.start
            (self.seen if key in self.seen else self.first)[key] = process.total

    @rule()
    @precondition(lambda self: self.queue is not None)
    def finish(self) -> None:
        """Read the rest at once, and check what holds always."""
        while self.queue:
            self.read()
        self.queue, self.used = None, set()
        # one that has ended before the sample was complete is not taken into the ledger
        alive = {(process.pid, process.start) for process in self.processes.values()}
        self.seen |= {key: total for key, total in self.first.items() if key in alive}
        self.ledger.sample(self.readings, self.listed.intersection(self.processes))
        self.check()

    @rule()
    @precondition(lambda self: self.queue is None)
    def sample(self) -> None:
        """Take a sample in one moment, of which all is known but what nobody could see."""
        self.queue, self.readings, self.first = list(self.processes), [], {}
        self.listed = set(self.processes)
        self.finish()
        for label, total in self.shown.items():
            assert total >= self.truth[label] - self.hidden[label], "something was lost"

    def check(self) -> None:
        totals = self.ledger.totals()
        for label in self.truth:
            total = totals.get(label, ZERO)
            assert total[MAJOR_FAULTS] == total[USER]
            assert total[VOLUNTARY] == 0
            # what the kernel does not tell apart from the parent's own is taken for that of a lost child
            assert self.bytes[label] <= total[READ_BYTES] <= total[USER]
            assert total[USER] >= self.shown[label], "it went back"
            assert total[USER] <= self.truth[label], "something was counted twice"
            self.shown[label], self.bytes[label] = total[USER], total[READ_BYTES]

    @invariant()
    def is_consistent(self) -> None:
        assert all(
            process.parent in {0, US} or process.parent in self.processes
            for process in self.processes.values()
        )

    def alive(self) -> list[Process]:
        return [process for process in self.processes.values() if not process.zombie]

    def children(self, pid: int) -> list[Process]:
        return [process for process in self.processes.values() if process.parent == pid]

    def adopter(self, process: Process) -> int:
        """Return the nearest subreaper above a process, else process 1."""
        above = self.processes.get(process.parent)
        while above and (above.zombie or not above.subreaper):
            above = self.processes.get(above.parent)
        return above.pid if above else US

    def release_if_ignored(self, process: Process) -> None:
        parent = self.processes.get(process.parent)
        if parent and parent.ignores_children:
            self.lose(process)
            del self.processes[process.pid]

    def lose(self, process: Process) -> None:
        """Nobody waits for the process, so only what the last sample saw of it can be known."""
        self.hidden[process.label] += process.total - self.seen.get((process.pid, process.start), 0)

    def reading(self, process: Process) -> Reading:
        total, waited = values(process.total), values(process.waited)
        absorbed = tuple(total[index] if index == READ_BYTES else waited[index] for index in range(len(ZERO)))
        return Reading(process.pid, process.start, process.parent, process.label, total, absorbed)


TestKernel = Kernel.TestCase
TestKernel.settings = settings(max_examples=100 * ENDURANCE, stateful_step_count=50, deadline=None)
