"""The repo protocol over HTTP: hold a pod's request until there is something new for it.

    GET  /v1/bundle             the bundle of the pod that asks, told apart by its address or its token
    GET  /v1/doorbell           303: there are tasks for the pod; 200: none, and a byte when it is to ask again
    POST /v1/status             what has become of it
    GET  /v1/pods[/<ns>[/<name>]]  for people: what is expected, what is reported, what is wrong
    GET  /v1/prometheus/targets every pod that is to be scraped, as Prometheus' HTTP SD wants it
    GET  /livez, /readyz, /metrics   for whoever watches the controller

All state is in memory and changed by ``put``, ``drop``, ``replace``, ``rule`` and by reports only, never across
an ``await``: no locks. What a pod is served is derived when it is asked for, or in ``run`` where a change may
concern a pod that some binding chooses; a pod without bindings costs its place in the inventory and no more.
"""

import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from math import inf
from random import Random
from typing import Any

import trio

from pidone.errors import PidoneError
from pidone.http.message import JSON, Held, Request, Response, text_response
from pidone.http.server import Handler, waited
from pidone.language.binding import Rules, derive
from pidone.metrics.exposition import CONTENT_TYPE, Family, counter, gauge, render
from pidone.plan.digest import digest
from pidone.plan.format import MEDIA_TYPE
from pidone.plan.model import Phase
from pidone_controller import preferences
from pidone_controller.kubernetes.tokens import Bearer, MayRead, Review, Tokens, bearer_token
from pidone_controller.log import Log, short
from pidone_controller.pods import reports
from pidone_controller.pods.identity import (
    Claims,
    Contradiction,
    Identity,
    NodeAddress,
    Unknown,
    is_loopback,
    normalise,
)
from pidone_controller.pods.inventory import Inventory
from pidone_controller.pods.model import FrozenLabels, NamespacedName, Pod
from pidone_controller.repo import bundles
from pidone_controller.repo.bundles import Bundle, Derive, Entry
from pidone_controller.repo.waiting import Waiting

# Newest first. Pods are older than controllers by months: when a format 2 comes, 1 stays behind it.
FORMATS = (MEDIA_TYPE,)

# Requests one address may hold at once. A pod needs one, two while its process 1 executes itself anew; a
# connection whose pod has gone without a word stays for at most MAX_WAIT.
MAX_HELD = 16

# An address that stayed unknown for so many whole holds belongs to nobody who is configured here: it is to come
# back in minutes. Addresses are remembered for that up to a number.
HOLDS = 2
STRANGERS = 1 << 16
STRANGE_PAUSE = (120, 300)  # seconds

SLICE = 0.005  # seconds of derivation between two chances for requests
NOTHING = digest([])

_METHODS = {
    "/v1/bundle": "GET",
    "/v1/doorbell": "GET",
    "/v1/status": "POST",
    "/v1/pods": "GET",
    "/v1/prometheus/targets": "GET",
    "/livez": "GET",
    "/readyz": "GET",
    "/metrics": "GET",
}

