"""``faulty.py FILE``: pidone as process 1 whose tasks misbehave, and whose wall clock jumps; the program is well.

Each fault has a number, which is written to FILE before the deed and stands in the error that ends it, so that
a test can see that each was told once. There are no more of them once FILE.calm is there. A task named
``steady`` has none.
"""

import os
import random
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, tzinfo
from typing import Any

RECORD = sys.argv.pop()
CHANCE = 0.4
KINDS = (ValueError, OSError, KeyError, RuntimeError, ZeroDivisionError, UnicodeError, RecursionError)
LIMIT = 96 << 20  # bytes of data that this process may have
DAY = 86_400.0

real_time, jumps = time.time, random.Random(4)
offset, until = 0.0, 0.0


def jumping_time() -> float:
    """The wall clock, which somebody sets anew each second or so, by up to a day in both directions."""
    global offset, until
    if time.monotonic() > until and not calm():
        offset, until = jumps.uniform(-DAY, DAY), time.monotonic() + jumps.random() * 2
        note("clock", "jump")
    return real_time() + offset


class JumpingDatetime(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "JumpingDatetime":
        return cls.fromtimestamp(jumping_time(), tz or UTC)


time.time = jumping_time  # before anything of ours takes its name


def calm() -> bool:
    return os.path.exists(RECORD + ".calm")


def note(what: str, number: str) -> None:
    with open(RECORD, "a") as record:
        record.write(f"{what} {number}\n")


def chance(of: float) -> bool:
    return random.random() < of and not calm()


async def misbehave(context: Any, what: str) -> None:
    """One misdeed, which ends by raising its number."""
    import trio

    number = f"fault{os.urandom(5).hex()}"
    how = random.choice(
        ["raise", "group", "memory", "slow", "hang", "deaf", "block", "busy", "flood", "leave"]
    )
    note(f"{what}:{how}", number)
    try:
        match how:
            case "group":
                raise BaseExceptionGroup(
                    "several", [KeyError(number), ExceptionGroup("inner", [OSError(number)])]
                )
            case "memory":
                try:
                    bytearray(LIMIT * 2)  # beyond the limit: a real one
                except MemoryError as error:
                    raise MemoryError(number) from error
            case "slow":
                await trio.sleep(random.random() * 2)
            case "hang":
                await trio.sleep_forever()
            case "deaf":
                with trio.CancelScope(shield=True):
                    await trio.sleep(random.random() * 4)
            case "block":
                time.sleep(random.random() / 2)  # noqa: ASYNC251 - that is the fault
            case "busy":
                began = time.monotonic()
                while time.monotonic() - began < 0.2:
                    pass
            case "flood":
                for turn in range(1000):
                    context.report(f"state-{turn % 7}")
            case "leave":
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(trio.sleep_forever)
                        await trio.sleep(0.1)
                        nursery.cancel_scope.cancel()
                except BaseExceptionGroup:
                    pass  # cut off, and nobody hears of it
    except trio.Cancelled:
        raise random.choice(KINDS)(number) from None  # also where it was cut off
    raise random.choice(KINDS)(number)


def sabotage() -> None:
    from pidone import actions, journal
    from pidone.pod import program
    from pidone.repo import client

    changed = set[type]()
    build = actions.build

    def wrapped(call: Callable[..., Awaitable[None]], what: str, of: float) -> Callable[..., Awaitable[None]]:
        async def faulty(self: Any, context: Any) -> None:
            if context.task != "steady" and chance(of):
                await misbehave(context, what)
            await call(self, context)

        return faulty

    def faulty_build(task: Any, setting: Any) -> Any:
        if task.name != "steady" and chance(0.01):
            number = f"fault{os.urandom(5).hex()}"
            note("build", number)
            raise random.choice(KINDS)(number)
        action = build(task, setting)
        kind: Any = type(action)
        if kind not in changed:
            changed.add(kind)
            kind.run = wrapped(kind.run, f"{task.action}.run", CHANCE)
            kind.undo = wrapped(kind.undo, f"{task.action}.undo", CHANCE / 3)
        return action

    setattr(actions, "build", faulty_build)  # noqa: B010 - as mypy sees a module
    setattr(journal, "datetime", JumpingDatetime)  # noqa: B010 - the same; its clock is not Python's
    setattr(program, "_refuse_privileged", lambda bundle: None)  # noqa: B010 - commands, over plain http
    setattr(client, "POLL_GAP_SECONDS", 0.0)  # noqa: B010 - each change of the plan is to reach the engine


if __name__ == "__main__":
    from pidone import __main__

    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    sabotage()
    sys.argv = [sys.argv[0]]
    __main__.process_one()
