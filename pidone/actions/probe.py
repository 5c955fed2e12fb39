"""``probe``: asks the application how it is, with the fields and rules of a core/v1 Probe."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import trio

from pidone.actions import Context, Setting
from pidone.counters import TaskView
from pidone.errors import PidoneError, Refused, StartError
from pidone.http.client import reason, request
from pidone.http.connect import connect
from pidone.http.urls import authority
from pidone.metrics.exposition import Family, gauge
from pidone.plan.fields import Fields

STATES = ("started", "healthy", "unhealthy")
_, HEALTHY, UNHEALTHY = STATES

EAGER = 0.25  # seconds between two questions to an application that has never answered, at least
PATIENCE = 32  # the part of the time since the first question that passes between two: the longer, the rarer

Ask = Callable[[Context], Awaitable[str]]  # an empty string for yes, else why not


@dataclass(slots=True)
class Thresholds:
    """How many answers in a row make a state; the rule of the kubelet's prober (pkg/kubelet/prober/worker.go)."""

    success: int
    failure: int
    state: str = ""
    _last: bool | None = None
    _streak: int = 0

    def take(self, good: bool) -> str:  # noqa: FBT001 - the answer itself, not a switch
        """The state after this answer; empty until there were enough of one kind."""
        self._streak = self._streak + 1 if good is self._last else 1
        self._last = good
        if self._streak >= (self.success if good else self.failure):
            self.state = HEALTHY if good else UNHEALTHY
        return self.state


class Probe:
    """Asks for ever; only being cancelled ends it."""

    def __init__(self, fields: Fields, setting: Setting) -> None:
        whole = {"least": 1, "most": 86400}
        self._delay = fields.integer("initialDelaySeconds", 0, least=0, most=86400)
        self._period = fields.integer("periodSeconds", 10, **whole)
        self._timeout = fields.integer("timeoutSeconds", 1, **whole)
        self._thresholds = Thresholds(
            success=fields.integer("successThreshold", 1, **whole),
            failure=fields.integer("failureThreshold", 3, **whole),
        )
        handlers = [name for name in _HANDLERS if name in fields]
        if len(handlers) != 1:
            raise Refused(f"{fields.path}: expected one of {', '.join(_HANDLERS)}, not {len(handlers)}")
        make = _HANDLERS[handlers[0]]
        self._cheap = handlers != ["exec"]  # a question is a connection, no process
        self.ask: Ask = make(fields.object(handlers[0]), setting, self._timeout)
        fields.done()

    async def run(self, context: Context) -> None:
        await trio.sleep(self._delay)
        began = due = trio.current_time()
        answered = False
        why_before = ""
        while True:
            asked = trio.current_time()
            why_not = await self.ask(context)
            if why_not and why_not != why_before:
                context.log("probe-failed", reason=why_not)
            why_before = why_not
            answered = answered or not why_not
            if asked >= due or not why_not:
                state = self._thresholds.take(not why_not)
                if state:
                    context.report(state)
                # From the start of the last question, so that a slow answer does not stretch the period; a
                # question that took longer than a period makes the next come at once, but only one.
                due = max(min(due, asked) + self._period, trio.current_time())
            # An application that starts is found soon after it answers, however long the period is, as a kubelet asks
            # more often while a container is not ready. Of the questions between, only the good answer counts.
            now = trio.current_time()
            soon = due if answered or not self._cheap else now + max(EAGER, (now - began) / PATIENCE)
            await trio.sleep_until(min(due, soon))

    async def undo(self, context: Context) -> None:
        """Nothing is left behind by a question."""


def privileged(config: Mapping[str, object]) -> bool:
    """Where it runs a command, as ``exec`` does."""
    return "exec" in config


def families(views: Iterable[TaskView]) -> Iterator[Family]:
    healthy = gauge("pidone_probe_success", "Whether the probe is healthy.")
    for view in views:
        healthy.add(view.state == HEALTHY, task=view.task.name)
    yield healthy


def build(fields: Fields, setting: Setting) -> Probe:
    return Probe(fields, setting)


def _http_get(fields: Fields, setting: Setting, timeout: float) -> Ask:
    host = fields.text("host", setting.pod.ip)
    port = fields.integer("port", least=1, most=65535)
    path = fields.text("path", "/")
    scheme = fields.text("scheme", "HTTP")
    if scheme not in {"HTTP", "HTTPS"}:
        raise Refused(f'{fields.path}.scheme: expected HTTP or HTTPS, not "{scheme}"')
    headers = {"accept": "*/*"}
    for item in fields.objects("httpHeaders"):
        headers[item.text("name").lower()] = item.text("value")
        item.done()
    fields.done()
    address = authority(host, port)
    url = f"{scheme.lower()}://{address}/{path.removeprefix('/')}"

    async def ask(context: Context) -> str:
        del context
        try:
            # the status decides, so a page of any size will do; the certificate does not (as the kubelet's probe)
            answer = await request(
                "GET",
                url,
                headers=headers,
                timeout=timeout,
                source=setting.source,
                head_only=True,
                insecure=True,
            )
        except PidoneError as error:
            return str(error)
        return "" if 200 <= answer.status < 400 else f"GET {url}: answered {answer.status}"

    return ask


def _tcp_socket(fields: Fields, setting: Setting, timeout: float) -> Ask:
    host = fields.text("host", setting.pod.ip)
    port = fields.integer("port", least=1, most=65535)
    fields.done()

    async def ask(context: Context) -> str:
        del context
        with trio.move_on_after(timeout):
            try:
                stream = await connect(host, port, source=setting.source)
            except OSError as error:
                return f"{authority(host, port)}: {reason(error)}"
            await trio.aclose_forcefully(stream)
            return ""
        return f"{authority(host, port)}: no connection within {timeout:g} s"

    return ask


def _grpc(fields: Fields, setting: Setting, timeout: float) -> Ask:
    host, port = setting.pod.ip, fields.integer("port", least=1, most=65535)
    service = fields.text("service", "")
    fields.done()

    async def ask(context: Context) -> str:
        del context
        from pidone.http.grpc import check_health  # for plans that ask so

        try:
            status = await check_health(host, port, service, timeout=timeout, source=setting.source)
        except PidoneError as error:
            return str(error)
        return "" if status == "SERVING" else f"grpc {authority(host, port)}: answered {status}"

    return ask


def _exec(fields: Fields, setting: Setting, timeout: float) -> Ask:
    from pidone.actions.exec import Command

    command = Command(fields, setting)

    async def ask(context: Context) -> str:
        with trio.move_on_after(timeout):
            try:
                return await command.run(context)
            except StartError as error:
                return str(error)
        return f"{command}: not done within {timeout:g} s"

    return ask


_HANDLERS = {"httpGet": _http_get, "tcpSocket": _tcp_socket, "grpc": _grpc, "exec": _exec}
