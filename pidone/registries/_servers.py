"""The HTTP servers of one registry: one is asked, and the next one if its answer is not the registry's.

An ingress, a login page or a proxy between pod and registry answers too. So the registry's module decides for each
answer whether the registry gave it, and with any other answer the next server is asked.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import inf
from random import randrange, uniform
from typing import Any, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

import trio

from pidone.errors import Refused, RegistryError, RegistryRefused, TransferError, TransferTimeout
from pidone.http.client import CONNECT_SECONDS, redacted, request
from pidone.http.message import JSON, Response
from pidone.http.urls import canonical, has_dot_segments, origin
from pidone.plan.fields import Fields
from pidone.plan.strict_json import check_names

ANSWER_SECONDS = 8.0  # for an answer after the connection; readTimeout of Eureka's Java client
MAX_SERVERS = 3  # for one call; the limit of the same client
SESSION_SECONDS = (
    1200.0  # with one server, give or take a half; sessionedClientReconnectInterval of the same client
)
MAX_REDIRECTS = 3
MAX_SHOWN = 120  # characters of an answer in a message


# Plain classes, also in the modules of registries: a named tuple takes 4 KiB more of a pod's memory


class Trouble:
    """The reason why an answer is no success. ``refused``: a person has to change something."""

    __slots__ = ("refused", "text")

    def __init__(self, text: str, *, refused: bool = False) -> None:
        self.text, self.refused = text, refused

    def error(self, what: str, answer: Response) -> RegistryError:
        """Return the exception for this answer to the request ``what``."""
        return (RegistryRefused if self.refused else RegistryError)(f"{what}: {shown(answer)}: {self.text}")


class Remedies:
    """What a person can change if a server is not the registry. Each is a sentence for a message."""

    __slots__ = ("credentials", "registry", "url")

    def __init__(self, registry: str, *, url: str, credentials: str) -> None:
        self.registry = registry  # its name
        self.url = url  # how its URL is written
        self.credentials = credentials  # after 401 and 403

    def foreign(self, answer: Response, *, accepted: bool) -> Trouble:
        """Return the trouble with an answer that may be of somebody between pod and registry; it may pass.

        ``accepted``: the registry has accepted the instance before, so its URL and the credentials were right.
        An error in the registry's own words is the driver's to recognise, before this.
        """
        if answer.status == 429 or answer.status >= 500:
            return Trouble("the server cannot answer at present")
        if accepted:
            return Trouble(
                "this is not the registry's answer, which has registered us before; what is in between?"
            )
        if answer.status in {401, 403}:
            return Trouble(self.credentials)
        return Trouble(f"this is not an answer of {self.registry}; is the URL right? {self.url}")


T = TypeVar("T")

# Asks the server of this URL within this many seconds. Raises ``TransferError``, and ``RegistryError`` without success.
Attempt = Callable[[str, float], Awaitable[T]]

# Takes a server's URL and its answer. Returns None if the answer is the registry's, and a success.
Judge = Callable[[str, Response], Awaitable[Trouble | None]]


class Servers:
    """The base URLs of a registry's API. ``current`` is the one in use."""

    def __init__(
        self,
        urls: Sequence[str],
        source: str | None,
        headers: Mapping[str, str],
        *,
        namespace: str = "",
        start: str = "",
        patient: bool = False,
    ) -> None:
        """``start``: pods with different texts begin with different servers.

        ``patient``: the server in use has most of the time of a call, and the others at least half a part.
        """
        self._urls = [url.rstrip("/") + "/" for url in urls]
        self._source = source
        self.headers = headers  # sent with each request; a driver may replace them
        self._namespace = namespace  # of the pod
        self._patient = patient
        self._current = sum(start.encode()) % len(urls)
        self._spread_at = inf
        # Servers that may have carried out the request of the last ``ask``, and did not answer it.
        self.unanswered: list[str] = []

    @property
    def current(self) -> str:
        return self._urls[self._current]

    @property
    def shown(self) -> str:
        """The URLs for people, without passwords."""
        return ",".join(map(redacted, self._urls))

    @property
    def places(self) -> frozenset[str]:
        """Each URL in one spelling, so that two lists can be compared."""
        return frozenset(canonical(url, self._namespace) for url in self._urls)

    def go_on_as(self, previous: "Servers") -> None:
        """Use the server that ``previous`` used, if it is in the list."""
        if previous.current in self._urls:
            self._current = self._urls.index(previous.current)
        self._spread_at = previous._spread_at

    def spread(self) -> None:
        """Choose any server from time to time: pods that have left a server are to use it again after its return.

        Only before a request that another server than that of the last one may answer.
        """
        now = trio.current_time()
        if now >= self._spread_at:
            self._current = randrange(len(self._urls))
        if self._spread_at <= now or self._spread_at == inf:
            self._spread_at = now + SESSION_SECONDS * uniform(0.5, 1.5)

    async def ask(
        self, method: str, path: str, judge: Judge, *, within: float, query: str = "", body: bytes = b""
    ) -> Response:
        """Send a request to one server after another until the registry itself answers it with success.

        That server is the current one from then on. ``within`` is seconds for all servers, of which each has an equal
        part at least, unless they are ``patient``. Raises ``RegistryRefused`` if all refused, else ``TransferError`` or
        ``RegistryError``.
        """

        async def attempt(server: str, seconds: float) -> Response:
            answer = await self.ask_one(server, method, path, query=query, body=body, within=seconds)
            trouble = await judge(server, answer)
            if trouble is None:
                return answer
            raise trouble.error(f"{method} {redacted(server)}{path}", answer)

        return await self.attempt(f"{method} {path}", attempt, within=within)

    async def attempt(self, what: str, attempt: Attempt[T], *, within: float) -> T:
        """Let ``attempt`` ask one server after another until it returns a result; for the rest see ``ask``.

        ``what`` is the request in the message of a server that has not answered.
        """
        tries = min(len(self._urls), MAX_SERVERS)
        until = min(trio.current_time() + within, trio.current_effective_deadline())
        errors: list[TransferError | RegistryError] = []
        self.unanswered = []
        for left in range(tries, 0, -1):
            server = self.current
            seconds = max(0.1, self._part(until - trio.current_time(), left))
            try:
                with trio.move_on_after(seconds):
                    return await attempt(server, seconds)
                method, _, path = what.partition(" ")
                request_line = f"{method} {redacted(server)}{path}"
                raise TransferTimeout(f"{request_line}: no answer within {seconds:.3g} s", sent=True)
            except (TransferError, RegistryError) as error:
                if isinstance(error, TransferError) and error.sent:
                    self.unanswered.append(server)
                errors.append(error)
            self._current = (self._current + 1) % len(self._urls)
        raise _together(errors)

    async def deregister_late(self, late: set[str], deregister: Attempt[object]) -> None:
        """Deregister at the servers that may carry out ``late`` a registration that they have not answered.

        Then ``late`` is empty. The current server has deregistered the instance. Raises ``RegistryError``.
        """
        for server in sorted(late - {self.current}):
            left = trio.current_effective_deadline() - trio.current_time()
            within = min(CONNECT_SECONDS + ANSWER_SECONDS, 0.9 * left)  # so that the error can be raised
            try:
                await deregister(server, within)
            except (TransferError, RegistryError) as error:
                if isinstance(error, TransferError) and not error.sent:
                    continue  # no server is there, so none has the registration
                raise RegistryError(
                    f"deregistered at {redacted(self.current)}, but {redacted(server)} may carry out later a "
                    f"registration that it has not answered: {error}"
                ) from error
        late.clear()

    def _part(self, seconds: float, left: int) -> float:
        """Return the seconds for one server, of ``left`` that may be asked in this time."""
        equal = seconds / left
        return max(equal, seconds - (left - 1) * max(1.0, equal / 2)) if self._patient else equal

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
        content_type: str = JSON,
        limit: int = 1 << 20,
    ) -> Response:
        """Send a request to this server. It has ``within`` seconds, of which ``patience`` is for the answer.

        ``limit`` is bytes of the answer's body.

        A redirect is followed only to the same resource of the same origin, with the same method and body: old servers
        of Eureka pin their clients with a 302 to a PUT. Raises ``TransferError``, and ``RegistryError`` for any other
        redirect.
        """
        url, until = server + path, trio.current_time() + within
        headers = dict(self.headers) | ({"content-type": content_type} if body else {})
        for _ in range(MAX_REDIRECTS):
            seconds = max(0.1, until - trio.current_time())
            answer = await request(
                method,
                url + query,
                headers=headers,
                body=body,
                timeout=min(CONNECT_SECONDS + patience, seconds),
                answer_timeout=min(patience, seconds),
                source=self._source,
                limit=limit,
            )
            location = answer.headers.get("location", "")
            if answer.status not in {301, 302, 303, 307, 308} or not location:
                return answer
            url = _redirected(method, url, location, path)
        raise RegistryError(f"{method} {redacted(url)}: more than {MAX_REDIRECTS} redirects")


