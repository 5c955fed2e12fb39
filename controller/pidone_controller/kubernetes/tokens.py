"""Reviews bearer tokens of sidecars and people by the API server, and caches their owners for a minute."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeVar

import trio

from pidone.errors import PidoneError
from pidone.pacing import RateLimit

Key = TypeVar("Key")
Value = TypeVar("Value")

CACHE_SECONDS = 60.0  # for so long a token is accepted after it is revoked or its pod is deleted
MAX_CACHED = 20_000  # good tokens
MAX_BAD = 1_000  # bad tokens, of which a client can send any number
MAX_REVIEWS = 16  # at once
# Unknown tokens of one address: at once, and seconds for each further one. A node has some hundred sidecars on its
# network, whose tokens are all unknown after a restart of the controller.
ADDRESS_REVIEWS, ADDRESS_INTERVAL_SECONDS = 20, 0.5
MAX_ADDRESSES = 1 << 12  # with such a limit

# Requests a TokenReview and returns its status. Raises PidoneError if that fails.
Review = Callable[[str], Awaitable[Mapping[str, Any]]]
# Requests a SubjectAccessReview: may ``user`` (of a TokenReview) read the pod ``name`` in ``namespace``? Without a
# name: list pods, without a namespace in all namespaces. Raises PidoneError if that fails.
MayRead = Callable[[Mapping[str, Any], str, str], Awaitable[bool]]

_ACCOUNT = "system:serviceaccount:"
_POD = "authentication.kubernetes.io/pod-"


@dataclass(frozen=True, slots=True)
class Bearer:
    """The owner of a token. ``pod`` is empty if the token was not made for a pod."""

    user: Mapping[str, Any]
    namespace: str = ""  # of the pod
    pod: str = ""
    uid: str = ""


class TooManyTokens(PidoneError):
    """An address has sent too many unknown tokens. It may send the next one after ``pause`` seconds."""

    def __init__(self, address: str, pause: float) -> None:
        super().__init__(f"too many unknown tokens from {address}")
        self.pause = max(1.0, pause)


class Tokens:
    """Reviews each token at most once a minute, and a bounded number of unknown tokens of each address.

    A cached token does not wait for reviews of others.
    """

    def __init__(self, review: Review) -> None:
        self._review = review
        # By hash, since the token itself is not kept; with the clock time until which the answer is valid.
        self._good: dict[bytes, tuple[float, Bearer]] = {}
        self._bad: dict[bytes, float] = {}
        self._reviews: dict[bytes, trio.Event] = {}  # under way; the event is set at the end
        self._limits: dict[str, RateLimit] = {}  # by address
        self._reviewing = trio.CapacityLimiter(MAX_REVIEWS)

    async def bearer(self, token: str, address: str) -> Bearer | None:
        """Return the owner of a token from this address or network; None for a bad one.

        Raises ``TooManyTokens``, and the errors of ``review``, which are not cached.
        """
        key = sha256(token.encode(errors="surrogateescape")).digest()
        while True:
            now = trio.current_time()
            until, bearer = self._good.get(key, (now, None))
            if until > now:
                return bearer
            if self._bad.get(key, now) > now:
                return None
            if key not in self._reviews:
                self._take(address)
                return await self._reviewed(token, key)
            await self._reviews[key].wait()

    async def _reviewed(self, token: str, key: bytes) -> Bearer | None:
        self._reviews[key] = done = trio.Event()
        try:
            async with self._reviewing:
                bearer = read(await self._review(token))
        finally:
            del self._reviews[key]
            done.set()
        until = trio.current_time() + CACHE_SECONDS
        if bearer is None:
            _put(self._bad, key, until, MAX_BAD)
        else:
            _put(self._good, key, (until, bearer), MAX_CACHED)
        return bearer

    def _take(self, address: str) -> None:
        """Count an unknown token of an address. Raises ``TooManyTokens``."""
        limit = self._limits.pop(address, None) or RateLimit(ADDRESS_REVIEWS, ADDRESS_INTERVAL_SECONDS)
        _put(self._limits, address, limit, MAX_ADDRESSES)
        pause = limit.take(trio.current_time())
        if pause:
            raise TooManyTokens(address, pause)


def _put(table: dict[Key, Value], key: Key, value: Value, most: int) -> None:
    """Set a value as the newest one, and remove the oldest one beyond ``most``."""
    table.pop(key, None)
    table[key] = value
    if len(table) > most:
        del table[next(iter(table))]


def read(status: Mapping[str, Any]) -> Bearer | None:
    """Read the ``status`` of a TokenReview; None for a bad token."""
    user = status.get("user") or {}
    if status.get("authenticated") is not True or not user.get("username"):
        return None
    extra = user.get("extra") or {}
    uid, pod = (next(iter(extra.get(_POD + name) or ()), "") for name in ("uid", "name"))
    account = user["username"].removeprefix(_ACCOUNT)
    if not (uid and pod and account != user["username"]):
        return Bearer(user)
    return Bearer(user, account.partition(":")[0], pod, uid)


def bearer_token(authorization: str | None) -> str | None:
    """Return the token in an Authorization header; None without one."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
