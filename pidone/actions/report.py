"""``report``: reports the states of tasks to a monitoring system, at each change and periodically.

The system may be slow or away. Results for a webhook wait in a bounded queue; the number of dropped results is reported
too. A Pushgateway keeps only the last page, so it needs no queue.
"""

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from time import time
from typing import Any, Protocol

import trio

from pidone.actions import Action, Context, Setting, task_families
from pidone.counters import TaskView
from pidone.errors import PidoneError, Refused, TaskFailed
from pidone.http.client import redacted, request
from pidone.http.message import JSON
from pidone.http.urls import segment
from pidone.pacing import Backoff
from pidone.plan.fields import Fields

STATES = ("reporting", "failing")
REPORTING, FAILING = STATES
HOLDS_OUTSIDE = True  # a group in a Pushgateway
GONE = "gone"  # the state of a task that has left the plan
GATHER_SECONDS = 0.2  # changes within this time are sent in one message
PERIOD_SECONDS = 60.0  # between two messages, with neither ``onChange`` nor ``every``
QUEUE, BATCH = 500, 100  # results that wait, and results in one message
TIMEOUT_SECONDS = 10.0  # for one message
RETRY = Backoff(initial=2.0, maximum=60.0)  # after a message that failed
RETRY_MIN_SECONDS = 1.0


class Destination(Protocol):
    """A monitoring system at a URL."""

    @property
    def url(self) -> str: ...

    def take_over(self, previous: "Destination") -> None:
        """Continue with the unsent results of an earlier destination of the same kind and URL."""

    def add(self, views: Iterable[TaskView], gone: Iterable[TaskView] = ()) -> None:
        """Add the states of these tasks to the next messages; ``gone`` are tasks that have left the plan."""

    async def send(self, views: Sequence[TaskView]) -> bool:
        """Send one message: added states, or the current states ``views``. True if more states wait.

        Raises ``TransferError`` and ``TaskFailed``.
        """

    async def close(self) -> None:
        """Send the states that wait, or delete what must not stay. The last call."""


class Report:
    """Sends messages until cancelled. ``every`` of the task is the period of messages without a change."""

    def __init__(
        self, destination: Destination, of: tuple[str, ...], setting: Setting, *, on_change: bool
    ) -> None:
        self._destination = destination
        self._of = frozenset(of)
        self._setting = setting
        self._on_change = on_change
        self._random = Random()
        self._reported: dict[str, tuple[str, int, TaskView]] = {}  # state and failures by the task's name

    async def run(self, context: Context) -> None:
        period = context.every or (None if self._on_change else PERIOD_SECONDS)
        async with trio.open_nursery() as nursery:
            pending = trio.Event()

            async def watch() -> None:
                while True:
                    # a change during the sleep is in the next ``views``, or ends the next wait
                    views, gone = self._changes(context)
                    if views or gone:
                        self._destination.add(views, gone)
                        pending.set()
                    await context.changed()
                    await trio.sleep(GATHER_SECONDS)

            if self._on_change:
                nursery.start_soon(watch)

            began = trio.current_time()
            failures, due = 0, began + (period if self._on_change else 0.0) if period else float("inf")
            while True:
                with trio.move_on_at(due):
                    await pending.wait()
                pending = trio.Event()
                if period and trio.current_time() >= due:
                    self._destination.add(self._views(context))
                    due = trio.current_time() + period

                try:
                    if await self._destination.send(self._views(context)):
                        pending.set()
                except PidoneError as error:
                    failures += 1
                    if failures == 1:
                        context.log("report-failed", error=error)
                    context.report(FAILING, str(error))
                    await trio.sleep(max(RETRY_MIN_SECONDS, RETRY.delay(failures, self._random)))
                    pending.set()
                else:
                    failures = 0
                    context.report(REPORTING, "")

    async def undo(self, context: Context) -> None:
        """Close the destination. A failure is logged and not retried, since it must not delay the end of the pod."""
        try:
            await self._destination.close()
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
        self._destination.take_over(previous._destination)
        if isinstance(self._destination, Webhook):  # a page is sent again, since it may be of other tasks
            self._reported = {
                name: state for name, state in previous._reported.items() if not self._of or name in self._of
            }

    def _views(self, context: Context) -> list[TaskView]:
        """Return the tasks to report, without this one: a report of its own state would change that state."""
        return [
            view
            for view in self._setting.tasks()
            if view.task.name != context.task and (not self._of or view.task.name in self._of)
        ]

    def _changes(self, context: Context) -> tuple[list[TaskView], list[TaskView]]:
        """Return the tasks that have changed since the last call, and the last views of tasks that are gone.

        Another failed run is a change, even if the state is the same.
        """
        views = self._views(context)
        now = {view.task.name: (view.shown, view.failures, view) for view in views}
        before, self._reported = self._reported, now
        changed = [view for view in views if now[view.task.name] != before.get(view.task.name)]
        return changed, [view for name, (_, _, view) in before.items() if name not in now]


