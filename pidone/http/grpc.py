"""One call of ``grpc.health.v1.Health/Check``, with the part of HTTP/2 (RFC 9113) and gRPC that it needs.

The call succeeds or fails as in grpc-go, which the kubelet uses: the first frame is SETTINGS, the answer has a content
type of gRPC and one message, and ends with trailers that contain ``grpc-status: 0``.
"""

import struct

import trio

from pidone.errors import ConnectError, ProtocolError, TransferTimeout
from pidone.http.client import PROBE_USER_AGENT, reason
from pidone.http.connect import connect
from pidone.http.hpack import Decoder, HpackError
from pidone.http.urls import authority

Headers = list[tuple[bytes, bytes]]

_DATA, _HEADERS, _RESET, _SETTINGS, _PUSH, _PING, _GOAWAY, _CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 9
_ACK = _END_STREAM = 0x1
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20
_FRAME_MAX = 16_384  # bytes of a frame that a server may send without permission for more
_ANSWER_MAX = 65_535  # bytes of DATA that a server may send without permission for more
_BLOCK_MAX = 1 << 20  # bytes of a header
_STATUS = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_FIXED_SIZES = {1: 8, 5: 4}  # bytes of Protocol Buffers' fixed-size fields, by wire type


async def check_health(host: str, port: int, service: str, *, timeout: float, source: str | None) -> str:
    """Return SERVING, or another status by its name.

    Raises a ``TransferError`` if the call fails. On cancel the connection is closed.
    """
    address = authority(host, port)
    shown = f"grpc {address}"
    try:
        with trio.fail_after(timeout):
            stream = await connect(host, port, source=source)
            try:
                await stream.send_all(_request(address, service.encode("utf-8", "replace"), timeout))
                return _status(await _answer(stream))
            finally:
                await trio.aclose_forcefully(stream)
    except trio.TooSlowError:
        raise TransferTimeout(f"{shown}: no answer within {timeout:g} s") from None
    except (OSError, trio.BrokenResourceError) as error:
        raise ConnectError(f"{shown}: {reason(error)}") from error
    except (_Broken, HpackError) as error:
        raise ProtocolError(f"{shown}: {error}") from error


class _Broken(Exception):
    """The call failed; the text is the reason."""


def _request(address: str, service: bytes, timeout: float) -> bytes:
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Check",
        ":authority": address,
        "content-type": "application/grpc",
        "user-agent": PROBE_USER_AGENT,
        "te": "trailers",
        "grpc-timeout": f"{timeout * 1000:.0f}m",
    }
    block = b"".join(
        b"\0" + _literal(name.encode()) + _literal(value.encode()) for name, value in headers.items()
    )
    message = b"\x0a" + _varint(len(service)) + service if service else b""  # field 1, a string
    return b"".join(
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            _frame(_SETTINGS, 0, 0, b""),
            _frame(_HEADERS, _END_HEADERS, 1, block),
            _frame(_DATA, _END_STREAM, 1, b"\0" + struct.pack(">I", len(message)) + message),
        )
    )


async def _answer(stream: trio.SocketStream) -> bytes:
    """Return the DATA of the call after its trailers. Raises ``_Broken`` if they do not report success."""
    decoder, connection = Decoder(), _Connection(stream)
    message, opened = b"", False
    while True:
        kind, ends, on, payload = await connection.next()
        if kind == _DATA:
            message += payload
            if not opened or ends:
                raise _Broken("the answer has no header or no trailer")
            if len(message) > _ANSWER_MAX:
                raise _Broken(f"the answer is larger than {_ANSWER_MAX} bytes")
            continue
        headers = decoder.decode(payload)
        if on != 1:
            continue
        if not opened:
            opened = _is_head(headers)
            if not opened:
                continue
        elif not ends:
            raise _Broken("the trailer does not end the answer")
        _check_values(headers)
        if ends:
            _check_end(headers)
            return message


def _is_head(headers: Headers) -> bool:
    """True for the header of an answer, False for an informational one. Raises ``_Broken`` if it is not gRPC."""
    kinds = [value for name, value in headers if name == b"content-type"]
    if any(
        kind == b"application/grpc" or kind.startswith((b"application/grpc+", b"application/grpc;"))
        for kind in kinds
    ):
        return True  # whatever its status, as in grpc-go
    status = dict(headers).get(b":status", b"")
    if len(status) == 3 and status.startswith(b"1"):
        return False
    raise _Broken(f"answered {status[:20].decode('latin-1')}, not with gRPC")


def _check_values(headers: Headers) -> None:
    """Raise ``_Broken`` for a header that grpc-go cannot read."""
    for name, value in headers:
        if (name == b"grpc-status" and _code(value) is None) or (
            name.endswith(b"-bin") and not _is_base64(value)
        ):
            raise _Broken(f"its header {name.decode('latin-1')} is {value[:20].decode('latin-1')!r}")


def _check_end(headers: Headers) -> None:
    text = dict(headers).get(b"grpc-status", b"missing")
    code = _code(text)
    if code == 12:
        raise _Broken("answered without a health status; does it serve grpc.health.v1.Health?")
    if code != 0:
        raise _Broken(f"the call failed; its grpc-status is {text[:20].decode('latin-1')}")


