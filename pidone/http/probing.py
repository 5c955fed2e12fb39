"""One HTTP GET as the kubelet's prober sends and judges it: pkg/probe/http on Go's net/http.

It is separate from ``client``, since h11 refuses what Go sends and accepts: a blank in a query, an empty header, heads
of 10 MiB, a bare LF. tests/probes compares the answers of both programs.
"""

from collections.abc import Iterable, Mapping, Sequence

import trio

from pidone.http.client import PROBE_USER_AGENT, reason
from pidone.http.connect import connect
from pidone.http.references import Reference, as_bytes, is_control_in, parse, resolve

BODY_MAX = 10 << 10  # bytes read of a body: the kubelet's maxRespBodyLength
BODY_TRIES = 3  # requests, if a body breaks off: the kubelet's maxProbeRetries
HEAD_MAX = 10 << 20  # bytes of all heads of an answer: Go's limit
LINE_MAX = 256 << 10  # bytes of one line, which is kept in memory
REDIRECTS_MAX = 10
CLOSE_SECONDS = 0.1  # for the server's answer to the end of TLS

Headers = Mapping[str, Sequence[str]]  # by canonical name; the values are UTF-8 bytes as latin-1

_SKIPPED = 2 << 10  # bytes of a redirect's body that are read before its connection is closed
_CHUNK_LINE_MAX = 4096
_CHUNK_EXCESS_MAX = 16 << 10
_BLANK = " \t\r\n"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# The headers of an answer that are used, each with the number of its values that are kept in memory.
_KEPT = {b"location": 1, b"content-length": 2, b"transfer-encoding": 2, b"trailer": 9}
_UNWRITTEN = frozenset({"Host", "User-Agent", "Content-Length", "Transfer-Encoding", "Trailer"})

# Characters of valid parts. A text has no others if strip() leaves nothing: a regular expression would cost 20 KiB.
_HEX = b"0123456789abcdefABCDEF"
_NAME = bytes(range(0x21, 0x7F)).translate(None, b'"(),/:;<=>?@[\\]{}') + b" "
_VALUE = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
_HOST = _NAME.translate(None, b"#^`| ").decode() + "(),:;=[]"


class _Broken(Exception):
    """The answer is not HTTP as Go reads it."""