class Webhook:
    """Posts JSON: ``{"pod": {...}, "time", "dropped", "results": [{"number", "task", "state", ...}]}``.

    ``time`` and ``since`` are seconds since 1970. ``dropped`` is the number of results that were dropped since the last
    message that the receiver accepted.
    """

    def __init__(self, fields: Fields, setting: Setting) -> None:
        self.url = _url(fields)
        self._headers = {"content-type": JSON} | {
            name.lower(): value for name, value in fields.table("headers").items()
        }
        fields.done()
        self._setting = setting
        self._queue: deque[dict[str, Any]] = deque()
        self._number = 0
        self._dropped = 0  # results, since the last message that was accepted

    def take_over(self, previous: Destination) -> None:
        assert isinstance(previous, Webhook)
        self._queue, self._number, self._dropped = previous._queue, previous._number, previous._dropped

    def add(self, views: Iterable[TaskView], gone: Iterable[TaskView] = ()) -> None:
        now = trio.current_time()
        epoch = time() - now
        states = [(view, view.shown, view.since) for view in views]
        states += [(view, GONE, now) for view in gone]
        for view, state, since in states:
            self._number += 1
            result = {
                "number": self._number,  # by which a receiver recognizes a result that it gets twice
                "task": view.task.name,
                "action": view.task.action,
                "state": state,
                "since": round(epoch + since, 3),
                "runs": view.runs,
                "failures": view.failures,
                "error": view.error[:500],
            }
            self._queue.append(result)
        while len(self._queue) > QUEUE:
            self._queue.popleft()
            self._dropped += 1

    async def send(self, views: Sequence[TaskView] = ()) -> bool:
        del views
        batch = [self._queue[index] for index in range(min(BATCH, len(self._queue)))]
        if not batch:
            return False

        dropped = self._dropped
        pod = self._setting.pod
        message = {
            "pod": {
                "name": pod.name,
                "namespace": pod.namespace,
                "uid": pod.uid,
                "ip": pod.ip,
                "nodeName": pod.node,
            },
            "time": round(time(), 3),
            "dropped": dropped,
            "results": batch,
        }
        body = json.dumps(message, separators=(",", ":")).encode()
        status = await _request("POST", self.url, self._headers, body, self._setting.source)

        refused = 400 <= status < 500 and status not in {408, 425, 429}
        if status < 300:
            self._dropped -= dropped
        elif refused:  # a retry would be refused too, and would block the results behind them
            self._dropped += len(batch)
        if status < 300 or refused:
            last = batch[-1]["number"]
            while self._queue and self._queue[0]["number"] <= last:
                self._queue.popleft()
        if status >= 300:
            raise TaskFailed(f"POST {redacted(self.url)}: answered {status}")
        return bool(self._queue)

    async def close(self) -> None:
        while await self.send():
            pass


class Pushgateway:
    """Sends a page in the Prometheus text format by PUT, which replaces the previous page; DELETE at the end."""

    def __init__(self, fields: Fields, setting: Setting) -> None:
        labels = {
            "job": fields.text("job", "pidone"),
            "instance": fields.text("instance", setting.pod.name),
            "namespace": setting.pod.namespace,
        }
        if not labels["job"]:
            raise Refused(f"{fields.path}.job: a Pushgateway takes no group without a job")
        base = _url(fields).rstrip("/").removesuffix("/metrics")
        self.url = f"{base}/metrics" + "".join(_label(name, value) for name, value in labels.items() if value)
        fields.done()
        self._setting = setting

    def take_over(self, previous: Destination) -> None:
        """Do nothing: the next page replaces the previous one."""

    def add(self, views: Iterable[TaskView], gone: Iterable[TaskView] = ()) -> None:
        """Do nothing: a page contains the current states of all tasks."""

    async def send(self, views: Sequence[TaskView]) -> bool:
        from pidone.metrics import exposition

        await self._push("PUT", exposition.render(task_families(self._setting, views)))
        return False

    async def close(self) -> None:
        await self._push("DELETE", b"")

    async def _push(self, method: str, page: bytes) -> None:
        headers = {"content-type": "text/plain; version=0.0.4; charset=utf-8"} if page else {}
        status = await _request(method, self.url, headers, page, self._setting.source)
        if status >= 300:
            raise TaskFailed(f"{method} {redacted(self.url)}: answered {status}")


def build(fields: Fields, setting: Setting) -> Report:
    of = fields.texts("of")
    on_change = fields.flag("onChange", True)  # noqa: FBT003 - the default of a field
    name = fields.only_name()
    if name not in {"webhook", "pushgateway"}:
        raise Refused(f'{fields.path}: expected one of webhook and pushgateway, not "{name}"')
    inner = fields.object(name)
    kind = Webhook if name == "webhook" else Pushgateway
    destination: Destination = kind(inner, setting)
    fields.done()
    return Report(destination, of, setting, on_change=on_change)


async def _request(method: str, url: str, headers: Mapping[str, str], body: bytes, source: str | None) -> int:
    """Send a request, and return the status of its answer."""
    answer = await request(method, url, timeout=TIMEOUT_SECONDS, headers=headers, body=body, source=source)
    return answer.status


def _url(fields: Fields) -> str:
    url = fields.text("url")
    if not url.startswith(("http://", "https://")):
        raise Refused(f'{fields.path}.url: expected an http:// or https:// URL, not "{url}"')
    return url


def _label(name: str, value: str) -> str:
    """Return a label as a part of the path; in base64 if no segment can hold it (the Pushgateway's README, "URL")."""
    try:
        return f"/{name}/{segment(value)}"
    except ValueError:
        from base64 import urlsafe_b64encode

        return f"/{name}@base64/{urlsafe_b64encode(value.encode()).decode()}"
