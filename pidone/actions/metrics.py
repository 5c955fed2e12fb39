"""``metrics``: serves the pod's metrics to Prometheus, on a port of the pod."""

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter

import trio

from pidone.actions import Context, Setting, task_families
from pidone.errors import Refused, TaskFailed
from pidone.http.connect import encoded
from pidone.http.message import Request, Response, text_response
from pidone.http.pod_rooms import CONNECTIONS, assign_in_pod, default_gateways
from pidone.http.server import serve
from pidone.http.urls import authority
from pidone.metrics.exposition import Family, gauge
from pidone.metrics.page import answer
from pidone.plan.fields import Fields

STATES = ("listening",)
(LISTENING,) = STATES
PORT = 19100  # not 9100 (node-exporter with hostNetwork) and not 9464 (OpenTelemetry)

Collector = Callable[[], Iterable[Family]]


class Metrics:
    """Serves ``/metrics``; each request collects all families."""

    def __init__(self, port: int, source: str | None, collectors: dict[str, Collector]) -> None:
        self._port = port
        self._source = source
        self._collectors = collectors

    async def run(self, context: Context) -> None:
        """Listen until cancelled. Raises ``TaskFailed`` if the port is in use: the application has priority."""
        try:
            listeners = await trio.open_tcp_listeners(
                self._port, host=encoded(self._source) if self._source else None
            )
        except OSError as error:
            address = authority(self._source or "*", self._port)
            raise TaskFailed(f"cannot listen on {address}: {error.strerror or error}") from error
        context.report(LISTENING)
        try:
            await serve(
                self._answer,
                listeners,
                max_connections=CONNECTIONS,
                max_body=0,
                assign=assign_in_pod(default_gateways()),
            )
        finally:
            context.report("")

    async def undo(self, context: Context) -> None:
        """Do nothing: the end of the run has closed the port."""

    async def _answer(self, request: Request) -> Response:
        if request.path != "/metrics":
            return text_response(404, "the path is /metrics")
        if request.method not in {"GET", "HEAD"}:
            return text_response(405, "the method is GET", allow="GET, HEAD")
        return answer(request, self.collect())

    def collect(self) -> Iterator[Family]:
        """Yield all families. A collector that fails has none, and is 0 in ``pidone_collector_success``."""
        began = perf_counter()
        success = gauge("pidone_collector_success", "Whether the collector succeeded.")
        for name, collector in self._collectors.items():
            try:
                families = list(collector())
            except Exception:  # noqa: BLE001 - /proc may be masked in many ways; the other collectors go on
                families = []
                success.add(0, collector=name)
            else:
                success.add(1, collector=name)
            yield from families
        yield success
        yield gauge("pidone_scrape_duration_seconds", "Time to collect this page.", perf_counter() - began)


def build(fields: Fields, setting: Setting) -> Metrics:
    from pidone.metrics import network, process

    collectors: dict[str, Collector] = {
        "process": process.collect,
        "network": network.collect,
        "tasks": lambda: task_families(setting, list(setting.tasks())),
    }
    port = fields.integer("port", PORT, least=1, most=65535)
    names = fields.texts("collectors") or tuple(collectors)
    fields.done()
    unknown = [name for name in names if name not in collectors]
    if unknown:
        raise Refused(
            f"{fields.path}.collectors: expected some of {', '.join(collectors)}, not {', '.join(unknown)}"
        )
    return Metrics(port, setting.source, {name: collectors[name] for name in names})
