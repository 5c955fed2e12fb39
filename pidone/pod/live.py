"""Runs the program of a pod from its start to its end, and restarts each part of it that fails."""

import os
import posix
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from pidone import __version__
from pidone.errors import describe
from pidone.http.connect import Lookups
from pidone.journal import Journal
from pidone.maintenance import LOCAL
from pidone.pacing import Backoff
from pidone.pid1 import ask, signals, stages
from pidone.pid1.claims import claims, processes
from pidone.pod.local import serve_status
from pidone.pod.program import PodProgram
from pidone.pod.settings import Settings
from pidone.protocol import POD_UID_HEADER
from pidone.repo.client import RepoClient

PART_RESTART = Backoff(initial=1.0, maximum=30.0, jitter=0.0)  # of a part that failed
REVOKED_SECONDS = 5.0  # before the program restarts: a replica of the repo may receive the pod's end later
LAST_REPORT_SECONDS = 10.0  # for reporting all lines of the journal before the pod dozes
# Between two reports if only counts have changed, so that not every heartbeat causes a report.
COUNTS_SECONDS = 60.0


async def live(program: PodProgram, *, local: bytes | None = None) -> bool:
    """Run until TERM or INT, undo all tasks and return True.

    Return False after some time without tasks, so that the pod dozes; and after the repo has taken back the pod's end,
    so that the program restarts.

    ``local`` is a bundle that is run without a repo, and never without tasks. Raises ``Refused`` if it cannot be run.
    The refusal of a repo's bundle is reported to the repo.
    """
    journal = program.journal
    trio.socket.set_custom_hostname_resolver(Lookups())
    stopped = False
    with trio.open_signal_receiver(*signals.STOP, signals.RELOAD) as arrivals:
        async with trio.open_nursery() as nursery:
            await nursery.start(program.reaper.run)
            await nursery.start(program.engine.run)
            signals.unblock()  # after the receivers are set, so that no pending signal is lost
            nursery.start_soon(_keep_running, partial(serve_status, program), journal)
            program.start_part = lambda part: nursery.start_soon(_keep_running, part, journal)
            if local is not None:
                program.apply(local, trusted=True)
            else:
                client = _start_client(program, nursery)
                if ask.repos() and stages.doze_program():  # without a doorbell the repo could not wake it
                    nursery.start_soon(_leave_when_idle, program, client, nursery.cancel_scope)

            number = await anext(arrivals)
            while number == signals.RELOAD and (
                program.engine.handle_pod_event(signals.RELOADED) or local is None
            ):
                # without a repo, a SIGHUP that no task runs on means that the terminal was closed
                number = await anext(arrivals)
            stopped = True
            journal.write("stopping", signal=number)
            await program.drain(f"signal {number}")
            journal.write("stopped", reaped=program.reaper.orphans)
            await program.report_end()
            if program.engine.stuck:  # otherwise the nursery would never be left
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
    program.report_end = client.report_end
    reported_changes, reported_at = -1, 0.0

    def changed() -> None:
        nonlocal reported_changes, reported_at
        changes, now = program.engine.reportable_changes, trio.current_time()
        if changes != reported_changes or now - reported_at >= COUNTS_SECONDS:
            reported_changes, reported_at = changes, now
            client.status_changed()

    program.changed, program.journal.changed = changed, client.status_changed
    nursery.start_soon(_keep_running, client.poll, program.journal)
    nursery.start_soon(_keep_running, client.report, program.journal)
    nursery.start_soon(_report_end, program)
    nursery.start_soon(_leave_when_end_is_revoked, program, client, nursery.cancel_scope)
    return client


async def _leave_when_idle(program: PodProgram, client: RepoClient, scope: trio.CancelScope) -> None:
    """Cancel ``scope`` when there were no tasks for ``Settings.linger`` seconds and everything is reported."""
    while True:
        await program.engine.wait_idle()
        with trio.move_on_after(program.settings.linger) as lingering:
            await program.engine.wait_busy()
        # Not with a refused plan: the pod has tasks, so the repo would ring the doorbell at once. Not with tasks that
        # do not end though they are cancelled: ``live`` could not return.
        leave = program.may_doze and not client.refused and not program.engine.stuck
        if lingering.cancelled_caught and leave:
            program.journal.write("idle", reaped=program.reaper.orphans)
            await _wait_reported(client)
            if program.engine.idle:
                _leave(program, scope)
                return


async def _leave_when_end_is_revoked(
    program: PodProgram, client: RepoClient, scope: trio.CancelScope
) -> None:
    """Cancel ``scope`` when all tasks are undone and a repo has taken back the end for ``REVOKED_SECONDS``."""
    while True:
        revoked = program.end_revoked
        await revoked.wait()
        await trio.sleep(REVOKED_SECONDS)
        await program.engine.wait_over()
        if program.end_revoked is revoked and not program.engine.stuck:
            program.journal.write("end-revoked", by="repo")
            await _wait_reported(client)
            if program.end_revoked is revoked:
                _leave(program, scope)
                return


async def _wait_reported(client: RepoClient) -> None:
    with trio.move_on_after(LAST_REPORT_SECONDS):  # doze does not keep the journal
        await client.wait_reported()


def _leave(program: PodProgram, scope: trio.CancelScope) -> None:
    """Block all signals and cancel ``scope``, so that the next program starts."""
    if program.had_tasks:
        posix.environ.pop(stages.HASTE, None)
    stages.block()  # a TERM that comes after the receivers are removed stays pending for the next program
    scope.cancel()


async def _report_end(program: PodProgram) -> None:
    await program.engine.wait_over()
    await program.report_end()


async def _keep_running(part: Callable[[], Awaitable[None]], journal: Journal) -> None:
    """Run a part, and restart it when it fails: its failure must not end the tasks."""
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
    """Run the program of a pod. Return as ``live``. Unexpected exceptions pass to the caller, which handles all."""
    signals.ignore_other_signals()
    program = PodProgram(Settings.from_environment(os.environ), Journal())
    program.journal.extend(posix.environ.pop(stages.UNTOLD, b"").decode(errors="replace").splitlines())
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
        if program.journal.mask is not str:
            from pidone.plan.mask import hide

            hide(error, program.journal.mask)
        error.add_note("\n".join(program.journal.unreported()[0]))
        raise
    finally:
        posix.environ.pop(stages.MAINTENANCE, None)
        if LOCAL in program.maintenance.by:
            posix.environ[stages.MAINTENANCE] = b"1"
