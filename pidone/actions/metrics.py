"""``metrics``: serves the pod's metrics to Prometheus, on a port of the pod."""

from collections.abc import Iterable
from errno import EADDRINUSE
from functools import partial

import trio

from pidone.actions import Context, Setting, task_families
from pidone.containers import Containers
from pidone.errors import Refused, TaskFailed
from pidone.http.connect import encoded
from pidone.http.message import Request, Response, text_response
from pidone.http.pod_rooms import CONNECTIONS, assign_in_pod, default_gateways
from pidone.http.server import serve
from pidone.http.urls import authority
from pidone.metrics.exposition import Family
from pidone.metrics.page import answer
from pidone.metrics.sampler import FRESH_SECONDS, Sampler
from pidone.plan.fields import Fields

STATES = ("listening",)
(LISTENING,) = STATES
POD, LOOPBACK = "pod", "loopback"  # the values of ``address``
PORT = 19100  # not 9100 (node-exporter with hostNetwork) and not 9464 (OpenTelemetry)

COLLECTORS = ("process", "containers", "network", "tasks")  # by default
_SAMPLER = "sampler"  # in ``Setting.kept``
_VISIBLE = "pidone_processes_visible"
UNSEEN = (
    "no process of the containers is visible, so their metrics are missing: set shareProcessNamespace: true in the "
    'pod\'s spec, or label the pod pidone.dev/processes: "true" where the component process-sharing is installed'
)


class Metrics:
    """Serves ``/metrics``: a page of these collectors."""

    def __init__(
        self,
        port: int,
        source: str | None,
        sampler: Sampler,
        collectors: tuple[str, ...],
        containers: Containers | None = None,
    ) -> None:
        self._port = port
        self._source = source  # the address to listen on; None: all
        self._sampler = sampler
        self._collectors = collectors
        self._containers = containers or Containers()
        self._answered = trio.Event()  # with a page, since the last ``forget``
        self._explained = ""

    async def run(self, context: Context) -> None:
        """Listen until cancelled. Raises ``TaskFailed`` if the port is in use: the application has priority."""
        await self._wait_for_containers(context)
        listeners = await self._listen()
        context.report(LISTENING, "")
        self._explained = ""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forget)
                nursery.start_soon(
                    self._sample, context
                )  # also if nobody scrapes, the status says what is missing
                await serve(
                    partial(self._answer, context),
                    listeners,
                    max_connections=CONNECTIONS,
                    max_body=0,
                    assign=assign_in_pod(default_gateways()),
                )
        finally:
            context.report("")

    async def _wait_for_containers(self, context: Context) -> None:
        """Wait until all containers have been started, so that none of them finds its port taken.

        Without a repo, or with an older one, they are unknown, and nothing is waited for.
        """
        while unstarted := self._containers.unstarted:
            context.explain(
                f"listens when all containers have been started; waits for {', '.join(unstarted)}"
            )
            await context.changed()

    async def _listen(self) -> list[trio.SocketListener]:
        try:
            return await trio.open_tcp_listeners(
                self._port, host=encoded(self._source) if self._source else None
            )
        except OSError as error:
            reason = (
                f"cannot listen on {authority(self._source or '*', self._port)}: {error.strerror or error}"
            )
            if error.errno == EADDRINUSE:
                reason += "; a container of the pod uses this port: give metrics.port another one"
            raise TaskFailed(reason) from error

    async def undo(self, context: Context) -> None:
        """Do nothing: the end of the run has closed the port."""

    async def _answer(self, context: Context, request: Request) -> Response:
        if request.path != "/metrics":
            return text_response(404, "the path is /metrics")
        if request.method not in {"GET", "HEAD"}:
            return text_response(405, "the method is GET", allow="GET, HEAD")
        return answer(request, await self._sample(context))

    async def _sample(self, context: Context) -> list[Family]:
        """Return the families of a page. Explain in the task's status why those of the containers are missing."""
        families = await self._sampler.families(self._collectors)
        self._answered.set()
        reason = UNSEEN if self._containers.by_name and _are_unseen(families) else ""
        if reason != self._explained:
            self._explained = reason
            context.explain(reason)
        return families

    async def _forget(self) -> None:
        """Give back the memory of each sample when it is too old for another page."""
        while True:
            await self._answered.wait()
            self._answered = trio.Event()
            await trio.sleep(FRESH_SECONDS)
            self._sampler.forget()


def _are_unseen(families: Iterable[Family]) -> bool:
    """True if the containers were looked for, and no process of them has been seen."""
    visible = next((family.samples for family in families if family.name == _VISIBLE), [])
    return any(not value for _, value in visible)


def sampler(setting: Setting) -> Sampler:
    """Return the sampler of the pod. All tasks share it, and it outlives the plan, as its counters never go back."""
    kept = setting.kept.get(_SAMPLER)
    if not isinstance(kept, Sampler):
        from pidone.metrics import network, process
        from pidone.metrics.cgroups import ContainerCgroups
        from pidone.metrics.containers import ContainerProcesses
        from pidone.metrics.labels import Facts

        facts = Facts(setting.pod.uid, lambda: setting.containers.by_name)
        kept = setting.kept[_SAMPLER] = Sampler(
            {
                "process": process.collect,
                "containers": ContainerProcesses(setting.reaper, facts).collect,
                "network": network.collect,
                "tasks": lambda: task_families(setting, list(setting.tasks())),
                "cgroup": ContainerCgroups(facts).collect,
            }
        )
    return kept


def read_collectors(fields: Fields, setting: Setting) -> tuple[str, ...]:
    """Read the field ``collectors``."""
    names = fields.texts("collectors") or COLLECTORS
    known = sampler(setting).names
    unknown = [name for name in names if name not in known]
    if unknown:
        raise Refused(
            f"{fields.path}.collectors: expected some of {', '.join(known)}, not {', '.join(unknown)}"
        )
    return names


def build(fields: Fields, setting: Setting) -> Metrics:
    port = fields.integer("port", PORT, least=1, most=65535)
    address = fields.text("address", POD)
    names = read_collectors(fields, setting)
    fields.done()
    if address not in {POD, LOOPBACK}:
        raise Refused(f'{fields.path}.address: expected {POD} or {LOOPBACK}, not "{address}"')
    source = setting.source if address == POD else "127.0.0.1"
    return Metrics(port, source, sampler(setting), names, setting.containers)
