"""Reports to a Prometheus Pushgateway: the page of a group of this pod."""

from collections.abc import Iterable, Sequence

from pidone.actions import Setting, task_families
from pidone.actions._destination import Destination, exchange, is_page, not_accepted, read_url
from pidone.actions._report_checks import pushgateway_url
from pidone.counters import TaskView
from pidone.errors import Refused
from pidone.http.client import redacted
from pidone.http.urls import segment
from pidone.metrics.exposition import CONTENT_TYPE, render
from pidone.plan.fields import Fields

EMPTY_LABEL = "it is empty, and a Pushgateway drops an empty label; give a value, or leave the field out"
PASSING = frozenset({408, 429, *range(500, 600)})  # statuses after which the page is sent again soon


class Pushgateway:
    """Sends a page in the Prometheus text format by PUT, which replaces the previous page; DELETE at the end."""

    def __init__(self, fields: Fields, setting: Setting) -> None:
        labels = {
            "job": fields.text("job", "pidone"),
            "instance": fields.text("instance", setting.pod.name),
            "namespace": setting.pod.namespace,
        }
        for name in ("job", "instance"):
            if not labels[name]:
                raise Refused(f"{fields.path}.{name}: {EMPTY_LABEL}")
        base = read_url(fields, pushgateway_url).rstrip("/").removesuffix("/metrics")
        self.url = f"{base}/metrics" + "".join(_label(name, value) for name, value in labels.items() if value)
        self.period: float | None = None
        self.waiting = False
        self.warning = ""
        self._setting = setting

    def take_over(self, previous: Destination) -> bool:
        """Do nothing: the next page replaces the previous one. It may be of other tasks, so it is sent at once."""
        del previous
        return False

    def add(self, views: Iterable[TaskView], gone: Iterable[TaskView] = ()) -> None:
        """Do nothing: a page contains the current states of all tasks."""

    async def send(self, views: Sequence[TaskView]) -> None:
        await self._push("PUT", render(task_families(self._setting, views)))

    async def close(self, views: Sequence[TaskView]) -> None:
        del views
        await self._push("DELETE", b"")

    async def _push(self, method: str, page: bytes) -> None:
        headers = {"content-type": CONTENT_TYPE} if page else {}
        answer = await exchange(method, self.url, headers, page, self._setting.source)
        if answer.status >= 300 or is_page(answer):
            raise not_accepted(f"{method} {redacted(self.url)}", answer, PASSING)


build = Pushgateway


def _label(name: str, value: str) -> str:
    """Return a label as a part of the path; in base64 if no segment can hold it (the Pushgateway's README, "URL")."""
    try:
        return f"/{name}/{segment(value)}"
    except ValueError:
        from base64 import urlsafe_b64encode

        return f"/{name}@base64/{urlsafe_b64encode(value.encode()).decode()}"
