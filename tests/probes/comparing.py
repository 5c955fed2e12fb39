"""Puts one probe to the kubelet and to pidone, at the same server, and returns both answers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import trio

from pidone.actions import Setting
from pidone.actions.probe import build
from pidone.counters import Counters
from pidone.http.client import PROBE_USER_AGENT
from pidone.language.rendering import render
from pidone.pid1.reaper import Reaper
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from tests.actions.watcher import Watcher
from tests.language.test_rendering import task_set
from tests.patience import PATIENCE_SECONDS
from tests.probes.kubelet import Kubelet

KUBELET_USER_AGENT = "kube-probe/1.36"
PAUSE, KEEP_OPEN, HANG = "pause", "keep open", "hang"  # steps of an answer, beside bytes to send
OWN_PROBE = task_set("[]", "[{name: ready, probe: {from: readinessProbe}}]")

Steps = Iterable[bytes | str]
Behaviour = Callable[[bytes, int], Steps]  # of the request's head and the server's port


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the pod's owner and its application see of one probe."""

    healthy: bool
    requests: tuple[Any, ...]
    why: str = field(default="", compare=False)


class Server:
    """Records each connection's request and how the client ended it: "end", or "reset" if data was left unread."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self.port = 0
        self._records: list[list[object]] = []
        self._open = 0
        self._closed = trio.Event()

    async def start(self, nursery: trio.Nursery, ip: str, certificate: Any = None) -> None:
        listeners = await trio.open_tcp_listeners(0, host=ip)
        self.port = listeners[0].socket.getsockname()[1]
        self._certificate = certificate
        await nursery.start(trio.serve_listeners, self._serve, listeners)

    async def take(self) -> tuple[Any, ...]:
        """Return the records, in the order of the connections, when all connections are closed."""
        with trio.fail_after(PATIENCE_SECONDS):
            while self._open:
                await self._closed.wait()
        records = tuple(tuple(record) for record in self._records)
        self._records = []
        return records

    async def _serve(self, stream: trio.SocketStream) -> None:
        self._open += 1
        self._closed = trio.Event()
        record: list[object] = []
        self._records.append(record)
        try:
            async with stream:
                secure: trio.abc.HalfCloseableStream | Any = stream
                if self._certificate is not None:
                    secure = trio.SSLStream(stream, self._certificate, server_side=True)
                await self._converse(secure, record)
        finally:
            self._open -= 1
            self._closed.set()

    async def _converse(self, stream: Any, record: list[object]) -> None:
        try:
            head = b""
            while b"\r\n\r\n" not in head and head[:1] != b"\x16":
                data = await stream.receive_some()
                if not data:
                    record += [head, "end"]
                    return
                head += data
            if head[:1] == b"\x16":
                head = b"the first record of TLS, which has random bytes"
            record.append(head.replace(KUBELET_USER_AGENT.encode(), PROBE_USER_AGENT.encode()))
            await self._answer(stream, head)
            while await stream.receive_some():
                pass
            record.append("end")
        except trio.BrokenResourceError:
            record.append("reset")
        except trio.ClosedResourceError:
            pass  # TLS, which the server has ended

    async def _answer(self, stream: Any, head: bytes) -> None:
        for step in self._behaviour(head, self.port):
            if isinstance(step, bytes):
                await stream.send_all(step)
            elif step == PAUSE:
                await trio.sleep(0.005)  # so that the next bytes come in a segment of their own
            else:
                return  # the client must close
        if isinstance(stream, trio.SSLStream):
            await stream.aclose()
        else:
            await stream.send_eof()


def pod_with(probe: dict[str, Any], ip: str, **container: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "uid": "u"},
        "spec": {"containers": [{"name": "app", "image": "app", "readinessProbe": probe} | container]},
        "status": {"podIP": ip, "podIPs": [{"ip": ip}]},
    }


async def of_kubelet(kubelet: Kubelet, pod: dict[str, Any], server: Server | None = None) -> Outcome | None:
    """Return the kubelet's outcome; None if the API server refuses the pod."""
    answer = await kubelet.probe(pod)
    if "refused" in answer:
        return None
    return Outcome(answer["ready"], await server.take() if server else (), answer.get("event", ""))


async def of_pidone(pod: dict[str, Any], server: Server | None = None) -> Outcome:
    """Return the outcome of a task with the pod's own probe."""
    (task,) = render([OWN_PROBE], {}, pod)
    return await of_action(task["probe"], pod["status"]["podIP"], server)


async def of_action(config: dict[str, Any], ip: str, server: Server | None = None) -> Outcome:
    """Return the outcome of one request of the action with these fields."""
    reaper = Reaper()
    setting = Setting(Pod("web", "shop", "u", ip), None, reaper, Counters(), lambda: (), programs="/")
    request = build(Fields(config, "probe"), setting).ask
    async with trio.open_nursery() as nursery:
        if "exec" in config:
            await nursery.start(reaper.run)
        why = await request(Watcher())
        nursery.cancel_scope.cancel()
    return Outcome(not why, await server.take() if server else (), why)
