"""The servers that the measured pods use: repo, application and Eureka in one server, in one thread.

A pod is identified by the address from which it connects. Times are taken in the handlers of requests.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import trio

from pidone.http.message import Request, Response
from pidone.http.server import serve
from pidone.plan.digest import canonical, digest
from pidone.plan.format import MEDIA_TYPE, encode_bundle
from pidone.plan.model import Phase, Pod
from tests.eureka.fake import FakeEureka

PROBE_PERIOD, RENEWAL = 5, 5  # seconds; the renewal is shorter than usual, because a run takes only minutes
METRICS = 19100
HELD_SECONDS = 50.0  # that a request to the repo is held


class World:
    """Serves until the end of the ``with`` block. Pods in ``with_plan`` get the plan, all others an empty one."""

    def __init__(self) -> None:
        self.url = ""
        self.with_plan: set[str] = set()
        self.requests: Counter[tuple[str, str]] = Counter()  # by pod and kind of request
        self.reported: dict[str, dict[str, Any]] = {}
        self.on_probe: dict[str, Callable[[], None]] = {}  # called once, at the next probe of that pod
        self._eureka = FakeEureka()
        self._changed: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self._up = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=[self._run], daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._up.wait(10)
        return self

    def __exit__(self, *exception: object) -> None:
        trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)
        self._thread.join(10)

    def put(self, pod: str, *, with_plan: bool) -> None:
        """Give the pod the plan, or withdraw it."""
        (self.with_plan.add if with_plan else self.with_plan.discard)(pod)
        trio.from_thread.run_sync(self._wake, pod, trio_token=self._token)

    def count(self, pod: str, *kinds: str) -> int:
        return sum(self.requests[pod, kind] for kind in kinds)

    def _wake(self, pod: str) -> None:
        self._changed.pop(pod, trio.Event()).set()

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        with trio.CancelScope() as self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    partial(serve, self._handle, listeners, max_connections=1000, max_body=1 << 16)
                )
                self._up.set()

    async def _handle(self, request: Request) -> Response:
        pod, path = request.peer, request.path
        if path == "/":
            self.requests[pod, "probe"] += 1
            self.on_probe.pop(pod, lambda: None)()
            return Response(200)
        if path.startswith("/eureka/"):
            self.requests[pod, "beat" if request.method == "PUT" else "register"] += 1
            return Response(*self._eureka.handle(request.method, request.target, request.body, time.time()))
        if path == "/v1/doorbell":
            self.requests[pod, "doorbell"] += 1
            return Response(303) if pod in self.with_plan else Response(200, later=partial(self._ring, pod))
        if path == "/v1/status":
            self.requests[pod, "report"] += 1
            return Response(204)
        self.requests[pod, "bundle"] += 1
        body = self._bundle(pod)
        with trio.move_on_after(HELD_SECONDS):
            while (tag := f'"{digest(body.decode())}"') in request.headers.get("if-none-match", ""):
                await self._changed[pod].wait()
                body = self._bundle(pod)
            return Response(200, {"content-type": MEDIA_TYPE, "etag": tag}, body)
        return Response(304, {"preference-applied": "wait"})

    async def _ring(self, pod: str) -> bytes:
        while pod not in self.with_plan:
            await self._changed[pod].wait()
        return b"!"

    def _bundle(self, address: str) -> bytes:
        tasks = self._tasks() if address in self.with_plan else []
        name = f"pod-{address.replace('.', '-')}"
        pod = Pod(name, "bench", f"uid-{name}", address)
        return canonical(encode_bundle(tasks, phase=Phase.RUNNING, pod=pod))

    def _tasks(self) -> list[dict[str, Any]]:
        port = int(self.url.rpartition(":")[2])
        get = {"host": "127.0.0.1", "port": port, "path": "/"}
        eureka = {"url": f"{self.url}/eureka", "app": "bench", "port": port, "renewalInterval": RENEWAL}
        return [
            {"name": "ready", "probe": {"httpGet": get, "periodSeconds": PROBE_PERIOD}},
            {
                "name": "registration",
                "needs": ["ready.healthy"],
                "register": {"eureka": eureka, "follow": "ready"},
                "stopTimeout": 3,
            },
            {
                "name": "beat",
                "needs": ["registration.registered"],
                "every": RENEWAL,
                "heartbeat": {"of": "registration"},
            },
            {
                "name": "metrics",
                "metrics": {"port": METRICS, "collectors": ["process", "network", "tasks"]},
            },
        ]
