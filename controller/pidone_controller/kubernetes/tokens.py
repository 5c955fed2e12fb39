"""Bearer tokens, of sidecars and of people: the API server says whose they are, and for a minute we believe it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import trio

REMEMBERED = 60.0  # seconds; a token that is withdrawn, or whose pod is gone, counts for as long
MOST = 20_000  # answers that are remembered
AT_ONCE = 16  # questions to the API server

# Asks for a TokenReview and returns its status. Raises PidoneError where it cannot be asked.
Review = Callable[[str], Awaitable[Mapping[str, Any]]]
# Asks for a SubjectAccessReview: may ``user`` (of a TokenReview) read the pod ``name`` of ``namespace``? Without a
# name: list all of them, of all namespaces where there is none. Raises PidoneError where it cannot be asked.
MayRead = Callable[[Mapping[str, Any], str, str], Awaitable[bool]]

_ACCOUNT = "system:serviceaccount:"
_POD = "authentication.kubernetes.io/pod-"


@dataclass(frozen=True, slots=True)
class Bearer:
    """Whose a token is. One that was not made for a pod names none."""

    user: Mapping[str, Any]
    namespace: str = ""  # of the pod
    pod: str = ""
    uid: str = ""


class Tokens:
    """Asks about each token at most once a minute."""

    def __init__(self, review: Review) -> None:
        self._review = review
        self._known: dict[bytes, tuple[float, Bearer | None]] = {}  # by hash: a token is not kept
        self._asking = trio.CapacityLimiter(AT_ONCE)

    async def bearer(self, token: str) -> Bearer | None:
        """None for a token that is no good. Raises what ``review`` raises; then nothing is remembered."""
        key = sha256(token.encode()).digest()
        async with self._asking:
            now = trio.current_time()
            until, found = self._known.get(key, (now, None))
            if until <= now:
                found = read(await self._review(token))
                if len(self._known) >= MOST:
                    self._known.clear()
                self._known[key] = (now + REMEMBERED, found)
        return found


def read(status: Mapping[str, Any]) -> Bearer | None:
    """The ``status`` of a TokenReview."""
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
    """The token of an Authorization header; None where there is none."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
