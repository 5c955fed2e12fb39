"""``metrics``: serves the pod's metrics to Prometheus, on a port of the pod."""

import trio

from pidone.actions import Context, Setting, task_families
from pidone.errors import Refused, TaskFailed
from pidone.http.connect import encoded
from pidone.http.message import Request, Response, text_response
from pidone.http.pod_rooms import CONNECTIONS, assign_in_pod, default_gateways
from pidone.http.server import serve
from pidone.http.urls import authority
from pidone.metrics.page import answer
from pidone.metrics.sampler import FRESH_SECONDS, Sampler
from pidone.plan.fields import Fields

STATES = ("listening",)
(LISTENING,) = STATES
PORT = 19100  # not 9100 (node-exporter with hostNetwork) and not 9464 (OpenTelemetry)

COLLECTORS = ("process", "network", "tasks")  # by default
_SAMPLER = "sampler"  # in ``Setting.kept``


class Metrics:
    """Serves ``/metrics``: a page of these collectors."""

    def __init__(self, port: int, source: str | None, sampler: Sampler, collectors: tuple[str, ...]) -> None:
        self._port = port
        self._source = source
        self._sampler = sampler
        self._collectors = collectors
        self._answered = trio.Event()  # with a page, since the last ``forget``

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
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forget)
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
        families = await self._sampler.families(self._collectors)
        self._answered.set()
        return answer(request, families)

    async def _forget(self) -> None:
        """Give back the memory of each sample when it is too old for another page."""
        while True:
            await self._answered.wait()
            self._answered = trio.Event()
            await trio.sleep(FRESH_SECONDS)
            self._sampler.forget()


def sampler(setting: Setting) -> Sampler:
    """Return the sampler of the pod. All tasks share it, and it outlives the plan, as its counters never go back."""
    kept = setting.kept.get(_SAMPLER)
    if not isinstance(kept, Sampler):
        from pidone.metrics import network, process

        kept = setting.kept[_SAMPLER] = Sampler(
            {
                "process": process.collect,
                "network": network.collect,
                "tasks": lambda: task_families(setting, list(setting.tasks())),
            }
        )
    return kept


def build(fields: Fields, setting: Setting) -> Metrics:
    port = fields.integer("port", PORT, least=1, most=65535)
    names = fields.texts("collectors") or COLLECTORS
    fields.done()
    known = sampler(setting).names
    unknown = [name for name in names if name not in known]
    if unknown:
        raise Refused(
            f"{fields.path}.collectors: expected some of {', '.join(known)}, not {', '.join(unknown)}"
        )
    return Metrics(port, setting.source, sampler(setting), names)
