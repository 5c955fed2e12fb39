"""Reports to a receiver of OpenTelemetry metrics: OTLP over HTTP, in JSON.

The messages are opentelemetry-proto's ``ExportMetricsServiceRequest`` in its JSON encoding (docs/specification.md):
names in camelCase, 64-bit integers as strings.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import isfinite
from time import perf_counter, time
from typing import Any

import trio

from pidone import __version__
from pidone.actions import Setting, task_families
from pidone.actions._destination import (
    Destination,
    exchange,
    is_page,
    json_object,
    not_accepted,
    read_headers,
    read_url,
)
from pidone.actions._report_checks import METRICS_PATH, otlp_url
from pidone.actions.metrics import read_collectors, sampler
from pidone.counters import TaskView
from pidone.errors import NotAccepted, Refused
from pidone.http.client import redacted
from pidone.http.message import JSON, Response
from pidone.metrics.exposition import Family
from pidone.metrics.process import start_seconds
from pidone.metrics.sampler import STEP_SECONDS
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.text import printable

TASKS = "tasks"  # the collector of the tasks
PERIOD_SECONDS = 60.0  # the default of OpenTelemetry's SDKs (OTEL_METRIC_EXPORT_INTERVAL)
PASSING = frozenset({429, 502, 503, 504})  # the specification, "Retryable Response Codes"; no other one is
MAX_STARTS = 2000  # series of counters whose beginnings are kept
MAX_SAID = 200  # characters of the receiver's error message that are shown

_CUMULATIVE = 2  # AGGREGATION_TEMPORALITY_CUMULATIVE
_UNITS = {"seconds": "s", "bytes": "By"}  # of UCUM, by the end of a name


class Otlp:
    """Posts all metrics of the page, and those of the tasks. The last message is sent at the end."""

    def __init__(self, fields: Fields, setting: Setting) -> None:
        base = read_url(fields, otlp_url).rstrip("/").removesuffix(METRICS_PATH)
        self.url = f"{base}{METRICS_PATH}"
        self.period: float | None = PERIOD_SECONDS
        self.waiting = False
        self.warning = ""
        self._gzip = _compression(fields) == "gzip"
        self._headers = read_headers(fields) | {"content-type": JSON}
        if self._gzip:
            self._headers["content-encoding"] = "gzip"
        self._resource = resource_attributes(setting.pod, fields.table("attributes"))
        names = read_collectors(fields, setting)
        self._collectors = tuple(name for name in names if name != TASKS)
        self._with_tasks = TASKS in names
        self._setting = setting
        self._starts = Starts()

    def take_over(self, previous: Destination) -> bool:
        assert isinstance(previous, Otlp)
        self._starts = previous._starts
        return False

    def add(self, views: Iterable[TaskView], gone: Iterable[TaskView] = ()) -> None:
        """Do nothing: a message contains the current states of all tasks."""

    async def send(self, views: Sequence[TaskView]) -> None:
        self.warning = ""
        answer = await exchange(
            "POST", self.url, self._headers, await self._message(views), self._setting.source
        )
        what = f"POST {redacted(self.url)}"
        if answer.status >= 300 or is_page(answer):
            raise not_accepted(what, answer, PASSING)
        self._read_success(what, answer)

    async def close(self, views: Sequence[TaskView]) -> None:
        await self.send(views)

    async def _message(self, views: Sequence[TaskView]) -> bytes:
        families = await sampler(self._setting).families(self._collectors)
        now = time()
        metrics = _metrics(families, now, self._starts, self._process_began())
        if self._with_tasks:
            own = task_families(self._setting, views)  # of the selected tasks alone
            metrics = chain(metrics, _metrics(own, now, self._starts, self._setting.counters.began))
        parts = list[str]()
        stepped = perf_counter()
        for metric in metrics:
            parts.append(_json(metric))
            if perf_counter() - stepped >= STEP_SECONDS:
                await trio.lowlevel.checkpoint()
                stepped = perf_counter()
        self._starts.end_message(now)

        resource = _json({"attributes": self._resource})
        scope = _json({"name": "pidone", "version": __version__})
        scopes = f'[{{"scope":{scope},"metrics":[{",".join(parts)}]}}]'
        body = f'{{"resourceMetrics":[{{"resource":{resource},"scopeMetrics":{scopes}}}]}}'.encode()
        if self._gzip:
            from zlib import compressobj

            packing = compressobj(level=1, wbits=31)
            body = packing.compress(body) + packing.flush()
        return body

    def _process_began(self) -> float:
        """Return when the kernel began to count for this pod, whose process 1 this is."""
        try:
            return start_seconds()
        except (OSError, ValueError, LookupError, StopIteration):  # /proc may be masked in many ways
            return self._setting.counters.began

    def _read_success(self, what: str, answer: Response) -> None:
        """Read a partial success, after which nothing is sent again (the specification, "Partial Success")."""
        said = json_object(answer.body)
        if answer.body.strip() and said is None:
            self.warning = (
                f"{what}: answered {answer.status} with what is no JSON; is this a receiver of OTLP?"
            )
        partial = (said or {}).get("partialSuccess")  # Prometheus answers with an empty body
        if not isinstance(partial, dict):
            return
        words = printable(" ".join(str(partial.get("errorMessage") or "").split()), MAX_SAID)
        try:
            rejected = int(partial.get("rejectedDataPoints") or 0)
        except (TypeError, ValueError, OverflowError):
            rejected = 0
        if rejected > 0:
            raise NotAccepted(
                f'{what}: the receiver rejected {rejected} data points: "{words}"; its limits or its rules for '
                "metrics say which",
                refused=True,
            )
        self.warning = words and f'{what}: the receiver says "{words}"'


build = Otlp


class Starts:
    """The times at which the counters of one destination began to count.

    The series of the first message began with the process. A series that is new in a later message, or is less than in
    the message before, began after that message.
    """

    def __init__(self) -> None:
        self._before: float | None = None  # the time of the last message
        self._series: dict[tuple[str, ...], tuple[float, float]] = {}  # start and last value

    def start(self, series: tuple[str, ...], value: float, begin: float) -> float:
        """Return the start of a series in seconds since the epoch. ``begin`` is that of the first message's series."""
        start, last = self._series.get(series, (begin if self._before is None else self._before, 0.0))
        if value < last and self._before is not None:
            start = self._before
        if series in self._series or len(self._series) < MAX_STARTS:
            self._series[series] = start, value
        return start

    def end_message(self, now: float) -> None:
        self._before = now


