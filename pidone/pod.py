"""The program in the pod: puts process-1 duties, engine and repo together, and sees that nothing ends it."""

import json
import os
import posix
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random
from time import time
from typing import TYPE_CHECKING, Any

import trio

from pidone import __version__, actions
from pidone.actions import Setting
from pidone.counters import Counters
from pidone.engine.runner import Build, Engine, describe
from pidone.errors import Refused
from pidone.http.connect import Lookups, encoded
from pidone.journal import Journal
from pidone.pid1 import ask, signals, stages
from pidone.pid1.claims import claims, processes
from pidone.pid1.reaper import Reaper
from pidone.plan.format import decode_bundle
from pidone.plan.model import CONTAINERS_STARTED, Bundle, Phase, Pod
from pidone.repo.client import RepoClient

if TYPE_CHECKING:
    from pidone.pid1.application import Application

TEARDOWN_BUDGET = 8.0  # seconds: below the 10 that runtimes which send TERM leave to a sandbox
PART_PAUSE_MAX = 30.0  # seconds before a part that failed is begun anew, at most
TELL = 10.0  # seconds for telling the repo all before that
LINGER = 5.0  # seconds without a task before it dozes: labels are often changed one after the other
# Beside the metrics' 19100, below the ports that kernels give to clients, and assigned to nothing by IANA.
STATUS_PORT = 19101
STATUS_RETRY = 60.0  # seconds until a port that is taken is asked for again
STATUS_CONNECTIONS = 8
COUNTS = 60.0  # seconds after which a report is made where nothing but counts has changed: no beat makes one
ERROR_WIDTH = 500  # characters
TASKS_SIZE = 24_000  # bytes of a report's 64 KiB; 100 lines of the journal have up to 30,000

NOBODY = Pod(name="", namespace="", uid="", ip="")


@dataclass(frozen=True, slots=True)
class Settings:
    """What an image's environment, or a sidecar's, says. All of it is optional in a cluster."""

    repos: tuple[str, ...] = (
        ask.IN_CLUSTER,
    )  # PIDONE_REPO: URLs in the order of trying, separated by commas
    pod_ip: str | None = None  # PIDONE_POD_IP: connect from and listen on this address alone
    linger: float = LINGER  # PIDONE_LINGER
    programs: str = actions.PROGRAMS  # PIDONE_PROGRAMS: the folder whose programs tasks may run; "/" is all
    status: str = ""  # PIDONE_STATUS_PORT: where /status and /drain are; see ``status_address``
    token: str = ""  # PIDONE_TOKEN: a file with the token that tells the repo by https which pod asks
    after: str = ""  # PIDONE_LAST_WORDS: why the program before this one ended

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        repos = tuple(
            url.strip() for url in environ.get("PIDONE_REPO", ask.IN_CLUSTER).split(",") if url.strip()
        )
        linger = environ.get("PIDONE_LINGER", "")
        return cls(
            repos,
            pod_ip=environ.get("PIDONE_POD_IP") or None,
            linger=max(1.0, float(linger)) if linger.isdecimal() else LINGER,
            programs=environ.get("PIDONE_PROGRAMS") or actions.PROGRAMS,
            status=environ.get("PIDONE_STATUS_PORT", ""),
            token=environ.get("PIDONE_TOKEN", ""),
            after=environ.get(stages.WORDS.decode(), ""),
        )

    def status_address(self) -> tuple[str | None, int]:
        """The host (None: all) and the port to listen on; port 0: on none.

        A number is a port for the pod's own containers. ``*:PORT`` is on the pod's address, for the kubelet:
        whoever reaches it there can take the pod out of service. Raises ``Refused`` for anything else.
        """
        host, _, port = self.status.rpartition(":")
        number = int(port) if port.isdecimal() else STATUS_PORT if not self.status else -1
        if host not in {"", "*"} or not 0 <= number < 65536:
            raise Refused(f'PIDONE_STATUS_PORT: expected PORT, *:PORT or 0, not "{self.status}"')
        if host:
            return self.pod_ip, number
        # several pods on one machine, each at a loopback address of its own
        return self.pod_ip if (self.pod_ip or "").startswith("127.") else "127.0.0.1", number


