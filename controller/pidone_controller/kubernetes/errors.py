"""What can go wrong with an API server, in one tree; httpx's own errors are mapped to it here and nowhere else.

PidoneError
├── ConfigError        a kubeconfig or a service account that cannot be used
└── ApiError           a request that did not get what it asked for
    ├── Unreachable        no answer, half an answer, or one that is not from an API server; ``status`` is 0
    │   └── Silent             ... and nothing for too long, over a connection that stands
    ├── BadRequest         400, 406, 415, 422: the request is wrong, asking again will not help
    ├── Unauthorized       401: the token or certificate is not (or no longer) good
    ├── Forbidden          403: RBAC or admission says no
    ├── NotFound           404: no such object, or no such resource (a CRD that is not there)
    ├── Conflict           409: somebody else changed the object, or another manager owns the field
    │   └── AlreadyExists      ... or has created it
    ├── Gone               410: that version is compacted, list again
    ├── TooManyRequests    429: later, see ``retry_after``
    └── ServerError        5xx: the API server or its etcd is not well
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from pidone.errors import PidoneError
from pidone.http.client import reason


class ConfigError(PidoneError):
    """A kubeconfig or a service account that cannot be used: the text says which field and what to write there."""


class ApiError(PidoneError):
    """A request that did not get what it asked for.

    ``status`` is HTTP's, ``reason`` Kubernetes' word (``NotFound``, ``Expired``, ...), ``retry_after`` the seconds
    that the server asks to wait, ``causes`` the reasons in the Status' details.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        retry_after: float | None = None,
        causes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        self.causes = causes


class Unreachable(ApiError):
    """No answer, half an answer, or one that is no API server's. Whether the request was acted on is not known."""


class Silent(Unreachable):
    """Nothing for too long, over a connection that stands: a dead peer, or one that had nothing to say."""


class BadRequest(ApiError):
    """The request is wrong; asking again will not help."""


class Unauthorized(ApiError):
    """The token or certificate is not, or no longer, good."""


class Forbidden(ApiError):
    """RBAC or admission says no."""


class NotFound(ApiError):
    """No such object, or no such resource: a CRD that is not installed."""


class Conflict(ApiError):
    """Somebody else changed the object first, or another manager owns a field of it."""


class AlreadyExists(Conflict):
    """Somebody else has created it."""


class Gone(ApiError):
    """The version asked for is compacted: list again."""


class TooManyRequests(ApiError):
    """Later: ``retry_after`` says when."""


class ServerError(ApiError):
    """The API server or its etcd is not well."""


_BY_STATUS: dict[int, type[ApiError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    429: TooManyRequests,
}


def from_status(asked: str, status: int, body: object, retry_after: str | None = None) -> ApiError:
    """The error for an answer of 400 and more. ``body`` is a Status if it came from an API server.

    The header Retry-After goes before ``details.retryAfterSeconds``; its form as a date is not used by Kubernetes.
    """
    said: Mapping[str, Any] = body if isinstance(body, dict) and body.get("kind") == "Status" else {}
    word, details = said.get("reason") or "", said.get("details") or {}
    kind = _BY_STATUS.get(status) or (ServerError if status >= 500 else BadRequest)
    if word == "AlreadyExists":
        kind = AlreadyExists
    seconds = retry_after if retry_after and retry_after.isdecimal() else details.get("retryAfterSeconds")
    return kind(
        f"{asked}: {status} {said.get('message') or word or 'without a reason'}",
        status=status,
        reason=word,
        retry_after=float(seconds) if seconds else None,
        causes=tuple(cause.get("reason", "") for cause in details.get("causes") or ()),
    )


@contextmanager
def mapped(asked: str) -> Iterator[None]:
    """The border: what httpx raises inside leaves as Unreachable. ``asked`` is the method and the path."""
    try:
        yield
    except httpx.TimeoutException as error:
        if isinstance(error, httpx.ReadTimeout):
            raise Silent(f"{asked}: silent for too long") from error
        raise Unreachable(f"{asked}: no connection in time") from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise Unreachable(f"{asked}: {_why(error)}") from error


def _why(error: BaseException) -> str:
    """In words: httpx says no more than "ConnectError" where the system or OpenSSL below it had a reason."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError):
            return reason(below)
        below = below.__cause__ or below.__context__  # httpcore raises "from None" half-way
    return str(error) or type(error).__name__
