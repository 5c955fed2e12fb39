"""Identifies the clients of the repo: pods by address or token, and people who read the plans of pods.

``Callers`` identifies pods and words the refusals. ``Readers`` decides who may read a pod's plan.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from random import Random

from pidone.errors import PidoneError
from pidone.http.admission import network
from pidone.http.message import Request, Response, text_response
from pidone.metrics.exposition import Family, counter_by
from pidone_controller.kubernetes.tokens import Bearer, MayRead, Tokens, TooManyTokens, bearer_token
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
from pidone_controller.pods.model import Pod

# An address that stayed unknown for this many whole holds belongs to no pod of this cluster: its Retry-After is
# minutes.
STRANGER_HOLDS = 2
MAX_STRANGERS = 1 << 16  # addresses that are counted
STRANGER_PAUSE_SECONDS = (120, 300)


@dataclass(frozen=True, slots=True)
class Caller:
    """A client as its connection and headers describe it."""

    address: str  # normalised
    claims: Claims
    bearer: Bearer | None = None

    @property
    def place(self) -> str:
        """The place in ``Waiting`` of its held requests."""
        return self.bearer.uid if self.bearer else self.address


class Callers:
    """Identifies clients. Without ``tokens`` the Authorization header is ignored."""

    def __init__(self, inventory: Inventory, tokens: Tokens | None, random: Random) -> None:
        self._inventory, self._tokens, self._random = inventory, tokens, random
        self._strangers: dict[str, int] = {}  # by address: the number of holds in which it stayed unknown
        self._refusals: Counter[str] = Counter()

    async def caller(self, request: Request, *, secure: bool) -> Caller | Response:
        """Return the client of a request. A token takes precedence over the address; a bad token is refused."""
        caller = self.caller_by_address(request)
        token = bearer_token(request.headers.get("authorization"))
        if token is None or self._tokens is None:
            return caller

        bearer = await _bearer(self._tokens, token, request.peer, secure=secure)
        if isinstance(bearer, Response):
            self._refusals["token"] += 1
            return bearer
        if not bearer.pod:
            self._refusals["token"] += 1
            return text_response(403, f"the token of {bearer.user['username']} was not made for a pod")
        return Caller(caller.address, caller.claims, bearer)

    def caller_by_address(self, request: Request) -> Caller:
        """Return the client of a request by its address. A token is ignored."""
        return Caller(normalise(request.peer), Claims.of(request.headers))

    def identify(self, caller: Caller) -> Identity:
        """Return the pod of a client at present, or the reason why it is none."""
        bearer = caller.bearer
        if bearer is not None:
            return self._inventory.identify_by_token(bearer.namespace, bearer.pod, bearer.uid, caller.claims)
        identity = self._inventory.identify(caller.address, caller.claims)
        if self._strangers and isinstance(identity, Pod):
            self._strangers.pop(caller.address, None)
        return identity

    def is_stranger(self, caller: Caller) -> bool:
        """True if its address stayed unknown for ``STRANGER_HOLDS`` holds."""
        return self._strangers.get(caller.address, 0) >= STRANGER_HOLDS

    def stayed_unknown(self, caller: Caller) -> None:
        """Count one hold in which the address stayed unknown."""
        self._strangers[caller.address] = self._strangers.get(caller.address, 0) + 1
        if len(self._strangers) > MAX_STRANGERS:
            del self._strangers[next(iter(self._strangers))]

    def refusal(
        self, caller: Caller, identity: Unknown | Contradiction | NodeAddress, *, held: bool = False
    ) -> Response:
        """Return the answer to a client that is no pod. A client that was ``held`` may retry after a second."""
        pause = "1" if held else "5"
        match identity:
            case Unknown(subject):
                self._refusals["unknown"] += 1
                if caller.bearer is None and self.is_stranger(caller):
                    pause = str(self._random.randint(*STRANGER_PAUSE_SECONDS))
                return text_response(404, f"no live pod has {subject} yet", retry_after=pause)
            case Contradiction(reason):
                self._refusals["contradiction"] += 1
                return text_response(409, reason, retry_after=pause)
            case NodeAddress(address):
                self._refusals["node-address"] += 1
                return text_response(
                    403,
                    f"{address} is a node's address: a pod must ask from its own (it is on the host's network, "
                    "or its address is translated on the way)",
                )

    def families(self) -> Iterator[Family]:
        """Yield metrics of refusals."""
        yield counter_by(
            "reason",
            "pidone_controller_identity_refusals_total",
            "Requests of clients that are no known pod.",
            self._refusals,
        )


class Readers:
    """Decides who may read the plans of pods.

    Allowed are clients on loopback of the controller's own pod (``kubectl port-forward``, ``exec``), clients from the
    networks ``people``, and bearers of a token whose owner may read the pods themselves.
    """

    def __init__(
        self,
        inventory: Inventory,
        tokens: Tokens | None,
        may_read: MayRead | None,
        people: Sequence[IPv4Network | IPv6Network],
    ) -> None:
        self._inventory, self._tokens, self._may_read, self._people = inventory, tokens, may_read, people

    async def refusal(
        self, request: Request, namespace: str = "", name: str = "", *, secure: bool
    ) -> Response | None:
        """Return None if the client may read the pod, or without a name list the pods; else the answer to it."""
        address = normalise(request.peer)
        # A pod may have 127.0.0.2 here, and must not read the plans of other pods.
        if is_loopback(address) and not self._inventory.at(address):
            return None
        if any(ip_address(address) in network for network in self._people):
            return None

        token = bearer_token(request.headers.get("authorization"))
        if not (token and self._tokens and self._may_read):
            return text_response(
                403, "only for people on this machine: ask from 127.0.0.1 or ::1 (kubectl port-forward)"
            )
        bearer = await _bearer(self._tokens, token, request.peer, secure=secure)
        if isinstance(bearer, Response):
            return bearer
        try:
            if await self._may_read(bearer.user, namespace, name):
                return None
        except PidoneError as error:
            return text_response(503, f"the right cannot be checked: {error}", retry_after="5")
        verb = f'get pod "{name}" in {namespace}' if name else f"list pods in {namespace or 'all namespaces'}"
        return text_response(403, f"{bearer.user['username']} may not {verb}")


async def _bearer(tokens: Tokens, token: str, peer: str, *, secure: bool) -> Bearer | Response:
    """Return the owner of a token, or the answer to its client."""
    if not secure:  # any peer on the path could read and use the token
        return text_response(
            403, "a token is taken over https only; this one was sent in the clear, and should be replaced"
        )
    try:
        bearer = await tokens.bearer(token, network(peer))
    except TooManyTokens as error:
        return text_response(429, str(error), retry_after=f"{error.pause:.0f}")
    except PidoneError as error:
        return text_response(503, f"the token cannot be checked: {error}", retry_after="5")
    if bearer is None:
        return text_response(
            401, "the API server does not know this token, or it has expired", www_authenticate="Bearer"
        )
    return bearer
