"""``probe``: probes the application periodically, with the fields and rules of a core/v1 Probe.

The requests and verdicts are those of the kubelet. docs/probes.md lists the differences.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import trio

from pidone.actions import Context, Setting
from pidone.counters import TaskView
from pidone.errors import PidoneError, Refused, StartError
from pidone.http.client import reason
from pidone.http.connect import connect
from pidone.http.urls import authority
from pidone.metrics.exposition import Family, gauge
from pidone.plan.fields import Fields

STATES = ("started", "healthy", "unhealthy")
_, HEALTHY, UNHEALTHY = STATES

MAX_INTEGER = (1 << 31) - 1  # of the fields of a core/v1 Probe
# Until the first success, the wait between two requests is a part of the time since the first request, at least
# ``EAGER_SECONDS``. So the requests become rarer.
EAGER_SECONDS, EAGER_PART = 0.25, 1 / 32

Request = Callable[[Context], Awaitable[str]]  # returns the reason of the failure; empty after success


@dataclass(slots=True)
class Thresholds:
    """Counts equal results in a row and sets the state, as pkg/kubelet/prober/worker.go."""

    success: int
    failure: int
    state: str = ""
    _last: bool | None = None
    _streak: int = 0

    def take(self, succeeded: bool) -> str:  # noqa: FBT001 - the result itself, not a switch
        """Count a result and return the state; empty until a threshold is reached."""
        self._streak = self._streak + 1 if succeeded is self._last else 1
        self._last = succeeded
        if self._streak >= (self.success if succeeded else self.failure):
            self.state = HEALTHY if succeeded else UNHEALTHY
        return self.state


class Probe:
    """Sends requests until it is cancelled."""

    def __init__(self, fields: Fields, setting: Setting) -> None:
        """Read the fields; 0 is the default, as in the API server. Raises ``Refused``."""
        self._delay = fields.integer("initialDelaySeconds", 0, least=0, most=MAX_INTEGER)
        self._period = fields.integer("periodSeconds", 0, least=0, most=MAX_INTEGER) or 10
        self._timeout = fields.integer("timeoutSeconds", 0, least=0, most=MAX_INTEGER) or 1
        self._thresholds = Thresholds(
            success=fields.integer("successThreshold", 0, least=0, most=MAX_INTEGER) or 1,
            failure=fields.integer("failureThreshold", 0, least=0, most=MAX_INTEGER) or 3,
        )
        handlers = [name for name in _HANDLERS if name in fields]
        if len(handlers) != 1:
            raise Refused(f"{fields.path}: expected one of {', '.join(_HANDLERS)}, not {len(handlers)}")
        make = _HANDLERS[handlers[0]]
        self._cheap = handlers != ["exec"]  # a request opens a connection and starts no process
        self.ask: Request = make(fields.object(handlers[0]), setting, self._timeout)
        fields.done()

    async def run(self, context: Context) -> None:
        await trio.sleep(self._delay)
        began = due = trio.current_time()
        succeeded = False
        last_reason = ""
        while True:
            asked = trio.current_time()
            failure = await self.ask(context)
            if failure and failure != last_reason:
                context.log("probe-failed", reason=failure)
            last_reason = failure
            succeeded = succeeded or not failure

            if asked >= due or not failure:
                state = self._thresholds.take(not failure)
                if state:
                    context.report(state, failure)
                # Counted from the start of the last request, so that a slow answer does not stretch the period. After
                # an answer that took longer than a period, one request follows at once.
                due = max(min(due, asked) + self._period, trio.current_time())

            # However long the period is, the first success comes soon after the application has started: the kubelet
            # also probes more often while a container is not ready. Of these additional results only a success counts.
            now = trio.current_time()
            soon = (
                due if succeeded or not self._cheap else now + max(EAGER_SECONDS, (now - began) * EAGER_PART)
            )
            await trio.sleep_until(min(due, soon))

    async def undo(self, context: Context) -> None:
        """Do nothing: a probe has no effect outside of its requests."""


def privileged(config: Mapping[str, object]) -> bool:
    """True for a probe with a command, as for ``exec``."""
    return "exec" in config


def families(setting: Setting, views: Iterable[TaskView]) -> Iterator[Family]:
    del setting
    healthy = gauge("pidone_probe_success", "Whether the probe is healthy.")
    for view in views:
        healthy.add(view.state == HEALTHY, task=view.task.name)
    yield healthy


def build(fields: Fields, setting: Setting) -> Probe:
    return Probe(fields, setting)


def _http_get(fields: Fields, setting: Setting, timeout: float) -> Request:
    from pidone.http.probing import canonical_headers, get
    from pidone.http.references import as_bytes, of_path

    host = fields.text("host", "") or setting.pod.ip
    port = fields.integer("port", least=1, most=65535)
    path = fields.text("path", "") or "/"
    scheme = fields.text("scheme", "") or "HTTP"
    if scheme not in {"HTTP", "HTTPS"}:
        raise Refused(f'{fields.path}.scheme: expected HTTP or HTTPS, not "{scheme}"')
    headers = []
    for item in fields.objects("httpHeaders"):
        headers.append((item.text("name"), item.text("value", "")))
        item.done()
    fields.done()
    canonical = canonical_headers(headers)
    try:
        url = of_path(scheme.lower(), as_bytes(authority(host, port)), as_bytes(path))
    except ValueError:
        url = None

    async def request(context: Context) -> str:
        del context
        if url is None:
            return f"no request can be sent to {authority(host, port)} with the path {path!r:.200}"
        return await get(url, canonical, timeout=timeout, source=setting.source)

    return request


def _tcp_socket(fields: Fields, setting: Setting, timeout: float) -> Request:
    host = fields.text("host", "") or setting.pod.ip
    port = fields.integer("port", least=1, most=65535)
    fields.done()
    address = authority(host, port)

    async def request(context: Context) -> str:
        del context
        with trio.move_on_after(timeout):
            try:
                stream = await connect(host, port, source=setting.source)
            except OSError as error:
                return f"{address}: {reason(error)}"
            await trio.aclose_forcefully(stream)
            return ""
        return f"{address}: no connection within {timeout:g} s"

    return request


def _grpc(fields: Fields, setting: Setting, timeout: float) -> Request:
    host, port = setting.pod.ip, fields.integer("port", least=1, most=65535)
    service = fields.text("service", "")
    fields.done()

    async def request(context: Context) -> str:
        del context
        from pidone.http.grpc import check_health  # 5 KiB for the few plans with such a probe

        try:
            status = await check_health(host, port, service, timeout=timeout, source=setting.source)
        except PidoneError as error:
            return str(error)
        return "" if status == "SERVING" else f"grpc {authority(host, port)}: answered {status}"

    return request


def _exec(fields: Fields, setting: Setting, timeout: float) -> Request:
    from pidone.actions.exec import Command

    command = Command(fields, setting)

    async def request(context: Context) -> str:
        with trio.move_on_after(timeout):
            try:
                return await command.run(context)
            except StartError as error:
                return str(error)
        return f"{command}: not done within {timeout:g} s"

    return request


_HANDLERS = {"httpGet": _http_get, "tcpSocket": _tcp_socket, "grpc": _grpc, "exec": _exec}
