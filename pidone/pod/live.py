"""Runs the program of a pod from its start to its end, and starts anew each part of it that fails."""

import os
import posix
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from pidone import __version__
from pidone.errors import describe
from pidone.http.connect import Lookups
from pidone.journal import Journal
from pidone.pacing import Backoff
from pidone.pid1 import ask, signals, stages
from pidone.pid1.claims import claims, processes
from pidone.pod.local import serve_status
from pidone.pod.program import PodProgram
from pidone.pod.settings import Settings
from pidone.protocol import POD_UID_HEADER
from pidone.repo.client import RepoClient

PART_RESTART = Backoff(initial=1.0, maximum=30.0, jitter=0.0)  # of a part that failed
TELL_SECONDS = 10.0  # for reporting everything before the pod dozes
COUNTS_SECONDS = 60.0  # between two reports where nothing but counts has changed: no heartbeat causes one


async def live(program: PodProgram, *, local: bytes | None = None) -> bool:
    """Run until TERM or INT (True), or until there was nothing to do for a while (False).

    Whatever the tasks did is taken back then. ``local`` is a bundle instead of a repo's: it is never over.
    Raises ``Refused`` for a local bundle that cannot be run; a repo's is refused to the repo.
    """
    journal = program.journal
    trio.socket.set_custom_hostname_resolver(Lookups())
    stopped = False
    with trio.open_signal_receiver(*signals.STOP, signals.RELOAD) as arrivals:
        async with trio.open_nursery() as nursery:
            await nursery.start(program.reaper.run)
            await nursery.start(program.engine.run)
            signals.unblock()  # not before: what was pending must find its receiver
            nursery.start_soon(_keep_running, partial(serve_status, program), journal)
            program.start_part = lambda part: nursery.start_soon(_keep_running, part, journal)
            if local is not None:
                program.take(local, trusted=True)
            else:
                client = _start_client(program, nursery)
                if ask.repos() and stages.doze_program():  # without a doorbell nobody would wake it
                    nursery.start_soon(_leave_when_idle, program, client, nursery.cancel_scope)
            number = await anext(arrivals)
            while number == signals.RELOAD and (program.engine.happened(signals.RELOADED) or local is None):
                # on a desk a hangup that no task runs on is the terminal's end
                number = await anext(arrivals)
            stopped = True
            journal.write("stopping", signal=number)
            await program.drain(f"signal {number}")
            journal.write("stopped", reaped=program.reaper.orphans)
            await program.farewell()
            if program.engine.stuck:  # and the nursery below cannot be left
                posix._exit(0)
            nursery.cancel_scope.cancel()
    return stopped


def _start_client(program: PodProgram, nursery: trio.Nursery) -> RepoClient:
    client = RepoClient(
        list(program.settings.repos),
        program,
        program.journal,
        program.counters,
        claims=claims(),
        source=program.settings.pod_ip,
        random=program.random,
        token=program.settings.token,
    )
    program.farewell = client.farewell
    told, at = -1, 0.0

    def changed() -> None:
        nonlocal told, at
        if program.engine.news != told or trio.current_time() - at >= COUNTS_SECONDS:
            told, at = program.engine.news, trio.current_time()
            client.status_changed()

    program.changed, program.journal.changed = changed, client.status_changed
    nursery.start_soon(_keep_running, client.ask, program.journal)
    nursery.start_soon(_keep_running, client.report, program.journal)
    nursery.start_soon(_tell_the_end, program)
    return client


async def _leave_when_idle(program: PodProgram, client: RepoClient, scope: trio.CancelScope) -> None:
    while True:
        await program.engine.wait_idle()
        with trio.move_on_after(program.settings.linger) as lingering:
            await program.engine.wait_busy()
        # A plan that was refused is there all the same: the doorbell would only call back at once. And what
        # does not end though it was cancelled would hold us here, between both.
        leave = program.may_doze and not client.refused and not program.engine.stuck
        if lingering.cancelled_caught and leave:
            program.journal.write("idle", reaped=program.reaper.orphans)
            with trio.move_on_after(TELL_SECONDS):  # what is untold goes with the memory
                await client.all_told()
            if program.engine.idle:
                stages.block()  # a TERM that comes while the receivers go stays pending, for doze
                scope.cancel()
                return


async def _tell_the_end(program: PodProgram) -> None:
    await program.engine.wait_over()
    await program.farewell()


async def _keep_running(part: Callable[[], Awaitable[None]], journal: Journal) -> None:
    """Run a part, and start it anew when it fails: its failure must not end the tasks."""
    failures = 1
    while True:
        began = trio.current_time()
        try:
            await part()
        except Exception as error:  # noqa: BLE001 - a bug of ours, or no memory: logged, and tried again
            journal.write("part-failed", part=part.__qualname__, error=describe(error))
        failures = 1 if trio.current_time() - began > PART_RESTART.maximum else failures + 1
        await trio.sleep(PART_RESTART.limit(failures))


def main() -> bool:
    """The engine of a pod. Returns as ``live``; raises whatever nobody expected, for the caller to survive."""
    signals.survive_the_rest()
    program = PodProgram(Settings.from_environment(os.environ), Journal())
    program.journal.take_over(posix.environ.pop(stages.UNTOLD, b"").decode(errors="replace").splitlines())
    program.journal.write(
        "start",
        version=__version__,
        pid1=os.getpid() == 1,
        processes=processes() or "unseen",  # more than this one: the PID namespace is shared
        podUid=claims().get(POD_UID_HEADER, "unknown"),
        repo=",".join(program.settings.repos),
        after=program.settings.after or None,
    )
    try:
        return trio.run(live, program)
    except BaseException as error:
        error.add_note("\n".join(program.journal.untold()[0]))
        raise
