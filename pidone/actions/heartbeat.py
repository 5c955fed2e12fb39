"""``heartbeat``: keeps a registration alive, one beat a run. ``every`` says how often."""

from typing import Protocol, runtime_checkable

from pidone.actions import Context, Setting
from pidone.errors import TaskFailed
from pidone.plan.fields import Fields

STATES = ("started", "failing")
STARTED, FAILING = STATES


@runtime_checkable
class KeptAlive(Protocol):
    """What a heartbeat can be of."""

    async def heartbeat(self) -> None:
        """Renew, or do what is needed to be renewed. Raises ``TaskFailed``."""


class Heartbeat:
    """Asks the registration's own task for the beat: that task sends all calls of its instance, in order."""

    def __init__(self, of: str) -> None:
        self._of = of
        self.beats = 0
        self.failed = 0

    async def run(self, context: Context) -> None:
        registration = context.action_of(self._of)
        try:
            if not isinstance(registration, KeptAlive):
                raise TaskFailed(f'there is no registration "{self._of}" to keep alive')
            await registration.heartbeat()
        except TaskFailed:
            self.failed += 1
            context.report(FAILING)
            raise
        finally:
            self.beats += 1
        context.report(STARTED)

    async def undo(self, context: Context) -> None:
        """A heartbeat is taken back by being the last one."""


def build(fields: Fields, setting: Setting) -> Heartbeat:
    del setting
    of = fields.text("of")
    fields.done()
    return Heartbeat(of)
