"""What goes over the wire, as values."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as a server sees it. Header names are in lower case; a repeated header is joined by commas."""

    method: str
    target: str  # as sent: path and query
    headers: Mapping[str, str]
    body: bytes
    peer: str  # the address at the other end of the TCP connection, never a forwarding header

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True, slots=True)
class Response:
    """One answer. Header names are in lower case.

    With ``later`` a server sends the head at once, and what ``later`` returns when it does; the connection
    ends with it, or when the peer goes away.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    later: Callable[[], Awaitable[bytes]] | None = None

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


def text_response(status: int, text: str, **headers: str) -> Response:
    """An answer in words; ``retry_after="5"`` becomes the header ``Retry-After: 5``."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, {"content-type": TEXT, **named}, text.encode() + b"\n")
