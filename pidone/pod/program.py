"""The program of a pod: passes the plans of bundles to the engine, and reports the state of its tasks."""

import json
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from random import Random
from time import time
from typing import TYPE_CHECKING, Any

import trio

from pidone import actions
from pidone.actions import Action, Setting
from pidone.containers import Containers
from pidone.counters import Counters
from pidone.engine.runner import Build, Engine
from pidone.errors import Refused
from pidone.journal import Journal
from pidone.maintenance import ANNOTATION, Maintenance
from pidone.pid1 import stages
from pidone.pid1.reaper import Reaper
from pidone.plan.format import Fill, as_they_are, decode_bundle
from pidone.plan.model import CONTAINERS_STARTED, SECRETS, VALUE_FILES, Bundle, Phase, Pod
from pidone.plan.report import (
    OUTSIDE_TASKS_BYTES,
    TASK_ERROR_WIDTH,
    TASKS_BYTES,
    Report,
    TaskReport,
    encode_task,
)
from pidone.pod.settings import Settings

if TYPE_CHECKING:
    from pidone.pid1.application import Application
    from pidone.pod.secret_files import SecretFiles

MAX_LEFT = 100  # names in a report of removed tasks that are not undone
TEARDOWN_SECONDS = 8.0  # below the 10 s between TERM and KILL of runtimes that send TERM to a sandbox

SECRETS_KEPT = 4  # bundles whose values of Secrets are hidden
_SECRETS = f'"{SECRETS}"'.encode()  # is in each bundle with such values
_FILES = f'"{VALUE_FILES}"'.encode()  # is in each bundle that names files with such values
_HTTP = "from an https repo or a local file only, and this plan came over plain http"

UNKNOWN_POD = Pod(name="", namespace="", uid="", ip="")  # until the first bundle comes


