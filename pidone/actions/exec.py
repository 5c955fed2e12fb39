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
AFTER_KILL_SECONDS = 1.0  # a process that hangs in the kernel must not block its task for ever

MAX_LINES, MAX_LINE_BYTES = 50, 300  # of the output that is kept
LINES_BURST, LINES_SECONDS = 10, 1.0  # lines for the journal at once, and seconds until one more
# Bytes of the output that are read at once and in a second. A program that writes more has to wait.
READ_BYTES, READ_BYTES_PER_SECOND = 16_384, 4 << 20


class Output:
    """The last lines of a command's output. ``log`` is called at a limited rate; ``omitted`` counts the other lines."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.lines: deque[str] = deque(maxlen=MAX_LINES)
        self.omitted = 0
        self._log = log
        self._rest = b""  # of a line that has not ended yet
        self._rate = RateLimit(LINES_BURST, LINES_SECONDS)

    def take(self, data: bytes) -> None:
        """Add bytes, in any pieces and any encoding."""
        *lines, rest = (self._rest + data).rsplit(b"\n", MAX_LINES)
        self._rest = rest[:MAX_LINE_BYTES]  # a longer line is cut
        if lines:
            first, *lines = lines[0].rsplit(b"\n", 1)[-1], *lines[1:]
            self.omitted += max(0, data.count(b"\n") - 1 - len(lines))
            for line in (first, *lines):
                self._line(line)

    def end(self) -> None:
        """Add the last line, which may have no line end."""
        if self._rest:
            self._line(self._rest)
            self._rest = b""

    def _line(self, data: bytes) -> None:
        line = data[:MAX_LINE_BYTES].decode(errors="replace").rstrip().expandtabs()
        if not line:
            return
        self.lines.append(line)
        if self._rate.take(trio.current_time()) == 0:
            self._log(line)
        else:
            self.omitted += 1


class Command:
    """A program with its arguments, environment, directory and user."""

    def __init__(self, fields: Fields, setting: Setting) -> None:
        """Read the fields. Raises ``Refused``, also for a program outside of ``Setting.programs``."""
        self._argv = tuple(_argument(word, f"{fields.path}.command") for word in fields.texts("command"))
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
            name = _argument(item.text("name"), item.path)
            if not name or "=" in name:
                raise Refused(f'{item.path}.name: "{name}" cannot be the name of a variable')
            if reason := objection(name):
                raise Refused(f"{item.path}.name: {reason}")
            self._env[name] = _argument(item.text("value", ""), item.path)
            item.done()
        self._folder = _argument(fields.text("workingDir", "/"), f"{fields.path}.workingDir")
        max_id = (1 << 32) - 2  # the next number is the kernel's "none"
        self._user: int | None = fields.integer("runAsUser", None, least=0, most=max_id)
        self._group: int | None = fields.integer("runAsGroup", None, least=0, most=max_id)
        fields.done()
        self._reaper: Reaper = setting.reaper

    def __str__(self) -> str:
        return self._argv[0]

    async def run(self, context: Context) -> str:
        """Run the command. Return the reason of its failure with the last line of output; "" if its exit code is 0.

        When the run is cancelled, or the command ends before its child processes, all processes get TERM, and KILL
        after ``stopTimeout``. Raises ``StartError``.
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
            # shielded from the cancellation, because a command that cannot write its last output would not end
            read_scope = await nursery.start(_read_output, pipe, output)
            try:
                await child.wait()
            finally:
                with context.grace():
                    await child.end(signal.SIGTERM)
                with trio.CancelScope(shield=True), trio.move_on_after(AFTER_KILL_SECONDS) as killing:
                    await child.end(signal.SIGKILL)
                    await child.wait()
                if killing.cancelled_caught:
                    context.log("left-behind", pid=child.pid)
                # all writers are gone, so it ends by itself
                read_scope.deadline = trio.current_time() + AFTER_KILL_SECONDS
        output.end()
        if output.omitted:
            context.log("output-untold", lines=output.omitted)
        assert child.returncode is not None
        return self._failure(child.returncode, output)

    def _failure(self, code: int, output: Output) -> str:
        """Return the reason of the failure with the last line of output; "" for exit code 0."""
        if not code:
            return ""
        reason = f"exit code {code}" if code > 0 else f"ended by {_signal_name(-code)}"
        return ": ".join([f"{self}: {reason}", *list(output.lines)[-1:]])


class Exec:
    """The action: each run starts the command."""

    def __init__(self, command: Command) -> None:
        self._command = command

    async def run(self, context: Context) -> None:
        """Start the command and wait for its end. Raises ``TaskFailed`` if its exit code is not 0."""
        context.report(STARTED)
        try:
            failure = await self._command.run(context)
        except StartError as error:
            context.report(FAILED, str(error))
            raise TaskFailed(str(error)) from error
        except BaseException:
            # by the timeout, or because the task leaves; then the state is not used
            context.report(FAILED, "cut off")
            raise
        context.report(FAILED if failure else SUCCEEDED, failure)
        if failure:
            raise TaskFailed(failure)

    async def undo(self, context: Context) -> None:
        """Do nothing: the effects of a command are undone by another task."""


def privileged(config: Mapping[str, object]) -> bool:
    """Return True, because with commands in a plan a repo could run programs in every pod."""
    del config
    return True


def build(fields: Fields, setting: Setting) -> Exec:
    return Exec(Command(fields, setting))


async def _read_output(
    pipe: trio.lowlevel.FdStream,
    output: Output,
    *,
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.CancelScope(shield=True) as scope:
        task_status.started(scope)
        while data := await pipe.receive_some(READ_BYTES):
            output.take(bytes(data))
            await trio.sleep(len(data) / READ_BYTES_PER_SECOND if len(data) == READ_BYTES else 0)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal


def _argument(text: str, path: str) -> str:
    """Return the text if it can be passed to a program: without NUL, and encodable as UTF-8. Else raise ``Refused``."""
    try:
        usable = b"\0" not in text.encode()
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise Refused(f"{path}: {text!r} has a character that cannot be passed to a program")
    return text