def canonical_headers(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the headers of a request with the kubelet's defaults: pkg/probe/http/request.go, newProbeRequest."""
    headers: dict[str, list[str]] = {}
    for name, value in pairs:
        canonical = "-".join(part.capitalize() for part in name.split("-"))
        headers.setdefault(canonical, []).append(as_bytes(value))
    headers.setdefault("User-Agent", [PROBE_USER_AGENT])
    if not headers.setdefault("Accept", ["*/*"])[0]:
        del headers["Accept"]
    return headers


async def get(url: Reference, headers: Headers, *, timeout: float, source: str | None) -> str:
    """Send the GET, and follow redirects on the same host. Return why the probe fails; empty if it succeeds.

    ``timeout`` is seconds for the whole answer with its redirects. If a body breaks off, the next request follows at
    once, with the whole time again. ``source`` is the local address to connect from.
    """
    shown = f"GET {url.printable()}"
    why = ""
    for _ in range(BODY_TRIES):
        deadline = trio.current_time() + timeout
        try:
            with trio.fail_at(deadline):
                answer = await _after_redirects(url, headers, source)
        except trio.TooSlowError:
            return f"{shown}: no answer within {timeout:g} s"
        except (OSError, trio.BrokenResourceError, _Broken, ValueError) as error:
            return f"{shown}: {reason(error)}"
        try:
            with trio.fail_at(deadline):
                await answer.read_body(BODY_MAX)
        except trio.TooSlowError:
            why = f"the body was not complete within {timeout:g} s"
        except (OSError, trio.BrokenResourceError, _Broken) as error:
            why = reason(error)
        else:
            return "" if 200 <= answer.status < 400 else f"{shown}: answered {answer.status}"
        finally:
            await answer.close()
    return f"{shown}: {why}"


async def _after_redirects(first: Reference, headers: Headers, source: str | None) -> "_Answer":
    """Return the answer that is no redirect, or one to another host; its connection is open."""
    url, host, sent = first, (headers.get("Host") or [""])[0], headers
    for _ in range(REDIRECTS_MAX):
        answer = await _ask(url, host, sent, source)
        try:
            location = answer.fields.get(b"location", [b""])[0].decode("latin-1")
            if answer.status not in _REDIRECTS or not location:
                return answer
            last, url = url, resolve(url, location)
            if url.name != first.name:
                return answer
            if answer.length <= _SKIPPED:
                await answer.skip_body()
        except BaseException:
            await answer.close()
            raise
        await answer.close()
        if host == last.host or parse(location).scheme:
            host = ""
        sent = _with_referer(headers, last, url)
    raise _Broken(f"more than {REDIRECTS_MAX} redirects")


def _with_referer(headers: Headers, last: Reference, url: Reference) -> Headers:
    if last.scheme == "https" and url.scheme == "http":
        return headers
    return {**headers, "Referer": [(headers.get("Referer") or [""])[0] or last.without_user()]}


async def _ask(url: Reference, host: str, headers: Headers, source: str | None) -> "_Answer":
    """Send one request and return the head of its answer."""
    head = _head(url, host, headers)
    if url.scheme not in {"http", "https"} or url.port > 65535:
        raise _Broken(f"a redirect to {url.printable()}")
    stream = await connect(url.name, url.port, source=source)
    if url.scheme == "https":
        from pidone.http.tls import secured

        answer = _Answer(await secured(stream, url.name, verify=False))
    else:
        answer = _Answer(stream)
    try:
        await answer.exchange(head)
    except BaseException:
        await answer.close()
        raise
    return answer


def _head(url: Reference, host: str, headers: Headers) -> bytes:
    """Return the request as Go writes it: net/http, Request.write. Raises ``_Broken`` if Go refuses to."""
    for name, values in headers.items():
        if any(is_control_in(value.replace("\t", "")) for value in values):
            raise _Broken(f"the value of the header {name} has a control character")
    host = host or url.host
    if not host.isascii():
        raise _Broken("the header Host is not ASCII")
    lines = [f"GET {url.target} HTTP/1.1", f"Host: {'' if host.strip(_HOST) else _without_zone(host)}"]
    agent = headers["User-Agent"][0]
    if agent:
        lines.append(f"User-Agent: {agent.strip(_BLANK)}")
    if url.user is not None and not (headers.get("Authorization") or [""])[0]:
        headers = {**headers, "Authorization": [_basic(url.user)]}
    for name in sorted(headers.keys() - _UNWRITTEN):
        lines += [f"{name}: {value.strip(_BLANK)}" for value in headers[name]]
    connection = headers.get("Connection") or [""]
    upgrade = (headers.get("Upgrade") or [""])[0] and any(
        token.strip(" \t").lower() == "upgrade" for value in connection for token in value.split(",")
    )
    if not upgrade and "close" not in connection[0].lower().replace(",", " ").replace("\t", " ").split(" "):
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _without_zone(host: str) -> str:
    """Return the host without the zone of an IPv6 address (RFC 6874, section 3)."""
    address, bracket, port = host.rpartition("]")
    return address.rpartition("%")[0] + bracket + port if host[:1] == "[" and "%" in address else host


def _basic(user: str) -> str:
    from base64 import b64encode
    from urllib.parse import unquote_to_bytes

    name, _, password = user.partition(":")
    return "Basic " + b64encode(unquote_to_bytes(name) + b":" + unquote_to_bytes(password)).decode()


class _Answer:
    """An answer on its connection, read as Go's net/http reads it."""

    def __init__(self, stream: "trio.SocketStream | trio.SSLStream[trio.SocketStream]") -> None:
        self.status = 0
        self.fields: dict[bytes, list[bytes]] = {}  # the headers of _KEPT
        self.length = -1  # of the body; -1: chunked, or to the end of the connection
        self._chunked = False
        self._stream = stream
        self._buffer = bytearray()
        self._size = 0  # bytes received

    async def close(self) -> None:
        """Close the connection; with TLS, send close_notify first."""
        stream = self._stream
        if not isinstance(stream, trio.SocketStream):
            secure, stream = stream, stream.transport_stream
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_SECONDS):
                try:
                    await secure.unwrap()  # sends the alert; aclose with https_compatible does not
                except (OSError, trio.BrokenResourceError):
                    pass
        await trio.aclose_forcefully(stream)

    async def exchange(self, request: bytes) -> None:
        """Send the request, and read the head of the final answer."""
        await self._stream.send_all(request)
        while True:
            version = await self._read_status()
            self.fields = await self._read_fields()
            self._frame(version)
            if not 100 <= self.status <= 199 or self.status == 101:
                return

    async def read_body(self, limit: int) -> None:
        """Read the body up to this number of bytes."""
        if self._chunked:
            await self._read_chunks(limit)
        elif self.length >= 0:
            await self._skip(min(self.length, limit))
        else:
            while len(self._buffer) < limit and await self._receive():
                pass

    async def skip_body(self) -> None:
        """Read the body of a redirect; errors are ignored, as in Go."""
        try:
            await self.read_body(_SKIPPED)
        except (OSError, trio.BrokenResourceError, _Broken):
            pass

    async def _read_status(self) -> bytes:
        line = await self._line()
        version, blank, status = line.partition(b" ")
        code = status.lstrip(b" ").partition(b" ")[0]
        numbers = version[5:6] + version[7:]
        if (
            not blank
            or version != b"HTTP/%c.%c" % (numbers[:1] or b"?", numbers[1:2] or b"?")
            or not (numbers + code).isdigit()
            or len(code) != 3
        ):
            raise _Broken(f"not a status line of HTTP: {line[:40]!r}")
        self.status = int(code)
        return version

    async def _read_fields(self) -> dict[bytes, list[bytes]]:
        kept: dict[bytes, list[bytes]] = {}
        while line := await self._line():
            if line[:1] in b" \t" or b":" not in line:
                raise _Broken(f"not a header: {line[:40]!r}")
            line = line.strip(b" \t")
            while await self._next_byte() in b" \t":
                line += b" " + (await self._line()).strip(b" \t")
                if len(line) > LINE_MAX:
                    raise _Broken(f"a header of more than {LINE_MAX} bytes")
            name, _, value = line.partition(b":")
            if not name or name.strip(_NAME) or value.strip(_VALUE):
                raise _Broken(f"not a header: {line[:40]!r}")
            name, value = name.lower(), value.lstrip(b" \t")
            values = kept.setdefault(name, []) if name in _KEPT else []
            if len(values) < _KEPT.get(name, 0) and (name != b"content-length" or value not in values):
                values.append(value)
        return kept

    def _frame(self, version: bytes) -> None:
        """Determine the length of the body, or its encoding: net/http, readTransfer."""
        codings = self.fields.get(b"transfer-encoding", [])
        self._chunked = bool(codings) and (version >= b"HTTP/1.1" or version == b"HTTP/0.0")
        if self._chunked and (len(codings) > 1 or codings[0].lower() != b"chunked"):
            raise _Broken(f"the transfer encoding {codings[0][:40]!r}")
        lengths = {value.strip() for value in self.fields.get(b"content-length", [])}
        self.length = _length(lengths) if lengths else -1
        if self._chunked:
            self.length = -1
            trailers = {
                key.strip().lower() for value in self.fields.get(b"trailer", []) for key in value.split(b",")
            }
            if trailers & {b"transfer-encoding", b"trailer", b"content-length"}:
                raise _Broken("a header that cannot be a trailer")
        if self.status < 200 or self.status in {204, 304}:
            self.length, self._chunked = 0, False

    async def _read_chunks(self, limit: int) -> None:
        excess = 0
        while limit > 0:
            line = await self._raw_line(_CHUNK_LINE_MAX)
            if line.find(b"\r") != len(line) - 1:
                raise _Broken("not a line of a chunk")
            digits = line[:-1].rstrip(b" \t").partition(b";")[0]
            if not 0 < len(digits) <= 16 or digits.strip(_HEX):
                raise _Broken(f"not the size of a chunk: {digits[:40]!r}")
            size = int(digits, 16)
            excess = max(0, excess + len(line) + 1 - 16 - 2 * size)
            if excess > _CHUNK_EXCESS_MAX:
                raise _Broken("chunks with too much besides their data")
            if not size:
                await self._read_trailers()
                return
            await self._skip(min(size, limit))
            limit -= size
            if limit > 0 and await self._take(2) != b"\r\n":
                raise _Broken("a chunk without its end")

    async def _read_trailers(self) -> None:
        if await self._peek(2) == b"\r\n":
            return
        while b"\r\n\r\n" not in self._buffer[:_CHUNK_LINE_MAX]:
            if len(self._buffer) >= _CHUNK_LINE_MAX:
                raise _Broken("trailers of more than 4096 bytes")
            await self._more()
        await self._read_fields()

    async def _line(self) -> bytes:
        return (await self._raw_line(LINE_MAX)).removesuffix(b"\r")

    async def _raw_line(self, limit: int) -> bytes:
        """Return the bytes up to the next LF."""
        start = 0
        while (end := self._buffer.find(b"\n", start)) < 0:
            start = len(self._buffer)
            if start >= limit:
                break
            await self._more()
        if not 0 <= end < limit:
            raise _Broken(f"a line of more than {limit} bytes")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def _next_byte(self) -> bytes:
        return await self._peek(1)

    async def _peek(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._more()
        return bytes(self._buffer[:size])

    async def _take(self, size: int) -> bytes:
        data = await self._peek(size)
        del self._buffer[:size]
        return data

    async def _skip(self, size: int) -> None:
        while len(self._buffer) < size:
            size -= len(self._buffer)
            self._buffer.clear()
            await self._more()
        del self._buffer[:size]

    async def _more(self) -> None:
        if not await self._receive():
            raise _Broken("the connection ended before the answer did")

    async def _receive(self) -> bool:
        """Receive some bytes; False at the end of the connection."""
        data = await self._stream.receive_some(4096)
        self._buffer += data
        self._size += len(data)
        if self._size > HEAD_MAX:
            raise _Broken(f"a head of more than {HEAD_MAX} bytes")
        return bool(data)


def _length(texts: set[bytes]) -> int:
    """Return the Content-Length, of which repetitions must be equal."""
    text, *others = texts
    digits = text.lstrip(b"0")
    if others or not text.isdigit() or len(digits) > 19 or int(digits or b"0") >= 1 << 63:
        raise _Broken(f"the content length {text[:40]!r}")
    return int(digits or b"0")