def _code(text: bytes) -> int | None:
    """Return the number as strconv.ParseInt reads it; None if it is none or has more than 32 bits."""
    digits = text[1:] if text[:1] in {b"+", b"-"} else text
    significant = digits.lstrip(b"0")[:11]
    if not digits.isdigit() or int(significant or b"0") >= 1 << 31:
        return None
    return int(significant or b"0")


def _is_base64(text: bytes) -> bool:
    from binascii import Error, a2b_base64

    padding = -len(text) % 4
    try:
        a2b_base64(text + b"=" * padding, strict_mode=True)
    except Error:
        return False
    return not (padding and b"=" in text)


class _Connection:
    """The server's frames. SETTINGS and PING are acknowledged."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""
        self._first = True

    async def next(self) -> tuple[int, bool, int, bytes]:
        """Return the next DATA of the call or the next header block: the type, whether it ends its stream, the stream.

        Raises ``_Broken`` if the server refuses the call.
        """
        while True:
            kind, flags, on, payload = await self._frame()
            if kind in {_SETTINGS, _PING} and not flags & _ACK:
                await self._stream.send_all(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
            elif kind == _GOAWAY and int.from_bytes(payload[:4], "big") & 0x7FFFFFFF:
                pass  # calls that have begun are still answered
            elif kind in {_GOAWAY, _PUSH} or (kind == _RESET and on == 1):
                raise _Broken("the server refused the call")
            elif kind == _DATA and on == 1:
                return kind, bool(flags & _END_STREAM), on, _unpadded(payload, flags)
            elif kind == _HEADERS:
                block = _unpadded(payload, flags)[5 if flags & _PRIORITY else 0 :]
                return kind, bool(flags & _END_STREAM), on, await self._whole_block(block, flags)

    async def _whole_block(self, block: bytes, flags: int) -> bytes:
        while not flags & _END_HEADERS:
            kind, flags, _, payload = await self._frame()
            block += payload
            if kind != _CONTINUATION or len(block) > _BLOCK_MAX:
                raise _Broken("a header without its end")
        return block

    async def _frame(self) -> tuple[int, int, int, bytes]:
        """Return type, flags, stream and payload of the next frame. Raises ``_Broken`` if the first is not SETTINGS."""
        while len(self._buffer) < 9 or len(self._buffer) < 9 + int.from_bytes(self._buffer[:3], "big"):
            # an answer of HTTP/1.1 begins with "HTT", as a length 4.7 MB
            if len(self._buffer) >= 3 and int.from_bytes(self._buffer[:3], "big") > _FRAME_MAX:
                raise _Broken("the answer is not HTTP/2")
            received = bytes(await self._stream.receive_some())
            if not received:
                raise _Broken("the connection ended before the answer did")
            self._buffer += received
        length = int.from_bytes(self._buffer[:3], "big")
        kind, flags = self._buffer[3], self._buffer[4]
        on = int.from_bytes(self._buffer[5:9], "big") & 0x7FFFFFFF
        payload, self._buffer = self._buffer[9 : 9 + length], self._buffer[9 + length :]
        if self._first and (kind != _SETTINGS or flags & _ACK):
            raise _Broken("the answer is not HTTP/2: it does not begin with SETTINGS")
        self._first = False
        return kind, flags, on, payload


def _unpadded(payload: bytes, flags: int) -> bytes:
    if not flags & _PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise _Broken("a frame with too much padding")
    return payload[1 : len(payload) - payload[0]]


def _status(message: bytes) -> str:
    """Return the status of the HealthCheckResponse in gRPC's frame."""
    if not message:
        raise _Broken("answered without a health status; does it serve grpc.health.v1.Health?")
    end = 5 + int.from_bytes(message[1:5], "big")
    if message[0] != 0 or not end <= len(message) < end + 5:
        raise _Broken("the answer is not one gRPC message")
    try:
        status = _first_field(message[5:end])
    except LookupError:
        raise _Broken("the answer is not a HealthCheckResponse") from None
    return _STATUS.get(status, f"status {status}")


def _first_field(body: bytes) -> int:
    """Return the number in field 1 of a message of Protocol Buffers; 0 without one. Raises LookupError."""
    status = at = 0
    groups: list[int] = []
    while at < len(body):
        tag, at = _number(body, at)
        field, kind = tag >> 3, tag & 7
        if not 0 < field < 1 << 29:
            raise LookupError
        if kind == 0:
            value, at = _number(body, at)
            status = value & 0xFFFFFFFF if field == 1 and not groups else status
        elif kind == 2:
            size, at = _number(body, at)
            at += size
        elif kind == 3:
            groups.append(field)
        elif kind == 4:
            if groups.pop() != field:
                raise LookupError
        else:
            at += _FIXED_SIZES[kind]
    if at > len(body) or groups:
        raise LookupError
    return status


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint of Protocol Buffers, and the place after it. Raises IndexError."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise IndexError


def _frame(kind: int, flags: int, on: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">I", on) + payload


def _literal(text: bytes) -> bytes:
    """Return the text as a string of HPACK (RFC 7541, 5.2), not compressed; its length has a prefix of seven bits."""
    length = len(text)
    return (bytes((length,)) if length < 127 else b"\x7f" + _varint(length - 127)) + text


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes((*digits, number))
