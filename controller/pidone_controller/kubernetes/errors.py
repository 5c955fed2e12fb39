"""Defines all errors of requests to an API server, in one tree. httpx's errors are mapped to it here and nowhere else.

PidoneError
├── ConfigError        a kubeconfig or a service account cannot be used
└── ApiError           a request failed
    ├── Unreachable        no answer, half an answer, or one that is not from an API server; ``status`` is 0
    │   └── Silent             no byte for too long, over an open connection
    ├── BadRequest         400, 406, 415, 422: the request is wrong, a retry does not help
    ├── Unauthorized       401: the token or certificate is not valid, or no longer
    ├── Forbidden          403: refused by RBAC or admission
    ├── NotFound           404: no such object, or no such resource (a CRD that is not installed)
    ├── Conflict           409: the object was changed by another client, or another manager owns the field
    │   └── AlreadyExists      the object was created by another client
    ├── Gone               410: that version is compacted, list again
    ├── TooManyRequests    429: see ``retry_after``
    └── ServerError        5xx: a fault of the API server or its etcd
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from pidone.errors import PidoneError
from pidone.http.client import reason as reason_of


class ConfigError(PidoneError):
    """A kubeconfig or a service account cannot be used; the text names the field and what to write there."""


class ApiError(PidoneError):
    """A request failed.

    ``status`` is HTTP's, ``reason`` Kubernetes' (``NotFound``, ``Expired``, ...), ``retry_after`` the seconds
    of the server's Retry-After, ``causes`` the reasons in the Status' details.
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
    """No answer, half an answer, or one that is not from an API server. The request may have been carried out."""


class Silent(Unreachable):
    """No byte for too long, over an open connection: the peer is dead, or had nothing to send."""


class BadRequest(ApiError):
    """The request is wrong; a retry does not help."""


class Unauthorized(ApiError):
    """The token or certificate is not valid, or no longer."""


class Forbidden(ApiError):
    """Refused by RBAC or admission."""


class NotFound(ApiError):
    """No such object, or no such resource: a CRD that is not installed."""


class Conflict(ApiError):
    """Another client changed the object first, or another manager owns a field of it."""


class AlreadyExists(Conflict):
    """Another client has created the object."""


class Gone(ApiError):
    """The requested version is compacted: list again."""


class TooManyRequests(ApiError):
    """Too many requests; ``retry_after`` says how long to wait."""


class ServerError(ApiError):
    """A fault of the API server or its etcd."""


_BY_STATUS: dict[int, type[ApiError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    429: TooManyRequests,
}


def from_status(title: str, status: int, body: object, retry_after: str | None = None) -> ApiError:
    """Return the error for an answer of 400 or more. ``title`` is the method and the path; ``body`` may be a Status.

    The header Retry-After precedes ``details.retryAfterSeconds``; its form as a date is not used by Kubernetes.
    """
    value: Mapping[str, Any] = body if isinstance(body, dict) and body.get("kind") == "Status" else {}
    reason, details = value.get("reason") or "", value.get("details") or {}
    kind = _BY_STATUS.get(status) or (ServerError if status >= 500 else BadRequest)
    if reason == "AlreadyExists":
        kind = AlreadyExists
    seconds = retry_after if retry_after and retry_after.isdecimal() else details.get("retryAfterSeconds")
    return kind(
        f"{title}: {status} {value.get('message') or reason or 'without a reason'}",
        status=status,
        reason=reason,
        retry_after=float(seconds) if seconds else None,
        causes=tuple(cause.get("reason", "") for cause in details.get("causes") or ()),
    )


@contextmanager
def mapped(title: str) -> Iterator[None]:
    """Raise httpx's errors as ``Unreachable``. ``title`` is the method and the path."""
    try:
        yield
    except httpx.TimeoutException as error:
        if isinstance(error, httpx.ReadTimeout):
            raise Silent(f"{title}: silent for too long") from error
        raise Unreachable(f"{title}: no connection in time") from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise Unreachable(f"{title}: {_why(error)}") from error


def _why(error: BaseException) -> str:
    """Return the reason of the system or OpenSSL, for which httpx says only "ConnectError"."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError):
            return reason_of(below)
        below = below.__cause__ or below.__context__  # httpcore raises "from None" half-way
    return str(error) or type(error).__name__
