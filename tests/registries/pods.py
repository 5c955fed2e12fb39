"""Pods in a process of their own, each with the real engine, the real action and the real driver.

Only the probe is not real: it is in the state that the test says. Orders are lines of JSON on the input, and each is
answered with a line of JSON:

    {"start": {NUMBER: {NAME: FIELDS}}}     start pods with this ``register``
    {"health": {NUMBER: STATE}}             let their probes be healthy or unhealthy
    {"maintenance": {NUMBER: FLAG}}         begin or end their maintenance
    {"drain": {NUMBER: SECONDS}}            begin their end, with this budget
    {"log": true}                           look at the journals too

The answer has for each pod its ``Look``.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from subprocess import PIPE
from typing import IO, Any, cast

import trio

from pidone import actions, registries
from pidone.actions import Action, Context, Setting
from pidone.counters import Counters
from pidone.engine.runner import Engine
from pidone.errors import PidoneError
from pidone.journal import Journal
from pidone.maintenance import LOCAL, Maintenance
from pidone.pid1.reaper import Reaper
from pidone.plan import model
from pidone.plan.fields import Fields
from pidone.plan.format import decode_plan
from pidone.plan.model import Task
from pidone.registries import Registry, Status
from tests.registries.world import pod_ip

STOP_SECONDS = 15  # for a deregistration; a server that is slow by 5 s is asked three times for it
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Look:
    """The state of one pod."""

    state: str  # of the registration
    clock: float  # seconds since the epoch, as the process has them
    interval: float  # seconds between renewals, as the driver says
    registrations: int  # that the registry has accepted
    renewals: int  # heartbeats that the registry has accepted
    failures: int  # calls that have failed
    over: bool  # its end is over
    left: str  # why it could not deregister; empty if it could
    log: list[str]  # the last lines, if they were wanted


class Probe:
    """An action in the state that the test says."""

    def __init__(self) -> None:
        self._state = "healthy"
        self._changed = trio.Event()

    def say(self, state: str) -> None:
        self._state = state
        self._changed.set()

    async def run(self, context: Context) -> None:
        while True:
            self._changed = trio.Event()
            context.report(self._state)
            await self._changed.wait()

    async def undo(self, context: Context) -> None:
        pass


class Counted:
    """A driver whose calls are counted."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.registrations = self.renewals = self.failures = 0

    @property
    def interval(self) -> float:
        return self._registry.interval

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    async def register(self, status: Status) -> str:
        try:
            shown = await self._registry.register(status)
        except PidoneError:
            self.failures += 1
            raise
        self.registrations += 1
        return shown

    async def heartbeat(self) -> bool:
        try:
            renewed = await self._registry.heartbeat()
        except PidoneError:
            self.failures += 1
            raise
        self.renewals += renewed
        return renewed


class Pod:
    """One pod with a probe, and a registration that follows it."""

    def __init__(self, number: int, register: dict[str, Any]) -> None:
        self._probe = Probe()
        self._journal = Journal(echo=lambda _: None)
        self.over = False
        pod = model.Pod(f"web-{number}", "shop", f"uid-{number}", pod_ip(number))
        self.maintenance = Maintenance(changed=self._wake)
        setting = Setting(pod, None, Reaper(), Counters(), lambda: (), maintenance=self.maintenance)
        self.engine = Engine(
            setting, self._journal, changed=lambda: None, random=Random(number), build=self._build
        )
        self._tasks = [
            {"name": "ready", "probe": {"tcpSocket": {"port": 1}}},
            {
                "name": "web",
                "register": {**register, "follow": "ready"},
                "needs": ["ready.healthy"],
                "stopTimeout": STOP_SECONDS,
            },
        ]
        self._counted: list[Counted] = []

    async def start(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.engine.run)
        _counted.clear()
        self.engine.apply(decode_plan(self._tasks, actions.names()))
        self._counted = list(_counted)

    def say(self, state: str) -> None:
        self._probe.say(state)

    async def drain(self, budget: float) -> None:
        await self.engine.drain(budget)
        self.over = True

    def look(self, *, log: bool) -> Look:
        return Look(
            state=next((state.shown for state in self.engine.tasks if state.task.name == "web"), ""),
            clock=time.time(),
            interval=max(one.interval for one in self._counted),
            registrations=sum(one.registrations for one in self._counted),
            renewals=sum(one.renewals for one in self._counted),
            failures=sum(one.failures for one in self._counted),
            over=self.over,
            left=self.engine.left.get("web", ""),
            log=list(self._journal.lines)[-8:] if log else [],
        )

    def _wake(self) -> None:
        self.engine.wake_tasks()

    def _build(self, task: Task, setting: Setting) -> Action:
        return self._probe if task.action == "probe" else actions.build(task, setting)


_build_registry = registries.build
_counted: list[Counted] = []  # drivers that were built since it was cleared


def _build_counted(fields: Fields, pod: model.Pod, source: str | None) -> Registry:
    _counted.append(Counted(_build_registry(fields, pod, source)))
    return cast("Registry", _counted[-1])


async def serve() -> None:
    """Carry out the orders until the input ends."""
    registries.build = _build_counted
    pods: dict[str, Pod] = {}
    async with trio.open_nursery() as nursery, trio.lowlevel.FdStream(os.dup(0)) as orders:
        received = b""
        async for part in orders:
            received += part
            *lines, received = received.split(b"\n")
            for line in lines:
                order = json.loads(line)
                for number, register in order.get("start", {}).items():
                    pods[number] = Pod(int(number), register)
                    await pods[number].start(nursery)
                for number, state in order.get("health", {}).items():
                    pods[number].say(state)
                for number, on in order.get("maintenance", {}).items():
                    pods[number].maintenance.set(LOCAL, on=on)
                for number, budget in order.get("drain", {}).items():
                    nursery.start_soon(pods[number].drain, budget)
                looks = {number: asdict(pod.look(log="log" in order)) for number, pod in pods.items()}
                print(json.dumps(looks), flush=True)
        nursery.cancel_scope.cancel()


class Pods:
    """The process, from outside."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._received = b""
        self._turn = trio.Lock()

    @classmethod
    async def start(
        cls, log: IO[bytes], prefix: Sequence[str] = (), environment: dict[str, str] | None = None
    ) -> "Pods":
        """Start the process. Its command begins with ``prefix``, and ``environment`` is added to that of the test."""
        return cls(
            await trio.lowlevel.open_process(
                [*prefix, sys.executable, "-m", __name__],
                stdin=PIPE,
                stdout=PIPE,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
            )
        )

    async def order(self, **orders: Any) -> dict[int, Look]:
        """Give an order, and return the states of all pods by number."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._turn:
            await self._process.stdin.send_all(json.dumps(orders).encode() + b"\n")
            while b"\n" not in self._received:
                part = await self._process.stdout.receive_some()
                if not part:
                    raise RuntimeError("the process of the pods has ended; see its log")
                self._received += part
            line, _, self._received = self._received.partition(b"\n")
        return {int(number): Look(**values) for number, values in json.loads(line).items()}

    async def kill(self) -> None:
        """End the process by SIGKILL, without any deregistration."""
        with trio.CancelScope(shield=True):
            self._process.kill()
            await self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                await pipe.aclose()


if __name__ == "__main__":
    trio.run(serve)
