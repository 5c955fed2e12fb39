"""One call of ``grpc.health.v1.Health/Check``: as much of HTTP/2 (RFC 9113) and gRPC as that takes.

The request is written in HPACK's plainest form, literals without an index. Of the answer only DATA is read:
its one field is the status, and where there is none the call has failed, whatever its headers say. So no
header is ever decoded. The answer is a few bytes, far below what flow control allows without a word.
"""

import struct

import trio

from pidone.errors import ConnectError, ProtocolError, TransferTimeout
from pidone.http.client import reason
from pidone.http.urls import authority

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7
_ACK = _END_STREAM = 0x1
_END_HEADERS, _PADDED = 0x4, 0x8
_FRAME_MAX = 16_384  # bytes; what a server may send to whom it was not allowed more
_STATUS = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}


async def check_health(host: str, port: int, service: str, *, timeout: float, source: str | None) -> str:
    """SERVING, or another status by its name. Raises a ``TransferError``; on cancel the connection is closed."""
    address = authority(host, port)
    shown = f"grpc {address}"
    try:
        with trio.fail_after(timeout):
            stream = await trio.open_tcp_stream(host, port, local_address=source)
            try:
                await stream.send_all(_request(address, service.encode()))
                return _status(await _answer(stream), shown)
            finally:
                await trio.aclose_forcefully(stream)
    except trio.TooSlowError:
        raise TransferTimeout(f"{shown}: no answer within {timeout:g} s") from None
    except (OSError, trio.BrokenResourceError) as error:
        raise ConnectError(f"{shown}: {reason(error)}") from error
    except _Broken as error:
        raise ProtocolError(f"{shown}: {error}") from error


class _Broken(Exception):
    pass


def _request(authority: str, service: bytes) -> bytes:
    headers = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/grpc.health.v1.Health/Check",
        b":authority": authority.encode(),
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    }
    block = b"".join(b"\0" + _literal(name) + _literal(value) for name, value in headers.items())
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
    """The DATA of our one call, to its end."""
    buffer, message = b"", b""
    while True:
        while len(buffer) < 9 or len(buffer) < 9 + int.from_bytes(buffer[:3], "big"):
            if len(buffer) >= 3 and int.from_bytes(buffer[:3], "big") > _FRAME_MAX:
                raise _Broken("the answer is not HTTP/2")  # or HTTP/1.1: "HTT" is a length of 4.7 MB
            received = bytes(await stream.receive_some())
            if not received:
                raise _Broken("the connection ended before the answer did")
            buffer += received
        length = int.from_bytes(buffer[:3], "big")
        kind, flags, on = buffer[3], buffer[4], int.from_bytes(buffer[5:9], "big") & 0x7FFFFFFF
        payload, buffer = buffer[9 : 9 + length], buffer[9 + length :]
        if kind in {_SETTINGS, _PING} and not flags & _ACK:
            await stream.send_all(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind == _GOAWAY or (kind == _RESET and on == 1):
            raise _Broken("the server refused the call")
        elif kind == _DATA and on == 1:
            message += payload[1 : len(payload) - payload[0]] if flags & _PADDED and payload else payload
        if on == 1 and kind in {_DATA, _HEADERS} and flags & _END_STREAM:
            return message


def _status(message: bytes, shown: str) -> str:
    if not message:
        raise ProtocolError(
            f"{shown}: answered without a health status; does it serve grpc.health.v1.Health?"
        )
    body = message[5:]
    if message[0] != 0 or len(body) != int.from_bytes(message[1:5], "big"):
        raise _Broken("the answer is not a gRPC message")
    if not body:
        return _STATUS[0]  # proto3 leaves out a zero
    if len(body) != 2 or body[0] != 0x08:
        raise _Broken("the answer is not a HealthCheckResponse")
    return _STATUS.get(body[1], f"status {body[1]}")


def _frame(kind: int, flags: int, on: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">I", on) + payload


def _literal(text: bytes) -> bytes:
    """A string of HPACK (RFC 7541, 5.2), not compressed; its length has a prefix of seven bits."""
    length = len(text)
    return (bytes((length,)) if length < 127 else b"\x7f" + _varint(length - 127)) + text


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes((*found, number))
