"""A week of random traffic, probes, plans and failures on a simulated machine: no request is lost, nobody stays frozen.

The action and the engine are the real ones, and the clock is Trio's mock clock. The machine has a kernel's view of
connections, an application that works only while it is not stopped, and packets that come at the worst moments.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone import actions
from pidone.actions import Setting, _traffic, idle
from pidone.actions._packets import FIN, SYN, Flow, Packet
from pidone.actions._traffic import Connection
from pidone.counters import Counters
from pidone.engine.runner import Engine
from pidone.journal import Journal
from pidone.pid1 import inside
from pidone.pid1.inside import Inside
from pidone.pid1.reaper import Reaper
from pidone.plan.format import decode_plan
from pidone.plan.model import Pod
from tests.patience import ENDURANCE

WEEK_SECONDS = 7 * 24 * 3600.0
NODE, CLIENT, OWN = (_traffic.packed(text) for text in ("10.0.0.1", "10.1.0.7", "10.1.0.2"))
PORT = 8080
LATE_SECONDS = 0.02  # that an answer may take more than the application needs


@dataclass
class Open:
    """A connection in the kernel's table."""

    made: float
    sent: float
    received: float
    half_closed: bool = False
    accepted: bool = False
    asked: trio.Event = field(default_factory=trio.Event)
    answered: trio.Event = field(default_factory=trio.Event)

    @property
    def unanswered(self) -> bool:
        return self.asked.is_set() and not self.answered.is_set()


