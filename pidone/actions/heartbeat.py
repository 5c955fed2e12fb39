"""``heartbeat``: renews the lease of a registration, once per run. ``every`` is the period.

A registration that no heartbeat task names renews itself.
"""

from typing import Protocol, runtime_checkable

from pidone.actions import Context, Setting
from pidone.errors import TaskFailed
from pidone.plan.fields import Fields

STATES = ("started", "failing")
STARTED, FAILING = STATES


@runtime_checkable
class Renewable(Protocol):
    """An action that holds a lease."""

    async def heartbeat(self) -> None:
        """Renew the lease, or acquire it again. Raises ``TaskFailed``."""


class Heartbeat:
    """Requests a renewal from the registration's task, which sends all calls of its instance, in order."""

    def __init__(self, of: str) -> None:
        self._of = of

    async def run(self, context: Context) -> None:
        registration = context.action_of(self._of)
        try:
            if not isinstance(registration, Renewable):
                raise TaskFailed(f'there is no registration "{self._of}" to renew')
            await registration.heartbeat()
        except TaskFailed as error:
            context.report(FAILING, str(error))
            raise
        context.report(STARTED)

    async def undo(self, context: Context) -> None:
        """Do nothing: the registration's task deregisters."""


def build(fields: Fields, setting: Setting) -> Heartbeat:
    del setting
    of = fields.text("of")
    fields.done()
    return Heartbeat(of)
