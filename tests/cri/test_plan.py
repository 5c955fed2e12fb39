"""The image in real sandboxes, and a repo that the test plays: the pod's claim, a plan, its withdrawal."""

import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from pidone.http.message import Request, Response
from pidone.plan.digest import digest
from tests.cri.conftest import BUSYBOX
from tests.cri.images import Image
from tests.cri.messages import Mode, SandboxState
from tests.cri.node import Node, Sandbox, until
from tests.eureka.fake import FakeEureka
from tests.http.serving import http_server
from tests.image.podman import ENGINE
from tests.patience import PATIENCE_SECONDS
from tests.pod.test_pod import ADDRESS, Repo, listening, metrics, serve_repo

pytestmark = pytest.mark.cri

READY = (SandboxState.READY, 0)  # and at the first attempt
ORPHANS = 200


class RepoOfOne(Repo):
    """Keeps what the pod claims."""

    def __init__(self) -> None:
        super().__init__()
        self.claims: dict[str, Mapping[str, str]] = {}

    async def handle(self, asked: Request) -> Response:
        self.claims[asked.path] = asked.headers
        return await super().handle(asked)


@asynccontextmanager
async def pod(node: Node, image: Image, **how: Any) -> AsyncIterator[Sandbox]:
    """A sandbox, while the repo goes on answering."""
    await trio.to_thread.run_sync(node.put, image)
    held = node.sandbox(**how)
    sandbox = await trio.to_thread.run_sync(held.__enter__)
    try:
        yield sandbox
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(held.__exit__, None, None, None)


async def happens(condition: Callable[[], object]) -> None:
    await trio.to_thread.run_sync(until, condition)


def private(sandbox: Sandbox) -> int:
    """Its private memory, in KiB."""
    lines = sandbox.proc("smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


async def reaped(repo: Repo, plan: list[dict[str, Any]]) -> int:
    """The orphans that a report tells of, as soon as there are that many; a count alone is no news for long."""
    with trio.fail_after(PATIENCE_SECONDS):
        for number in itertools.count():
            repo.put([*plan, plan[1] | {"name": f"news-{number}"}])
            report = await repo.report(partial(_has, f"news-{number}"))
            if report["reaped"] >= ORPHANS:
                break
    return int(report["reaped"])


def _has(task: str, report: Mapping[str, Any]) -> bool:
    return task in report["tasks"]


def eureka_plan(registry: str, port: int) -> list[dict[str, Any]]:
    """What is healthy is the pod's own metrics; it is registered while they answer."""
    instance = {"url": registry, "app": "web", "port": port, "renewalInterval": 1}
    return [
        metrics(port),
        {"name": "ready", "probe": {"httpGet": {"path": "/metrics", "port": port}, "periodSeconds": 1}},
        {"name": "web", "needs": ["ready.healthy"], "register": {"eureka": instance, "follow": "ready"}},
        {"name": "beat", "needs": ["web.registered"], "every": 1, "heartbeat": {"of": "web"}},
    ]


@pytest.mark.parametrize(
    ("mode", "user"),
    [
        pytest.param(Mode.CONTAINER, 1000, id="uid 1000"),
        pytest.param(Mode.POD, None, id="shareProcessNamespace"),
        pytest.param(Mode.NODE, None, id="hostPID"),
    ],
)
async def test_a_plan_wakes_it_and_a_withdrawal_lets_it_doze_in_the_same_sandbox(
    containerd: Node,
    image: Image,
    nursery: trio.Nursery,
    free_port: Callable[[], int],
    mode: Mode,
    user: int | None,
) -> None:
    registry = FakeEureka()

    async def eureka(asked: Request) -> Response:
        return Response(*registry.handle(asked.method, asked.target, asked.body, time.time()))

    def did(method: str) -> bool:
        return any(request.method == method and request.status < 300 for request in registry.log)

    repo = RepoOfOne()
    url = await serve_repo(repo, nursery)
    registry_url = f"http://127.0.0.1:{await http_server(nursery, eureka, body=1 << 16)}/eureka"
    port = free_port()
    plan = eureka_plan(registry_url, port)
    configured = image.with_env(PIDONE_REPO=url, PIDONE_POD_IP=ADDRESS, PIDONE_LINGER="1")
    async with pod(containerd, configured, pid=mode, user=user) as sandbox:
        uid = sandbox.config["metadata"]["uid"]
        await happens(lambda: "/v1/doorbell" in repo.claims)
        assert repo.claims["/v1/doorbell"]["pidone-pod-uid"] == uid
        await happens(lambda: not sandbox.children())
        assert sandbox.program() == "/doze"
        assert private(sandbox) < 100, "KiB"

        repo.put(plan)
        await repo.report(lambda report: report["tasks"].get("beat", {}).get("runs"))
        assert sandbox.program().rpartition("/")[2] in ENGINE
        assert repo.claims["/v1/bundle"]["pidone-pod-uid"] == uid
        assert await listening(port)
        assert did("POST"), "registered"
        assert did("PUT"), "and renewed"
        if mode is Mode.POD:
            script = f"n=0; while [ $n -lt {ORPHANS} ]; do (true &); n=$((n+1)); done; exec sleep 1000"
            await trio.to_thread.run_sync(sandbox.run, BUSYBOX, "sh", "-c", script)
            assert await reaped(repo, plan) == ORPHANS

        repo.put([])
        await happens(lambda: sandbox.program() == "/doze")
        assert did("DELETE"), "taken out before it dozed"
        assert not await listening(port)
        await repo.report(lambda report: report["digest"] == digest([]))
        await happens(lambda: not sandbox.children())
        assert private(sandbox) < 100, "KiB: nothing of Python is left"
        assert sandbox.same()
        assert sandbox.state() == READY
    nursery.cancel_scope.cancel()
