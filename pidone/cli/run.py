"""``pidone run``: what process 1 of a pod would do with these TaskSets, here and without a repo.

On a terminal the tasks stand below the journal, a line each, as they are at the moment; elsewhere each event
is a line of JSON on the standard output: ``{"time", "event", ...}``.
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
from pidone.cli.render import DeskPod, bundle_for, param_values, read_objects, read_pod
from pidone.cli.status import columns, since
from pidone.counters import TaskView
from pidone.errors import PidoneError, Refused
from pidone.journal import Journal
from pidone.plan.digest import canonical
from pidone.pod.live import live
from pidone.pod.program import PodProgram
from pidone.pod.settings import Settings

REDRAW = 0.1  # seconds between two pictures, at least: what changes faster is not read anyway


def run_files(paths: Sequence[str], pod_file: str | None, arguments: Mapping[str, str]) -> int:
    """Run until TERM or INT, then take everything back; 0 then, 1 for mistakes in the files, 2 for no file."""
    try:
        pod = (read_pod(pod_file) if pod_file else _here()).with_facts("127.0.0.1")
        objects = read_objects(paths)
        bundle = bundle_for(pod, objects, param_values(objects, arguments))
    except OSError as error:
        print(f"pidone run: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except PidoneError as error:
        print(error, file=sys.stderr)
        return 1
    return _live(canonical(bundle))


def _here() -> DeskPod:
    return DeskPod({"metadata": {"name": socket.gethostname()}})


def _live(bundle: bytes) -> int:
    from pidone.pid1 import stages
    from pidone.pid1.subreaper import become_subreaper

    stages.block()
    if os.getpid() != 1:
        become_subreaper()
    # who may start this command may run any program without it
    settings = Settings(
        repos=(),
        pod_ip=os.environ.get("PIDONE_POD_IP"),
        programs="/",
        status=os.environ.get("PIDONE_STATUS_PORT", ""),
    )
    live_view = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    screen = Screen() if live_view else None
    program = PodProgram(settings, Journal(screen.say) if screen else Events())
    program.journal.write("start", version=__version__, pid1=os.getpid() == 1)
    try:
        trio.run(_show, program, bundle, screen)
    except BaseExceptionGroup as group:
        refused, others = group.split(Refused)
        if others is not None or refused is None:
            raise
        print("\n".join(f"refused: {error}" for error in _leaves(refused)), file=sys.stderr)
        return 1
    return 0


def _leaves(group: BaseExceptionGroup[Refused]) -> list[BaseException]:
    found = list[BaseException]()
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


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


class Events(Journal):
    """A journal whose lines are JSON on the standard output, for programs and logs."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)

    def write(self, event: str, **fields: object) -> None:
        super().write(event, **fields)
        moment = self.lines[-1].partition(" ")[0]
        known = {key: value for key, value in fields.items() if value is not None}
        try:
            print(json.dumps({"time": moment, "event": event, **known}, default=str), flush=True)
        except (OSError, ValueError):
            pass  # closed or full: a log line is never a reason to end what runs


class Screen:
    """The journal's lines, and below them the tasks: drawn over when something changes, scrolled when it speaks."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._drawn = 0  # lines of the picture that stand there
        self._news = trio.Event()

    def changed(self) -> None:
        self._news.set()

    def say(self, line: str) -> None:
        self._said.append(line)
        self.changed()

    async def run(self, program: PodProgram) -> None:
        """Draw until cancelled; then once more, and leave that there."""
        try:
            while True:
                await self._news.wait()
                self._news = trio.Event()
                self._draw(program)
                await trio.sleep(REDRAW)
        finally:
            self._draw(program)

    def _draw(self, program: PodProgram) -> None:
        width, height = shutil.get_terminal_size()
        epoch = time() - trio.current_time()
        picture = picture_of(list(program.engine.tasks), epoch, max(2, height - 1))
        # A line that the terminal breaks would be two to go up; control characters would move what follows.
        lines = [
            "".join(sign if sign.isprintable() else "?" for sign in line)[: width - 1] for line in picture
        ]
        said, self._said = self._said, []
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        self._drawn = len(lines)
        try:
            sys.stdout.write(f"\r{up}\x1b[J" + "".join(f"{line}\n" for line in (*said, *lines)))
            sys.stdout.flush()
        except (OSError, ValueError):
            pass  # the terminal is gone, and a hangup comes


def picture_of(tasks: Sequence[TaskView], epoch: float, most: int) -> list[str]:
    """A line a task under a head, ``most`` in all; ``epoch`` is 1970 plus the zero of the tasks' clock."""
    rows = [("TASK", "ACTION", "STATE", "SINCE", "LAST ERROR")]
    rows += [
        (one.task.name, one.task.action, one.shown, since("", epoch + one.since), one.error) for one in tasks
    ]
    lines = columns(rows) if tasks else []
    left = len(lines) - most
    return [*lines[: most - 1], f"... and {left + 1} more"] if left > 0 else lines
