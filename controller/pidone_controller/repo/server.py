"""The repo's HTTP interface: routes, status reports, health, metrics and draining.

GET  /v1/bundle             the bundle of the calling pod, identified by its address or its token
GET  /v1/doorbell           303: the pod has tasks; 200: it has none, and a byte follows when it must poll
POST /v1/status             a pod's report
GET  /v1/pods[/<ns>[/<name>]]  for people: expected and reported plans, and errors
GET  /v1/prometheus/targets[/<ns>]  every pod to scrape, as Prometheus' HTTP SD expects it
GET  /livez, /readyz, /metrics   for the kubelet and Prometheus
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from random import Random

from pidone import protocol
from pidone.http.admission import Assign
from pidone.http.message import Held, Request, Response, text_response
from pidone.http.server import wait_for_answer
from pidone.metrics import page
from pidone.metrics.exposition import Family, counter_by
from pidone.pacing import RateLimit
from pidone.plan.report import MAX_ERROR_WIDTH
from pidone_controller.kubernetes.tokens import MayRead, Review, Tokens
from pidone_controller.log import Log
from pidone_controller.pods import reports
from pidone_controller.pods.identity import Claims, normalise
from pidone_controller.pods.model import Pod
from pidone_controller.repo import inspection, rooms
from pidone_controller.repo.callers import Callers, Readers
from pidone_controller.repo.held import HeldRequests
from pidone_controller.repo.inspection import Inspection
from pidone_controller.repo.listeners import Refuse, RequestHandler
from pidone_controller.repo.plans import Plans

_METHODS = {
    protocol.BUNDLE_PATH: "GET",
    protocol.DOORBELL_PATH: "GET",
    protocol.STATUS_PATH: "POST",
    inspection.PODS_PATH: "GET",
    inspection.TARGETS_PATH: "GET",
    "/livez": "GET",
    "/readyz": "GET",
    "/metrics": "GET",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of an installation."""

    # New bundles a second, and at once. After a restart of the controller all pods poll: most of them get a 304,
    # which costs nothing, and new bundles are sent at this rate.
    plans: float = 1000
    burst: float = 2000
    # Networks from which people may read plans, besides loopback and bearers of a token: addresses of API servers, for
    # ``kubectl get --raw`` through the Service's proxy, which has checked the rights and does not pass on the user.
    people: tuple[IPv4Network | IPv6Network, ...] = ()


