"""``exec``: runs a command, an argument vector and never a shell."""

import signal

import trio

from pidone.actions import Context, Setting
from pidone.errors import Refused, StartError, TaskFailed
from pidone.plan.fields import Fields

# A plan with commands makes whoever serves it able to run programs in every pod.
PRIVILEGED = True

STARTED, SUCCEEDED, FAILED = "started", "succeeded", "failed"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GRACE = 2.0  # seconds between TERM and KILL


class Exec:
    """One command; each run starts it anew."""

    def __init__(self, command: tuple[str, ...], setting: Setting) -> None:
        self._command = command
        self._setting = setting

    async def run(self, context: Context) -> None:
        """Start it and wait for its end. On cancel it gets TERM, and KILL after ``GRACE`` seconds."""
        context.report(STARTED)
        try:
            child = self._setting.reaper.spawn(self._command, env={"PATH": PATH})
        except StartError as error:
            context.report(FAILED)
            raise TaskFailed(str(error)) from error
        try:
            code = await child.wait()
        finally:
            with trio.CancelScope(shield=True):
                child.signal_group(signal.SIGTERM)
                with trio.move_on_after(GRACE):
                    await child.wait()
                child.signal_group(signal.SIGKILL)
                await child.wait()
        if code:
            context.report(FAILED)
            how = f"exit code {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
            raise TaskFailed(f"{self._command[0]}: {how}")
        context.report(SUCCEEDED)

    async def undo(self, context: Context) -> None:
        """What a command did, another command must undo."""


def build(fields: Fields, setting: Setting) -> Exec:
    command = fields.texts("command")
    fields.done()
    if not command or not command[0].startswith("/"):
        raise Refused(f"{fields.path}.command: expected the absolute path of a program and its arguments")
    return Exec(command, setting)