class PodProgram:
    """Takes bundles to the engine, and reports on it: the ``Consumer`` of the repo client."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        *,
        random: Random | None = None,
        build: Build | None = None,
    ) -> None:
        self.random = random or Random()
        self.journal = journal
        self.reaper = Reaper()
        self.counters = Counters()
        self.settings = settings
        self.changed: Callable[[], None] = lambda: None
        self.farewell: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.engine = Engine(
            self._setting(NOBODY), journal, changed=self._changed, random=self.random, build=build
        )
        self._phase = Phase.RUNNING
        self.start_soon: Callable[..., None] = lambda *_given: None
        self._application: Application | None = None

    def take(self, data: bytes, *, trusted: bool) -> None:
        bundle = decode_bundle(data, actions.names())
        if not trusted:
            _refuse_privileged(bundle)
        if bundle.phase is Phase.TERMINATING:
            self.end("repo")  # the process stays until the runtime kills it
        elif self.engine.ending:
            # A pod that was drained is about to be deleted, or waits for the person who drained it. No
            # refusal: there is nothing wrong with the plan, and nobody should stop a rollout for it.
            self.journal.write("plan-ignored", digest=bundle.plan.digest, reason="the pod's end has begun")
            return
        else:
            self.engine.apply(bundle.plan, setting=self._setting(bundle.pod))
            self._see_out(bundle)
            if bundle.containers_started:
                self.engine.happened(CONTAINERS_STARTED)
        if bundle.phase is not self._phase or bundle.plan.digest != self.counters.bundle_digest:
            self.journal.write(
                "plan", digest=bundle.plan.digest, tasks=len(bundle.plan.tasks), phase=bundle.phase.value
            )
        self._phase = bundle.phase
        self.counters.bundle_digest, self.counters.bundle_applied = bundle.plan.digest, time()

    def end(self, by: str) -> None:
        """Begin the pod's end, once and for good; ``by`` whom is told in the journal."""
        if not self.engine.ending:
            self.journal.write("ending", by=by, tasks=len(list(self.engine.tasks)))
            self.engine.end(TEARDOWN_BUDGET)

    async def drain(self, by: str) -> None:
        """As ``end``, and wait until it is over, whoever began it. Cancelling this does not stop it."""
        self.end(by)
        await self.engine.drain(TEARDOWN_BUDGET)

    @property
    def repos(self) -> tuple[str, ...]:
        return self.settings.repos

    @property
    def may_doze(self) -> bool:
        """Whether the doorbell keeps quiet: the repo knows of the pod's end, or there is none."""
        return self._phase is Phase.TERMINATING or not self.engine.ending

    def status(self) -> dict[str, Any]:
        tasks, untold = self._told_tasks()
        return {
            "after": self.settings.after,
            "digest": self.counters.bundle_digest,
            "phase": self._phase.value,
            "reaped": self.reaper.orphans,
            "tasks": tasks,
            "left": sorted(self.engine.left),
            **({"tasksUntold": untold} if untold else {}),
        }

    def tasks(self, width: int = ERROR_WIDTH) -> dict[str, dict[str, Any]]:
        """What there is to say of each, with that many characters of its last error."""
        epoch = time() - trio.current_time()
        return {
            state.task.name: {
                "state": state.shown,
                "since": round(epoch + state.since, 3),
                "runs": state.runs,
                "failures": state.failures,
                "error": state.error[:width],
            }
            for state in self.engine.tasks
        }

    def _told_tasks(self) -> tuple[dict[str, dict[str, Any]], int]:
        """What a report has room for, and how many tasks are left out: long errors go first, then who is well."""
        for width in (ERROR_WIDTH, ERROR_WIDTH // 4, 0):
            tasks = self.tasks(width)
            if _size(tasks) <= TASKS_SIZE:
                return tasks, 0
        told, room = dict[str, dict[str, Any]](), TASKS_SIZE
        for name, task in sorted(tasks.items(), key=lambda pair: not pair[1]["failures"]):
            room -= _size({name: task})
            if room >= 0:
                told[name] = task
        return told, len(tasks) - len(told)

    async def show(self) -> None:
        """Serve /status and /drain until cancelled. A port that is taken belongs to whoever has it."""
        try:
            host, port = self.settings.status_address()
        except Refused as error:
            self.journal.write("status-off", error=error)
            port = 0
        if not port:
            await trio.sleep_forever()
        said = False
        while True:
            try:
                listeners = await trio.open_tcp_listeners(port, host=encoded(host) if host else None)
                break
            except OSError as error:
                if not said:
                    where = f"{host or '*'}:{port}"
                    self.journal.write(
                        "status-off", address=where, error=error.strerror, retry=f"{STATUS_RETRY:g}s"
                    )
                said = True
            await trio.sleep(STATUS_RETRY)
        try:
            async with trio.open_nursery() as nursery:
                for listener in listeners:
                    nursery.start_soon(_first_call, listener, nursery.cancel_scope)
            from pidone import local
            from pidone.http.server import serve  # 2.8 MiB where no task serves: for those who ask

            await serve(partial(local.answer, self), listeners, max_connections=STATUS_CONNECTIONS)
        finally:
            for listener in listeners:  # else the port would be taken, by this process, when it is begun anew
                listener.socket.close()

    def _see_out(self, bundle: Bundle) -> None:
        """Where nobody would start it again, the end of the application is the end of the pod.

        From inside it looks like a crash of one that the kubelet starts again: the pod's restartPolicy says
        which it is. Only process 1 sees all processes; elsewhere TERM comes when the application has ended.
        """
        if bundle.pod.restart_policy != "Never":
            return
        if self._application is None:
            from pidone.pid1.application import Application, all_seen

            if not all_seen():
                return
            self._application = Application(self.reaper)
            self.start_soon(_again_and_again, self._end_with_application, self.journal)
        self._application.tell(complete=bundle.runs_once)

    async def _end_with_application(self) -> None:
        assert self._application is not None
        try:
            await self._application.wait_end()
        except OSError as error:  # an old kernel, or a filter: the other ways to the end are left
            self.journal.write("application-unseen", error=error.strerror)
        else:
            self.end("last application process")
        await trio.sleep_forever()

    def _setting(self, pod: Pod) -> Setting:
        return Setting(
            pod=pod,
            source=self.settings.pod_ip,
            reaper=self.reaper,
            counters=self.counters,
            tasks=lambda: self.engine.tasks,
            programs=self.settings.programs,
        )

    def _changed(self) -> None:
        self.changed()


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
            nursery.start_soon(_again_and_again, program.show, journal)
            program.start_soon = nursery.start_soon
            if local is not None:
                program.take(local, trusted=True)
            else:
                client = _start_client(program, nursery)
                if ask.repos() and stages.doze_program():  # without a doorbell nobody would wake it
                    nursery.start_soon(_leave_when_idle, program, client, nursery.cancel_scope)
            number = await anext(arrivals)
            while number == signals.RELOAD and (program.engine.happened(signals.RELOADED) or local is None):
                number = await anext(
                    arrivals
                )  # on a desk a hangup that no task runs on is the terminal's end
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
        if program.engine.news != told or trio.current_time() - at >= COUNTS:
            told, at = program.engine.news, trio.current_time()
            client.status_changed()

    program.changed, program.journal.changed = changed, client.status_changed
    nursery.start_soon(_again_and_again, client.ask, program.journal)
    nursery.start_soon(_again_and_again, client.report, program.journal)
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
            with trio.move_on_after(TELL):  # what is untold goes with the memory
                await client.all_told()
            if program.engine.idle:
                stages.block()  # a TERM that comes while the receivers go stays pending, for doze
                scope.cancel()
                return


async def _tell_the_end(program: PodProgram) -> None:
    await program.engine.wait_over()
    await program.farewell()


async def _first_call(listener: trio.SocketListener, scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(listener.socket)
    scope.cancel()


async def _again_and_again(part: Callable[[], Awaitable[None]], journal: Journal) -> None:
    """A part that fails is begun anew, later each time: its failure must not take the tasks down."""
    pause = 1.0
    while True:
        began = trio.current_time()
        try:
            await part()
        except Exception as error:  # noqa: BLE001 - a bug of ours, or no memory: said, and tried again
            journal.write("part-failed", part=part.__qualname__, error=describe(error))
        pause = 1.0 if trio.current_time() - began > PART_PAUSE_MAX else min(2 * pause, PART_PAUSE_MAX)
        await trio.sleep(pause)


def _size(value: object) -> int:
    return len(json.dumps(value, separators=(",", ":")))


def _refuse_privileged(bundle: Bundle) -> None:
    for task in bundle.plan.tasks:
        if actions.privileged(task.action, task.config):
            raise Refused(
                f'task "{task.name}": {task.action} is accepted from an https repo or a local file only, '
                "and this plan came over plain http"
            )


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
        podUid=claims().get("pidone-pod-uid", "unknown"),
        repo=",".join(program.settings.repos),
        after=program.settings.after or None,
    )
    try:
        return trio.run(live, program)
    except BaseException as error:
        error.add_note("\n".join(program.journal.untold()[0]))
        raise


def last_words(error: BaseException) -> str:
    """What is carried over a failure of the program itself: the error, its place, and what the repo was not told."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        line = trace.tb_lineno or ""  # the image has none of foreign code
        frames.append(f"{code.co_filename.rpartition('/')[2]}:{line} {code.co_name}")
        trace = trace.tb_next
    untold = "; ".join(getattr(error, "__notes__", ())).replace("\n", " | ")
    return f"{describe(error)} (at {' < '.join(reversed(frames[-8:]))}) {untold}".rstrip()