class Machine:
    """Kernel, application and clients of one pod."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.frozen = False
        self.moved = trio.Event()  # the application was stopped or continued
        self.sockets: list[FakeSocket] = []
        self.table: dict[Flow, Open] = {}
        self.broken = False  # the next look at packets fails
        self.ports = count(20000)
        self.in_the_stop: Callable[[], None] | None = (
            None  # what comes while the application is being stopped
        )
        self.answers = 0

    def stop(self) -> None:
        if self.in_the_stop is not None:
            happening, self.in_the_stop = self.in_the_stop, None
            happening()
        self._move(frozen=True)

    def thaw(self) -> None:
        self._move(frozen=False)

    def _move(self, *, frozen: bool) -> None:
        if frozen != self.frozen:
            self.frozen = frozen
            self.moved.set()
            self.moved = trio.Event()

    def send(self, flow: Flow, flags: int, data: bytes = b"") -> None:
        """A packet arrives."""
        for each in self.sockets:
            each.queue.append(Packet(*flow, flags, tcp=True, data=data))
            each.came.set()

    def connect(self, source: bytes) -> Flow:
        flow = (source, next(self.ports), OWN, PORT)
        now = trio.current_time()
        self.table[flow] = Open(now, now, now)
        self.send(flow, SYN)
        return flow

    async def running(self) -> None:
        while self.frozen:
            await self.moved.wait()

    async def compute(self, seconds: float) -> None:
        """Use processor time, which passes only while the application runs."""
        while seconds > 1e-6:  # less is lost in the clock
            await self.running()
            began = trio.current_time()
            with trio.move_on_after(seconds):
                await self.moved.wait()
            seconds -= trio.current_time() - began

    async def serve(self, flow: Flow, seconds: float) -> None:
        """The application: accepts, answers, and closes when the peer has ended its direction."""
        connection = self.table[flow]
        await self.running()
        connection.accepted = True
        await connection.asked.wait()
        await self.compute(seconds)
        connection.sent = trio.current_time()
        connection.answered.set()
        while not connection.half_closed:
            await trio.sleep(0.001)
        await self.compute(0.0005)
        await self.running()
        del self.table[flow]

    def connections(self, ports: Collection[int]) -> list[Connection]:
        del ports
        now = trio.current_time()
        return [
            Connection(flow, now - max(each.sent, each.received), each.half_closed, each.unanswered)
            for flow, each in self.table.items()
        ]

    def waiting(self, ports: Collection[int]) -> bool:
        del ports
        return any(not each.accepted for each in self.table.values())

    async def ask(self, nursery: trio.Nursery, source: bytes, agent: str, seconds: float) -> None:
        """A client: one request on a connection of its own. Its answer comes in time."""
        flow = self.connect(source)
        connection = self.table[flow]
        nursery.start_soon(self.serve, flow, seconds)
        await trio.sleep(self.random.choice([0, 0.0001, 0.003]))
        connection.received = trio.current_time()
        connection.asked.set()
        self.send(flow, 0x18, f"GET / HTTP/1.1\r\nUser-Agent: {agent}\r\n\r\n".encode())
        with trio.move_on_after(seconds + LATE_SECONDS) as waiting:
            await connection.answered.wait()
        assert not waiting.cancelled_caught, (
            f"a request at {trio.current_time():.3f} s of {seconds} s is lost"
        )
        self.answers += 1
        await trio.sleep(self.random.choice([0, 0.001]))
        connection.half_closed = True
        self.send(flow, FIN | 0x10)


class FakeSocket:
    """A packet socket of the machine."""

    machine: Machine

    def __init__(self, *_ports: Collection[int]) -> None:
        self.queue: deque[Packet] = deque()
        self.came = trio.Event()

    def open(self) -> None:
        if self not in self.machine.sockets:
            self.machine.sockets.append(self)

    def close(self) -> None:
        if self in self.machine.sockets:
            self.machine.sockets.remove(self)
        self.queue.clear()

    def take(self) -> Packet | None:
        if self.machine.broken:
            self.machine.broken = False
            raise OSError(5, "the simulated kernel fails")
        return self.queue.popleft() if self.queue else None

    async def wait(self) -> Packet:
        while (packet := self.take()) is None:
            self.came = trio.Event()
            await self.came.wait()
        return packet


class FakeFreezer:
    """The processes of the machine."""

    machine: Machine

    def __init__(self, *_: object) -> None:
        self.frozen = False

    def check(self) -> None:
        """It may."""

    def look(self) -> Inside:
        return Inside((), ())

    def stop(self) -> None:
        self.frozen = True
        self.machine.stop()

    def thaw(self) -> None:
        if self.frozen:
            self.machine.thaw()
            self.frozen = False


@contextmanager
def simulated(machine: Machine) -> Iterator[None]:
    """The action sees this machine in the block."""
    FakeSocket.machine = FakeFreezer.machine = machine
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(idle, "PacketSocket", FakeSocket)
        patch.setattr(idle, "Freezer", FakeFreezer)
        patch.setattr(_traffic, "connections", machine.connections)
        patch.setattr(_traffic, "waiting", machine.waiting)
        patch.setattr(inside, "waiting_signal", lambda: False)
        yield


def plan(after: float, **fields: Any) -> Any:
    config = {"after": after, "ports": [f"{PORT}/TCP"], "nodes": ["10.0.0.1"], **fields}
    return decode_plan([{"name": "rest", "idle": config}], actions.names())


async def week(machine: Machine) -> dict[str, float]:
    random = machine.random
    setting = Setting(Pod("web", "shop", "u", "10.1.0.2"), None, Reaper(), Counters(repo_up=True), lambda: ())
    engine = Engine(setting, Journal(), changed=lambda: None, random=random)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        engine.apply(plan(random.uniform(30, 3600)))
        async with trio.open_nursery() as traffic:

            def ask(source: bytes, agent: str, seconds: float) -> None:
                traffic.start_soon(machine.ask, traffic, source, agent, seconds)

            end = trio.current_time() + WEEK_SECONDS
            while trio.current_time() < end:
                await trio.sleep(random.expovariate(1 / random.choice([0.5, 30, 300, 1800])))
                match random.randrange(20):
                    case 0:
                        engine.apply(plan(random.uniform(30, 3600), breathe={"every": 600, "for": 2}))
                    case 1:
                        machine.broken = True
                    case 2:
                        engine.apply(decode_plan([], actions.names()))
                        await engine.wait_idle()
                        assert not machine.frozen
                        engine.apply(plan(random.uniform(30, 3600)))
                    case 3 | 4 | 5:
                        machine.in_the_stop = lambda: ask(CLIENT, "curl", 0.01)
                    case 6 | 7:
                        machine.in_the_stop = lambda: ask(NODE, "kube-probe/1", 0.2)
                    case 8 | 9 | 10 | 11:
                        ask(CLIENT, "curl", random.choice([0.001, 1.0, 60.0, 500.0]))
                    case 12:
                        ask(NODE, "curl", random.choice([0.001, 20.0]))  # through a port of the node
                    case _:
                        ask(NODE, "kube-probe/1", random.choice([0.001, 0.5]))
                await wait_all_tasks_blocked()
                if machine.frozen:
                    (task,) = engine.tasks
                    assert task.stage == "running"
        action = engine.action("rest")
        assert isinstance(action, idle.Idle)
        seconds = action.seconds()
        with trio.fail_after(60):
            await engine.drain(8)
        assert not machine.frozen
        nursery.cancel_scope.cancel()
    return seconds


@given(st.integers())
@settings(max_examples=10 * ENDURANCE)
def test_in_a_week_no_request_is_lost_and_nobody_stays_frozen(seed: int) -> None:
    async def run() -> None:
        machine = Machine(Random(seed))
        with simulated(machine):
            await week(machine)
        assert machine.answers > 400

    trio.run(run, clock=MockClock(autojump_threshold=0))
