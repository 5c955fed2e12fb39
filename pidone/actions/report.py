"""``report``: tells a monitoring system the states of tasks, when they change and every so often.

The system may be slow or away: a webhook's results wait in a bounded queue, and what the queue loses is
counted and told. A Pushgateway keeps the last page alone, so there nothing waits but the next push.
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
GONE = "gone"  # of a task that is in the plan no more
GATHER = 0.2  # seconds in which changes are gathered into one message
PERIOD = 60.0  # seconds between two messages where neither ``onChange`` nor ``every`` says when
QUEUE, BATCH = 500, 100  # results that wait, and that go at once
TIMEOUT = 10.0  # seconds for one message
RETRY = Backoff(initial=2.0, maximum=60.0)  # after a message that failed
RETRY_MIN_SECONDS = 1.0


class Target(Protocol):
    """Where results go. ``url`` tells one from another."""

    @property
    def url(self) -> str: ...

    def take_over(self, previous: "Target") -> None:
        """Go on with what an earlier one of the same kind and URL has not sent."""

    def add(self, views: Iterable[TaskView], gone: Iterable[TaskView] = ()) -> None:
        """Take in the states of these tasks, and that some are no more."""

    async def send(self, views: Sequence[TaskView]) -> bool:
        """Send what was taken in, or how these tasks are now; True where more waits.

        Raises ``TransferError`` and ``TaskFailed``.
        """

    async def close(self) -> None:
        """The last call: send what is left, or take back what must not stay."""


class Report:
    """Runs for as long as its task; ``every`` is the period of what it sends without a change."""

    def __init__(self, target: Target, of: tuple[str, ...], setting: Setting, *, on_change: bool) -> None:
        self._target = target
        self._of = frozenset(of)
        self._setting = setting
        self._on_change = on_change
        self._random = Random()
        self._told: dict[str, tuple[str, int, TaskView]] = {}

    async def run(self, context: Context) -> None:
        period = context.every or (None if self._on_change else PERIOD)
        async with trio.open_nursery() as nursery:
            wanted = trio.Event()

            async def watch() -> None:
                while True:
                    # what changes while we gather is seen by the look after it, or wakes the next wait
                    views, gone = self._changed(context)
                    if views or gone:
                        self._target.add(views, gone)
                        wanted.set()
                    await context.changed()
                    await trio.sleep(GATHER)

            if self._on_change:
                nursery.start_soon(watch)
            began = trio.current_time()
            failures, due = 0, began + (period if self._on_change else 0.0) if period else float("inf")
            while True:
                with trio.move_on_at(due):
                    await wanted.wait()
                wanted = trio.Event()
                if period and trio.current_time() >= due:
                    self._target.add(self._views(context))
                    due = trio.current_time() + period
                try:
                    if await self._target.send(self._views(context)):
                        wanted.set()
                except PidoneError as error:
                    failures += 1
                    if failures == 1:
                        context.log("report-failed", error=error)
                    context.report(FAILING)
                    await trio.sleep(max(RETRY_MIN_SECONDS, RETRY.delay(failures, self._random)))
                    wanted.set()
                else:
                    failures = 0
                    context.report(REPORTING)

    async def undo(self, context: Context) -> None:
        """Once, within ``stopTimeout``: a monitoring system that is away does not hold up the end."""
        try:
            await self._target.close()
        except PidoneError as error:
            context.log("report-failed", error=error)

    def succeeds(self, previous: Action) -> bool:
        return (
            isinstance(previous, Report)
            and type(previous._target) is type(self._target)
            and previous._target.url == self._target.url
        )

    def take_over(self, previous: Action) -> None:
        assert isinstance(previous, Report)
        self._target.take_over(previous._target)
        if isinstance(self._target, Webhook):  # a page is sent anew, since it may be of other tasks
            self._told = {
                name: told for name, told in previous._told.items() if not self._of or name in self._of
            }

    def _views(self, context: Context) -> list[TaskView]:
        """Its own states are not told: telling would change them."""
        return [
            view
            for view in self._setting.tasks()
            if view.task.name != context.task and (not self._of or view.task.name in self._of)
        ]

    def _changed(self, context: Context) -> tuple[list[TaskView], list[TaskView]]:
        """What has changed, and what is gone, as it was last.

        A run that fails again is a change, though the state is the same before and after.
        """
        views = self._views(context)
        now = {view.task.name: (view.shown, view.failures, view) for view in views}
        before, self._told = self._told, now
        changed = [view for view in views if now[view.task.name] != before.get(view.task.name)]
        return changed, [view for name, (_, _, view) in before.items() if name not in now]


class Webhook:
    """POST of JSON: ``{"pod": {...}, "time", "dropped", "results": [{"number", "task", "state", ...}]}``."""

    def __init__(self, fields: Fields, setting: Setting) -> None:
        self.url = _url(fields)
        self._headers = {"content-type": JSON} | {
            name.lower(): value for name, value in fields.table("headers").items()
        }
        fields.done()
        self._setting = setting
        self._queue: deque[dict[str, Any]] = deque()
        self._number = 0
        self._dropped = 0  # since the last message that was taken

    def take_over(self, previous: Target) -> None:
        assert isinstance(previous, Webhook)
        self._queue, self._number, self._dropped = previous._queue, previous._number, previous._dropped

    def add(self, views: Iterable[TaskView], gone: Iterable[TaskView] = ()) -> None:
        now = trio.current_time()
        epoch = time() - now
        told = [*((view, view.shown, view.since) for view in views), *((view, GONE, now) for view in gone)]
        for view, state, since in told:
            self._number += 1
            result = {
                "number": self._number,  # a receiver that gets one twice can tell
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
        status = await _call("POST", self.url, self._headers, body, self._setting.source)
        refused = 400 <= status < 500 and status not in {408, 425, 429}
        if status < 300:
            self._dropped -= dropped
        elif refused:  # these will not be taken later either, and would keep back those behind them
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
    """PUT of a page in the Prometheus text format, which replaces the one before; DELETE at the end."""

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

    def take_over(self, previous: Target) -> None:
        """The next page replaces what is there."""

    def add(self, views: Iterable[TaskView], gone: Iterable[TaskView] = ()) -> None:
        """A page is how all tasks are, and not what has changed."""

    async def send(self, views: Sequence[TaskView]) -> bool:
        from pidone.metrics import exposition

        await self._push("PUT", exposition.render(task_families(self._setting, views)))
        return False

    async def close(self) -> None:
        await self._push("DELETE", b"")

    async def _push(self, method: str, page: bytes) -> None:
        headers = {"content-type": "text/plain; version=0.0.4; charset=utf-8"} if page else {}
        status = await _call(method, self.url, headers, page, self._setting.source)
        if status >= 300:
            raise TaskFailed(f"{method} {redacted(self.url)}: answered {status}")


def build(fields: Fields, setting: Setting) -> Report:
    of = fields.texts("of")
    on_change = fields.flag("onChange", True)  # noqa: FBT003 - the default of a field
    name = fields.only_name()
    if name not in {"webhook", "pushgateway"}:
        raise Refused(f'{fields.path}: expected one of webhook and pushgateway, not "{name}"')
    inner = fields.object(name)
    target: Target = Webhook(inner, setting) if name == "webhook" else Pushgateway(inner, setting)
    fields.done()
    return Report(target, of, setting, on_change=on_change)


async def _call(method: str, url: str, headers: Mapping[str, str], body: bytes, source: str | None) -> int:
    answer = await request(method, url, timeout=TIMEOUT, headers=headers, body=body, source=source)
    return answer.status


def _url(fields: Fields) -> str:
    url = fields.text("url")
    if not url.startswith(("http://", "https://")):
        raise Refused(f'{fields.path}.url: expected an http:// or https:// URL, not "{url}"')
    return url


def _label(name: str, value: str) -> str:
    """A part of the path; what is no segment of one has a form of its own (the Pushgateway's README, "URL")."""
    try:
        return f"/{name}/{segment(value)}"
    except ValueError:
        from base64 import urlsafe_b64encode

        return f"/{name}@base64/{urlsafe_b64encode(value.encode()).decode()}"
