"""``pidone run``: runs TaskSets on this machine as process 1 of a pod would, without a repo.

On a terminal the current state of each task is shown below the lines of the journal. Otherwise each event is a line
of JSON on the standard output: ``{"time", "event", ...}``.
"""

import json
import os
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from time import time

import trio

from pidone import __version__
from pidone.cli.output import complain, unreadable
from pidone.cli.render import DeskPod, bundle_for, param_values, read_objects, read_pod, why_no_tasks
from pidone.cli.status import columns, since
from pidone.counters import TaskView
from pidone.errors import PidoneError, Refused
from pidone.journal import Journal
from pidone.language.secrets import FileSecrets
from pidone.plan.digest import canonical
from pidone.pod.live import live
from pidone.pod.program import PodProgram
from pidone.pod.settings import Settings
from pidone.text import printable

REDRAW_SECONDS = 0.1  # between two drawings, at least: nobody can read faster changes


def run_files(paths: Sequence[str], pod_file: str | None, arguments: Mapping[str, str]) -> int:
    """Run until TERM or INT, then undo everything.

    Exit code 0, 1 for mistakes in the files and if there is nothing to run, 2 for a file that cannot be read.
    """
    try:
        pod = (read_pod(pod_file, paths) if pod_file else _this_machine()).with_facts("127.0.0.1")
        objects = read_objects(paths)
        bundle = bundle_for(pod, objects, param_values(objects, arguments), FileSecrets())
    except OSError as error:
        return unreadable("run", error)
    except PidoneError as error:
        complain(error)
        return 1
    if not bundle["tasks"]:
        remedy = "" if pod_file else "; --pod POD gives the labels of a pod"
        complain(f"pidone run: nothing to run: {why_no_tasks(pod, objects)}{remedy}")
        return 1
    return _live(canonical(bundle))


def _this_machine() -> DeskPod:
    return DeskPod({"metadata": {"name": socket.gethostname()}})


def _live(bundle: bytes) -> int:
    from pidone.pid1 import stages
    from pidone.pid1.subreaper import become_subreaper

    stages.block()
    if os.getpid() != 1:
        become_subreaper()
    settings = Settings(
        repos=(),
        pod_ip=os.environ.get("PIDONE_POD_IP"),
        programs="/",  # all: a user who can start this command can also start any program
        status=os.environ.get("PIDONE_STATUS_PORT", ""),
    )
    live_view = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    screen = Screen() if live_view else None
    program = PodProgram(settings, Journal(screen.write) if screen else JsonJournal())
    program.journal.write("start", version=__version__, pid1=os.getpid() == 1)
    try:
        trio.run(_show, program, bundle, screen)
    except BaseExceptionGroup as group:
        refused, others = group.split(Refused)
        if others is not None or refused is None:
            raise
        complain("\n".join(f"refused: {error}" for error in _leaves(refused)))
        return 1
    return 0


def _leaves(group: BaseExceptionGroup[Refused]) -> list[BaseException]:
    leaves = list[BaseException]()
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


async def _show(program: PodProgram, bundle: bytes, screen: "Screen | None") -> None:
    if screen is None:
        await live(program, local=bundle)
        return
    program.changed = screen.changed
    async with trio.open_nursery() as nursery:
        nursery.start_soon(screen.run, program)
        try:
            await live(program, local=bundle)
        finally:
            nursery.cancel_scope.cancel()


class JsonJournal(Journal):
    """A journal that prints its events as JSON on the standard output, for programs and logs."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)

    def write(self, event: str, **fields: object) -> None:
        super().write(event, **fields)
        moment = self.lines[-1].partition(" ")[0]
        present = {
            key: self.mask(str(value)) if isinstance(value, str | Exception) else value
            for key, value in fields.items()
            if value is not None
        }
        try:
            print(json.dumps({"time": moment, "event": event, **present}, default=str), flush=True)
        except (OSError, ValueError):
            pass  # closed or full: a log line that cannot be written must not end the tasks


class Screen:
    """The terminal: the journal's lines scroll, and the table of tasks below them is redrawn at each change."""

    def __init__(self) -> None:
        self._new_lines: list[str] = []
        self._table_height = 0  # lines of the table that is on the screen
        self._change = trio.Event()

    def changed(self) -> None:
        self._change.set()

    def write(self, line: str) -> None:
        self._new_lines.append(line)
        self.changed()

    async def run(self, program: PodProgram) -> None:
        """Draw until cancelled; the last drawing stays on the screen."""
        try:
            while True:
                await self._change.wait()
                self._change = trio.Event()
                self._draw(program)
                await trio.sleep(REDRAW_SECONDS)
        finally:
            self._draw(program)

    def _draw(self, program: PodProgram) -> None:
        width, height = shutil.get_terminal_size()
        epoch = time() - trio.current_time()
        table = task_table(list(program.engine.tasks), epoch, max(2, height - 1))
        # The cursor goes up by the number of lines, so no line may be wrapped or contain control characters.
        table = [printable(line)[: width - 1] for line in table]

        new_lines, self._new_lines = [printable(line) for line in self._new_lines], []
        up = f"\x1b[{self._table_height}A" if self._table_height else ""
        self._table_height = len(table)
        try:
            sys.stdout.write(f"\r{up}\x1b[J" + "".join(f"{line}\n" for line in (*new_lines, *table)))
            sys.stdout.flush()
        except (OSError, ValueError):
            pass  # the terminal was closed; SIGHUP follows


def task_table(tasks: Sequence[TaskView], epoch: float, most: int) -> list[str]:
    """Return a head and a line for each task, at most ``most`` lines.

    ``epoch`` is the time at which the clock of the tasks was 0, in seconds since 1970.
    """
    rows = [("TASK", "ACTION", "STATE", "SINCE", "LAST ERROR")]
    rows += [
        (view.task.name, view.task.action, view.shown, since("", epoch + view.since), view.error)
        for view in tasks
    ]
    lines = columns(rows) if tasks else []
    excess = len(lines) - most
    return [*lines[: most - 1], f"... and {excess + 1} more"] if excess > 0 else lines
