"""What goes over the wire, as values."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from pidone.text import printable

MAX_TEXT = 2000  # characters of an answer in words

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
    """In place of an answer: there is none yet. It costs no task, as a repo's requests are held most of the time.

    A server looks again when it is called, and at the deadline at the latest.
    """

    __slots__ = ()

    @property
    def deadline(self) -> float:
        """Clock time; at this time, and after it, ``look`` has an answer."""
        raise NotImplementedError

    def look(self) -> "Response | None":
        """The answer, if there is one by now."""
        raise NotImplementedError

    def subscribe(self, call: Callable[[], object]) -> None:
        """``call`` when there may be an answer; it returns at once."""
        raise NotImplementedError

    def unsubscribe(self, call: Callable[[], object]) -> None:
        """Undo ``subscribe``."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Response:
    """One answer. Header names are in lower case.

    With ``later`` a server sends the head at once, and what ``later`` returns when it does, or the body of the
    answer that is held; the connection ends with it, or when the peer goes away.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    later: Callable[[], Awaitable[bytes]] | Held | None = None

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


def text_response(status: int, text: str, **headers: str) -> Response:
    """An answer in words; ``retry_after="5"`` becomes the header ``Retry-After: 5``."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, {"content-type": TEXT, **named}, printable(text, MAX_TEXT).encode() + b"\n")