class Repo:
    """Answers requests; 503 until ``plans`` is ready.

    ``alive`` returns the fault of the parts that feed ``plans``, for ``/livez``; empty if none. ``families`` are
    metrics of other parts. ``routes`` are paths of other parts, each with its method, its handler, and a function as
    ``refuse``. Without ``review`` tokens are ignored.
    """

    def __init__(
        self,
        plans: Plans,
        log: Log,
        *,
        settings: Settings = Settings(),
        review: Review | None = None,
        may_read: MayRead | None = None,
        alive: Callable[[], str] = str,
        families: Callable[[], Iterable[Family]] = tuple,
        routes: Mapping[str, tuple[str, RequestHandler, Refuse]] | None = None,
        random: Random | None = None,
    ) -> None:
        self.id = os.urandom(8).hex()  # a pod detects another replica by it
        self.plans = plans
        self._settings = settings
        self._log, self._alive, self._families = log, alive, families
        self._routes = dict(routes or {})
        tokens = Tokens(review) if review else None
        random = random or Random()
        self._headers = {protocol.REPO_HEADER: self.id}
        self._callers = Callers(plans.inventory, tokens, random)
        self._held = HeldRequests(
            plans,
            self._callers,
            log,
            pace=RateLimit(settings.burst, 1 / settings.plans),
            headers=self._headers,
            random=random,
        )
        readers = Readers(plans.inventory, tokens, may_read, settings.people)
        self._inspection = Inspection(plans, readers)
        self._reports: Counter[str] = Counter()

    async def drain(self, seconds: float) -> None:
        """Become unready and end the held requests, spread over this time: their pods poll other replicas."""
        await self._held.drain(seconds)

    async def handle(self, request: Request, *, secure: bool = False) -> Response:
        """Return the answer to a request, waiting for it if it is held. ``secure``: the request came over TLS."""
        answer = await self.begin(request, secure=secure)
        return await wait_for_answer(answer) if isinstance(answer, Held) else answer

    async def begin(self, request: Request, *, secure: bool = False) -> Response | Held:
        """Return the answer, or the held request for a server that holds requests without a task for each."""
        route = _route(request)
        if route in self._routes:
            method, handler, _ = self._routes[route]
            return (
                await handler(request, secure=secure)
                if request.method == method
                else _no_route(request.method, method, route)
            )
        if _METHODS.get(route) != request.method:
            return _no_route(request.method, _METHODS.get(route, ""), route)

        match route:
            case "/livez":
                trouble = self._alive()
                return text_response(500, trouble) if trouble else text_response(200, "ok")
            case "/metrics":
                return page.answer(request, self.families())
        # Before the pods are listed every address is unknown: 503 instead of 404.
        if not self.plans.ready:
            return _not_ready()
        match route:
            case protocol.BUNDLE_PATH:
                return await self._held.bundle(request, secure=secure)
            case protocol.DOORBELL_PATH:
                response = self._held.doorbell(request)
            case protocol.STATUS_PATH:
                response = await self._status(request, secure=secure)
            case inspection.PODS_PATH:
                response = await self._inspection.pods(request, secure=secure)
            case inspection.TARGETS_PATH:
                response = await self._inspection.targets(request, secure=secure)
            case _:
                response = text_response(503, "ending") if self._held.draining else text_response(200, "ok")
        return replace(response, headers={**response.headers, **self._headers})

    async def refuse(self, request: Request, *, secure: bool = False) -> Response | None:
        """Return the answer to a request whose body is not wanted, by its head; None if the body is wanted."""
        route = _route(request)
        if route in self._routes:
            method, _, refuse = self._routes[route]
            return (
                await refuse(request, secure=secure)
                if request.method == method
                else _no_route(request.method, method, route)
            )
        if _METHODS.get(route) != request.method:
            return _no_route(request.method, _METHODS.get(route, ""), route)
        if request.method == "GET":
            return text_response(413, f"{route} takes no body")
        if not self.plans.ready:
            return _not_ready()
        pod = await self._reporter(request, secure=secure)
        if isinstance(pod, Response):
            return pod
        pause = self.plans.report_pause(pod, take=False)
        return self._too_many_reports(pause) if pause else None

    def bounds(self, connections: int, *, secure: bool) -> Assign:
        """Return the bounds for the connections of a server with at most this many."""
        kinds = rooms.Rooms.of(connections, secure=secure)
        return rooms.assign(self.plans.inventory, self._settings.people, kinds)

    def died(self, peer: str, last_words: str) -> None:
        """Log that the program in a pod died of a fatal signal during a request; ``last_words`` are faulthandler's."""
        address = normalise(peer)
        identity = self.plans.inventory.identify(address, Claims())
        pod = identity.path if isinstance(identity, Pod) else address
        self._log("died", pod=pod, error=last_words[:MAX_ERROR_WIDTH])

    def families(self) -> Iterator[Family]:
        """Yield all metrics of ``/metrics``."""
        yield from self.plans.families()
        yield from self._held.families()
        yield from self._callers.families()
        yield counter_by("state", "pidone_controller_reports_total", "Status reports of pods.", self._reports)
        yield from self._families()

    async def _status(self, request: Request, *, secure: bool) -> Response:
        """Answer ``POST /v1/status``."""
        pod = await self._reporter(request, secure=secure)
        if isinstance(pod, Response):
            return pod
        pause = self.plans.report_pause(pod)
        if pause:
            return self._too_many_reports(pause)
        try:
            report = reports.read(request.body)
        except reports.ReportError as error:
            self._reports["unreadable"] += 1
            return text_response(400, str(error))
        self._reports[report.state] += 1
        self.plans.receive(pod, report)
        return Response(204)

    async def _reporter(self, request: Request, *, secure: bool) -> Pod | Response:
        """Return the pod that reports, or the answer to a client that is no pod."""
        caller = await self._callers.caller(request, secure=secure)
        if isinstance(caller, Response):
            return caller
        pod = self._callers.identify(caller)
        return pod if isinstance(pod, Pod) else self._callers.refusal(caller, pod)

    def _too_many_reports(self, pause: float) -> Response:
        self._reports["too-many"] += 1
        return text_response(429, "too many reports", retry_after=f"{max(pause, 1):.0f}")


def _route(request: Request) -> str:
    """Return the path of a request without the names of a pod or its namespace."""
    named = (inspection.PODS_PATH, inspection.TARGETS_PATH)
    return next((path for path in named if request.path.startswith(f"{path}/")), request.path)


def _not_ready() -> Response:
    return text_response(503, "pods and task sets were not all read yet", retry_after="1")


def _no_route(method: str, allowed: str, route: str) -> Response:
    if not allowed:
        return text_response(404, f"there is no {route} here")
    return text_response(405, f"{route} takes {allowed}, not {method}", allow=allowed)
