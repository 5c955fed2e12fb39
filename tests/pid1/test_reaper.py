"""The reaper with children of this process: what they inherit, and when they are collected."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from resource import struct_rusage

import psutil
import pytest
import trio

from pidone.pid1.reaper import MARK, Reaper
from pidone.pid1.tree import foreign_processes, still_exists
from tests.patience import PATIENCE_SECONDS

SAY_MASK = "print(open('/proc/self/status').read().partition('SigBlk:')[2].split()[0], flush=True)"


@pytest.fixture
async def reaper(nursery: trio.Nursery) -> Reaper:
    found = Reaper()
    await nursery.start(found.run)
    return found


async def test_a_child_begins_with_an_empty_mask_whatever_is_blocked_here(
    reaper: Reaper, nursery: trio.Nursery
) -> None:
    blocked = {signal.SIGCHLD, signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    ours, theirs = os.pipe()
    try:
        child = reaper.spawn([sys.executable, "-S", "-c", SAY_MASK], env={}, output=theirs)
        assert blocked <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with trio.fail_after(PATIENCE_SECONDS):
        assert await child.wait() == 0
    assert os.read(ours, 100) == b"0" * 16 + b"\n"
    os.close(ours)
    os.close(theirs)
    nursery.cancel_scope.cancel()


async def test_each_of_many_children_one_after_the_other_is_collected(
    reaper: Reaper, nursery: trio.Nursery
) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        for _ in range(100):  # each ends within the rest after the one before
            assert await reaper.spawn(["/bin/true"], env={}).wait() == 0
    nursery.cancel_scope.cancel()


async def test_an_observer_sees_each_process_before_it_is_reaped_and_its_usage(reaper: Reaper) -> None:
    seen: dict[int, str] = {}
    usages: dict[int, float] = {}

    def observe(pid: int) -> Callable[[struct_rusage], None]:
        seen[pid] = psutil.Process(pid).status()
        return lambda usage: usages.update({pid: usage.ru_utime + usage.ru_stime})

    reaper.observe = observe
    burn = "import os, time\nwhile sum(os.times()[:2]) < 0.1: pass\nos._exit(7)"
    children = [reaper.spawn([sys.executable, "-S", "-c", burn], env={}) for _ in range(2)]
    with trio.fail_after(PATIENCE_SECONDS):
        assert [await child.wait() for child in children] == [7, 7]
    assert seen == {child.pid: psutil.STATUS_ZOMBIE for child in children}
    assert all(usages[child.pid] >= 0.1 for child in children)
    assert reaper.children == 2


async def test_when_it_is_cancelled_nothing_stays_blocked(nursery: trio.Nursery) -> None:
    reaper = Reaper()
    async with trio.open_nursery() as inner:
        await inner.start(reaper.run)
        child = reaper.spawn(["/bin/true"], env={})
        await child.wait()  # so it rests now
        inner.cancel_scope.cancel()
    assert signal.SIGCHLD not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    nursery.cancel_scope.cancel()


async def test_commands_and_their_descendants_are_not_foreign(reaper: Reaper, nursery: trio.Nursery) -> None:
    ours, theirs = os.pipe()
    forks = "import os, signal; os.fork() or os.setsid(); os.write(1, b'.'); signal.pause()"
    child = reaper.spawn([sys.executable, "-S", "-c", forks], env={}, output=theirs)
    sleep = ["/bin/sleep", "1000"]
    with subprocess.Popen(sleep) as stranger:  # noqa: ASYNC220 - started by somebody else
        said = b""
        while len(said) < 2:
            said += await trio.to_thread.run_sync(os.read, ours, 2)
        commands = [child.pid for child in reaper.started]
        found = {process.pid: process for process in foreign_processes(commands, f"{MARK}=".encode())}
        family = {child.pid, *(inner.pid for inner in psutil.Process(child.pid).children())}
        assert len(family) == 2
        assert stranger.pid in found
        assert not found.keys() & (family | {os.getpid()})
        assert still_exists(found[stranger.pid])
        stranger.kill()
    assert not still_exists(found[stranger.pid])
    with trio.fail_after(PATIENCE_SECONDS):
        await child.end(signal.SIGKILL)
        await child.wait()
    os.close(ours)
    os.close(theirs)
    nursery.cancel_scope.cancel()
