"""``python -m tests.bench.registries [--only PART] [NAME...]``: measures registries with their real servers.

Prints for each registry: heartbeats by one process beside the registry's own client, the time until a pod is
registered, its memory, and when 200 instances are back after a restart without data. No figure makes it fail, and after
six minutes it ends.
"""

import argparse
import os
import platform
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import trio

from tests.bench import heartbeats, registering
from tests.patience import PATIENCE_SECONDS
from tests.registries.checks import CHECKS
from tests.registries.pods import Look, Pods
from tests.registries.world import World, missing, running

MANY = 200
LEASE_SECONDS = 12
MINUTES = 6  # for everything
BINS, WIDTH = 10, 50  # of a histogram: for an interval, and in columns
SERVICE = "spread"


def of_heartbeats(world: World, folder: Path) -> Iterator[str]:
    yield from heartbeats.lines(heartbeats.measure(world, folder))


class Return(NamedTuple):
    """Instances after a restart. Times are seconds after the first connection that a server takes."""

    interval: float  # between two heartbeats
    ready: float  # when all servers answer the reader, and have the users of pods
    accepted: list[float]  # when a server accepted each registration, as its pod says
    shown: list[float]  # when the reader had each instance


def of_restart(world: World, folder: Path) -> Iterator[str]:
    """Return when instances are back after all servers were killed and started without data."""
    found = trio.run(_restart, world, folder)
    yield (
        f"a server takes connections at 0 s, all answer the reader and have the users of pods at {found.ready:.1f} s; "
        f"heartbeats come each {found.interval:.1f} s"
    )
    for what, times in (("accepted", found.accepted), ("shown to the reader", found.shown)):
        within = sum(when - found.ready <= found.interval for when in times)
        late = sorted(times)
        yield (
            f"{what}: {len(times)} of {MANY}, {within} of them within one interval after that; "
            f"median {late[len(late) // 2]:.1f} s, last {late[-1]:.1f} s"
        )
    yield from histogram(found.shown, found.interval / BINS)


def histogram(times: Sequence[float], width: float) -> Iterator[str]:
    """Return a line for each ``width`` seconds from the first instance on, with a mark for each or some of them."""
    counts = Counter(max(0, int(when / width)) for when in times)
    mark = max(1, max(counts.values()) / WIDTH)
    for number in range(min(counts), max(counts) + 1):
        bar = "#" * round(counts[number] / mark)
        yield f"{number * width:6.1f}-{(number + 1) * width:4.1f} s {counts[number]:4} {bar}".rstrip()


async def _restart(world: World, folder: Path) -> Return:
    numbers = range(500, 500 + MANY)

    async def call(function: Callable[..., object], *arguments: object, **options: object) -> object:
        return await trio.to_thread.run_sync(partial(function, *arguments, **options))

    async def shown() -> set[int] | None:
        found = await trio.to_thread.run_sync(world.instances, SERVICE)
        return None if found is None else {seen.number for seen in found}

    with (folder / "pods.log").open("ab") as log:
        pods = await Pods.start(log)
        try:
            await pods.order(
                start={
                    number: {world.name: world.config(SERVICE, number, world.addresses, LEASE_SECONDS)}
                    for number in numbers
                }
            )
            with trio.fail_after(PATIENCE_SECONDS):
                while await shown() != set(numbers):
                    await trio.sleep(0.2)
                # a pod whose first registration is cut off and then refused waits for half of a lease at least
                before = await pods.order()
                while any(look.state != "registered" for look in before.values()):
                    await trio.sleep(0.2)
                    before = await pods.order()
            for server in range(len(world.addresses)):
                await call(world.kill, server)
            with trio.fail_after(PATIENCE_SECONDS):
                while not _noticed(before, await pods.order()):
                    await trio.sleep(0.2)

            accepted, back = dict[int, float](), dict[int, float]()
            first, ready = list[float](), 0.0
            with trio.move_on_after(PATIENCE_SECONDS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_connected, world.addresses, first)
                    nursery.start_soon(_accepted, pods, before, accepted)
                    for server in range(len(world.addresses)):
                        await call(world.restart, server, empty=True)
                    users = trio.current_time()  # an empty server has those of pods from now on
                    while len(back) < MANY:
                        found = await shown()
                        now = trio.current_time()
                        if found is not None:
                            ready = ready or max(now, users)
                            back |= {number: now for number in found if number not in back}
                        await trio.sleep(0.05)
        finally:
            await pods.kill()
    interval = max(look.interval for look in before.values())
    after = [[when - first[0] for when in times.values()] for times in (accepted, back)]
    return Return(interval, ready - first[0], *after)


async def _accepted(pods: Pods, before: dict[int, Look], times: dict[int, float]) -> None:
    """Add the time when each pod says that its next registration was accepted."""
    while len(times) < len(before):
        looks, now = await pods.order(), trio.current_time()
        for number, look in before.items():
            if looks[number].registrations > look.registrations:
                times.setdefault(number, now)
        await trio.sleep(0.1)


async def _connected(addresses: Sequence[str], times: list[float]) -> None:
    """Add the time when a server takes a connection."""
    while True:
        for address in addresses:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", int(address.rpartition(":")[2]))
            except OSError:
                await trio.sleep(0.01)
            else:
                times.append(trio.current_time())
                await stream.aclose()
                return


def _noticed(before: dict[int, Look], now: dict[int, Look]) -> bool:
    """True if a call of each pod has failed since."""
    return all(now[number].failures > look.failures for number, look in before.items())


PARTS: dict[str, tuple[str, Callable[[World, Path], Iterator[str]]]] = {
    "heartbeats": (
        f"heartbeats of {heartbeats.INSTANCES} instances, {heartbeats.IN_FLIGHT} in flight, on one core",
        of_heartbeats,
    ),
    "pods": (f"{registering.PODS} pods with a registration, and as many without", registering.of_pods),
    "restart": (f"{MANY} instances after a restart without data", of_restart),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.registries", description=__doc__)
    parser.add_argument(
        "names", metavar="NAME", nargs="*", choices=[*CHECKS, []], help="registries; default: all"
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; may be repeated")
    options = parser.parse_args()
    print(f"{os.cpu_count()} processors, Python {platform.python_version()}")
    began = time.monotonic()
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(60 * MINUTES)
    try:
        for name in options.names or CHECKS:
            with tempfile.TemporaryDirectory(prefix=f"pidone-{name}-") as folder:
                measure(name, Path(folder), options.only or list(PARTS))
    except (TimeoutError, ExceptionGroup, trio.TrioInternalError):  # Trio wraps it
        if time.monotonic() - began < 60 * MINUTES:
            raise
        print(f"\nended: {MINUTES} minutes are over")
    print(f"\n{time.monotonic() - began:.0f} s")


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError


def measure(name: str, folder: Path, parts: Sequence[str]) -> None:
    try:
        reason = missing(name)
    except ModuleNotFoundError as error:
        reason = str(error)
    if reason is not None:
        print(f"\n{name}: skipped, {reason}")
        return
    began = time.monotonic()
    with running(name, folder) as world:
        print(f"\n{name}: {world.server}")
        for part in parts:
            title, lines = PARTS[part]
            world.mend()
            print(f"  {title}", flush=True)
            try:
                for line in lines(world, folder):
                    print(f"    {line}", flush=True)
            except (RuntimeError, trio.TooSlowError) as error:
                print(f"    failed: {error!r}", flush=True)
    print(f"  ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
