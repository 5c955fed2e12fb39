"""``probe``: asks the application how it is, with the fields and rules of a core/v1 Probe."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from pidone.actions import Context, Setting
from pidone.errors import PidoneError, Refused
from pidone.http.client import reason, request
from pidone.http.connect import connect
from pidone.plan.fields import Fields

HEALTHY, UNHEALTHY = "healthy", "unhealthy"

Ask = Callable[[], Awaitable[str]]  # an empty string for yes, else why not


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
        handlers = [name for name in ("httpGet", "tcpSocket") if name in fields]
        if len(handlers) != 1:
            raise Refused(f"{fields.path}: expected one of httpGet and tcpSocket, not {len(handlers)}")
        make = _http_get if handlers == ["httpGet"] else _tcp_socket
        self.ask: Ask = make(fields.object(handlers[0]), setting, self._timeout)
        fields.done()

    async def run(self, context: Context) -> None:
        await trio.sleep(self._delay)
        asked = trio.current_time()
        why_before = ""
        while True:
            why_not = await self.ask()
            if why_not and why_not != why_before:
                context.log("probe-failed", reason=why_not)
            why_before = why_not
            state = self._thresholds.take(not why_not)
            if state:
                context.report(state)
            # From the start of the last question, so that a slow answer does not stretch the period; a
            # question that took longer than a period makes the next come at once, but only one.
            asked = max(asked + self._period, trio.current_time())
            await trio.sleep_until(asked)

    async def undo(self, context: Context) -> None:
        """Nothing is left behind by a question."""


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
    url = f"{scheme.lower()}://{_bracketed(host)}:{port}/{path.removeprefix('/')}"

    async def ask() -> str:
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

    async def ask() -> str:
        with trio.move_on_after(timeout):
            try:
                stream = await connect(host, port, source=setting.source)
            except OSError as error:
                return f"{host}:{port}: {reason(error)}"
            await trio.aclose_forcefully(stream)
            return ""
        return f"{host}:{port}: no connection within {timeout:g} s"

    return ask


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
