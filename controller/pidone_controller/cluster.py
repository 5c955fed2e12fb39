"""The controller in a cluster: what the API server has comes in, plans go out, what became of them goes back.

Every replica watches everything and serves every pod; nothing that a pod is served waits for another replica. One
of them leads, and writes: statuses, Events, ControllerRevisions, the steps of rollouts, the certificate's Secret;
and it takes back registrations for pods that could not.

This is the shell that holds the parts together. What they decide stands in their own modules.
"""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import trio

from pidone import __version__
from pidone.http.message import Request, Response
from pidone.language.binding import Key
from pidone.language.binding import shown as shown_binding
from pidone.metrics.exposition import Family, counter, gauge
from pidone.plan.report import Report
from pidone.protocol import MAX_REPORT_BYTES, SERVICE
from pidone_controller.deregistration import Backstop
from pidone_controller.kubernetes import config
from pidone_controller.kubernetes.client import Client, connect
from pidone_controller.kubernetes.election import Election
from pidone_controller.kubernetes.recorder import Recorder
from pidone_controller.kubernetes.reflector import Key as Name
from pidone_controller.kubernetes.reflector import Reflector
from pidone_controller.kubernetes.resources import (
    CLUSTER_TASK_BINDINGS,
    CLUSTER_TASK_SETS,
    CONTROLLER_REVISIONS,
    PODS,
    TASK_BINDINGS,
    TASK_SETS,
)
from pidone_controller.kubernetes.reviews import may, whose
from pidone_controller.log import Log, log
from pidone_controller.objects.revisions import SELECTOR
from pidone_controller.objects.written import Written
from pidone_controller.peers import PATH, Account, Peers, identity_of
from pidone_controller.pods.model import Pod, Pool
from pidone_controller.pods.projection import project
from pidone_controller.repo import ca
from pidone_controller.repo import server as repo_server
from pidone_controller.repo.certificates import Pair
from pidone_controller.repo.listeners import Listeners, Tls, host_port, listen, serve
from pidone_controller.repo.plans import Plans
from pidone_controller.repo.selection import Selection
from pidone_controller.repo.server import Repo
from pidone_controller.rollout.leader import Leader
from pidone_controller.rollout.step import Objects
from pidone_controller.status import compose as status
from pidone_controller.status.compose import StatusWriter, Target
from pidone_controller.status.events import Tidings

LEASE = "pidone-controller"

# What nobody serves are pods that are done; the API server leaves them out. Those on their node's network are served
# by token, and say which addresses are nodes'.
SERVED = "status.phase!=Succeeded,status.phase!=Failed"

# People apply several objects at once, and a plan is made of all of them: rules are made when nothing more has come
# for a while, at the latest after a longer one.
QUIET, LATEST = 0.1, 1.0

SILENT = 300.0  # seconds without a sign of life of a reflector after which this process is better begun anew
DRAIN = 5.0  # seconds over which the held requests are ended: their pods ask the other replicas
HEARING = 15.0  # seconds in which a new leader hears what the others were told


@dataclass(frozen=True, slots=True)
class Settings:
    """The command line and the environment."""

    listen: tuple[str, int]
    listen_tls: tuple[str, int]
    people: tuple[IPv4Network | IPv6Network, ...] = ()  # where people's questions come from, see ``serving``
    namespace: str = ""  # its own; empty: the service account's, or the context's
    name: str = ""  # of this replica
    address: str = "127.0.0.1"  # at which the other replicas reach this one
    kubeconfig: Path | None = None

    @property
    def url(self) -> str:
        """Of this replica, for the others."""
        return f"http://{host_port((self.address, self.listen[1]))}"


async def run(settings: Settings, log: Log = log) -> None:
    """Run until SIGTERM or SIGINT. An API server that is away is waited for.

    Raises ``ConfigError`` and ``StartError``.
    """
    found = config.kubeconfig([settings.kubeconfig]) if settings.kubeconfig else config.load()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        plain, secure = await listen(*settings.listen), await listen(*settings.listen_tls)
        async with connect(found) as client, trio.open_nursery() as nursery:
            controller = Controller(settings, client, log)
            nursery.start_soon(controller.run, plain, secure)
            async for number in signals:
                log("stopping", signal=signal.Signals(number).name)
                await controller.drain()
                nursery.cancel_scope.cancel()
                break