class PodProgram:
    """Applies bundles and reports the status: the ``Consumer`` of ``pidone.repo.client``."""

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
        self._kept: dict[str, object] = {}  # by actions
        self.maintenance = Maintenance(local=settings.maintenance, changed=self._maintenance_changed)
        self.containers = Containers(changed=self._containers_changed)
        self.changed: Callable[[], None] = lambda: None
        self.report_end: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.engine = Engine(
            self._setting(UNKNOWN_POD), journal, changed=self._changed, random=self.random, build=build
        )
        self._phase = Phase.RUNNING
        self.had_tasks = False
        self._uid = ""  # of the pod, by the last bundle with a plan
        self._end_is_the_repos = False  # only a repo's bundle has begun the end
        self.end_revoked = trio.Event()  # a repo says that the pod runs, after a repo has begun its end
        self.start_part: Callable[[Callable[[], Awaitable[None]]], None] = lambda _part: None
        self._application: Application | None = None
        self._secrets: deque[frozenset[str]] = deque(maxlen=SECRETS_KEPT)  # of the last bundles
        self._files: SecretFiles | None = None  # with values of the plan
        self._files_bundle = b""  # the bundle that names them
        self._files_of_refused: SecretFiles | None = None  # that the last bundle names, which was refused
        self._follows_files = False

    def apply(self, data: bytes, *, trusted: bool) -> None:
        """Apply a bundle, or raise ``Refused`` and change nothing. ``trusted``: it came over https or from a file."""
        if not self._secrets and _SECRETS not in data:
            self._apply(data, trusted=trusted)
            self._files = self._files_of_refused = None
            return
        files = self._secret_files() if _FILES in data else None
        try:
            self._apply(data, trusted=trusted, fill=partial(self._fill, files, trusted=trusted))
        except Exception as error:  # noqa: BLE001 - the reason of a refusal is reported
            self._files_of_refused = files
            raise Refused(self._refusal(error)) from None
        self._files, self._files_bundle, self._files_of_refused = files, data if files else b"", None
        if files is not None and files.names and not self._follows_files:
            self._follows_files = True
            self.start_part(self._follow_files)

    def look_at_files(self) -> bool:
        """Apply the plan again if files with its values have changed: only tasks that use them change.

        Return True if the files that a refused bundle names have changed, so that it may be accepted now.
        """
        if self._files is not None and not self.engine.ending and self._files.changed():
            self._files = files = self._secret_files()
            try:
                self._apply(self._files_bundle, trusted=True, fill=partial(self._fill, files, trusted=True))
                self.journal.write("secret-files-changed")
            except Exception as error:  # noqa: BLE001 - the tasks keep the values that they have
                self.journal.write("secret-files-kept", error=self._refusal(error))
        return self._files_of_refused is not None and self._files_of_refused.changed()

    async def _follow_files(self) -> None:
        """Look at the files after each answer of a registry, and after each change of a task."""
        async with trio.open_nursery() as nursery:
            for news in (self.maintenance.news, self.engine.wait_change):
                nursery.start_soon(self._look_at_files_after, news)

    async def _look_at_files_after(self, news: Callable[[], Awaitable[None]]) -> None:
        while True:
            await news()
            self.look_at_files()

    def _secret_files(self) -> "SecretFiles":
        from pidone.pod.secret_files import SecretFiles

        return SecretFiles(self.settings.secrets)

    def _fill(self, files: "SecretFiles | None", tasks: list[Any], *, trusted: bool) -> list[Any]:
        """Return the tasks with the values of files. Hide all values of Secrets in them from now on.

        The values of the bundles before are hidden too, since their tasks may still be ending.
        """
        from pidone.plan.mask import Mask, values_of

        if files is not None and not trusted:
            raise Refused(f"a file with a value is read for a plan {_HTTP}")
        if files is not None:
            tasks = files.fill(tasks)
        values = values_of(tasks)
        if values and values not in self._secrets:
            self._secrets.append(values)
            self.journal.mask = Mask(chain.from_iterable(self._secrets))
        return tasks

    def _refusal(self, error: Exception) -> str:
        internal = "" if isinstance(error, Refused) else f"internal error: {type(error).__name__}: "
        return self.journal.mask(f"{internal}{error}")

    def _apply(self, data: bytes, *, trusted: bool, fill: Fill = as_they_are) -> None:
        bundle = decode_bundle(data, actions.names(), fill)
        if not trusted:
            _refuse_privileged(bundle)
        if bundle.phase is Phase.TERMINATING:
            # the process itself stays until the runtime kills it
            by_repo = self._end_is_the_repos or not self.engine.ending
            self.end("repo")
            self._end_is_the_repos = by_repo
        elif self._end_is_the_repos and bundle.pod.uid == (self._uid or bundle.pod.uid):
            # Over plain http any peer can forge the pod's end. Kubernetes never takes back an end, but a replica
            # of the repo may not know of it yet, so ``live`` waits a while before the program restarts.
            self.end_revoked.set()
            return
        elif self.engine.ending:
            # A pod that was drained will be deleted, or waits for the person who drained it. The plan is ignored and
            # not refused, because it has no fault, and a refusal would halt a rollout.
            self.journal.write("plan-ignored", digest=bundle.plan.digest, reason="the pod's end has begun")
            return
        else:
            self.engine.apply(bundle.plan, setting=self._setting(bundle.pod))
            self.containers.set(bundle.containers)
            self.maintenance.set(ANNOTATION, on=bundle.maintenance)
            self._uid, self.had_tasks = bundle.pod.uid, self.had_tasks or bool(bundle.plan.tasks)
            self._follow_application(bundle)
            if bundle.containers_started:
                self.engine.handle_pod_event(CONTAINERS_STARTED)

        if bundle.phase is not self._phase or bundle.plan.digest != self.counters.bundle_digest:
            self.journal.write(
                "plan", digest=bundle.plan.digest, tasks=len(bundle.plan.tasks), phase=bundle.phase.value
            )
        self._phase = bundle.phase
        self.counters.bundle_digest, self.counters.bundle_applied = bundle.plan.digest, time()

    def end(self, by: str) -> None:
        """Begin the pod's end, unless it has begun. ``by`` is the cause, for the journal.

        Only a repo can take the end back, and only if nothing else has requested it.
        """
        self._end_is_the_repos = False
        if self.end_revoked.is_set():
            self.end_revoked = trio.Event()
        if not self.engine.ending:
            self.journal.write("ending", by=by, tasks=len(list(self.engine.tasks)))
            self.engine.end(TEARDOWN_SECONDS)

    async def drain(self, by: str) -> None:
        """Begin the pod's end, unless it has begun, and wait until it is over. A cancelled wait does not stop it."""
        self.end(by)
        await self.engine.drain(TEARDOWN_SECONDS)

    @property
    def repos(self) -> tuple[str, ...]:
        return self.settings.repos

    @property
    def may_doze(self) -> bool:
        """True if the repo would not wake the pod at once: it knows of the pod's end, or the end has not begun."""
        return self._phase is Phase.TERMINATING or not self.engine.ending

    def status(self) -> Report:
        """Return the report of the pod, with as many tasks as fit into it."""
        outside = {state.task.name for state in self.engine.tasks if actions.holds_outside(state.task.action)}
        tasks = fitting(self.tasks(), outside)
        return Report(
            digest=self.counters.bundle_digest,
            tasks=tasks,
            omitted=len(list(self.engine.tasks)) - len(tasks),
            left=tuple(sorted(self.engine.left)[:MAX_LEFT]),
            maintenance=self.maintenance.on,
            snapshot=stages.snapshot(),
        )

    def details(self) -> dict[str, Any]:
        """Return the fields of a report that only people read; see ``pidone.plan.report``."""
        return {
            "after": self.settings.after,
            "phase": self._phase.value,
            "reaped": self.reaper.orphans,
        }

    def repo_away(self) -> None:
        """Wake the tasks that do more while no repo can tell of the pod's end."""
        self.engine.wake_tasks()

    def tasks(self) -> dict[str, TaskReport]:
        """Return the state of every task, by name."""
        epoch = time() - trio.current_time()
        return {
            state.task.name: TaskReport(
                state=state.shown,
                since=round(epoch + state.since, 3),
                runs=state.runs,
                failures=state.failures,
                error=state.error[:TASK_ERROR_WIDTH],
            )
            for state in self.engine.tasks
        }

    def _follow_application(self, bundle: Bundle) -> None:
        """With restartPolicy Never, begin the pod's end when the application's last process ends.

        With another restartPolicy the kubelet restarts the application. Only process 1 of a shared PID namespace sees
        the application's processes; a sidecar gets TERM when the application has ended.
        """
        if bundle.pod.restart_policy != "Never":
            return
        if self._application is None:
            from pidone.pid1.application import Application, sees_all_processes

            if not sees_all_processes():
                return
            self._application = Application(self.reaper)
            self.start_part(self._end_with_application)
        self._application.set_complete(complete=bundle.runs_once)

    async def _end_with_application(self) -> None:
        assert self._application is not None
        try:
            await self._application.wait_end()
        except OSError as error:  # an old kernel, or a filter; the repo and TERM still begin the end
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
            action=self._action,
            programs=self.settings.programs,
            maintenance=self.maintenance,
            kept=self._kept,
            containers=self.containers,
        )

    def _maintenance_changed(self) -> None:
        by = ", ".join(self.maintenance.by)
        self.journal.write("maintenance", on=self.maintenance.on, by=by or None)  # the line causes a report
        self.engine.wake_tasks()

    def _containers_changed(self) -> None:
        self.engine.wake_tasks()

    def _action(self, task: str) -> Action | None:
        return self.engine.action(task)

    def _changed(self) -> None:
        self.changed()


