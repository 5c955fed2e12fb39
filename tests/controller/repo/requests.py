"""Requests to a repo, for tests."""

import json
from collections.abc import Awaitable
from random import Random
from typing import Any

import trio

from pidone.http.message import Request, Response
from pidone.language.binding import Rules
from pidone.plan.format import decode_bundle
from pidone_controller.log import log
from pidone_controller.pods.model import Pod
from pidone_controller.repo.plans import Plans
from pidone_controller.repo.server import Repo
from tests.controller.factories import binding, rules, task_set

CHECKED = {"check": "yes"}
RULES = rules(task_set(), binding())


def repo_of(*pods: Pod, **more: Any) -> Repo:
    """A repo with these pods; arguments of ``Plans`` are passed to it."""
    plans = {name: more.pop(name) for name in ("derive", "on_report", "on_gone") if name in more}
    repo = Repo(Plans(log, **plans), log, random=Random(1), **more)
    repo.plans.rule(RULES)
    repo.plans.replace(pods)
    return repo


def put(repo: Repo, *pods: Pod, found: Rules = RULES) -> None:
    """All pods there are, and the rules."""
    if found is not repo.plans.rules:
        repo.plans.rule(found)
    repo.plans.replace(pods)


def get(path: str = "/v1/bundle", peer: str = "127.0.0.2", **headers: str) -> Request:
    return Request("GET", path, {name.replace("_", "-"): value for name, value in headers.items()}, b"", peer)


def post(report: object, peer: str = "127.0.0.2") -> Request:
    body = report if isinstance(report, bytes) else json.dumps(report).encode()
    return Request("POST", "/v1/status", {}, body, peer)


def served(response: Response) -> str | int:
    """The name of the pod whose bundle that is, or the status."""
    return decode_bundle(response.body, ["probe"]).pod.name if response.status == 200 else response.status


class Background:
    """A request in a task of its own; ``response`` is None until it is answered."""

    def __init__(self, nursery: trio.Nursery, answering: Awaitable[Response]) -> None:
        self.response: Response | None = None
        self._done = trio.Event()
        nursery.start_soon(self._run, answering)

    async def _run(self, answering: Awaitable[Response]) -> None:
        self.response = await answering
        self._done.set()

    async def answer(self) -> Response:
        await self._done.wait()
        assert self.response is not None
        return self.response
