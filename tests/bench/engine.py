"""``python -m tests.bench.engine``: measures the engine. Prints figures; exit code 1 if a goal is missed.

The tasks do nothing, so that the figures are those of the engine. The clock is real for processor time and memory, and
fake for measurements over hours.
"""

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from time import perf_counter, process_time
from typing import Any

import trio
from trio.testing import MockClock

from pidone import actions
from pidone.actions import Context, Setting
from pidone.counters import Counters
from pidone.engine.core import Cancel, Core, PlanChanged, RunEnded, Start, Undo, UndoEnded
from pidone.engine.runner import Engine
from pidone.errors import TaskFailed
from pidone.journal import Journal
from pidone.pid1.reaper import Reaper
from pidone.plan.format import decode_plan
from pidone.plan.model import Plan, Pod, Task
from tests.engine.test_invariants import PLANS, make_plan

TASKS = 200
SECONDS = 10


class Nothing:
    """An action that only reports a state."""

    async def run(self, context: Context) -> None:
        await trio.lowlevel.checkpoint()
        context.report("started")

    async def undo(self, context: Context) -> None:
        pass


class Beats(Nothing):
    """Records the times of its runs."""

    def __init__(self) -> None:
        self.at: list[float] = []

    async def run(self, context: Context) -> None:
        self.at.append(trio.current_time())
        await trio.sleep(0.3)


class Faulty(Nothing):
    """Fails, hangs, raises or reports many states, at random."""

    random = Random(3)

    async def run(self, context: Context) -> None:
        match self.random.randrange(8):
            case 0:
                raise TaskFailed("as if")
            case 1:
                raise MemoryError
            case 2:
                await trio.sleep(self.random.random() * 900)
            case 3:
                for turn in range(50):
                    context.report(str(turn))
            case _:
                context.report(self.random.choice(["healthy", "unhealthy"]))
                await trio.sleep(self.random.random())


def engine(make: Callable[[], Nothing]) -> Engine:
    def build(task: Task, setting: Setting) -> Nothing:
        return make()

    setattr(actions, "build", build)  # noqa: B010 - replaces all actions
    setting = Setting(Pod("p", "n", "u", "127.0.0.1"), None, Reaper(), Counters(), lambda: ())
    return Engine(setting, Journal(echo=lambda line: None), changed=lambda: None, random=Random(1))


def plan(tasks: list[dict[str, Any]]) -> Plan:
    return decode_plan([{"probe": {}} | task for task in tasks], ["probe"])


def private() -> int:
    """Return the private memory of this process in KiB."""
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))


async def firing() -> tuple[float, float, float]:
    """Return processor ms a second and MiB above those of an empty plan, and the number of runs a second."""
    running = engine(Nothing)
    async with trio.open_nursery() as nursery:
        await nursery.start(running.run)
        running.apply(plan([]))
        await trio.sleep(1)
        gc.collect()
        before, used = private(), process_time()
        await trio.sleep(2)
        empty = (process_time() - used) / 2

        running.apply(plan([{"name": f"t{number}", "every": 1} for number in range(TASKS)]))
        await trio.sleep(3)
        runs, used, began = sum(state.runs for state in running.tasks), process_time(), perf_counter()
        await trio.sleep(SECONDS)
        took = perf_counter() - began
        cost = (process_time() - used) / took - empty
        rate = (sum(state.runs for state in running.tasks) - runs) / took
        grown = private() - before
        nursery.cancel_scope.cancel()
    return cost * 1000, grown / 1024, rate


def changes() -> float:
    """Return the milliseconds of a change from one random plan to the next. All runs and undoings end at once."""
    core, count = Core(Random(2)), 10_000
    random, now = Random(5), 0.0
    plans = [make_plan(random.randrange(PLANS)) for _ in range(count)]  # making them is not measured
    began = process_time()
    for plan in plans:
        now += 1.0
        commands = core.handle(PlanChanged(plan), now)
        while commands:
            command = commands.pop(0)
            match command:
                case Cancel(name):
                    commands += core.handle(RunEnded(name, "cancelled"), now)
                case Undo(task):
                    commands += core.handle(UndoEnded(task.name), now)
                case Start():
                    pass
    return (process_time() - began) / count * 1000


async def drift() -> tuple[float, int]:
    """Return the largest delay of a run in an hour, in seconds, and the number of runs.

    A run is due one period after the run before, whatever the duration of that run.
    """
    beats = Beats()
    running = engine(lambda: beats)
    async with trio.open_nursery() as nursery:
        await nursery.start(running.run)
        running.apply(plan([{"name": "beat", "every": 1, "restartPolicy": "OnFailure"}]))
        await trio.sleep(3600)
        nursery.cancel_scope.cancel()
    late = max(at - (beats.at[0] + number) for number, at in enumerate(beats.at))
    return late, len(beats.at)


async def day() -> tuple[float, int]:
    """Return the MiB by which private memory grows from the first hour to the 24th with random faults, and the runs."""
    running = engine(Faulty)
    tasks: list[dict[str, Any]] = [
        {"name": f"t{number}", "every": 30, "timeout": 120, "runOn": [f"t{(number + 1) % 20}.unhealthy"]}
        for number in range(20)
    ]
    tasks_changed = [task | {"every": 31} for task in tasks]
    first = 0
    async with trio.open_nursery() as nursery:
        await nursery.start(running.run)
        for hour in range(24):
            running.apply(plan(tasks if hour % 2 == 0 else tasks_changed))
            await trio.sleep(3600)
            gc.collect()
            if hour == 0:
                first = private()
        runs = sum(state.runs for state in running.tasks)
        nursery.cancel_scope.cancel()
    return (private() - first) / 1024, runs


def main() -> int:
    cost, grown, rate = trio.run(firing)
    each = changes()
    late, beats = trio.run(drift, clock=MockClock(autojump_threshold=0))
    began = perf_counter()
    flat, runs = trio.run(day, clock=MockClock(autojump_threshold=0))
    took = perf_counter() - began
    goals = [
        (
            f"{TASKS} tasks that run every second ({rate:.0f} runs/s)",
            f"{cost:.1f} ms of processor time a second",
            cost <= 40,
        ),
        ("private memory above that of an empty plan", f"{grown:.2f} MiB", grown <= 2),
        ("changing between 10,000 random plans", f"{each:.3f} ms each", each <= 5),
        (f"an hour of heartbeats, one each second ({beats})", f"at most {late:.3f} s late", late < 1),
        (
            f"24 hours with random faults ({runs} runs of the last plan, {took:.0f} s)",
            f"{flat:+.2f} MiB",
            flat < 1,
        ),
    ]
    for what, figure, good in goals:
        print(f"{what:<62} {figure:>34}  {'' if good else 'MISSED'}".rstrip())
    return 0 if all(good for _, _, good in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