def resource_attributes(pod: Pod, given: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the attributes of the resource, named by OpenTelemetry's semantic conventions; ``given`` come first.

    Prometheus makes the labels job (namespace/name of the service) and instance of them.
    """
    attributes = {
        "service.name": "pidone",
        "service.namespace": pod.namespace,
        # the convention for Kubernetes, without the name of a container
        "service.instance.id": ".".join(filter(None, (pod.namespace, pod.name))),
        "k8s.namespace.name": pod.namespace,
        "k8s.pod.name": pod.name,
        "k8s.pod.uid": pod.uid,
        "k8s.node.name": pod.node,
    }
    return _attributes({**attributes, **given})


def unit(family: Family) -> str:
    """Return the unit of a metric by the end of its name; empty if the name has none.

    Never ``1``: Prometheus' receiver would add ``_ratio`` to the names of gauges.
    """
    return _UNITS.get(family.name.removesuffix("_total").rpartition("_")[2], "")


def _metrics(
    families: Iterable[Family], now: float, starts: Starts, begin: float
) -> Iterator[dict[str, Any]]:
    """Yield the metrics with the names of the page. ``begin`` is the time at which their counters began.

    Names keep their ``_total`` and their units, which Prometheus' receiver adds only where they are missing: a query
    for the page is right for pushed metrics too. All values are doubles, since the type of a series must not change. A
    value that is not finite is left out, because receivers treat it differently.
    """
    for family in families:
        points = []
        for labels, value in family.samples:
            if not isfinite(value):
                continue
            point: dict[str, Any] = {
                "attributes": _attributes(labels),
                "timeUnixNano": _nanoseconds(now),
                "asDouble": float(value),  # a sample may be true or false
            }
            if family.kind == "counter":
                series = (family.name, *(f"{name}={text}" for name, text in labels.items()))
                point["startTimeUnixNano"] = _nanoseconds(min(now, starts.start(series, value, begin)))
            points.append(point)
        if not points:
            continue
        data: dict[str, Any] = {"gauge": {"dataPoints": points}}
        if family.kind == "counter":
            data = {"sum": {"dataPoints": points, "aggregationTemporality": _CUMULATIVE, "isMonotonic": True}}
        yield {"name": family.name, "description": family.help, "unit": unit(family), **data}


def _attributes(pairs: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": _unicode(value)}} for key, value in pairs.items() if value]


def _unicode(text: str) -> str:
    """Return the text without half characters, as in names of a plan, which receivers refuse."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _nanoseconds(seconds: float) -> str:
    return str(round(seconds * 1e6) * 1000)


def _compression(fields: Fields) -> str:
    compression = fields.text("compression", "none")
    if compression not in {"none", "gzip"}:
        raise Refused(f'{fields.path}.compression: expected none or gzip, not "{printable(compression, 40)}"')
    return compression
