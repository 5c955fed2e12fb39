"""A made-up action, for the test that an action is one schema file and one module: see ``test_made_up``."""

from collections.abc import Iterable, Iterator

import trio

from pidone.actions import Context, Setting
from pidone.counters import TaskView
from pidone.errors import TaskFailed
from pidone.metrics.exposition import Family, gauge
from pidone.plan.fields import Fields

STATES = ("counting", "landed", "exploded")
COUNTING, LANDED, EXPLODED = STATES


class Countdown:
    def __init__(self, first: int, *, explodes: bool) -> None:
        self._first, self._explodes = first, explodes

    async def run(self, context: Context) -> None:
        context.report(COUNTING)
        for number in range(self._first, 0, -1):
            context.log("count", number=number)
            await trio.lowlevel.checkpoint()
        if self._explodes:
            context.report(EXPLODED)
            raise TaskFailed("boom")
        context.report(LANDED)
        await trio.sleep_forever()

    async def undo(self, context: Context) -> None:
        pass


def families(_setting: Setting, views: Iterable[TaskView]) -> Iterator[Family]:
    landed = gauge("made_up_landed", "Whether the countdown has ended well.")
    for view in views:
        landed.add(view.state == LANDED, task=view.task.name)
    yield landed


def build(fields: Fields, setting: Setting) -> Countdown:
    del setting
    countdown = Countdown(
        fields.integer("from", least=1, most=99),
        explodes=fields.flag("explodes", False),
    )
    fields.done()
    return countdown
