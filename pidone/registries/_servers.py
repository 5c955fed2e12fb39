"""The HTTP servers of one registry: one is asked, and the next one if its answer is not the registry's.

What stands between (an ingress, a login page, a proxy) answers too. So it is not the transport alone that
decides whether another server is asked: the registry's module says of each answer whether the registry gave it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urljoin, urlsplit

import trio

from pidone.errors import RegistryError, RegistryRefused, TransferError
from pidone.http.client import CONNECT_TIMEOUT, redacted, request
from pidone.http.message import Response
from pidone.http.urls import canonical, has_dot_segments, origin

ANSWER_SECONDS = 8.0  # from each server once it is connected, as the official Java client of Eureka has it
MAX_SERVERS = 3  # asked for one call; the same client's limit
MAX_REDIRECTS = 3
WORDS_WIDTH = 120  # characters of an answer that a message repeats


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why an answer is not the one that was asked for. ``refused``: a person has to change something."""

    text: str
    refused: bool = False


Judge = Callable[[str, Response], Awaitable[Trouble | None]]  # a server's URL, and its answer


class Servers:
    """URLs that end before the part that belongs to the registry's API. ``current`` is the one in use."""

    def __init__(
        self, urls: Sequence[str], source: str | None, headers: Mapping[str, str], *, namespace: str = ""
    ) -> None:
        self._urls = [url.rstrip("/") + "/" for url in urls]
        self._source = source
        self._headers = headers
        self._namespace = namespace  # of the pod
        self._current = 0
        self.unanswered: list[
            str
        ] = []  # servers that may have done what the last ``ask`` wanted, and did not say so

    @property
    def current(self) -> str:
        return self._urls[self._current]

    @property
    def shown(self) -> str:
        """For people, without passwords."""
        return ",".join(map(redacted, self._urls))

    @property
    def places(self) -> frozenset[str]:
        """Each server in one spelling, to tell whether two lists have one in common."""
        return frozenset(canonical(url, self._namespace) for url in self._urls)

    def go_on_as(self, previous: "Servers") -> None:
        """Ask the server first that ``previous`` had in use."""
        if previous.current in self._urls:
            self._current = self._urls.index(previous.current)

    async def ask(
        self, method: str, path: str, judge: Judge, *, within: float, query: str = "", body: bytes = b""
    ) -> Response:
        """Ask one server after another until one gives the registry's own answer; it stays the current one.

        ``within`` is seconds for all of them, of which each gets an equal part at least. Raises
        ``RegistryRefused`` if each one refused, else ``TransferError`` or ``RegistryError``.
        """
        tries = min(len(self._urls), MAX_SERVERS)
        until = min(trio.current_time() + within, trio.current_effective_deadline())
        errors: list[TransferError | RegistryError] = []
        self.unanswered = []
        for left in range(tries, 0, -1):
            server = self.current
            try:
                seconds = max(0.1, (until - trio.current_time()) / left)
                answer = await self.ask_one(server, method, path, query=query, body=body, within=seconds)
                trouble = await judge(server, answer)
                if trouble is None:
                    return answer
            except (TransferError, RegistryError) as error:
                if isinstance(error, TransferError) and error.sent:
                    self.unanswered.append(server)
                errors.append(error)
            else:
                text = f"{method} {redacted(server)}{path}: {shown(answer)}: {trouble.text}"
                errors.append((RegistryRefused if trouble.refused else RegistryError)(text))
            self._current = (self._current + 1) % len(self._urls)
        raise _together(errors)

    async def ask_one(
        self,
        server: str,
        method: str,
        path: str,
        *,
        within: float,
        patience: float = ANSWER_SECONDS,
        query: str = "",
        body: bytes = b"",
    ) -> Response:
        """Ask this server, in ``within`` seconds at most, of which it has ``patience`` for its answer.

        Redirects are followed by hand.

        Old servers of Eureka pin their clients with a 302 to a PUT, which keeps its method. A redirect is followed to
        the same resource of the same origin alone: elsewhere may be anybody. Raises ``TransferError``, and
        ``RegistryError`` for a redirect to anything else.
        """
        url, until = server + path, trio.current_time() + within
        headers = dict(self._headers) | ({"content-type": "application/json"} if body else {})
        for _ in range(MAX_REDIRECTS):
            seconds = max(0.1, until - trio.current_time())
            answer = await request(
                method,
                url + query,
                headers=headers,
                body=body,
                timeout=min(CONNECT_TIMEOUT + patience, seconds),
                answer_timeout=min(patience, seconds),
                source=self._source,
            )
            location = answer.headers.get("location", "")
            if answer.status not in {301, 302, 303, 307, 308} or not location:
                return answer
            url = _redirected(method, url, location, path)
        raise RegistryError(f"{method} {redacted(url)}: more than {MAX_REDIRECTS} redirects")


def shown(answer: Response) -> str:
    """``answered 400 "Missing hostname"``: a bounded, printable part of what somebody else wrote."""
    words = printable(answer.text)[:WORDS_WIDTH]
    return f"answered {answer.status}" + (f' "{words}"' if words and not words.startswith("<") else "")


def printable(text: str) -> str:
    """One line, without anything that a terminal would obey."""
    return "".join(filter(str.isprintable, " ".join(text[: 8 * WORDS_WIDTH].split())))


def is_page(answer: Response) -> bool:
    """Whether this is written for people: a login page, or the start page of a proxy."""
    start = answer.body[:256].lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html")) or b"<html" in start


def _redirected(method: str, url: str, location: str, path: str) -> str:
    """Where a redirect leads, if that may be followed."""
    where = printable(redacted(location))[:WORDS_WIDTH]
    try:
        target = urljoin(url, location).partition("#")[0].partition("?")[0]
        parts = urlsplit(target)
        same_resource = unquote(parts.path).endswith("/" + unquote(path)) and not has_dot_segments(parts.path)
        if same_resource and origin(target) == origin(url):
            user, at, _ = urlsplit(url).netloc.rpartition("@")
            return parts._replace(netloc=user + at + parts.netloc.rpartition("@")[2]).geturl()
        elsewhere = same_resource
    except ValueError:
        elsewhere = False
    remedy = (
        "a redirect to another server is not followed; if that is the registry, write its URL"
        if elsewhere
        else "is the URL right, and does it need a user (http://user:password@host)?"
    )
    raise RegistryError(f"{method} {redacted(url)}: redirected to {where}; {remedy}")


def _together(errors: Sequence[TransferError | RegistryError]) -> TransferError | RegistryError:
    """One error for all servers."""
    if len(errors) == 1:
        return errors[0]
    text = "; ".join(dict.fromkeys(map(str, errors)))
    transfers = [error for error in errors if isinstance(error, TransferError)]
    if len(transfers) == len(errors):
        return type(transfers[-1])(text, sent=any(error.sent for error in transfers))
    refused = all(isinstance(error, RegistryRefused) for error in errors)
    return RegistryRefused(text) if refused else RegistryError(text)