def fitting(tasks: Mapping[str, TaskReport], outside: Collection[str]) -> dict[str, TaskReport]:
    """Return the tasks that fit into a report. ``outside`` are those that hold something outside the pod.

    Errors are cut first. Then healthy tasks are left out, then failed ones. If a task in ``outside`` is
    missing, the controller deregisters its instance, so those tasks have a limit of their own.
    """
    for width in (TASK_ERROR_WIDTH, TASK_ERROR_WIDTH // 4, 0):
        cut = {name: replace(task, error=task.error[:width]) for name, task in tasks.items()}
        if sum(map(_size, cut.items())) <= TASKS_BYTES:
            return cut

    fit = dict[str, TaskReport]()
    size = 0
    for name, task in sorted(cut.items(), key=lambda item: (item[0] not in outside, not item[1].failures)):
        size += _size((name, task))
        if size <= (OUTSIDE_TASKS_BYTES if name in outside else TASKS_BYTES):
            fit[name] = task
    return fit


def _size(item: tuple[str, TaskReport]) -> int:
    name, task = item
    return len(json.dumps({name: encode_task(task)}, separators=(",", ":")))


def _refuse_privileged(bundle: Bundle) -> None:
    for task in bundle.plan.tasks:
        if task.confidential:
            raise Refused(f'task "{task.name}": a value of a Secret is accepted {_HTTP}')
        if actions.privileged(task.action, task.config):
            raise Refused(f'task "{task.name}": {task.action} is accepted {_HTTP}')
