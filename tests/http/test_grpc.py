"""The health call against an HTTP/2 stack that is not ours: h2, which refuses what RFC 9113 does not allow."""

from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trio

from pidone.errors import ConnectError, ProtocolError, TransferError, TransferTimeout
from pidone.http.grpc import check_health
from tests.http.serving import raw_server, says
from tests.patience import PATIENCE_SECONDS


class HealthServer:
    """Answers as ``answer`` says: bytes of a HealthCheckResponse, or None for trailers alone."""

    def __init__(self, answer: bytes | None, *, padding: int | None = None) -> None:
        self.answer, self.padding = answer, padding
        self.headers: dict[bytes, bytes] = {}
        self.body = b""

    async def serve(self, stream: trio.SocketStream) -> None:
        connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding=None)
        )
        connection.initiate_connection()
        connection.ping(b"12345678")
        acknowledged = set[str]()
        while True:
            await stream.send_all(connection.data_to_send())
            data = await stream.receive_some()
            if not data:
                return
            for event in connection.receive_data(bytes(data)):
                match event:
                    case h2.events.RequestReceived():
                        self.headers = dict(event.headers)
                    case h2.events.DataReceived():
                        self.body += event.data
                    case h2.events.SettingsAcknowledged() | h2.events.PingAckReceived():
                        acknowledged.add(type(event).__name__)
                        if len(acknowledged) == 2:
                            self.respond(connection)

    def respond(self, connection: Any) -> None:
        connection.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
        if self.answer is not None:
            framed = b"\0" + len(self.answer).to_bytes(4, "big") + self.answer
            connection.send_data(1, framed[:3], pad_length=self.padding)
            connection.send_data(1, framed[3:], pad_length=self.padding)
        connection.send_headers(
            1, [("grpc-status", "0" if self.answer is not None else "12")], end_stream=True
        )


async def ask(nursery: trio.Nursery, server: HealthServer, service: str = "") -> str:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(trio.serve_listeners, server.serve, listeners)
    port = listeners[0].socket.getsockname()[1]
    return await check_health("127.0.0.1", port, service, timeout=PATIENCE_SECONDS, source=None)


@pytest.mark.parametrize(
    ("answer", "status"),
    [(b"\x08\x01", "SERVING"), (b"\x08\x02", "NOT_SERVING"), (b"", "UNKNOWN"), (b"\x08\x09", "status 9")],
)
@pytest.mark.parametrize("padding", [None, 7])
async def test_the_status_is_what_the_server_says(
    nursery: trio.Nursery, answer: bytes, status: str, padding: int | None
) -> None:
    server = HealthServer(answer, padding=padding)
    assert await ask(nursery, server) == status
    assert server.headers[b":path"] == b"/grpc.health.v1.Health/Check"
    assert server.headers[b"te"] == b"trailers"
    assert server.body == b"\0\0\0\0\0"
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("length", [1, 100, 300])
async def test_it_asks_about_one_service(nursery: trio.Nursery, length: int) -> None:
    server = HealthServer(b"\x08\x01")
    assert await ask(nursery, server, "s" * length) == "SERVING"
    message = server.body[5:]
    assert message.endswith(b"s" * length)
    assert int.from_bytes(server.body[1:5], "big") == len(message) == length + (2 if length < 128 else 3)
    nursery.cancel_scope.cancel()


async def test_a_server_without_the_health_service_is_told_so(nursery: trio.Nursery) -> None:
    with pytest.raises(
        ProtocolError, match=r"without a health status; does it serve grpc\.health\.v1\.Health"
    ):
        await ask(nursery, HealthServer(None))
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"",
        b"\0\0\x08\x07\0\0\0\0\0" + bytes(8),
        b"\0\0\x04\x03\0\0\0\0\x01" + bytes(4),
        b"\0\0\x02\0\x01\0\0\0\x01hi",
        b"\0\0\x01\0\x09\0\0\0\x01\xff",
    ],
)
async def test_what_is_no_answer_is_an_error(nursery: trio.Nursery, said: bytes) -> None:
    port = await raw_server(nursery, says(said))
    with pytest.raises(TransferError, match=r"grpc 127\.0\.0\.1"):
        await check_health("127.0.0.1", port, "", timeout=PATIENCE_SECONDS, source=None)
    nursery.cancel_scope.cancel()


async def test_nobody_and_silence(nursery: trio.Nursery, free_port: Any) -> None:
    with pytest.raises(ConnectError, match="Connection refused"):
        await check_health("127.0.0.1", free_port(), "", timeout=PATIENCE_SECONDS, source=None)

    async def silence(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    port = await raw_server(nursery, silence)
    with pytest.raises(TransferTimeout, match=r"no answer within 0\.1 s"):
        await check_health("127.0.0.1", port, "", timeout=0.1, source=None)
    nursery.cancel_scope.cancel()
