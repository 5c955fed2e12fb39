"""Reports to a webhook: a POST of JSON, with a bounded queue of results."""

import json
from collections import deque
from collections.abc import Iterable, Sequence
from time import time
from typing import Any

import trio

from pidone.actions import Setting
from pidone.actions._destination import (
    Destination,
    exchange,
    is_page,
    not_accepted,
    page_words,
    read_headers,
    read_url,
)
from pidone.actions._report_checks import webhook_url
from pidone.counters import TaskView
from pidone.http.client import redacted
from pidone.http.message import JSON
from pidone.plan.fields import Fields

GONE = "gone"  # the state of a task that has left the plan
QUEUE, BATCH = 500, 100  # results that wait, and results in one message
PASSING = frozenset({408, 425, 429, *range(500, 600)})  # statuses after which the same results are sent again


class Webhook:
    """Posts JSON: ``{"pod": {...}, "time", "dropped", "results": [{"number", "task", "state", ...}]}``.

    ``time`` and ``since`` are seconds since 1970. ``dropped`` is the number of results that were dropped since the last
    message that the receiver accepted.
    """

    def __init__(self, fields: Fields, setting: Setting) -> None:
        self.url = read_url(fields, webhook_url)
        self.period: float | None = None
        self.warning = ""
        self._headers = {"content-type": JSON} | read_headers(fields)
        self._setting = setting
        self._queue: deque[dict[str, Any]] = deque()
        self._number = 0
        self._dropped = 0  # results, since the last message that was accepted

    @property
    def waiting(self) -> bool:
        return bool(self._queue)

    def take_over(self, previous: Destination) -> bool:
        assert isinstance(previous, Webhook)
        self._queue, self._number, self._dropped = previous._queue, previous._number, previous._dropped
        return True

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

    async def send(self, views: Sequence[TaskView] = ()) -> None:
        del views
        batch = [self._queue[index] for index in range(min(BATCH, len(self._queue)))]
        if not batch:
            return

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
        answer = await exchange("POST", self.url, self._headers, body, self._setting.source)

        what = f"POST {redacted(self.url)}"
        if answer.status < 300:
            self._dropped -= dropped
            self._remove(batch)
            self.warning = f"{what}: {page_words(answer)}" if is_page(answer) else ""
            return
        error = not_accepted(what, answer, PASSING)
        if error.refused:  # a retry would be refused too, and would block the results behind them
            self._dropped += len(batch)
            self._remove(batch)
        raise error

    async def close(self, views: Sequence[TaskView] = ()) -> None:
        del views
        while self._queue:
            await self.send()

    def _remove(self, batch: Sequence[dict[str, Any]]) -> None:
        """Remove results from the queue, which may have dropped some of them meanwhile."""
        last = batch[-1]["number"]
        while self._queue and self._queue[0]["number"] <= last:
            self._queue.popleft()


build = Webhook