class _Pods:
    """The reflector's sink: pods go to the repo, and whoever looks at them is told of both, the old and the new."""

    def __init__(self, plans: Plans, changed: Callable[[Sequence[Pod]], None]) -> None:
        self._plans, self._changed = plans, changed

    def replaced(self, items: Mapping[Name, Pod]) -> None:
        before = list(self._plans.inventory)
        self._plans.replace(items.values())
        self._changed([*before, *items.values()])

    def changed(self, key: Name, item: Pod) -> None:
        before = self._plans.inventory.find(*key)
        self._plans.put(item)
        self._changed([before, item] if before else [item])

    def removed(self, key: Name) -> None:
        before = self._plans.inventory.find(*key)
        self._plans.drop(key)
        self._changed([before] if before else [])


class Controller:
    """All parts of one replica."""

    def __init__(self, settings: Settings, client: Client, log: Log) -> None:
        self._settings, self._client, self._log = settings, client, log
        self._namespace = settings.namespace or client.config.namespace
        self._election = Election(
            client,
            namespace=self._namespace,
            name=LEASE,
            identity=identity_of(settings.name, settings.url),
            log=log,
        )
        account = Account(client)
        self._plans = Plans(log, on_report=self._told, on_gone=self._gone)
        self._repo = Repo(
            self._plans,
            log,
            settings=repo_server.Settings(people=settings.people),
            review=partial(whose, client),
            may_read=partial(_may_read, client),
            alive=self._trouble,
            families=self._families,
            routes={PATH: ("POST", self._from_peer)},
        )
        self._peers = Peers(self._plans, self._election, account, log)
        self._backstop = Backstop(log)
        self._selection = Selection(self._plans)
        self._objects = Objects(self._namespace, self._edited)
        pool = Pool()
        self._reflectors: list[Reflector[Any]] = [
            Reflector(
                client,
                PODS,
                lambda value: project(value, pool),
                _Pods(self._plans, self._pods_changed),
                field_selector=SERVED,
                log=log,
            ),
            *(
                Reflector(
                    client,
                    resource,
                    sink.project,
                    sink,
                    label_selector=SELECTOR if resource is CONTROLLER_REVISIONS else "",
                    log=log,
                )
                for resource, sink in self._objects.sinks.items()
            ),
        ]
        self._edits = trio.Event()
        self._leader: Leader | None = None
        self._statuses: StatusWriter | None = None
        self._tidings: Tidings | None = None
        self._led_since = 0.0
        self._began = trio.current_time()

    async def run(self, plain: Listeners, secure: Listeners) -> None:
        """Serve, and lead when it is this replica's turn, until cancelled."""
        async with trio.open_nursery() as nursery:
            for reflector in self._reflectors:
                nursery.start_soon(reflector.run)
            nursery.start_soon(self._plans.run)
            nursery.start_soon(self._rule)
            await nursery.start(
                partial(serve, self._repo.begin, plain, max_body=MAX_REPORT_BYTES, fatal=self._repo.died)
            )
            nursery.start_soon(self._secure, secure)
            nursery.start_soon(self._peers.run)
            for listener in (*plain, *secure):
                self._log("listening", address=host_port(listener.socket.getsockname()), version=__version__)
            for reflector in self._reflectors:
                await reflector.synced.wait()
            await self._election.run(self._lead)

    async def drain(self) -> None:
        """Be unready, and send the pods to the other replicas."""
        await self._repo.drain(DRAIN)

    async def _from_peer(self, request: Request) -> Response:
        return await self._peers.handle(request)

    async def _secure(self, listeners: Listeners) -> None:
        """Serve https as soon as there is a certificate for it."""
        first = trio.Event()
        tls: Tls | None = None

        def use(pair: Pair) -> None:
            nonlocal tls
            if tls is None:
                tls = Tls(pair)
                first.set()
            else:
                tls.use(pair)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ca.keep, self._client, self._namespace, self._names(), use, self._log)
            await first.wait()
            await serve(
                self._repo.begin, (), listeners, tls, max_body=MAX_REPORT_BYTES, fatal=self._repo.died
            )

    def _names(self) -> list[str]:
        """What pods may call this replica: the Service by all its names, and its own address."""
        of = f"{SERVICE}.{self._namespace}"
        return [SERVICE, of, f"{of}.svc", f"{of}.svc.cluster.local", self._settings.address]

    async def _rule(self) -> None:
        """Make rules of what people wrote, once all of it is there and then whenever it has stood still."""
        for reflector in self._reflectors[1:]:
            await reflector.synced.wait()
        while True:
            self._edits = trio.Event()
            rules = self._objects.rules()
            if not self._plans.ready or rules is not self._plans.rules:
                self._plans.rule(rules)
                self._selection.changed()
            self._mark_all()
            await self._edits.wait()
            latest = trio.current_time() + LATEST
            while trio.current_time() < latest:
                self._edits = trio.Event()
                with trio.move_on_after(QUIET) as quiet:
                    await self._edits.wait()
                if quiet.cancelled_caught:
                    break

    def _edited(self) -> None:
        self._edits.set()

    def _pods_changed(self, pods: Sequence[Pod]) -> None:
        self._selection.changed()
        self._mark_of(pods)

    def _told(self, pod: Pod, report: Report) -> None:
        bundle = self._plans.entry(pod).bundle
        self._backstop.heard(
            pod, report, bundle.digest if bundle else "", lambda: bundle.tasks if bundle else ()
        )
        self._peers.heard(pod)
        self._mark_of([pod])
        last = self._plans.last_report(pod)
        if self._tidings and bundle and last:
            bindings = [shown_binding(binding) for binding in self._plans.rules.matching(pod)]
            self._tidings.refused(pod, report, last[1], bundle.etag.strip('"'), bindings)

    def _gone(self, pod: Pod, report: Report | None) -> None:  # noqa: ARG002 - the backstop has heard it
        there = self._plans.inventory.find(pod.namespace, pod.name)
        self._backstop.gone(pod.key, namesake=there is not None and there.key != pod.key)
        if self._tidings:
            self._tidings.gone(pod)

    def _mark_of(self, pods: Sequence[Pod]) -> None:
        """The bindings that choose any of these pods."""
        if self._leader is None:
            return
        looks = {(pod.namespace, pod.labels): pod for pod in pods}
        keys = {binding.key for pod in looks.values() for binding in self._plans.rules.matching(pod)}
        self._mark([written for written in self._objects.bindings if written.key in keys])

    # What the leader does

    async def _lead(self) -> None:
        """One term; cancelled at its end."""
        self._led_since = trio.current_time()
        self._leader = Leader(self._client, self._objects, self._seen, self._log, hearing=HEARING)
        recorder = Recorder(self._client, instance=self._settings.name, log=self._log)
        self._tidings = tidings = Tidings(recorder)
        self._statuses = StatusWriter(self._client, self._compose, self._log, wrote=tidings.wrote)
        self._mark_all()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._statuses.run)
                nursery.start_soon(self._leader.run)
                nursery.start_soon(self._backstop.run)
                nursery.start_soon(tidings.run)
                await trio.sleep(HEARING)
                self._mark_all()
        finally:
            self._leader = self._statuses = self._tidings = None

    def _mark_all(self) -> None:
        # bindings first: who waits for the set to be Ready and then for its binding is not to meet the old answer
        self._mark(self._objects.bindings)
        self._mark(self._objects.sets)

    def _mark(self, objects: Sequence[Written]) -> None:
        if self._leader is None or self._statuses is None:
            return
        self._leader.look()
        for written in objects:
            self._statuses.mark(_target(written))

    def _seen(self, written: Written) -> Any:
        return self._selection.pods(written.key)

    def _compose(self, target: Target, previous: Mapping[str, Any]) -> status.Status | None:
        written = self._written(target)
        if written is None:
            return None
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        rules = self._plans.rules
        if target.resource in {TASK_SETS, CLUSTER_TASK_SETS}:
            found = written.task_set
            trouble, tasks = status.extends_trouble(found, rules) if found else ("", 0)
            users = sum(_names(binding, written.key) for binding in self._objects.bindings)
            return status.set_status(
                written.generation,
                previous=previous,
                now=now,
                findings=written.findings,
                trouble=trouble,
                tasks=tasks,
                bindings=users,
                kept=self._objects.history().revision(written.key, written.digest) is not None,
            )
        moving, halted = self._objects.progress(written)
        binding = written.binding
        return status.binding_status(
            str(written),
            written.generation,
            self._selection.pods(written.key),
            previous=previous,
            now=now,
            refused=written.findings,
            trouble=status.sets_trouble(binding, rules, https=True) if binding else None,
            moving=moving,
            halted=halted,
            hearing=trio.current_time() < self._led_since + HEARING,
        )

    def _written(self, target: Target) -> Written | None:
        objects = (
            self._objects.sets
            if target.resource in {TASK_SETS, CLUSTER_TASK_SETS}
            else self._objects.bindings
        )
        return next((written for written in objects if _target(written) == target), None)

    def _families(self) -> Iterator[Family]:
        """Metrics, by controller-runtime's names where it has them."""
        master = gauge("leader_election_master_status", "Whether this replica leads.")
        yield master.add(float(self._election.leader), name=LEASE)
        requests = counter("rest_client_requests_total", "Requests to the API server.")
        for (method, code), number in sorted(self._client.requests.items()):
            requests.add(number, code=str(code) if code else "<error>", method=method)
        yield requests
        lists = counter(
            "pidone_controller_lists_total", "Whole lists that were taken; all but the first are relists."
        )
        watches = counter("pidone_controller_watches_total", "Watches that were begun.")
        for reflector in self._reflectors:
            lists.add(reflector.lists, resource=str(reflector.resource))
            watches.add(reflector.watches, resource=str(reflector.resource))
        yield from (lists, watches)
        backstop = counter(
            "pidone_controller_backstop_total", "Instances of dead pods, by what became of them."
        )
        for result, number in sorted(self._backstop.counts.items()):
            backstop.add(number, result=result)
        yield backstop
        yield gauge(
            "pidone_controller_backstop_pending",
            "Instances of dead pods, to be taken out.",
            self._backstop.pending,
        )
        yield gauge("pidone_controller_peers_pending", "Reports the leader has not got.", self._peers.pending)

    def _trouble(self) -> str:
        """What is wrong with this process, for /livez: an API server that is away is not."""
        now = trio.current_time()
        for reflector in self._reflectors:
            if max(reflector.heard, reflector.tried, self._began) < now - SILENT:
                return f"{reflector.resource}: neither heard of nor asked about for {SILENT:.0f} s"
        return ""


async def _may_read(client: Client, user: Mapping[str, Any], namespace: str, name: str) -> bool:
    """Whether somebody may read a pod, or with an empty name list them. Raises ``ApiError``."""
    return await may(client, user, "get" if name else "list", PODS, namespace=namespace, name=name)


_RESOURCES = {
    resource.kind: resource
    for resource in (TASK_SETS, CLUSTER_TASK_SETS, TASK_BINDINGS, CLUSTER_TASK_BINDINGS)
}


def _target(written: Written) -> Target:
    return Target(_RESOURCES[written.kind], written.namespace, written.name, written.uid)


def _names(written: Written, key: Key) -> bool:
    """Whether a binding names a set."""
    binding = written.binding
    cluster, namespace, name = key
    return (
        binding is not None
        and name in binding.task_sets
        and (cluster, namespace) == (binding.cluster, written.namespace)
    )
