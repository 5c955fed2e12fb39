"""The program in the pod: puts process-1 duties, engine and repo together, and sees that nothing ends it."""

import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from random import Random
from time import time
from typing import Any

import trio

from pidone import __version__, actions
from pidone.actions import Setting
from pidone.engine.runner import Engine, describe
from pidone.errors import Refused
from pidone.journal import Journal
from pidone.pid1 import signals
from pidone.pid1.pause import pause
from pidone.pid1.reaper import Reaper
from pidone.plan.digest import digest
from pidone.plan.format import decode_bundle
from pidone.plan.model import Bundle, Phase, Plan, Pod
from pidone.repo.claims import read_claims
from pidone.repo.client import RepoClient
from pidone.telemetry import Telemetry

IN_CLUSTER = "http://pidone-repo.pidone-system.svc:6060"
TEARDOWN_BUDGET = 8.0  # seconds: below the 10 that runtimes which send TERM leave to a sandbox
RESTART_MAX = 300.0  # seconds of pause after a failure of the program itself, at most
LOG_LINES = 20  # in one report

NOTHING = Plan(digest([]), ())
NOBODY = Pod(name="", namespace="", uid="", ip="")


@dataclass(frozen=True, slots=True)
class Settings:
    """What an image's environment, or a sidecar's, says. All of it is optional in a cluster."""

    repos: tuple[str, ...] = (IN_CLUSTER,)  # PIDONE_REPO: URLs in the order of trying, separated by commas
    pod_ip: str | None = None  # PIDONE_POD_IP: connect from and listen on this address alone
    pod_uid: str | None = None  # PIDONE_POD_UID: instead of what the cgroup path says

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        repos = tuple(url.strip() for url in environ.get("PIDONE_REPO", IN_CLUSTER).split(",") if url.strip())
        return cls(repos, environ.get("PIDONE_POD_IP") or None, environ.get("PIDONE_POD_UID"))


class PodProgram:
    """Takes bundles to the engine, and reports on it: the ``Consumer`` of the repo client."""

    def __init__(self, settings: Settings, journal: Journal) -> None:
        self.random = Random()
        self.journal = journal
        self.reaper = Reaper()
        self.telemetry = Telemetry()
        self.settings = settings
        self.changed: Callable[[], None] = lambda: None
        self.engine = Engine(self._setting(NOBODY), journal, changed=self._changed, random=self.random)
        self._phase = Phase.RUNNING

    def take(self, data: bytes, *, trusted: bool) -> None:
        bundle = decode_bundle(data, actions.names())
        if not trusted:
            _refuse_privileged(bundle)
        # The pod's end undoes everything and starts nothing; the process stays until the runtime kills it.
        plan = NOTHING if bundle.phase is Phase.TERMINATING else bundle.plan
        self.engine.apply(plan, setting=self._setting(bundle.pod))
        if bundle.phase is not self._phase or bundle.plan.digest != self.telemetry.bundle_digest:
            self.journal.write(
                "plan", digest=bundle.plan.digest, tasks=len(bundle.plan.tasks), phase=bundle.phase.value
            )
        self._phase = bundle.phase
        self.telemetry.bundle_digest, self.telemetry.bundle_applied = bundle.plan.digest, time()

    def status(self) -> dict[str, Any]:
        epoch = time() - trio.current_time()
        tasks = {
            state.task.name: {
                "state": state.shown,
                "since": round(epoch + state.since, 3),
                "runs": state.runs,
                "failures": state.failures,
                "error": state.error[:500],
            }
            for state in self.engine.tasks
        }
        logs = list(self.journal.lines)[-LOG_LINES:]
        return {
            "digest": self.telemetry.bundle_digest,
            "phase": self._phase.value,
            "reaped": self.reaper.orphans,
            "tasks": tasks,
            "logs": logs,
        }

    def _setting(self, pod: Pod) -> Setting:
        return Setting(
            pod=pod,
            source=self.settings.pod_ip,
            reaper=self.reaper,
            telemetry=self.telemetry,
            tasks=lambda: self.engine.tasks,
        )

    def _changed(self) -> None:
        self.changed()


async def live(program: PodProgram, *, local: bytes | None = None) -> None:
    """Run until TERM or INT, then take everything back and return. ``local``: a bundle instead of a repo's.

    Raises ``Refused`` for a local bundle that cannot be run; a repo's is refused to the repo.
    """
    settings, journal = program.settings, program.journal
    with trio.open_signal_receiver(*signals.STOP) as stops:
        async with trio.open_nursery() as nursery:
            await nursery.start(program.reaper.run)
            await nursery.start(program.engine.run)
            signals.unblock()  # not before: what was pending must find its receiver
            if local is not None:
                program.take(local, trusted=True)
            else:
                client = RepoClient(
                    list(settings.repos),
                    program,
                    journal,
                    program.telemetry,
                    claims=read_claims(settings.pod_uid),
                    source=settings.pod_ip,
                    random=program.random,
                )
                program.changed = client.status_changed
                nursery.start_soon(_again_and_again, client.ask, journal)
                nursery.start_soon(_again_and_again, client.report, journal)
            number = await anext(stops)
            journal.write("stopping", signal=number)
            await program.engine.drain(TEARDOWN_BUDGET)
            journal.write("stopped", reaped=program.reaper.orphans)
            nursery.cancel_scope.cancel()


async def _again_and_again(part: Callable[[], Awaitable[None]], journal: Journal) -> None:
    """A part that fails is begun anew: its failure must not take the tasks down."""
    while True:
        try:
            await part()
        except Exception as error:  # noqa: BLE001 - a bug of ours, or no memory: said, and tried again
            journal.write("part-failed", part=part.__qualname__, error=describe(error))
        await trio.sleep(10)


def _refuse_privileged(bundle: Bundle) -> None:
    for task in bundle.plan.tasks:
        if actions.privileged(task.action):
            raise Refused(
                f'task "{task.name}": {task.action} is accepted from an https repo or a local file only, '
                "and this plan came over plain http"
            )


def main() -> int:
    """Process 1 of a pod. Returns after TERM or INT, and for no other reason."""
    os.chdir("/")  # a working directory elsewhere would pin its file system
    signals.survive_the_rest()
    journal = Journal()
    is_init = os.getpid() == 1
    settings = Settings.from_environment(os.environ)
    adopts = is_init or _adopt(journal)
    journal.write("start", version=__version__, pid1=is_init, reaps=adopts, repo=",".join(settings.repos))
    delay = 1.0
    while True:
        began = time()
        try:
            trio.run(live, PodProgram(settings, journal))
        except BaseException as error:  # noqa: BLE001 - process 1 does not end, whatever happened
            journal.write("program-failed", error=describe(error), again_in=f"{delay:g}s")
        else:
            return 0
        delay = 1.0 if time() - began > 2 * RESTART_MAX else min(2 * delay, RESTART_MAX)
        if pause(delay):
            return 0


def _adopt(journal: Journal) -> bool:
    from pidone.pid1.subreaper import become_subreaper

    adopted = become_subreaper()
    if not adopted:
        journal.write("not-a-subreaper", hint="orphans of this process go to process 1 of its namespace")
    return adopted


def exit_now(code: int) -> None:
    """Leave without the interpreter's clean-up, which takes longer than everything a pod waits for here."""
    sys.stderr.flush()
    os._exit(code)
