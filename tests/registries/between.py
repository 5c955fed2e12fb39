"""What stands between a pod and its registry: an ingress with faults, over sockets, and a network on a mock clock."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol
from urllib.parse import urlsplit

import pytest
import trio
from trio.testing import MockClock

from pidone.errors import ConnectError, PidoneError, TransferError, TransferTimeout
from pidone.http.client import request
from pidone.http.message import Request, Response
from pidone.registries import Entry, Registry, Status
from tests.eureka.fake import FakeEureka
from tests.http.serving import http_server

Fault = Callable[[Request], Response | None]

PAGE = b"<!DOCTYPE html><html><body>Please sign in</body></html>"
# What an ingress, a proxy or a login page answers, and no registry does, to any request
FOREIGN = {
    "401": Response(401, {"www-authenticate": 'Basic realm="ingress"'}),
    "403": Response(403, {}, b"RBAC: access denied"),
    "404": Response(404, {}, b"default backend - 404"),
    "404 in JSON": Response(404, {"content-type": "application/json"}, b'{"status":404,"error":"Not Found"}'),
    "405": Response(405),
    "400": Response(400, {}, b"<html><center>nginx</center></html>"),
    "302 without a location": Response(302),
    "302 to a login page": Response(302, {"location": "/oauth2/start?rd=%2F"}),
    "302 to another host": Response(302, {"location": "http://sso.example/login"}),
    "308 to https": Response(308, {"location": "https://127.0.0.1/eureka/"}),
    "307 of a server that is not UP": Response(
        307, {}, b"Current node is currently not ready to serve requests"
    ),
    "200 with a login page": Response(200, {"content-type": "text/html"}, PAGE),
    "200 with text": Response(200, {}, b"OK"),
    "201": Response(201),
    "502": Response(502, {}, PAGE),
    "location that is no URL": Response(302, {"location": "http://[::1"}),
}


# Headers of one connection; the ingress has two
HOP_BY_HOP = {"connection", "content-length", "host", "transfer-encoding"}
KEPT_OF_ANSWERS = {"content-type", "www-authenticate"}


class Ingress:
    """Hands requests on to a registry, unless ``fault`` has an answer of its own.

    ``asked`` has the methods of all requests. ``url`` is the registry's, with the ingress' ``address``.
    """

    def __init__(self, url: str) -> None:
        self.fault: Fault = lambda _: None
        self.asked: list[str] = []
        self._upstream = urlsplit(url)
        self.address = ""
        self.url = ""

    async def start(self, nursery: trio.Nursery, *, connections: int = 9) -> "Ingress":
        port = await http_server(nursery, self.handle, body=1 << 16, connections=connections)
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}{self._upstream.path}"
        return self

    async def handle(self, asked: Request) -> Response:
        self.asked.append(asked.method)
        answer = self.fault(asked)
        if answer is not None:
            return answer
        url = f"{self._upstream.scheme}://{self._upstream.netloc}{asked.target}"
        headers = {name: value for name, value in asked.headers.items() if name not in HOP_BY_HOP}
        try:
            answer = await request(asked.method, url, timeout=10, headers=headers, body=asked.body)
        except TransferError:
            return Response(502, {"content-type": "text/html"}, PAGE)
        kept = {name: value for name, value in answer.headers.items() if name in KEPT_OF_ANSWERS}
        return Response(answer.status, kept, answer.body)


def always(answer: Response, *methods: str) -> Fault:
    """This answer to these methods, or to all."""
    return lambda asked: answer if not methods or asked.method in methods else None


class Handles(Protocol):
    """A fake registry."""

    def handle(
        self, method: str, target: str, body: bytes, now: float
    ) -> tuple[int, dict[str, str], bytes]: ...


@dataclass
class Node:
    """One server on a mock clock: ``takes`` seconds from request to answer, of which ``acts`` until it has acted."""

    registry: Handles = field(default_factory=FakeEureka)
    takes: float = 0.0
    acts: float = 0.0
    up: bool = True
    foreign: Response | None = None  # what somebody in between answers
    methods: tuple[str, ...] = ()  # to these alone, if any are given


class Network:
    """In place of ``pidone.http.client.request``: servers by host, without sockets, for a mock clock."""

    def __init__(self, **nodes: Node) -> None:
        self.nodes = nodes
        self.calls: list[tuple[float, str, str]] = []  # when, to which host, with which method
        self.epoch = time.time() - trio.current_time()

    async def request(
        self,
        method: str,
        url: str,
        *,
        timeout: float,
        answer_timeout: float = inf,
        body: bytes = b"",
        **_options: Any,
    ) -> Response:
        where = urlsplit(url)
        node = self.nodes[where.hostname or ""]
        self.calls.append((trio.current_time(), where.hostname or "", method))
        if not node.up:
            raise ConnectError(f"{method} {url}: Connection refused")
        patience = min(timeout, answer_timeout)
        target = where.path + (f"?{where.query}" if where.query else "")
        if node.foreign is not None and (not node.methods or method in node.methods):
            return node.foreign

        async def act(report: trio.Event, answers: list[Response]) -> None:
            await trio.sleep(node.acts)
            now = self.epoch + trio.current_time()
            answers.append(Response(*node.registry.handle(method, target, body, now)))
            report.set()

        acted, answers = trio.Event(), list[Response]()
        # what a server has received it does, whether somebody still waits for the answer or not
        trio.lowlevel.spawn_system_task(act, acted, answers)
        with trio.move_on_after(patience):
            until = trio.current_time() + node.takes
            await acted.wait()
            await trio.sleep_until(until)
            return answers[0]
        raise TransferTimeout(f"{method} {url}: no answer within {patience:g} s", sent=True)

    def methods(self, host: str | None = None) -> list[str]:
        return [method for _, asked, method in self.calls if host in {None, asked}]


def check_all_calls(registry: Registry, answers: Sequence[Response]) -> None:
    """Assert that each call has a result or raises an error of pidone, whatever a server answers, in this order."""

    async def scenario() -> None:
        left = iter([*answers] * 99)

        async def answer(*_: object, **__: object) -> Response:
            await trio.lowlevel.checkpoint()
            return next(left)

        errors = list[str]()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pidone.registries._servers.request", answer)
            calls: tuple[Callable[[], Any], ...] = (registry.read, registry.heartbeat, registry.deregister)
            for call in calls:
                with suppress(PidoneError):
                    assert str(await registry.register(Status.UP)).isprintable()
                try:
                    entry = await call()
                    assert not isinstance(entry, Entry) or len(f"{entry.status}{entry.address}") < 300
                except PidoneError as error:
                    errors.append(str(error))
        assert all(map(str.isprintable, errors))

    trio.run(scenario, clock=MockClock(autojump_threshold=0))
