"""One HTTP request on a connection of its own.

The pod's requests are seconds or a minute apart. Servers and middleboxes have dropped an idle connection by then, and a
request on it could not tell "dropped" from "refused".
"""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from math import inf
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

import h11
import trio

from pidone import __version__
from pidone.errors import ConnectError, ProtocolError, TransferTimeout
from pidone.http.connect import connect
from pidone.http.message import MAX_FIELDS, Response

if TYPE_CHECKING:  # ssl costs 1 MiB
    import ssl

USER_AGENT = f"pidone/{__version__}"
PROBE_USER_AGENT = (
    f"kube-probe/{__version__} (pidone)"  # applications keep kube-probe out of their access logs
)
CONNECT_SECONDS = 5.0  # the Java Eureka client's, and enough for one lost SYN on a pod network


async def request(
    method: str,
    url: str,
    *,
    timeout: float,
    answer_timeout: float = inf,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    source: str | None = None,
    limit: int = 1 << 20,
    cut: bool = False,
    fatal: bool = False,
    trust: "ssl.SSLContext | None" = None,
) -> Response:
    """Send one request and return the whole answer. A redirect is not followed.

    ``timeout`` is seconds for everything together, of which connecting may take ``CONNECT_SECONDS`` and, once
    connected, request and answer ``answer_timeout``. ``source`` is the local address to connect from. An answer's body
    of more than ``limit`` bytes is a ``ProtocolError``; with ``cut`` the rest of it is not read. With ``fatal`` a fatal
    signal of this process writes its reason into the connection, if it is plain http: the error output of a sandbox
    goes nowhere. ``trust`` is used for https instead of the authorities of PIDONE_CA.

    Raises a ``TransferError``. On cancel the connection is closed at once; the server may have acted on the request.
    """
    try:
        where = urlsplit(url)
        usable = where.scheme in {"http", "https"} and where.hostname and where.port != 0
    except ValueError:
        # not shown: the text in the place of the port may be the end of a password
        raise ConnectError(
            "a URL has no number for its port; are / ? # @ in its password written as %2F %3F %23 %40?"
        ) from None
    if not usable:
        raise ConnectError(f"{redacted(url)} is not an http:// or https:// URL with a host")
    shown = f"{method} {redacted(url)}"
    connection = h11.Connection(h11.CLIENT)
    sent = False
    try:
        with trio.fail_after(timeout):
            async with AsyncExitStack() as closing:
                stream = await closing.enter_async_context(await _connect(where, source, trust))
                if fatal and isinstance(stream, trio.SocketStream):
                    closing.enter_context(_fatal_errors_to(stream))
                with trio.fail_after(answer_timeout):
                    sent = True
                    await _send(stream, method, where, dict(headers or {}), body, connection)
                    return await _receive(stream, connection, limit, cut=cut)
    except trio.TooSlowError:
        seconds = min(timeout, answer_timeout)
        raise TransferTimeout(f"{shown}: no answer within {seconds:g} s", sent=sent) from None
    except (h11.RemoteProtocolError, h11.LocalProtocolError) as error:
        raise ProtocolError(f"{shown}: {error}", sent=sent) from error
    except (OSError, trio.BrokenResourceError) as error:
        raise ConnectError(f"{shown}: {reason(error)}", sent=sent) from error
    except UnicodeError as error:  # a name that is none in DNS, a path or header that is not ASCII
        raise ProtocolError(f"{shown}: {error}") from error


