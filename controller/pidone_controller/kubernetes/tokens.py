"""Bearer tokens of sidecars and people: the API server says whose they are, and the answer is kept for a minute."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import trio

CACHE_SECONDS = 60.0  # a token that is revoked, or whose pod is gone, is accepted for as long
MAX_CACHED = 20_000  # answers
MAX_REVIEWS = 16  # at once

# Asks for a TokenReview and returns its status. Raises PidoneError if that fails.
Review = Callable[[str], Awaitable[Mapping[str, Any]]]
# Asks for a SubjectAccessReview: may ``user`` (of a TokenReview) read the pod ``name`` in ``namespace``? Without a
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


class Tokens:
    """Reviews each token at most once a minute."""

    def __init__(self, review: Review) -> None:
        self._review = review
        self._cache: dict[bytes, tuple[float, Bearer | None]] = {}  # by hash: the token itself is not kept
        self._limit = trio.CapacityLimiter(MAX_REVIEWS)

    async def bearer(self, token: str) -> Bearer | None:
        """The owner of a token; None for a bad one. Raises what ``review`` raises, and caches nothing then."""
        key = sha256(token.encode()).digest()
        async with self._limit:
            now = trio.current_time()
            until, bearer = self._cache.get(key, (now, None))
            if until <= now:
                bearer = read(await self._review(token))
                if len(self._cache) >= MAX_CACHED:
                    self._cache.clear()
                self._cache[key] = (now + CACHE_SECONDS, bearer)
        return bearer


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
    """The token in an Authorization header; None without one."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
