"""Holds requests open: for a pod's next bundle, and doorbells of pods without tasks.

A held request costs no task. It subscribes to changes at its place (``Waiting``) and looks for an answer when it is
woken and at its deadline.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from random import Random

import trio

from pidone.http import negotiation
from pidone.http.message import Held, Request, Response, text_response
from pidone.metrics.exposition import Family, counter_by, gauge
from pidone.pacing import RateLimit
from pidone.plan.format import MEDIA_TYPE
from pidone.plan.model import Phase
from pidone.protocol import BUNDLE_PATH, LAST_WORDS_HEADER, MAX_WAIT_SECONDS
from pidone_controller.log import Log
from pidone_controller.pods.identity import Contradiction, NodeAddress, Unknown
from pidone_controller.pods.model import Pod
from pidone_controller.repo.bundles import Bundle
from pidone_controller.repo.callers import Caller, Callers
from pidone_controller.repo.plans import Plans

# Newest first. A pod may be months older than the controller: after a format 2 is added, 1 is still offered.
FORMATS = (MEDIA_TYPE,)

# Requests that one address may hold at once. A pod needs one, and two while its process 1 execs itself; the
# connection of a pod that vanished stays for at most MAX_WAIT_SECONDS.
MAX_HELD = 16


@dataclass(slots=True, eq=False)
class _HeldRequest(Held):
    """A request that waits for a change."""

    requests: "HeldRequests"
    caller: Caller

    @property
    def deadline(self) -> float:
        return inf

    def subscribe(self, call: Callable[[], object]) -> None:
        self.requests.waiting.add(self.caller.place, call)

    def unsubscribe(self, call: Callable[[], object]) -> None:
        self.requests.waiting.remove(self.caller.place, call)


@dataclass(slots=True, eq=False)
class _BundleRequest(_HeldRequest):
    """``GET /v1/bundle``."""

    media: str
    etags: tuple[str, ...]  # of the bundles that the pod has applied or refused
    secure: bool
    wait: float | None  # seconds, as requested
    end: float  # clock time
    owner: str = ""  # the key of the pod that the caller was first identified as
    turn: float | None = None  # clock time when the new bundle may be sent

    @property
    def deadline(self) -> float:
        return self.end if self.turn is None else self.turn

    def look(self) -> Response | None:
        return self.requests.answer(self)


class _DoorbellRequest(_HeldRequest):
    """``GET /v1/doorbell`` of a pod without tasks."""

    __slots__ = ()

    def look(self) -> Response | None:
        return self.requests.ring(self.caller)


class HeldRequests:
    """Answers ``GET /v1/bundle`` and ``GET /v1/doorbell``, at once or after a change.

    ``pace`` limits the number of new bundles sent a second. ``headers`` are added to each answer to a bundle request.
    """

    def __init__(
        self,
        plans: Plans,
        callers: Callers,
        log: Log,
        *,
        pace: RateLimit,
        headers: Mapping[str, str],
        random: Random,
    ) -> None:
        self.waiting = plans.waiting
        self.draining = False
        self._plans, self._callers, self._log = plans, callers, log
        self._pace, self._headers, self._random = pace, headers, random
        self._served: Counter[str] = Counter()

    async def bundle(self, request: Request, *, secure: bool) -> Response | Held:
        """Answer ``GET /v1/bundle``. ``secure``: the request came over TLS."""
        media = negotiation.choose(request.headers.get("accept"), FORMATS)
        if media is None:
            accept = request.headers["accept"]
            return text_response(
                406, f"served here: {', '.join(FORMATS)}; none of them is in Accept: {accept}"
            )
        caller = await self._callers.caller(request, secure=secure)
        if isinstance(caller, Response):
            return caller
        if self.waiting.count(caller.place) >= MAX_HELD:
            return _too_many(caller)

        wait = negotiation.wait(request.headers.get("prefer", ""), MAX_WAIT_SECONDS)
        etags = negotiation.etags(request.headers.get("if-none-match", ""))
        held = _BundleRequest(self, caller, media, etags, secure, wait, end=trio.current_time() + (wait or 0))
        return held.look() or held

    def doorbell(self, request: Request) -> Response:
        """Answer ``GET /v1/doorbell``: with 200, the body is a byte that is sent when the pod gets tasks.

        An unknown address may wait too: its doorbell rings as soon as there are tasks for its pod.
        """
        caller = self._callers.caller_by_address(request)
        identity = self._callers.identify(caller)
        if isinstance(identity, Contradiction | NodeAddress):
            return self._callers.refusal(caller, identity)

        last_words = request.headers.get(LAST_WORDS_HEADER)
        if last_words:
            pod = identity.path if isinstance(identity, Pod) else caller.address
            self._log("failed", pod=pod, error=last_words)

        if self._must_ask(caller):
            return text_response(303, "there are tasks", location=BUNDLE_PATH)
        if self.waiting.count(caller.place) >= MAX_HELD:
            return _too_many(caller)
        if self.draining:
            return text_response(503, "this replica ends; ask again", retry_after="1")
        held = _DoorbellRequest(self, caller)
        return Response(200, {"content-type": "application/octet-stream"}, later=held)

    async def drain(self, seconds: float) -> None:
        """End the held requests, spread over this time, so that their pods poll other replicas."""
        self.draining = True
        places = self.waiting.places()
        self._random.shuffle(places)
        for place in places:
            self.waiting.wake([place])
            await trio.sleep(seconds / len(places))

    def families(self) -> Iterator[Family]:
        """Yield metrics of held requests and answers."""
        prefix = "pidone_controller_"
        yield gauge(f"{prefix}held_requests", "Requests that wait for a change.", self.waiting.requests)
        yield counter_by(
            "result", f"{prefix}bundles_served_total", "Answers to requests for a bundle.", self._served
        )

    # Called by held requests

    def answer(self, held: _BundleRequest) -> Response | None:
        """Return the answer to a bundle request; None while it is held."""
        # Read once: a deadline that is over below was over for the turn of a new bundle as well.
        now = trio.current_time()
        response = self._news(held, now)
        if response is None and self.draining and held.wait:
            response = text_response(503, "this replica ends; ask again", retry_after="1")
        if response is None and held.deadline <= now:
            response = self._no_news(held)
        if response is None:
            return None
        applied = {} if held.wait is None else {"preference-applied": f"wait={held.wait:.0f}"}
        return replace(response, headers={**response.headers, **applied, **self._headers})

    def ring(self, caller: Caller) -> Response | None:
        """Return one byte when the pod must poll, an empty body when this replica drains, None while it is held."""
        if self._must_ask(caller):
            return Response(200, body=b"!")
        return Response(200) if self.draining else None

    def _news(self, held: _BundleRequest, now: float) -> Response | None:
        """Return a new bundle or a refusal; None while the request must wait."""
        identity = self._callers.identify(held.caller)
        if isinstance(identity, Unknown) and not self._callers.is_stranger(held.caller):
            return None
        if not isinstance(identity, Pod):
            return self._callers.refusal(held.caller, identity)
        if held.owner not in {"", identity.key}:
            # The connection belongs to the earlier pod, whichever pod has the address now.
            moved = f"{held.caller.address} went to another pod while this was held"
            return self._callers.refusal(held.caller, Contradiction(moved))

        held.owner = identity.key
        bundle = self._plans.entry(identity).answer(fresh=not held.etags)
        if bundle is None or bundle.etag in held.etags or self._withhold(identity, bundle, held):
            return None

        if bundle.phase is not Phase.TERMINATING:  # the end of a pod is never delayed
            turn = self._pace.turn(now, held.end) if held.turn is None else held.turn
            if turn == inf:
                self._served["delayed"] += 1
                pause = self._random.uniform(1, 1 + self._pace.wait(now))
                return text_response(503, "many plans are new at once", retry_after=f"{pause:.0f}")
            held.turn = turn
            if turn > now:
                return None

        self._served["new"] += 1
        # no-store: a bundle is for one pod, and a cache on the path cannot distinguish pods
        headers = {"content-type": held.media, "etag": bundle.etag, "cache-control": "no-store"}
        return Response(200, headers, bundle.body)

    def _no_news(self, held: _BundleRequest) -> Response:
        """Return the answer at the deadline."""
        identity = self._callers.identify(held.caller)
        if not isinstance(identity, Pod):
            if isinstance(identity, Unknown) and held.wait:
                self._callers.stayed_unknown(held.caller)
            # After a hold no further pause is needed; a client that did not wait gets a longer Retry-After.
            return self._callers.refusal(held.caller, identity, held=held.wait is not None)

        entry = self._plans.entry(identity)
        bundle = entry.answer(fresh=not held.etags)
        if bundle and bundle.etag not in held.etags:
            self._served["withheld"] += 1
            return text_response(426, self._plans.withheld(identity), upgrade="TLS/1.2")
        if not bundle and not held.etags:
            self._served["none"] += 1
            text = f"the plan of {identity.path} cannot be derived: {entry.error}"
            return text_response(503, text, retry_after="5")
        # Also without a bundle: a pod keeps its plan while none can be derived.
        self._served["unchanged"] += 1
        return Response(304, {"etag": bundle.etag if bundle else held.etags[0]})

    def _withhold(self, pod: Pod, bundle: Bundle, held: _BundleRequest) -> bool:
        """True if the bundle must not be sent over this connection. Record and log the reason.

        Over plain http any peer on the path could have forged it, so the pod would refuse it. A bundle that ends the
        pod starts nothing, and may be sent.
        """
        if held.secure or not bundle.privileged or bundle.phase is Phase.TERMINATING:
            self._plans.withhold(pod, "")
            return False
        reason = f"{bundle.privileged} is served over https only, and {pod.path} asks over http"
        self._plans.withhold(pod, reason)
        return True

    def _must_ask(self, caller: Caller) -> bool:
        """True if a sleeping pod must poll for its bundle: it has tasks, or it would be refused."""
        identity = self._callers.identify(caller)
        if not isinstance(identity, Pod):
            return not isinstance(identity, Unknown)
        if identity.terminating or not self._plans.is_bound(identity):
            return False
        bundle = self._plans.entry(identity).answer(fresh=True)
        return bundle is not None and bundle.count > 0


def _too_many(caller: Caller) -> Response:
    return text_response(429, f"{MAX_HELD} requests from {caller.address} are held already", retry_after="5")
