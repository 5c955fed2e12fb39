"""Consul agents that tests talk to over sockets: the fake, and a real one."""

import itertools
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from pidone.http.client import request
from pidone.http.message import Request, Response
from pidone.http.server import Handler
from tests.consul.fake import FakeConsul
from tests.http.serving import http_server
from tests.patience import PATIENCE_SECONDS
from tests.results import FAKE, serve_with

Document = dict[str, Any]
RUN = f"pidone-{uuid.uuid4().hex[:8]}"  # the beginning of all names of services of this process
# Of the fixtures that give a test each kind of agent
KINDS = ("fake", "old fake", pytest.param("consul", marks=pytest.mark.consul))


_numbers = itertools.count(1)


def new_name() -> str:
    """Return the name of a service of its own for a test: tests share the real agent."""
    return f"{RUN}-{next(_numbers)}"


@dataclass
class Clock:
    """The time of a fake agent, which tests move."""

    ahead: float = 0.0

    def now(self) -> float:
        return time.time() + self.ahead


@dataclass
class Agent:
    """An agent as an operator and a client see it. ``fake`` is None if it is a real one."""

    url: str
    token: str = ""
    fake: FakeConsul | None = None
    server: str = FAKE  # name and version, for people
    clock: Clock = field(default_factory=Clock)

    @property
    def credentials(self) -> dict[str, Any]:
        """Return the fields of ``consul`` that its ACLs need."""
        return {"token": self.token} if self.token else {}

    async def call(
        self, method: str, path: str, body: object = None, *, token: str | None = None
    ) -> Response:
        """Ask the agent; ``path`` goes on after ``/v1/``. ``body`` is JSON, or text as it stands."""
        data = b"" if body is None else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        token = self.token if token is None else token
        headers = {"x-consul-token": token} if token else {}
        return await request(
            method, f"{self.url}/v1/{path}", headers=headers, body=data, timeout=PATIENCE_SECONDS
        )

    async def put(self, path: str, body: object = None) -> None:
        """Ask what must succeed."""
        answer = await self.call("PUT", path, body)
        assert answer.status == 200, answer

    async def pass_time(self, seconds: float) -> None:
        if self.fake is None:
            await trio.sleep(seconds)  # no clock of a program in Go can be turned
        else:
            self.clock.ahead += seconds

    async def checks(self, key: str) -> dict[str, Document]:
        """Return the checks of a service by identifier."""
        answer = await self.call("GET", "agent/checks")
        found: dict[str, Document] = json.loads(answer.body)
        return {name: check for name, check in found.items() if check["ServiceID"] == key}

    async def status(self, key: str) -> str:
        """Return the status of a service: passing, warning, critical or maintenance; empty if it is not there."""
        answer = await self.call("GET", f"agent/health/service/id/{key}")
        found = json.loads(answer.body)
        return str(found["AggregatedStatus"]) if found["Service"] else ""

    async def service(self, key: str) -> Document | None:
        answer = await self.call("GET", f"agent/service/{key}")
        if answer.status == 404:
            return None
        found: Document = json.loads(answer.body)
        return found

    async def passing(self, name: str) -> list[str]:
        """Return the identifiers that clients get who ask for a service."""
        answer = await self.call("GET", f"health/service/{name}?passing")
        return [entry["Service"]["ID"] for entry in json.loads(answer.body)]

    async def until(self, condition: Callable[[], Awaitable[object]], wanted: object) -> None:
        """Wait until an awaitable condition has this value: clients ask a catalog, which is a little behind."""
        with trio.fail_after(PATIENCE_SECONDS):
            while await condition() != wanted:
                await trio.sleep(0.02)


def handler(fake: FakeConsul, clock: Clock) -> Handler:
    async def answer(asked: Request) -> Response:
        return Response(*fake.handle(asked.method, asked.target, asked.headers, asked.body, clock.now()))

    return answer


async def fake_agent(
    nursery: trio.Nursery, *, old: bool = False, tokens: Mapping[str, set[str]] | None = None
) -> Agent:
    """Serve an empty fake on a free port until the nursery is cancelled."""
    fake, clock = FakeConsul(old=old, tokens=tokens), Clock()
    port = await http_server(nursery, handler(fake, clock), body=1 << 16)
    return Agent(f"http://127.0.0.1:{port}", fake=fake, clock=clock)


async def agent_of(request: pytest.FixtureRequest, nursery: trio.Nursery) -> Agent:
    """Return the agent of the fixture's kind, see ``KINDS``, and tell its version."""
    if request.param == "consul":
        agent: Agent = request.getfixturevalue("consul")
    else:
        agent = await fake_agent(nursery, old=request.param == "old fake")
    serve_with(request, agent.server)
    return agent
