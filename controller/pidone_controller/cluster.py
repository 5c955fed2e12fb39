"""One replica of the controller in a cluster: connects its parts. What they decide is in their own modules.

Every replica watches all objects and serves every pod; no plan waits for another replica. One replica leads: it writes
statuses, Events, ControllerRevisions and the steps of rollouts, and deregisters pods that could not do it themselves.
"""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import trio

from pidone import __version__
from pidone.language.binding import Key, shown
from pidone.metrics.exposition import Family
from pidone.plan.report import Report
from pidone.protocol import MAX_REPORT_BYTES, SERVICE
from pidone_controller.deregistration import Deregistration
from pidone_controller.kubernetes import config
from pidone_controller.kubernetes.client import Client, connect
from pidone_controller.kubernetes.election import Election
from pidone_controller.kubernetes.recorder import Recorder
from pidone_controller.kubernetes.reflector import Reflector, silence
from pidone_controller.kubernetes.reflector import families as reflector_families
from pidone_controller.kubernetes.resources import CONTROLLER_REVISIONS, NAMESPACES, PODS
from pidone_controller.kubernetes.reviews import is_allowed, review_token
from pidone_controller.log import LimitedLog, Log, log
from pidone_controller.objects.policy import EXEC_SELECTOR
from pidone_controller.objects.revisions import SELECTOR
from pidone_controller.objects.secrets import SecretStore
from pidone_controller.objects.written import Written
from pidone_controller.peers import PATH, Account, Peers, identity_of
from pidone_controller.pods.model import NamespacedName, Pod, Pool
from pidone_controller.pods.projection import project
from pidone_controller.repo import ca, certificates, server
from pidone_controller.repo.certificates import Pair
from pidone_controller.repo.listeners import Listeners, Tls, host_port, listen, serve
from pidone_controller.repo.plans import Plans
from pidone_controller.repo.selection import SelectedPod, Selection
from pidone_controller.repo.server import Repo
from pidone_controller.rollout.catalog import Affected, Catalog
from pidone_controller.rollout.leader import Leader
from pidone_controller.status.changes import Changes
from pidone_controller.status.compose import Composer
from pidone_controller.status.events import EventQueue
from pidone_controller.status.writer import StatusWriter

LEASE = "pidone-controller"

# Finished pods are served by nobody, so the API server leaves them out. Pods on their node's network are served by
# token, and tell which addresses belong to nodes.
POD_SELECTOR = "status.phase!=Succeeded,status.phase!=Failed"

# People apply several objects at once and a plan depends on all of them: rules are updated when no object has changed
# for QUIET_SECONDS, at the latest after MAX_DELAY_SECONDS.
QUIET_SECONDS = 0.1
MAX_DELAY_SECONDS = 1.0

DRAIN_SECONDS = 5.0  # over which the held requests are ended: their pods ask other replicas
COLLECTING_SECONDS = 15.0  # in which a new leader receives the reports of the other replicas


@dataclass(frozen=True, slots=True)
class Settings:
    """The command line and the environment."""

    listen: tuple[str, int]
    listen_tls: tuple[str, int]
    people: tuple[IPv4Network | IPv6Network, ...] = ()  # see ``repo.server.Settings``
    namespace: str = ""  # of the controller; empty: the service account's, or the context's
    name: str = ""  # of this replica
    address: str = "127.0.0.1"  # at which the other replicas reach this one
    kubeconfig: Path | None = None

    @property
    def url(self) -> str:
        """The URL of this replica for the others."""
        return f"https://{host_port((self.address, self.listen_tls[1]))}"


async def run(settings: Settings, log: Log = log) -> None:
    """Run until SIGTERM or SIGINT; wait while the API server is away.

    Raises ``ConfigError`` and ``StartError``.
    """
    configuration = config.kubeconfig([settings.kubeconfig]) if settings.kubeconfig else config.load()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        plain, secure = await listen(*settings.listen), await listen(*settings.listen_tls)
        async with connect(configuration) as client, trio.open_nursery() as nursery:
            controller = Controller(settings, client, LimitedLog(log))
            nursery.start_soon(controller.run, plain, secure)
            async for number in signals:
                log("stopping", signal=signal.Signals(number).name)
                await controller.drain()
                nursery.cancel_scope.cancel()
                break


class _PodSink:
    """The sink of the pod reflector: updates the plans, and passes on the changed pods, before and after."""

    def __init__(self, plans: Plans, changed: Callable[[Sequence[Pod]], None]) -> None:
        self._plans, self._on_change = plans, changed

    def replaced(self, items: Mapping[NamespacedName, Pod]) -> None:
        before = list(self._plans.inventory)
        self._plans.replace(items.values())
        self._on_change([*before, *items.values()])

    def changed(self, name: NamespacedName, item: Pod) -> None:
        before = self._plans.inventory.find(*name)
        self._plans.put(item)
        self._on_change([before, item] if before else [item])

    def removed(self, name: NamespacedName) -> None:
        before = self._plans.inventory.find(*name)
        self._plans.drop(name)
        self._on_change([before] if before else [])


