"""Requests and responses of HTTP as values, and responses that a server holds back."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from pidone.text import printable

# Of one head, which with 16 KiB has room for 2,700; see pidone.plan.strict_json.MAX_NAMES.
MAX_FIELDS = 100
MAX_TEXT = 2000  # characters of a response with a text

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


class Held:
    """A response that is held back until it is complete.

    A repo's requests are held most of the time, so it costs no task. A server calls ``look`` after each subscribed
    call, and at the deadline.
    """

    __slots__ = ()

    @property
    def deadline(self) -> float:
        """The time of Trio's clock from which on ``look`` returns an answer."""
        raise NotImplementedError

    def look(self) -> "Response | None":
        """Return the answer; None while it is held."""
        raise NotImplementedError

    def subscribe(self, call: Callable[[], object]) -> None:
        """Call ``call`` whenever ``look`` may return an answer. It must return at once."""
        raise NotImplementedError

    def unsubscribe(self, call: Callable[[], object]) -> None:
        """Undo ``subscribe``."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Response:
    """One response. Header names are in lower case.

    With ``later`` a server sends the head at once and the body later: the value that ``later`` returns, or the body of
    the held response. Then, or when the peer closes, the connection is closed.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    later: Callable[[], Awaitable[bytes]] | Held | None = None

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


def text_response(status: int, text: str, **headers: str) -> Response:
    """Return a response with a text; ``retry_after="5"`` becomes the header ``Retry-After: 5``."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, {"content-type": TEXT, **named}, printable(text, MAX_TEXT).encode() + b"\n")