def redacted(url: str) -> str:
    """Return the URL without user and password, for messages."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


async def _connect(where: SplitResult, source: str | None, trust: "ssl.SSLContext | None") -> trio.abc.Stream:
    assert where.hostname is not None
    secure = where.scheme == "https"
    with trio.move_on_after(CONNECT_SECONDS):
        stream = await connect(where.hostname, where.port or (443 if secure else 80), source=source)
        if secure:
            from pidone.http.tls import secured

            return await secured(stream, where.hostname, verify=True, trust=trust)
        return stream
    raise OSError(f"no connection within {CONNECT_SECONDS:g} s")


@contextmanager
def _fatal_errors_to(stream: trio.SocketStream) -> Iterator[None]:
    import faulthandler

    faulthandler.enable(stream.socket.fileno(), all_threads=False)
    try:
        yield
    finally:
        faulthandler.disable()


async def _send(
    stream: trio.abc.Stream,
    method: str,
    where: SplitResult,
    headers: dict[str, str],
    body: bytes,
    connection: h11.Connection,
) -> None:
    host = where.netloc.rpartition("@")[2]
    fields = {"host": host, "user-agent": USER_AGENT, "connection": "close", "accept-encoding": "identity"}
    if where.username is not None:
        fields["authorization"] = _basic(where.username, where.password or "")
    fields.update({name.lower(): value for name, value in headers.items()})
    if body or method in {"POST", "PUT"}:
        fields["content-length"] = str(len(body))
    target = (where.path or "/") + (f"?{where.query}" if where.query else "")
    head = h11.Request(method=method, target=target, headers=list(fields.items()))
    sent = [connection.send(head), connection.send(h11.Data(data=body)), connection.send(h11.EndOfMessage())]
    await stream.send_all(b"".join(part for part in sent if part))


async def _receive(stream: trio.abc.Stream, connection: h11.Connection, limit: int, *, cut: bool) -> Response:
    status, received, chunks, size, ended = 0, dict[str, str](), list[bytes](), 0, False
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            if ended:
                raise _EndedError from error
            raise
        if event is h11.NEED_DATA:
            data = bytes(await stream.receive_some())
            ended = not data
            connection.receive_data(data)
        elif isinstance(event, h11.Response):
            status = event.status_code
            if len(event.headers) > MAX_FIELDS:
                raise h11.RemoteProtocolError(f"the answer has more than {MAX_FIELDS} header fields")
            received = {name.decode().lower(): value.decode("latin-1") for name, value in event.headers}
        elif isinstance(event, h11.Data):
            size += len(event.data)
            if size > limit and not cut:
                raise h11.RemoteProtocolError(f"the answer is larger than {limit} bytes")
            chunks.append(bytes(event.data))
        if isinstance(event, h11.EndOfMessage) or size > limit:
            whole = b"".join(chunks)
            if received.get("content-encoding") == "gzip":
                whole = _unzipped(whole, limit, cut=cut)
            return Response(status, received, whole[:limit])
        if isinstance(event, h11.ConnectionClosed):
            raise _EndedError


class _EndedError(OSError):
    def __str__(self) -> str:
        return "the connection ended before the answer did"


def _unzipped(data: bytes, limit: int, *, cut: bool) -> bytes:
    import zlib

    unzip = zlib.decompressobj(wbits=31)
    try:
        whole = unzip.decompress(data, limit + 1)
    except zlib.error as error:
        raise h11.RemoteProtocolError(f"the answer is not gzip: {error}") from error
    if cut:
        return whole
    if len(whole) > limit:
        raise h11.RemoteProtocolError(f"the answer is larger than {limit} bytes")
    if not unzip.eof:
        raise h11.RemoteProtocolError("the answer is not gzip: it ends early")
    return whole


def _basic(user: str, password: str) -> str:
    from base64 import b64encode
    from urllib.parse import unquote

    return "Basic " + b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()


def reason(error: BaseException) -> str:
    """Return the reason of the error in words. Trio wraps several attempts to connect in one error."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(reason(inner) for inner in cause.exceptions))
    if isinstance(error, socket.gaierror):
        return f"the name does not resolve ({error.strerror})"
    if isinstance(error, OSError) and getattr(error, "library", None):  # ssl.SSLError; its errno is OpenSSL's
        return str(error.strerror)
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    if isinstance(cause, OSError):
        return reason(cause)
    return str(error)