@dataclass(frozen=True, slots=True)
class _Term:
    """The parts that run while this replica leads."""

    began: float  # clock time
    leader: Leader
    statuses: StatusWriter
    events: EventQueue


class Controller:
    """All parts of one replica."""

    def __init__(self, settings: Settings, client: Client, log: Log) -> None:
        self._settings, self._client, self._log = settings, client, log
        self._namespace = settings.namespace or client.config.namespace
        self._began = trio.current_time()
        self._election = Election(
            client,
            namespace=self._namespace,
            name=LEASE,
            identity=identity_of(settings.name, settings.url),
            log=log,
        )

        self._plans = Plans(log, on_report=self._reported, on_gone=self._gone)
        self._peers = Peers(self._plans, self._election, Account(client), log)
        self._repo = Repo(
            self._plans,
            log,
            settings=server.Settings(people=settings.people),
            review=partial(review_token, client),
            may_read=partial(_may_read, client),
            alive=self._trouble,
            families=self._families,
            routes={PATH: ("POST", self._peers.handle, self._peers.refuse)},
        )
        self._deregistration = Deregistration(log, namespace=self._namespace, left=self._left_registered)
        self._selection = Selection(self._plans)
        self._secrets = SecretStore(self._namespace, self._secrets_changed, log)
        self._catalog = Catalog(self._namespace, self._objects_changed, judging=True, secrets=self._secrets)
        self._changes = Changes(self._catalog, self._plans, self._selection)
        self._composer = Composer(
            self._catalog, self._plans, self._selection, collecting_reports=self._is_collecting_reports
        )

        pool = Pool()
        self._pod_reflector: Reflector[Pod] = Reflector(
            client,
            PODS,
            lambda value: project(value, pool),
            _PodSink(self._plans, self._pods_changed),
            field_selector=POD_SELECTOR,
            log=log,
        )
        self._object_reflectors: list[Reflector[Any]] = [
            Reflector(
                client,
                resource,
                sink.project,
                sink,
                label_selector=SELECTOR if resource is CONTROLLER_REVISIONS else "",
                log=log,
            )
            for resource, sink in self._catalog.sinks.items()
        ]
        namespaces = self._catalog.exec_namespaces
        self._object_reflectors.append(
            Reflector(
                client, NAMESPACES, namespaces.project, namespaces, label_selector=EXEC_SELECTOR, log=log
            )
        )
        self._edited = trio.Event()
        self._term: _Term | None = None

    @property
    def _reflectors(self) -> list[Reflector[Any]]:
        return [self._pod_reflector, *self._object_reflectors]

    async def run(self, plain: Listeners, secure: Listeners) -> None:
        """Serve, and lead when it is this replica's turn, until cancelled."""
        async with trio.open_nursery() as nursery:
            for reflector in self._reflectors:
                nursery.start_soon(reflector.run)
            nursery.start_soon(self._plans.run)
            nursery.start_soon(self._update_rules)
            nursery.start_soon(self._secrets.run, self._client)
            await nursery.start(partial(self._serve, plain))
            nursery.start_soon(self._serve_https, secure)
            nursery.start_soon(self._peers.run)
            for listener in (*plain, *secure):
                address = host_port(listener.socket.getsockname())
                self._log("listening", address=address, version=__version__)

            for reflector in self._reflectors:
                await reflector.synced.wait()
            await self._election.run(self._lead)

    async def drain(self) -> None:
        """Become unready and end the held requests, so that their pods ask other replicas."""
        await self._repo.drain(DRAIN_SECONDS)

    async def _serve_https(self, listeners: Listeners) -> None:
        """Serve https as soon as there is a certificate."""
        certified = trio.Event()
        tls: Tls | None = None

        def use(pair: Pair) -> None:
            nonlocal tls
            if tls is None:
                tls = Tls(pair)
                certified.set()
            else:
                tls.use(pair)

        def use_shared(shared: ca.Shared) -> None:
            self._peers.trust(certificates.trusting(shared.trusted))
            self._secrets.use_key(shared.key)

        async with trio.open_nursery() as nursery:
            keep = partial(ca.keep, use_shared=use_shared)
            nursery.start_soon(keep, self._client, self._namespace, self._names(), use, self._log)
            await certified.wait()
            await self._serve((), listeners, tls)

    async def _serve(
        self,
        plain: Listeners,
        secure: Listeners = (),
        tls: Tls | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        repo = self._repo
        await serve(
            repo.begin,
            plain,
            secure,
            tls,
            max_body=MAX_REPORT_BYTES,
            bounds=repo.bounds,
            refuse=repo.refuse,
            fatal=repo.died,
            servers=2,
            task_status=task_status,
        )

    def _names(self) -> list[str]:
        """The names by which pods may call this replica: those of the Service, and its own address."""
        name = f"{SERVICE}.{self._namespace}"
        return [SERVICE, name, f"{name}.svc", f"{name}.svc.cluster.local", self._settings.address]

    # Changes of objects and pods

    async def _update_rules(self) -> None:
        """Update the rules once all objects are read, and then after each change when no further one follows."""
        for reflector in self._object_reflectors:
            await reflector.synced.wait()
        self._changes.apply_all()
        self._mark_all()

        while True:
            await self._edited.wait()
            deadline = trio.current_time() + MAX_DELAY_SECONDS
            while trio.current_time() < deadline:
                self._edited = trio.Event()
                with trio.move_on_after(QUIET_SECONDS) as quiet:
                    await self._edited.wait()
                if quiet.cancelled_caught:
                    break
            self._edited = trio.Event()
            self._mark(self._changes.apply())
            self._secrets.prune(self._catalog.rules)

    def _objects_changed(self, affected: Affected) -> None:
        self._changes.objects_changed(affected)
        self._edited.set()

    def _secrets_changed(self, namespace: str) -> None:
        """The Secrets of a namespace have changed, or of all: ``ANY``."""
        pods = self._plans.secrets_changed(namespace)
        if self._term is not None:
            # Bindings without pods tell of Secrets too.
            bindings = self._catalog.rules.by_namespace.get(namespace, ())
            self._mark_bindings(self._changes.of_reports(pods) | {binding.key for binding in bindings})

    def _pods_changed(self, pods: Sequence[Pod]) -> None:
        if self._term is None:
            self._selection.clear()
        else:
            self._mark_bindings(self._changes.of_pods(pods))
            for pod in pods:
                self._term.events.changed(pod)

    def _reported(self, pod: Pod, report: Report) -> None:
        bundle = self._plans.entry(pod).bundle
        self._deregistration.reported(
            pod, report, bundle.digest if bundle else "", lambda: bundle.tasks if bundle else ()
        )
        self._peers.reported(pod)
        if self._term is None:
            return
        self._mark_bindings(self._changes.of_reports([pod]))
        last = self._plans.last_report(pod)
        if bundle and last:
            titles = [shown(binding) for binding in self._plans.rules.matching(pod)]
            self._term.events.reported(pod, report, last[1], bundle.etag.strip('"'), titles)

    def _gone(self, pod: Pod, report: Report | None) -> None:  # noqa: ARG002 - deregistration has received it
        successor = self._plans.inventory.find(pod.namespace, pod.name)
        namesake = successor is not None and successor.key != pod.key
        self._deregistration.gone(pod.key, namesake=namesake)
        if self._term is not None:
            self._term.events.gone(pod)

    def _left_registered(self, pod: Pod, text: str) -> None:
        if self._term is not None:
            self._term.events.left_registered(pod, text)

    # The leader

    async def _lead(self) -> None:
        """One term; cancelled at its end."""
        recorder = Recorder(self._client, instance=self._settings.name, log=self._log)
        events = EventQueue(recorder)
        self._term = term = _Term(
            trio.current_time(),
            Leader(
                self._client, self._catalog, self._selected, self._log, collecting_seconds=COLLECTING_SECONDS
            ),
            StatusWriter(self._client, self._composer.compose, self._log, on_write=events.status_written),
            events,
        )
        self._mark_all()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(term.statuses.run)
                nursery.start_soon(term.leader.run)
                nursery.start_soon(self._deregistration.run)
                nursery.start_soon(events.run)
                await trio.sleep(COLLECTING_SECONDS)
                self._mark_all()
        finally:
            self._term = None

    def _is_collecting_reports(self) -> bool:
        return self._term is not None and trio.current_time() < self._term.began + COLLECTING_SECONDS

    def _mark_all(self) -> None:
        self._mark(self._catalog.everything())

    def _mark(self, affected: Affected) -> None:
        """The statuses and rollouts of these objects may change."""
        if self._term is not None:
            self._term.leader.look(affected)
            for ref in self._composer.refs(affected):
                self._term.statuses.mark(ref)

    def _mark_bindings(self, bindings: set[Key]) -> None:
        """The pods or reports of these bindings have changed."""
        if self._term is not None:
            self._term.leader.look()
            for ref in self._composer.refs(Affected(bindings=bindings)):
                self._term.statuses.mark(ref)

    def _selected(self, written: Written) -> Sequence[SelectedPod]:
        return self._selection.pods(written.binding) if written.binding is not None else ()

    # Metrics and health

    def _families(self) -> Iterator[Family]:
        yield from self._election.families()
        yield from self._client.families()
        yield from reflector_families(self._reflectors)
        yield from self._deregistration.families()
        yield from self._peers.families()
        yield from self._secrets.families()

    def _trouble(self) -> str:
        return silence(self._reflectors, self._began)


async def _may_read(client: Client, user: Mapping[str, Any], namespace: str, name: str) -> bool:
    """Whether a user may read a pod, or with an empty name list pods. Raises ``ApiError``."""
    return await is_allowed(client, user, "get" if name else "list", PODS, namespace=namespace, name=name)