class Served:
    """What people and the controller read of a registry's HTTP servers; the base class of such registries."""

    _servers: Servers

    @property
    def where(self) -> str:
        return self._servers.shown

    @property
    def endpoint(self) -> str:
        return redacted(self._servers.current)

    @property
    def places(self) -> frozenset[str]:
        return self._servers.places


def shown(answer: Response) -> str:
    """Return the answer for a message, as ``answered 400 "Missing hostname"``: bounded and printable."""
    words = printable(answer.text)[:MAX_SHOWN]
    return f"answered {answer.status}" + (f' "{words}"' if words and not words.startswith("<") else "")


def printable(text: str) -> str:
    """Return the text as one line, without control characters."""
    return "".join(filter(str.isprintable, " ".join(text[: 8 * MAX_SHOWN].split())))


def json_object(answer: Response) -> dict[str, Any]:
    """Return the JSON object of an answer; empty if it has none."""
    try:
        check_names(answer.body)
        value = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def base_urls(fields: Fields, name: str, form: str) -> list[str]:
    """Return the URLs of a field, which are separated by commas. ``form`` is how they are written, for messages.

    Raises ``Refused`` for one to which a path cannot be added.
    """
    path = f"{fields.path}.{name}"
    urls = [url for part in fields.text(name).split(",") if (url := part.strip())]
    if not urls or not all(url.startswith(("http://", "https://")) for url in urls):
        raise Refused(f"{path}: expected http:// or https:// URLs {form}")
    for url in urls:
        if any(mark in url for mark in "?#"):
            # The controller calls it too: what people write must not hide the path that is added.
            raise Refused(f"{path}: a URL that goes on with a path has no ? and no # (%3F, %23)")
        try:
            origin(url)
            dots = has_dot_segments(urlsplit(url).path)
        except ValueError:
            # not shown: what stands in the place of the port may be the end of a password
            raise Refused(
                f"{path}: not a URL; are / ? # @ in its password written as %2F %3F %23 %40?"
            ) from None
        if dots:
            raise Refused(f'{path}: a path without "." and ".."')
    return urls


def is_page(answer: Response) -> bool:
    """True if the answer is an HTML page, such as a login page."""
    start = answer.body[:256].lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html")) or b"<html" in start


def _redirected(method: str, url: str, location: str, path: str) -> str:
    """Return the URL of a redirect. Raises ``RegistryError`` if it must not be followed."""
    where = printable(redacted(location))[:MAX_SHOWN]
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
    """Return one error for the errors of all servers."""
    if len(errors) == 1:
        return errors[0]
    text = "; ".join(dict.fromkeys(map(str, errors)))
    transfers = [error for error in errors if isinstance(error, TransferError)]
    if len(transfers) == len(errors):
        return type(transfers[-1])(text, sent=any(error.sent for error in transfers))
    refused = all(isinstance(error, RegistryRefused) for error in errors)
    return RegistryRefused(text) if refused else RegistryError(text)