Told = Callable[[Pod, reports.Report], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """What an installation may choose."""

    # New plans a second, and at once. After a restart of the controller everybody asks; what they have is told
    # by 304, which is free, and what is new comes as fast as this.
    plans: float = 1000
    burst: float = 2000
    # From where people may ask beside loopback and without a token: the addresses of API servers, for
    # ``kubectl get --raw`` through the service proxy, which has checked rights and tells us nothing of them.
    people: tuple[IPv4Network | IPv6Network, ...] = ()


@dataclass(slots=True)
class _Heard:
    """The last report of one live pod."""

    bucket: reports.Bucket
    report: reports.Report | None = None
    received: float = 0.0  # seconds since 1970


@dataclass(frozen=True, slots=True)
class _Caller:
    """Who asks, as far as the connection and the headers say it."""

    address: str
    claims: Claims
    bearer: Bearer | None = None

    @property
    def place(self) -> str:
        """Where it waits: a change there may be about it."""
        return self.bearer.uid if self.bearer else self.address


@dataclass(slots=True, eq=False)
class _Waiter(Held):
    """Somebody who waits for a change."""

    repo: "Repo"
    caller: _Caller

    @property
    def deadline(self) -> float:
        return inf

    def subscribe(self, call: Callable[[], object]) -> None:
        self.repo.waiting.add(self.caller.place, call)

    def unsubscribe(self, call: Callable[[], object]) -> None:
        self.repo.waiting.remove(self.caller.place, call)


@dataclass(slots=True, eq=False)
class _Question(_Waiter):
    """One request for a bundle, and what has become of it while it was held."""

    media: str
    known: tuple[str, ...]  # the ETags that the pod has applied or refused
    secure: bool
    wait: float | None  # seconds, as asked for
    end: float
    owner: str = ""  # the key of the pod that was seen first
    turn: float | None = None  # when its new plan may go out

    @property
    def deadline(self) -> float:
        return self.end if self.turn is None else self.turn

    def look(self) -> Response | None:
        return self.repo.answer(self)


class _Bell(_Waiter):
    """The doorbell of a pod without tasks."""

    __slots__ = ()

    def look(self) -> Response | None:
        return self.repo.ring(self.caller)


class Repo:
    """Answers requests. It knows nothing (and says 503) until it has got pods and rules once.

    ``told`` gets each report of a pod; ``gone`` a pod that has ended or is no longer there, with its last report.
    ``alive`` says what is wrong with the parts that feed this one, ``families`` their metrics, ``routes`` are
    further methods and handlers by path. Without ``review`` tokens say nothing.
    """

    def __init__(
        self,
        log: Log,
        *,
        settings: Settings = Settings(),
        told: Told | None = None,
        gone: Callable[[Pod, reports.Report | None], None] | None = None,
        review: Review | None = None,
        may_read: MayRead | None = None,
        alive: Callable[[], str] = str,
        families: Callable[[], Iterable[Family]] = tuple,
        routes: Mapping[str, tuple[str, Handler]] | None = None,
        derive: Derive = derive,
        wall_clock: Callable[[], float] = time.time,
        random: Random | None = None,
    ) -> None:
        self.id = os.urandom(8).hex()  # pods see by it that they have met another controller
        self.inventory = Inventory()
        self._log, self._settings, self._derive = log, settings, derive
        self._told, self._gone = told, gone
        self._tokens = Tokens(review) if review else None
        self._may_read, self._alive, self._families = may_read, alive, families
        self._routes = dict(routes or {})
        self._wall_clock = wall_clock
        self._random = random or Random()
        self._rules: Rules | None = None
        self._listed = False  # pods were, once
        self._draining = False
        self._bound: dict[tuple[str, FrozenLabels], bool] = {}  # whether any binding chooses pods like this
        self._entries: dict[str, Entry] = {}  # of pods that one chooses, by the pod's key
        self._heard: dict[str, _Heard] = {}  # by the pod's key
        self._withheld: dict[str, str] = {}  # by the pod's key: what it does not get over plain http
        self._strangers: dict[str, int] = {}  # addresses, and how many holds they stayed unknown
        self.waiting = Waiting()
        self._pace = reports.Pace(settings.plans, settings.burst)
        self._queue: dict[NamespacedName, None] = {}  # pods to look at in ``run``, before those of ``_scan``
        self._scan: Iterator[Pod] = iter(())
        self._work = trio.Event()
        self._served: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._reports: Counter[str] = Counter()
        self._derivations, self._derivation_seconds = 0, 0.0

    # What the controller knows

    @property
    def ready(self) -> bool:
        return self._listed and self._rules is not None

    @property
    def rules(self) -> Rules:
        return self._rules or Rules()

    @property
    def held(self) -> int:
        """Requests waiting now."""
        return self.waiting.requests

    def replace(self, pods: Iterable[Pod]) -> None:
        """A list of all pods: what is not in it is gone."""
        present = {(pod.namespace, pod.name): pod for pod in pods}
        for pod in [pod for pod in self.inventory if (pod.namespace, pod.name) not in present]:
            self.drop((pod.namespace, pod.name))
        for pod in present.values():
            self.put(pod)
        self._listed = True

    def put(self, pod: Pod) -> None:
        """A pod that is new or has changed; several changes without an await between them are one.

        Whoever holds a request for it is answered at once, where there is something new for it.
        """
        before = self.inventory.find(pod.namespace, pod.name)
        if before == pod:
            return
        places = self.inventory.put(pod) | {pod.key, *pod.ips}
        if before:
            places |= {before.key, *before.ips}
            if pod.finished or pod.key != before.key:
                self._forget(before)
        for address in pod.ips if self._strangers else ():
            self._strangers.pop(address, None)
        if self._concerns(pod):
            self._queue[pod.namespace, pod.name] = None
            self._work.set()
        self.waiting.wake(places)

    def drop(self, key: NamespacedName) -> None:
        """A pod that is gone."""
        before = self.inventory.find(*key)
        places = self.inventory.drop(*key)
        if before:
            self._forget(before)
            self.waiting.wake(places | {before.key, *before.ips})

    def rule(self, rules: Rules) -> None:
        """What people wrote has changed. ``run`` derives anew for whom that may matter, those who wait first."""
        self._rules = rules
        self._bound.clear()
        for place in self.waiting.places():
            for pod in self.inventory.at(place):
                self._queue[pod.namespace, pod.name] = None
        self._scan = iter(list(self.inventory))
        self._work.set()

    def is_bound(self, pod: Pod) -> bool:
        """Whether any binding chooses the pod."""
        like = pod.namespace, pod.labels
        if like not in self._bound:
            self._bound[like] = next(self.rules.matching(pod), None) is not None
        return self._bound[like]

    def entry(self, pod: Pod) -> Entry:
        """What is served to a pod of now; derived if need be."""
        before, rules = self._entries.get(pod.key), self.rules
        if before and before.is_of(pod, rules):
            return before
        if not self.is_bound(pod):
            found = Entry(pod, rules, bundles.encode(pod, []))
            if before:
                del self._entries[pod.key]
        else:
            began = time.perf_counter()
            found = self._entries[pod.key] = bundles.entry(pod, rules, before, self._derive)
            self._derivations += 1
            self._derivation_seconds += time.perf_counter() - began
        if before or self.is_bound(pod):
            self._tell(before, found)
            if before is None or (before.bundle, before.rest) != (found.bundle, found.rest):
                self.waiting.wake([pod.key, *pod.ips])
        return found

    def report(self, pod: Pod) -> reports.Report | None:
        """What the pod has reported last."""
        heard = self._heard.get(pod.key)
        return heard.report if heard else None

    def withheld(self, pod: Pod) -> str:
        """Why the pod is not given its plan over plain http; empty where it is, or has not asked."""
        return self._withheld.get(pod.key, "")

    def last(self, pod: Pod) -> tuple[reports.Report, float] | None:
        """The same, and when it came, in seconds since 1970."""
        heard = self._heard.get(pod.key)
        return (heard.report, heard.received) if heard and heard.report else None

    def hear(self, pod: Pod, report: reports.Report, received: float | None = None) -> None:
        """A report of a live pod, by a peer where that says when it ``received`` it. The latest one counts."""
        heard = self._heard.get(pod.key)
        if heard is None:
            heard = self._heard[pod.key] = _Heard(reports.Bucket.full(trio.current_time()))
        if received is not None and received <= heard.received:
            return
        self._tell_report(pod, heard.report, report)
        heard.report, heard.received = report, self._wall_clock() if received is None else received
        if self._told:
            self._told(pod, report)

    async def run(self) -> None:
        """Derive what changes concern though nobody asks, and wake who waits for it, until cancelled."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            async for pod in _slowly(self._pending()):
                if self._concerns(pod):
                    self.entry(pod)

    async def drain(self, seconds: float) -> None:
        """Be unready, and end the held requests spread over this time: their pods ask another replica."""
        self._draining = True
        places = self.waiting.places()
        self._random.shuffle(places)
        for place in places:
            self.waiting.wake([place])
            await trio.sleep(seconds / len(places))

    # Requests

    async def handle(self, request: Request, *, secure: bool = False) -> Response:
        """One answer, as soon as there is one. ``secure``: the repo has proved who it is, by TLS."""
        begun = await self.begin(request, secure=secure)
        return await waited(begun) if isinstance(begun, Held) else begun

    async def begin(self, request: Request, *, secure: bool = False) -> Response | Held:
        """As ``handle``, for a server that has something better than a task for what is held."""
        route = "/v1/pods" if request.path.startswith("/v1/pods/") else request.path
        if route in self._routes:
            method, handler = self._routes[route]
            return await handler(request) if request.method == method else _no_route(request.method, method)
        if _METHODS.get(route) != request.method:
            return _no_route(request.method, _METHODS.get(route, ""), route)
        match route:
            case "/livez":
                trouble = self._alive()
                return text_response(500, trouble) if trouble else text_response(200, "ok")
            case "/metrics":
                return Response(200, {"content-type": CONTENT_TYPE}, render(self.families()))
        # Before the pods were read nobody can be called unknown: 503, and no 404.
        if not self.ready:
            return text_response(503, "pods and task sets were not all read yet", retry_after="1")
        match route:
            case "/v1/bundle":
                return await self._bundle(request, secure=secure)
            case "/v1/doorbell":
                response = self._doorbell(request)
            case "/v1/status":
                response = await self._status(request)
            case "/v1/pods":
                response = await self._pods(request)
            case "/v1/prometheus/targets":
                response = await self._targets(request)
            case _:
                return text_response(503, "ending") if self._draining else text_response(200, "ok")
        return replace(response, headers={**response.headers, "pidone-repo": self.id})

    async def _bundle(self, request: Request, *, secure: bool) -> Response | Held:
        media = preferences.choose(request.headers.get("accept"), FORMATS)
        if media is None:
            asked = request.headers["accept"]
            return text_response(
                406, f"served here: {', '.join(FORMATS)}; none of them is in Accept: {asked}"
            )
        caller = await self._caller(request)
        if isinstance(caller, Response):
            return caller
        if self.waiting.count(caller.place) >= MAX_HELD:
            return self._crowded(caller)
        wait = preferences.wait(request.headers.get("prefer", ""))
        known = preferences.etags(request.headers.get("if-none-match", ""))
        question = _Question(
            self, caller, media, known, secure, wait, end=trio.current_time() + (wait or 0)
        )  # fmt: skip
        return question.look() or question

    def answer(self, question: _Question) -> Response | None:
        """What is to be said to a question by now; None where it is to wait."""
        answer = self._news(question)
        if answer is None and self._draining and question.wait:
            answer = text_response(503, "this replica ends; ask again", retry_after="1")
        if answer is None and question.deadline <= trio.current_time():
            answer = self._no_news(question)
        if answer is None:
            return None
        applied = {} if question.wait is None else {"preference-applied": f"wait={question.wait:.0f}"}
        return replace(answer, headers={**answer.headers, **applied, "pidone-repo": self.id})

    def _news(self, question: _Question) -> Response | None:
        """What is to be said at once; None where there is nothing, yet."""
        found = self._who(question.caller)
        if isinstance(found, Unknown) and self._strangers.get(question.caller.address, 0) < HOLDS:
            return None
        if not isinstance(found, Pod):
            return self._refusal(found)
        if question.owner not in {"", found.key}:
            # the connection is the old pod's, wherever its address went
            moved = f"{question.caller.address} went to another pod while this was held"
            return self._refusal(Contradiction(moved))
        question.owner = found.key
        bundle = self.entry(found).answer(fresh=not question.known)
        if bundle is None or bundle.etag in question.known or self._withhold(found, bundle, question):
            return None
        if bundle.phase is not Phase.TERMINATING:  # which is never delayed
            now = trio.current_time()
            if question.turn is None:
                question.turn = self._pace.turn(now, question.end)
            if question.turn is None:
                self._served["delayed"] += 1
                pause = self._random.uniform(1, 1 + self._pace.behind(now))
                return text_response(503, "many plans are new at once", retry_after=f"{pause:.0f}")
            if question.turn > now:
                return None
        self._served["new"] += 1
        # no-store: what a pod gets is its own, and no cache between can tell pods apart
        headers = {"content-type": question.media, "etag": bundle.etag, "cache-control": "no-store"}
        return Response(200, headers, bundle.body)

    def _no_news(self, question: _Question) -> Response:
        """What is said at the deadline."""
        found = self._who(question.caller)
        if not isinstance(found, Pod):
            if isinstance(found, Unknown) and question.wait:
                self._stranger(question.caller.address)
            # a hold was pause enough; whoever did not wait is to come back later
            return self._refusal(found, held=question.wait is not None)
        entry = self.entry(found)
        bundle = entry.answer(fresh=not question.known)
        if bundle and bundle.etag not in question.known:
            self._served["withheld"] += 1
            return text_response(426, self.withheld(found), upgrade="TLS/1.2")
        if not bundle and not question.known:
            self._served["none"] += 1
            text = f"the plan of {found.path} cannot be derived: {entry.error}"
            return text_response(503, text, retry_after="5")
        # Where nothing can be derived, what the pod has is to stay.
        self._served["unchanged"] += 1
        return Response(304, {"etag": bundle.etag if bundle else question.known[0]})

    def _doorbell(self, request: Request) -> Response:
        """For a pod that would rather not be Python while there is nothing to do.

        An address that is not known yet has a bell too: it rings as soon as there are tasks for its pod.
        """
        caller = _Caller(normalise(request.peer), Claims.of(request.headers))
        found = self._who(caller)
        if isinstance(found, Contradiction | NodeAddress):
            return self._refusal(found)
        words = request.headers.get("pidone-last-words")
        if words:
            self._log("failed", pod=found.path if isinstance(found, Pod) else caller.address, error=words)
        if self._awaited(caller):
            return text_response(303, "there are tasks", location="/v1/bundle")
        if self.waiting.count(caller.place) >= MAX_HELD:
            return self._crowded(caller)
        if self._draining:
            return text_response(503, "this replica ends; ask again", retry_after="1")

        bell = _Bell(self, caller)
        return Response(200, {"content-type": "application/octet-stream"}, later=bell)

    def ring(self, caller: _Caller) -> Response | None:
        """The byte that wakes a pod, when it is to ask; nothing, and the end, when it is to have its bell elsewhere."""
        if self._awaited(caller):
            return Response(200, body=b"!")
        return Response(200) if self._draining else None

    def died(self, peer: str, words: str) -> None:
        """The program in a pod has died of a fatal signal while it asked; ``words`` are faulthandler's."""
        address = normalise(peer)
        found = self.inventory.identify(address, Claims())
        self._log(
            "died", pod=found.path if isinstance(found, Pod) else address, error=words[: reports.MAX_TEXT]
        )

    def _awaited(self, caller: _Caller) -> bool:
        """Whether the pod has something to do, or is to be told that it is not who it says."""
        found = self._who(caller)
        if not isinstance(found, Pod):
            return not isinstance(found, Unknown)
        if found.terminating or not self.is_bound(found):
            return False
        bundle = self.entry(found).answer(fresh=True)
        return bundle is not None and bundle.count > 0

    async def _status(self, request: Request) -> Response:
        caller = await self._caller(request)
        if isinstance(caller, Response):
            return caller
        found = self._who(caller)
        if not isinstance(found, Pod):
            return self._refusal(found)
        heard = self._heard.setdefault(found.key, _Heard(reports.Bucket.full(trio.current_time())))
        pause = heard.bucket.take(trio.current_time())
        if pause:
            self._reports["too-many"] += 1
            return text_response(429, "too many reports", retry_after=f"{max(pause, 1):.0f}")
        try:
            report = reports.read(request.body)
        except reports.ReportError as error:
            self._reports["unreadable"] += 1
            return text_response(400, str(error))
        self._reports[report.state] += 1
        self.hear(found, report)
        return Response(204)

    # For people and Prometheus

    async def _pods(self, request: Request) -> Response:
        namespace, _, name = request.path.removeprefix("/v1/pods").strip("/").partition("/")
        refused = await self._may_not_read(request, namespace, name)
        if refused:
            return refused
        if name:
            pod = self.inventory.find(namespace, name)
            if pod is None or not pod.served:
                return text_response(
                    404, f"there is no live pod {namespace}/{name} with an address of its own"
                )
            return _json(self._shown(pod))
        pods = [pod for pod in self.inventory if pod.served and namespace in {"", pod.namespace}]
        pods.sort(key=lambda pod: (pod.namespace, pod.name))
        found = [json.dumps(self._summary(pod), indent=2) async for pod in _slowly(pods)]
        return Response(200, {"content-type": JSON}, f'{{"pods": [{", ".join(found)}]}}\n'.encode())

    async def _targets(self, request: Request) -> Response:
        """https://prometheus.io/docs/prometheus/latest/http_sd/: the whole list, each time."""
        refused = await self._may_not_read(request)
        if refused:
            return refused
        found = []
        async for pod in _slowly(list(self.inventory)):
            if not pod.served or pod.terminating or not self.is_bound(pod):
                continue
            bundle = self.entry(pod).bundle
            if bundle and bundle.metrics:
                host = f"[{pod.ips[0]}]" if ":" in pod.ips[0] else pod.ips[0]
                labels = {"namespace": pod.namespace, "pod": pod.name, "node": pod.node_name, "uid": pod.uid}
                found.append({"targets": [f"{host}:{bundle.metrics}"], "labels": labels})
        return _json(found)

    async def _may_not_read(self, request: Request, namespace: str = "", name: str = "") -> Response | None:
        """None for whoever may read what is served to pods; else the refusal.

        From loopback of the controller's own pod, that is by ``kubectl port-forward`` or ``exec``; from the
        networks of the settings; or with a token whose owner may read the pods themselves.
        """
        address = normalise(request.peer)
        # A pod may be at 127.0.0.2 here; its neighbours' plans are not its business.
        if is_loopback(address) and not self.inventory.at(address):
            return None
        if any(ip_address(address) in network for network in self._settings.people):
            return None
        token = bearer_token(request.headers.get("authorization"))
        if not (token and self._tokens and self._may_read):
            return text_response(
                403, "only for people on this machine: ask from 127.0.0.1 or ::1 (kubectl port-forward)"
            )
        try:
            bearer = await self._tokens.bearer(token)
            if bearer is None:
                return _bad_token()
            if await self._may_read(bearer.user, namespace, name):
                return None
        except PidoneError as error:
            return text_response(503, f"the token cannot be checked: {error}", retry_after="5")
        what = f'get pod "{name}" in {namespace}' if name else f"list pods in {namespace or 'all namespaces'}"
        return text_response(403, f"{bearer.user['username']} may not {what}")

    def _shown(self, pod: Pod) -> dict[str, Any]:
        entry, heard, shown = self.entry(pod), self._heard.get(pod.key), self._summary(pod)
        shown["tasks"] = entry.bundle.tasks if entry.bundle else []
        if heard and heard.report:
            shown["reported"] = {**asdict(heard.report), "received": heard.received}
        return shown

    def _summary(self, pod: Pod) -> dict[str, Any]:
        report = self.report(pod)
        expected, error = (NOTHING, 0), ""
        if self.is_bound(pod):
            entry = self.entry(pod)
            error = entry.error
            expected = (entry.bundle.digest, entry.bundle.count) if entry.bundle else ("", 0)
        return {
            "namespace": pod.namespace,
            "name": pod.name,
            "uid": pod.uid,
            "ips": list(pod.ips),
            "phase": "Terminating" if pod.terminating else pod.phase,
            "expected": {"digest": expected[0], "tasks": expected[1]} if expected[0] else None,
            "error": error or self.withheld(pod),
            "reported": report
            and {
                "state": report.state,
                "digest": report.digest,
                "rejected": report.rejected,
                "error": report.error,
            },
        }

    def families(self) -> Iterator[Family]:
        """The metrics, in the order of the page."""
        prefix = "pidone_controller_"
        yield gauge(f"{prefix}pods", "Pods in the inventory.", len(self.inventory))
        yield gauge(
            f"{prefix}bound_pods", "Pods that a binding chooses, and that are served.", len(self._entries)
        )
        yield gauge(f"{prefix}held_requests", "Requests that wait for a change.", self.held)
        yield _counted(f"{prefix}bundles_served_total", "Answers to pods that asked.", "result", self._served)
        yield _counted(
            f"{prefix}identity_refusals_total", "Requests of nobody we know.", "reason", self._refused
        )
        yield _counted(f"{prefix}reports_total", "Status reports of pods.", "state", self._reports)
        yield counter(f"{prefix}derivations_total", "Plans that were derived.", self._derivations)
        yield counter(
            f"{prefix}derivation_seconds_total", "Time for deriving plans.", self._derivation_seconds
        )
        yield from self._families()

    # Who asks

    async def _caller(self, request: Request) -> _Caller | Response:
        """Who asks; a token counts before the address, and a bad one is refused and not passed over."""
        caller = _Caller(normalise(request.peer), Claims.of(request.headers))
        token = bearer_token(request.headers.get("authorization"))
        if token is None or self._tokens is None:
            return caller
        try:
            bearer = await self._tokens.bearer(token)
        except PidoneError as error:
            return text_response(503, f"the token cannot be checked: {error}", retry_after="5")
        if bearer is None:
            self._refused["token"] += 1
            return _bad_token()
        if not bearer.pod:
            self._refused["token"] += 1
            return text_response(403, f"the token of {bearer.user['username']} was not made for a pod")
        return replace(caller, bearer=bearer)

    def _who(self, caller: _Caller) -> Identity:
        bearer = caller.bearer
        if bearer is None:
            return self.inventory.identify(caller.address, caller.claims)
        return self.inventory.identify_by_token(bearer.namespace, bearer.pod, bearer.uid, caller.claims)

    def _stranger(self, address: str) -> None:
        self._strangers[address] = self._strangers.get(address, 0) + 1
        if len(self._strangers) > STRANGERS:
            del self._strangers[next(iter(self._strangers))]

    def _crowded(self, caller: _Caller) -> Response:
        return text_response(
            429, f"{MAX_HELD} requests from {caller.address} are held already", retry_after="5"
        )

    def _refusal(self, found: Unknown | Contradiction | NodeAddress, *, held: bool = False) -> Response:
        pause = "1" if held else "5"
        match found:
            case Unknown(what):
                self._refused["unknown"] += 1
                if self._strangers.get(what.removeprefix("the address "), 0) >= HOLDS:
                    pause = str(self._random.randint(*STRANGE_PAUSE))
                return text_response(404, f"no live pod has {what} yet", retry_after=pause)
            case Contradiction(reason):
                self._refused["contradiction"] += 1
                return text_response(409, reason, retry_after=pause)
            case NodeAddress(address):
                self._refused["node-address"] += 1
                return text_response(
                    403,
                    f"{address} is a node's address: a pod must ask from its own (it is on the host's network, "
                    "or its address is translated on the way)",
                )

    # What is told

    def _withhold(self, pod: Pod, bundle: Bundle, question: _Question) -> bool:
        """Whether this bundle does not go over this connection.

        Over plain http anybody on the way could have put it there, so the pod would refuse it. The end of a
        pod starts nothing, and has no need to be believed.
        """
        if question.secure or not bundle.privileged or bundle.phase is Phase.TERMINATING:
            self._withheld.pop(pod.key, None)
            return False
        text = f"{bundle.privileged} is served over https only, and {pod.path} asks over http"
        if self._withheld.get(pod.key) != text:
            self._withheld[pod.key] = text
            self._log("withheld", pod=pod.path, error=text)
        return True

    def _pending(self) -> Iterator[Pod]:
        """What ``run`` is to look at; grows meanwhile."""
        while True:
            if self._queue:
                key = next(iter(self._queue))
                del self._queue[key]
                pod = self.inventory.find(*key)
            else:
                listed = next(self._scan, None)
                if listed is None:
                    return
                pod = self.inventory.find(listed.namespace, listed.name)
            if pod:
                yield pod

    def _concerns(self, pod: Pod) -> bool:
        """Whether there is something to derive though nobody asks."""
        return pod.key in self._entries or (pod.served and self.is_bound(pod))

    def _forget(self, pod: Pod) -> None:
        """A pod that is there no longer, or has ended."""
        if pod.finished:
            return
        if self._entries.pop(pod.key, None):
            self._log("gone", pod=pod.path)
        heard = self._heard.pop(pod.key, None)
        self._withheld.pop(pod.key, None)
        if self._gone:
            self._gone(pod, heard.report if heard else None)

    def _tell(self, old: Entry | None, new: Entry) -> None:
        pod, bundle = new.pod, new.bundle
        if new.error and not (old and old.error == new.error):
            self._log("error", pod=pod.path, error=new.error, kept=short(bundle.digest) if bundle else "")
        if bundle and not (old and old.bundle and old.bundle.digest == bundle.digest):
            self._log("plan", pod=pod.path, digest=short(bundle.digest), tasks=bundle.count)
        elif old and old.error and not new.error:
            self._log("mended", pod=pod.path)
        if pod.terminating and not (old and old.pod.terminating):
            self._log("terminating", pod=pod.path)

    def _tell_report(self, pod: Pod, old: reports.Report | None, new: reports.Report) -> None:
        if new.state == "applied" and not (old and (old.state, old.digest) == (new.state, new.digest)):
            self._log("applied", pod=pod.path, digest=short(new.digest or ""))
        if new.rejected and not (old and old.rejected == new.rejected):
            self._log("rejected", pod=pod.path, digest=short(new.rejected), error=new.error)


async def _slowly(pods: Iterable[Pod]) -> AsyncIterator[Pod]:
    """Some at a time, so that requests are answered between them."""
    end = time.perf_counter() + SLICE
    for pod in pods:
        yield pod
        if time.perf_counter() > end:
            await trio.lowlevel.checkpoint()
            end = time.perf_counter() + SLICE


def _counted(name: str, text: str, label: str, values: Mapping[str, int]) -> Family:
    family = counter(name, text)
    for value, number in sorted(values.items()):
        family.add(number, **{label: value})
    return family


def _no_route(method: str, takes: str, route: str = "") -> Response:
    if not takes:
        return text_response(404, f"there is no {route} here")
    return text_response(405, f"{route} takes {takes}, not {method}", allow=takes)


def _bad_token() -> Response:
    return text_response(
        401, "the API server does not know this token, or it has expired", www_authenticate="Bearer"
    )


def _json(value: object) -> Response:
    return Response(200, {"content-type": JSON}, json.dumps(value, indent=2).encode() + b"\n")
