"""One unary gRPC call over a unix socket: HTTP/2 by h2, a connection a call."""

import socket
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events

from tests.cri.messages import Call
from tests.cri.protobuf import Message, decode, encode

FRAME = 5  # bytes before a message: a flag for compression, and the length


class CallError(Exception):
    """The server's answer was an error."""


def call(path: Path, what: Call, request: dict[str, Any], *, timeout: float = 30) -> Message:
    """Make the call and return the answer; OSError where nobody listens, CallError for an error status."""
    body = encode(what.request, request)
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(timeout)
        stream.connect(str(path))
        headers, answer = _exchange(stream, what.path, b"\0" + len(body).to_bytes(4, "big") + body)
    if headers.get("grpc-status") != "0":
        raise CallError(f"{what.path}: {unquote(headers.get('grpc-message', ''))} ({headers})")
    return decode(what.response, answer[FRAME:])


def _exchange(stream: socket.socket, path: str, body: bytes) -> tuple[dict[str, str], bytes]:
    """All headers of the answer, the trailing ones too, and its body."""
    http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    http.initiate_connection()
    names = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost"}
    http.send_headers(1, list({**names, "content-type": "application/grpc", "te": "trailers"}.items()))
    http.send_data(1, body, end_stream=True)  # requests are smaller than the first window
    stream.sendall(http.data_to_send())
    headers: dict[str, str] = {}
    answer = b""
    while received := stream.recv(65536):
        for event in http.receive_data(received):
            match event:
                case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                    headers |= {str(name): str(value) for name, value in event.headers or ()}
                case h2.events.DataReceived():
                    answer += event.data or b""
                    http.acknowledge_received_data(event.flow_controlled_length or 0, 1)
                case h2.events.StreamEnded():
                    return headers, answer
                case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                    raise CallError(f"{path}: {event}")
        stream.sendall(http.data_to_send())
    raise CallError(f"{path}: the connection ended")
