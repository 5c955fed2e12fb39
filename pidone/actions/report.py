"""``report``: reports the states of tasks to a monitoring system, at each change and periodically.

The system may be slow or away, so messages are sent beside everything else. The modules ``_webhook``, ``_pushgateway``
and ``_otlp`` have the messages; only the one that a task uses is loaded.
"""

from importlib import import_module

import trio

from pidone.actions import Action, Context, Setting
from pidone.actions._destination import Destination
from pidone.counters import TaskView
from pidone.errors import NotAccepted, PidoneError, Refused
from pidone.pacing import Backoff
from pidone.plan.fields import Fields

STATES = ("reporting", "failing")
REPORTING, FAILING = STATES
HOLDS_OUTSIDE = True  # a group in a Pushgateway
DESTINATIONS = ("webhook", "pushgateway", "otlp")
GATHER_SECONDS = 0.2  # changes within this time are sent in one message
PERIOD_SECONDS = 60.0  # between two messages, with neither ``onChange`` nor ``every``
RETRY = Backoff(initial=2.0, maximum=60.0)  # after a message that failed
RETRY_MIN_SECONDS = 1.0


class Report:
    """Sends messages until cancelled. ``every`` of the task is the period of messages without a change."""

    def __init__(
        self, destination: Destination, of: tuple[str, ...], setting: Setting, *, on_change: bool
    ) -> None:
        self._destination = destination
        self._of = frozenset(of)
        self._setting = setting
        self._on_change = on_change
        self._reported: dict[str, tuple[str, int, TaskView]] = {}  # state and failures by the task's name

    async def run(self, context: Context) -> None:
        period = context.every or self._destination.period or (None if self._on_change else PERIOD_SECONDS)
        async with trio.open_nursery() as nursery:
            pending = trio.Event()

            async def watch() -> None:
                while True:
                    # a change during the sleep is in the next ``views``, or ends the next wait
                    if self._add_changes(context):
                        pending.set()
                    await context.changed()
                    await trio.sleep(GATHER_SECONDS)

            if self._on_change:
                nursery.start_soon(watch)

            failures, due = 0, float("inf")
            if period:
                # the first change is a message at once; the periods of pods that start together begin at random
                due = trio.current_time() + (period * context.random.random() if self._on_change else 0.0)
            while True:
                with trio.move_on_at(due):
                    await pending.wait()
                pending = trio.Event()
                if period and trio.current_time() >= due:
                    self._destination.add(self._views(context))
                    due = trio.current_time() + period

                try:
                    await self._destination.send(self._views(context))
                except PidoneError as error:
                    failures += 1
                    if failures == 1:
                        context.log("report-failed", error=error)
                    context.report(FAILING, str(error))
                    await trio.sleep(self._retry_seconds(context, error, failures, period))
                    again = not isinstance(error, NotAccepted) or not error.refused
                else:
                    failures, again = 0, False
                    context.report(REPORTING, self._destination.warning)
                if again or self._destination.waiting:
                    pending.set()

    async def undo(self, context: Context) -> None:
        """Send the last changes, and close the destination.

        A failure is logged and not retried, since it must not delay the end of the pod.
        """
        if self._on_change:
            self._add_changes(context)
        try:
            await self._destination.close(self._views(context))
        except PidoneError as error:
            context.log("report-failed", error=error)

    def succeeds(self, previous: Action) -> bool:
        return (
            isinstance(previous, Report)
            and type(previous._destination) is type(self._destination)
            and previous._destination.url == self._destination.url
        )

    def take_over(self, previous: Action) -> None:
        assert isinstance(previous, Report)
        if self._destination.take_over(previous._destination):
            self._reported = {
                name: state for name, state in previous._reported.items() if not self._of or name in self._of
            }

    def _retry_seconds(
        self, context: Context, error: PidoneError, failures: int, period: float | None
    ) -> float:
        """Return the seconds until the next message after a failure."""
        seconds = max(RETRY_MIN_SECONDS, RETRY.delay(failures, context.random))
        if not isinstance(error, NotAccepted):
            return seconds
        if error.refused and not self._destination.waiting:
            return max(seconds, period or PERIOD_SECONDS)
        return seconds + error.wait  # the random part keeps pods apart that were told the same time

    def _views(self, context: Context) -> list[TaskView]:
        """Return the tasks to report, without this one: a report of its own state would change that state."""
        return [
            view
            for view in self._setting.tasks()
            if view.task.name != context.task and (not self._of or view.task.name in self._of)
        ]

    def _add_changes(self, context: Context) -> bool:
        """Add the tasks that have changed since the last call, and the last views of tasks that are gone.

        Another failed run is a change, even if the state is the same. True if there was a change.
        """
        views = self._views(context)
        now = {view.task.name: (view.shown, view.failures, view) for view in views}
        before, self._reported = self._reported, now
        changed = [view for view in views if now[view.task.name] != before.get(view.task.name)]
        gone = [view for name, (_, _, view) in before.items() if name not in now]
        if changed or gone:
            self._destination.add(changed, gone)
        return bool(changed or gone)


def build(fields: Fields, setting: Setting) -> Report:
    of = fields.texts("of")
    on_change = fields.flag("onChange", True)  # noqa: FBT003 - the default of a field
    name = fields.only_name()
    if name not in DESTINATIONS:
        raise Refused(f'{fields.path}: expected one of {", ".join(DESTINATIONS)}, not "{name}"')
    inner = fields.object(name)
    destination: Destination = import_module(f"pidone.actions._{name}").build(inner, setting)
    inner.done()
    fields.done()
    return Report(destination, of, setting, on_change=on_change)
