"""``exec``: runs a program with its arguments, without a shell.

A run includes all processes that the program starts. When the run ends, all of them are ended.
"""

import os
import signal
from collections import deque
from collections.abc import Callable, Mapping

import trio

from pidone.actions import Context, Setting
from pidone.errors import Refused, StartError, TaskFailed
from pidone.pacing import RateLimit
from pidone.pid1.reaper import Reaper
from pidone.plan.fields import Fields
from pidone.plan.variables import objection

STATES = ("started", "succeeded", "failed", "completed")
STARTED, SUCCEEDED, FAILED, _ = STATES
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
AFTER_KILL = 1.0  # seconds; a process that hangs in the kernel must not hold its task for ever

LINES, WIDTH = 50, 300  # lines of the output that are kept, and bytes of each
LINES_BURST, LINES_SECONDS = 10, 1.0  # lines that reach the journal at once, and seconds until one more does
PIECE, PACE = 16_384, 4 << 20  # bytes read at once, and in a second: a program that writes more has to wait


class Output:
    """The last lines of a command's output. ``tell`` gets lines at a bounded rate; ``untold`` counts the others."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.lines: deque[str] = deque(maxlen=LINES)
        self.untold = 0
        self._tell = tell
        self._rest = b""  # of a line that has not ended yet
        self._rate = RateLimit(LINES_BURST, LINES_SECONDS)

    def take(self, data: bytes) -> None:
        """Add bytes, in any pieces and any encoding."""
        *lines, rest = (self._rest + data).rsplit(b"\n", LINES)
        self._rest = rest[:WIDTH]  # a longer line is cut
        if lines:
            first, *lines = lines[0].rsplit(b"\n", 1)[-1], *lines[1:]
            self.untold += max(0, data.count(b"\n") - 1 - len(lines))
            for line in (first, *lines):
                self._line(line)

    def end(self) -> None:
        """Add the last line, which may have no line end."""
        if self._rest:
            self._line(self._rest)
            self._rest = b""

    def _line(self, data: bytes) -> None:
        line = data[:WIDTH].decode(errors="replace").rstrip().expandtabs()
        if not line:
            return
        self.lines.append(line)
        if self._rate.take(trio.current_time()) == 0:
            self._tell(line)
        else:
            self.untold += 1


class Command:
    """A program with its arguments, environment, directory and user."""

    def __init__(self, fields: Fields, setting: Setting) -> None:
        """Raises ``Refused``, also for a program outside of ``Setting.programs``."""
        self._argv = tuple(_text(word, f"{fields.path}.command") for word in fields.texts("command"))
        program = self._argv[0] if self._argv else ""
        if not program.startswith("/"):
            raise Refused(f"{fields.path}.command: expected the absolute path of a program and its arguments")
        folder = setting.programs.rstrip("/") + "/"
        if not program.startswith(folder) or os.path.normpath(program) != program:
            raise Refused(
                f"{fields.path}.command: {program} is not in {folder}, and this pidone runs programs of that "
                "folder alone; put it there, or set PIDONE_PROGRAMS where pidone is started"
            )
        self._env = {"PATH": PATH}
        for item in fields.objects("env"):
            name = _text(item.text("name"), item.path)
            if not name or "=" in name:
                raise Refused(f'{item.path}.name: "{name}" cannot be the name of a variable')
            if reason := objection(name):
                raise Refused(f"{item.path}.name: {reason}")
            self._env[name] = _text(item.text("value", ""), item.path)
            item.done()
        self._folder = _text(fields.text("workingDir", "/"), f"{fields.path}.workingDir")
        most = (1 << 32) - 2  # the last one is the kernel's "none"
        self._user: int | None = fields.integer("runAsUser", None, least=0, most=most)
        self._group: int | None = fields.integer("runAsGroup", None, least=0, most=most)
        fields.done()
        self._reaper: Reaper = setting.reaper

    def __str__(self) -> str:
        return self._argv[0]

    async def run(self, context: Context) -> str:
        """Run it, and return why it failed with its last line of output; "" if its exit code was 0.

        When it is cancelled, or ends and leaves processes behind, all of them get TERM, and KILL after
        ``stopTimeout``. Raises ``StartError``.
        """
        output = Output(lambda line: context.log("output", line=line))
        reading, writing = os.pipe2(os.O_CLOEXEC)
        pipe = trio.lowlevel.FdStream(reading)
        try:
            child = self._reaper.spawn(
                self._argv,
                env=self._env,
                cwd=self._folder,
                output=writing,
                user=self._user,
                group=self._group,
            )
        except BaseException:
            await trio.aclose_forcefully(pipe)
            raise
        finally:
            os.close(writing)
        async with pipe, trio.open_nursery() as nursery:
            # shielded from the cancellation: a command that cannot write its last output would not end
            listening = await nursery.start(_listen, pipe, output)
            try:
                await child.wait()
            finally:
                with context.grace():
                    await child.end(signal.SIGTERM)
                with trio.CancelScope(shield=True), trio.move_on_after(AFTER_KILL) as killing:
                    await child.end(signal.SIGKILL)
                    await child.wait()
                if killing.cancelled_caught:
                    context.log("left-behind", pid=child.pid)
                listening.deadline = (
                    trio.current_time() + AFTER_KILL
                )  # all writers are gone, so it ends by itself
        output.end()
        if output.untold:
            context.log("output-untold", lines=output.untold)
        assert child.returncode is not None
        return self._why(child.returncode, output)

    def _why(self, code: int, output: Output) -> str:
        if not code:
            return ""
        how = f"exit code {code}" if code > 0 else f"ended by {_name(-code)}"
        return ": ".join([f"{self}: {how}", *list(output.lines)[-1:]])


class Exec:
    """The action: each run starts the command anew."""

    def __init__(self, command: Command) -> None:
        self._command = command

    async def run(self, context: Context) -> None:
        """Start the command and wait for its end. Raises ``TaskFailed`` if its exit code is not 0."""
        context.report(STARTED)
        try:
            why = await self._command.run(context)
        except StartError as error:
            context.report(FAILED, str(error))
            raise TaskFailed(str(error)) from error
        except BaseException:
            # the timeout, or the end of the task, when nothing reads the state
            context.report(FAILED, "cut off")
            raise
        context.report(FAILED if why else SUCCEEDED, why)
        if why:
            raise TaskFailed(why)

    async def undo(self, context: Context) -> None:
        """Do nothing: the effects of a command are undone by another task."""


def privileged(config: Mapping[str, object]) -> bool:
    """Return True: with commands in a plan, a repo could run programs in every pod."""
    del config
    return True


def build(fields: Fields, setting: Setting) -> Exec:
    return Exec(Command(fields, setting))


async def _listen(
    pipe: trio.lowlevel.FdStream,
    output: Output,
    *,
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.CancelScope(shield=True) as scope:
        task_status.started(scope)
        while data := await pipe.receive_some(PIECE):
            output.take(bytes(data))
            await trio.sleep(len(data) / PACE if len(data) == PIECE else 0)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal


def _text(text: str, path: str) -> str:
    """Return the text if it can be passed to a program: without NUL, and encodable as UTF-8. Else raise ``Refused``."""
    try:
        usable = b"\0" not in text.encode()
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise Refused(f"{path}: {text!r} has a character that cannot be passed to a program")
    return text
