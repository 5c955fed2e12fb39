"""The repo protocol over HTTP: hold a pod's request until there is something new for it.

    GET  /v1/bundle             the bundle of the pod that asks, told apart by its address
    GET  /v1/doorbell           303: there are tasks for the pod; 200: none, and a byte when it is to ask again
    POST /v1/status             what has become of it
    GET  /v1/pods[/<ns>/<name>] for people on this machine: what is expected, what is reported, what is wrong
    GET  /livez, /readyz        for whoever watches the controller

All state is in memory and changed by ``update`` and by reports only, never across an ``await``: no locks.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import trio

from pidone.http.message import JSON, Request, Response, text_response
from pidone.language.binding import Rules
from pidone.plan.format import MEDIA_TYPE
from pidone_controller import preferences, reports
from pidone_controller.bundles import EMPTY, Bundle, Entry, Shelf
from pidone_controller.inventory import (
    Claims,
    Contradiction,
    Identity,
    Inventory,
    NodeAddress,
    Pod,
    Unknown,
    is_loopback,
    normalise,
)
from pidone_controller.log import Log, short

# Newest first. Pods are older than controllers by months: when a format 2 comes, 1 stays behind it.
FORMATS = (MEDIA_TYPE,)

# Requests one address may hold at once. A pod needs one, two while its process 1 executes itself anew; a
# connection whose pod has gone without a word stays for at most MAX_WAIT.
MAX_HELD = 16


_METHODS = {
    "/v1/bundle": "GET",
    "/v1/doorbell": "GET",
    "/v1/status": "POST",
    "/v1/pods": "GET",
    "/livez": "GET",
    "/readyz": "GET",
}


@dataclass(slots=True)
class _Held:
    """The requests waiting at one address: ``change`` is replaced each time it is set."""

    change: trio.Event = field(default_factory=trio.Event)
    requests: int = 0


@dataclass(slots=True)
class _Heard:
    """The last report of one live pod."""

    bucket: reports.Bucket
    report: reports.Report | None = None
    received: float = 0.0  # seconds since 1970


class Repo:
    """Answers requests. It knows nothing (and says 503) until the first ``update``."""

    def __init__(self, log: Log, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._log = log
        self._wall_clock = wall_clock
        self._shelf: Shelf | None = None
        self._held: dict[str, _Held] = {}  # by address, as an unknown pod has nothing else
        self._heard: dict[str, _Heard] = {}  # by the pod's key

    @property
    def ready(self) -> bool:
        return self._shelf is not None

    @property
    def held(self) -> int:
        """Requests waiting now."""
        return sum(held.requests for held in self._held.values())

    def outdated(self, inventory: Inventory, rules: Rules) -> bool:
        """Whether ``update`` with these would be another look at the same: by identity, not by value."""
        shelf = self._shelf
        return shelf is None or shelf.inventory is not inventory or shelf.rules is not rules

    def update(self, stock: Callable[[Shelf], Shelf]) -> None:
        """Put up the shelf that ``stock`` makes from the last, and wake the requests it changes."""
        before = self._shelf or EMPTY
        shelf = stock(before)
        self._shelf = shelf
        for key in self._heard.keys() - shelf.entries.keys():
            del self._heard[key]
        self._tell(before, shelf)
        for address in shelf.changed(before):
            if address in self._held:
                self._held[address].change.set()
                self._held[address].change = trio.Event()

    async def handle(self, request: Request) -> Response:
        route = "/v1/pods" if request.path.startswith("/v1/pods/") else request.path
        # Before the pods were read nobody can be called unknown: 503, and no 404.
        if self._shelf is None and route in _METHODS and route != "/livez":
            return text_response(503, "pods and task sets were not all read yet", retry_after="1")
        match request.method, route:
            case "GET", "/v1/bundle":
                return await self._bundle(request)
            case "GET", "/v1/doorbell":
                return self._doorbell(request)
            case "POST", "/v1/status":
                return self._status(request)
            case "GET", "/v1/pods":
                return self._pods(request)
            case "GET", "/livez" | "/readyz":
                return text_response(200, "ok")
        return _no_route(request.method, route)

    async def _bundle(self, request: Request) -> Response:
        media = preferences.choose(request.headers.get("accept"), FORMATS)
        if media is None:
            asked = request.headers["accept"]
            return text_response(
                406, f"served here: {', '.join(FORMATS)}; none of them is in Accept: {asked}"
            )
        known = preferences.etags(request.headers.get("if-none-match", ""))
        wait = preferences.wait(request.headers.get("prefer", ""))
        applied = {} if wait is None else {"preference-applied": f"wait={wait:.0f}"}
        found, bundle = await self._hold(
            normalise(request.peer), Claims.of(request.headers), known, trio.current_time() + (wait or 0)
        )
        if isinstance(found, Response):
            return found
        if not isinstance(found, Pod):
            # a hold was pause enough; whoever did not wait is to come back later
            return _refusal(found, retry_after="5" if wait is None else "1")
        if bundle is None:
            text = f"the plan of {found.path} cannot be derived: {self._entry(found).error}"
            return text_response(503, text, retry_after="5", **applied)
        if bundle.etag in known:
            return Response(304, {"etag": bundle.etag} | applied)
        # no-store: what a pod gets is its own, and no cache between can tell pods apart
        headers = {"content-type": media, "etag": bundle.etag, "cache-control": "no-store"}
        return Response(200, headers | applied, bundle.body)

    async def _hold(
        self, address: str, claims: Claims, known: frozenset[str], deadline: float
    ) -> tuple[Identity | Response, Bundle | None]:
        """Wait for a bundle that is not a ``known`` one, or the deadline: who asked, and what is there."""
        owner = ""
        with self._holding(address) as held:
            if held.requests > MAX_HELD:
                text = f"{MAX_HELD} requests from {address} are held already"
                return text_response(429, text, retry_after="5"), None
            while True:
                # between looking and waiting there is no await, so no change can fall between them
                found, bundle = self._who(address, claims), None
                if isinstance(found, Contradiction | NodeAddress):
                    return found, None
                if isinstance(found, Pod):
                    if owner not in {"", found.key}:
                        # the connection is the old pod's, wherever its address went
                        return Contradiction(f"{address} went to another pod while this was held"), None
                    owner = found.key
                    bundle = self._entry(found).bundle
                    if bundle and bundle.etag not in known:
                        return found, bundle
                if not await _until(held.change, deadline):
                    return found, bundle

    def _doorbell(self, request: Request) -> Response:
        """For a pod that would rather not be Python while there is nothing to do.

        An address that is not known yet has a bell too: it rings as soon as there are tasks for its pod.
        """
        address, claims = normalise(request.peer), Claims.of(request.headers)
        found = self._who(address, claims)
        if isinstance(found, Contradiction | NodeAddress):
            return _refusal(found, retry_after="5")
        words = request.headers.get("pidone-last-words")
        if words:
            self._log("failed", pod=found.path if isinstance(found, Pod) else address, error=words)
        if self._awaited(address, claims):
            return text_response(303, "there are tasks", location="/v1/bundle")
        if address in self._held and self._held[address].requests >= MAX_HELD:
            return text_response(429, f"{MAX_HELD} requests from {address} are held already", retry_after="5")

        async def ring() -> bytes:
            with self._holding(address) as held:
                while not self._awaited(address, claims):
                    await held.change.wait()
            return b"!"

        return Response(200, {"content-type": "application/octet-stream"}, later=ring)

    def died(self, peer: str, words: str) -> None:
        """The program in a pod has died of a fatal signal while it asked; ``words`` are faulthandler's."""
        address = normalise(peer)
        found = self._who(address, Claims())
        self._log(
            "died", pod=found.path if isinstance(found, Pod) else address, error=words[: reports.MAX_TEXT]
        )

    def _awaited(self, address: str, claims: Claims) -> bool:
        """Whether the pod at this address has something to do, or is to be told that it is not who it says."""
        found = self._who(address, claims)
        if not isinstance(found, Pod):
            return not isinstance(found, Unknown)
        bundle = self._entry(found).bundle
        return bundle is not None and bool(bundle.tasks) and not found.terminating

    def _status(self, request: Request) -> Response:
        found = self._who(normalise(request.peer), Claims.of(request.headers))
        if not isinstance(found, Pod):
            return _refusal(found, retry_after="5")
        heard = self._heard.get(found.key)
        if heard is None:
            heard = self._heard[found.key] = _Heard(reports.Bucket.full(trio.current_time()))
        pause = heard.bucket.take(trio.current_time())
        if pause:
            return text_response(429, "too many reports", retry_after=f"{max(pause, 1):.0f}")
        try:
            report = reports.read(request.body)
        except reports.ReportError as error:
            return text_response(400, str(error))
        self._tell_report(found, heard.report, report)
        heard.report, heard.received = report, self._wall_clock()
        return Response(204)

    def _pods(self, request: Request) -> Response:
        assert self._shelf is not None
        shelf, address = self._shelf, normalise(request.peer)
        # A pod may be at 127.0.0.2 here; its neighbours' plans are not its business.
        if not is_loopback(address) or address in shelf.inventory.by_address:
            return text_response(403, "only for people on this machine: ask from 127.0.0.1 or ::1")
        entries = sorted(shelf.entries.values(), key=lambda entry: (entry.pod.path, entry.pod.uid))
        path = request.path.removeprefix("/v1/pods").strip("/")
        if not path:
            return _json({"pods": [self._summary(entry) for entry in entries]})
        found = [entry for entry in entries if entry.pod.path == path]
        if not found:
            return text_response(404, f"there is no live pod {path} with an address of its own")
        entry = found[-1]
        heard = self._heard.get(entry.pod.key)
        shown = self._summary(entry)
        shown["tasks"] = list(entry.bundle.tasks) if entry.bundle else []
        if heard and heard.report:
            shown["reported"] = {**asdict(heard.report), "received": heard.received}
        return _json(shown)

    def _summary(self, entry: Entry) -> dict[str, Any]:
        pod, bundle, heard = entry.pod, entry.bundle, self._heard.get(entry.pod.key)
        report = heard.report if heard else None
        return {
            "namespace": pod.namespace,
            "name": pod.name,
            "uid": pod.uid,
            "ips": list(pod.ips),
            "phase": "Terminating" if pod.terminating else pod.phase,
            "expected": bundle and {"digest": bundle.digest, "tasks": len(bundle.tasks)},
            "error": entry.error,
            "reported": report
            and {
                "state": report.state,
                "digest": report.digest,
                "rejected": report.rejected,
                "error": report.error,
            },
        }

    def _who(self, address: str, claims: Claims) -> Identity:
        inventory: Inventory = (self._shelf or EMPTY).inventory
        return inventory.identify(address, claims)

    def _entry(self, pod: Pod) -> Entry:
        assert self._shelf is not None
        return self._shelf.entries[pod.key]

    @contextmanager
    def _holding(self, address: str) -> Iterator[_Held]:
        held = self._held.setdefault(address, _Held())
        held.requests += 1
        try:
            yield held
        finally:
            held.requests -= 1
            if not held.requests:
                del self._held[address]

    def _tell(self, before: Shelf, shelf: Shelf) -> None:
        for key, entry in sorted(shelf.entries.items(), key=lambda item: item[1].pod.path):
            old, pod, bundle = before.entries.get(key), entry.pod, entry.bundle
            if entry.error and not (old and old.error == entry.error):
                self._log(
                    "error", pod=pod.path, error=entry.error, kept=short(bundle.digest) if bundle else ""
                )
            if bundle and not (old and old.bundle and old.bundle.digest == bundle.digest):
                self._log("plan", pod=pod.path, digest=short(bundle.digest), tasks=len(bundle.tasks))
            elif old and old.error and not entry.error:
                self._log("mended", pod=pod.path)
            if pod.terminating and not (old and old.pod.terminating):
                self._log("terminating", pod=pod.path)
        for key in before.entries.keys() - shelf.entries.keys():
            self._log("gone", pod=before.entries[key].pod.path)

    def _tell_report(self, pod: Pod, old: reports.Report | None, new: reports.Report) -> None:
        if new.state == "applied" and not (old and (old.state, old.digest) == (new.state, new.digest)):
            self._log("applied", pod=pod.path, digest=short(new.digest or ""))
        if new.rejected and not (old and old.rejected == new.rejected):
            self._log("rejected", pod=pod.path, digest=short(new.rejected), error=new.error)


async def _until(change: trio.Event, deadline: float) -> bool:
    """Wait for a change; False where the deadline came first. A change that is there wins."""
    with trio.move_on_at(deadline):
        await change.wait()
    return change.is_set()


def _no_route(method: str, route: str) -> Response:
    if route not in _METHODS:
        return text_response(404, f"there is no {route} here")
    return text_response(405, f"{route} takes {_METHODS[route]}, not {method}", allow=_METHODS[route])


def _refusal(found: Unknown | Contradiction | NodeAddress, retry_after: str = "5") -> Response:
    match found:
        case Unknown(address):
            return text_response(404, f"no live pod has the address {address} yet", retry_after=retry_after)
        case Contradiction(reason):
            return text_response(409, reason, retry_after=retry_after)
        case NodeAddress(address):
            return text_response(
                403,
                f"{address} is a node's address: a pod must ask from its own (it is on the host's network, "
                "or its address is translated on the way)",
            )


def _json(value: object) -> Response:
    return Response(200, {"content-type": JSON}, json.dumps(value, indent=2).encode() + b"\n")
