"""A grpc probe has the kubelet's verdict, and the application sees the same call."""

from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest
import trio

from pidone.http.client import PROBE_USER_AGENT
from tests.patience import PATIENCE_SECONDS
from tests.probes.comparing import Outcome, of_kubelet, of_pidone, pod_with
from tests.probes.kubelet import Kubelet

SERVING = b"\0\0\0\0\x02\x08\x01"
HEAD = [(":status", "200"), ("content-type", "application/grpc")]
GOOD = [("grpc-status", "0")]

Respond = Callable[[Any, int], None]


class Server:
    """Records each call: its headers and its message."""

    def __init__(self, respond: Respond) -> None:
        self._respond = respond
        self.port = 0
        self._calls: list[tuple[object, ...]] = []
        self._open = 0
        self._closed = trio.Event()

    async def start(self, nursery: trio.Nursery, ip: str, port: int = 0) -> None:
        listeners = await trio.open_tcp_listeners(port, host=ip)
        self.port = listeners[0].socket.getsockname()[1]
        await nursery.start(trio.serve_listeners, self._serve, listeners)

    async def take(self) -> tuple[Any, ...]:
        """Return the calls, when all connections are closed."""
        with trio.fail_after(PATIENCE_SECONDS):
            while self._open:
                await self._closed.wait()
        calls, self._calls = tuple(self._calls), []
        return calls

    async def _serve(self, stream: trio.SocketStream) -> None:
        self._open += 1
        self._closed = trio.Event()
        try:
            async with stream:
                await self._converse(stream)
        except (trio.BrokenResourceError, h2.exceptions.ProtocolError):
            pass
        finally:
            self._open -= 1
            self._closed.set()

    async def _converse(self, stream: trio.SocketStream) -> None:
        config = h2.config.H2Configuration(
            client_side=False,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        connection = h2.connection.H2Connection(config)
        connection.initiate_connection()
        headers: dict[str, str] = {}
        message = b""
        while True:
            await stream.send_all(connection.data_to_send())
            data = await stream.receive_some()
            if not data:
                return
            for event in connection.receive_data(bytes(data)):
                match event:
                    case h2.events.RequestReceived():
                        headers = {str(name): str(value) for name, value in event.headers}
                    case h2.events.DataReceived():
                        message += event.data
                    case h2.events.StreamEnded():
                        assert headers.pop("grpc-timeout")[-1] in "num", "its number is the time that is left"
                        headers["user-agent"] = headers["user-agent"].replace(
                            "kube-probe/1.36 grpc-go/1.79.3", PROBE_USER_AGENT
                        )
                        self._calls.append((tuple(headers.items()), message))
                        self._respond(connection, event.stream_id)


def says(
    head: list[tuple[str, str]] | None = HEAD,
    *messages: bytes,
    end: list[tuple[str, str]] | None = GOOD,
    more: bool = False,
    **options: Any,
) -> Respond:
    def respond(connection: Any, stream: int) -> None:
        if head is not None:
            connection.send_headers(stream, head, end_stream=end is None and not messages)
        for number, message in enumerate(messages):
            last = end is None and not more and number == len(messages) - 1
            connection.send_data(stream, message, end_stream=last, **options)
        if end is not None:
            connection.send_headers(stream, end, end_stream=True)

    return respond


def together(*responses: Respond) -> Respond:
    def respond(connection: Any, stream: int) -> None:
        for response in responses:
            response(connection, stream)

    return respond


def emit(connection: Any, head: bytes, stream: int, payload: bytes) -> None:
    """Send a frame that h2 would not send: ``head`` is length, type and flags."""
    connection._data_to_send += head + stream.to_bytes(4, "big") + payload


async def compare(
    kubelet: Kubelet,
    respond: Respond,
    ip: str = "127.0.0.1",
    *,
    calls: bool = True,
    timeout: int = 60,
    **grpc: Any,
) -> Outcome:
    async with trio.open_nursery() as nursery:
        server = Server(respond)
        await server.start(nursery, ip)
        pod = pod_with({"grpc": {"port": server.port} | grpc, "timeoutSeconds": timeout}, ip)
        expected = await of_kubelet(kubelet, pod)
        assert expected
        expected_calls = await server.take()
        outcome = await of_pidone(pod)
        assert outcome == expected, f"{outcome.why} / {expected.why}"
        assert not calls or await server.take() == expected_calls
        nursery.cancel_scope.cancel()
    return expected


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("service", [None, "", "shop.v1.Cart", "ä", "s" * 300])
async def test_call(kubelet: Kubelet, ip: str, service: str | None) -> None:
    assert (await compare(kubelet, says(HEAD, SERVING), ip, service=service)).healthy


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


MESSAGES = {
    "serving": b"\x08\x01",
    "not serving": b"\x08\x02",
    "service unknown": b"\x08\x03",
    "unknown": b"",
    "zero": b"\x08\x00",
    "another status": b"\x08\x09",
    "a long number": b"\x08\x81\x00",
    "a very long number": b"\x08\x81\x80\x80\x80\x80\x80\x80\x80\x80\x00",
    "a number of 64 bits": b"\x08\x81\x80\x80\x80\x10",
    "a number without an end": b"\x08\x81",
    "a number of eleven bytes": b"\x08\x81\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00",
    "another field": b"\x10\x01",
    "another field and serving": b"\x10\x01\x08\x01",
    "a string and serving": b"\x1a\x03abc\x08\x01",
    "a string that is too short": b"\x08\x01\x1a\x03ab",
    "fixed sizes": b"\x21" + bytes(8) + b"\x2d" + bytes(4) + b"\x08\x01",
    "a status that is a string": b"\x0a\x01a",
    "twice, the last serving": b"\x08\x02\x08\x01",
    "twice, the last not": b"\x08\x01\x08\x02",
    "field 0": b"\x00\x01\x08\x01",
    "wire type 6": b"\x0e\x01",
    "a group": b"\x13\x10\x01\x14\x08\x01",
    "no Protocol Buffers": b"hello",
}


@pytest.mark.parametrize("name", MESSAGES)
async def test_message(kubelet: Kubelet, name: str) -> None:
    await compare(kubelet, says(HEAD, framed(MESSAGES[name])))


ANSWERS = {
    "in pieces": says(HEAD, SERVING[:1], SERVING[1:4], SERVING[4:]),
    "with padding": says(HEAD, SERVING, pad_length=7),
    "an error after the message": says(HEAD, SERVING, end=[("grpc-status", "2"), ("grpc-message", "no")]),
    "unimplemented": says(HEAD, end=[("grpc-status", "12")]),
    "an error alone": says([*HEAD, ("grpc-status", "12")], end=None),
    "success without a message": says(HEAD),
    "success alone": says([*HEAD, *GOOD], end=None),
    "no trailers": says(HEAD, SERVING, end=None),
    "trailers without a status": says(HEAD, SERVING, end=[("x", "y")]),
    "a status that is no number": says(HEAD, SERVING, end=[("grpc-status", "ok")]),
    "a status of two zeros": says(HEAD, SERVING, end=[("grpc-status", "00")]),
    "an empty status": says(HEAD, SERVING, end=[("grpc-status", "")]),
    "two statuses": says(HEAD, SERVING, end=[("grpc-status", "2"), ("grpc-status", "0")]),
    "two messages": says(HEAD, SERVING, SERVING),
    "a compressed message": says(HEAD, b"\1" + SERVING[1:]),
    "a message that is too short": says(HEAD, SERVING[:-1]),
    "a message with more": says(HEAD, SERVING + b"x"),
    "no message at all": says(HEAD, b"\0\0"),
    "404": says([(":status", "404"), ("content-type", "application/grpc")], SERVING),
    "201": says([(":status", "201"), ("content-type", "application/grpc")], SERVING),
    "503 of a proxy": says([(":status", "503"), ("content-type", "text/html")], b"<html>", end=None),
    "a page": says([(":status", "200"), ("content-type", "text/html")], b"<html>", end=None),
    "no content type": says([(":status", "200")], SERVING),
    "another content type": says([(":status", "200"), ("content-type", "application/json")], SERVING),
    "grpc+proto": says([(":status", "200"), ("content-type", "application/grpc+proto")], SERVING),
    "grpc; charset": says([(":status", "200"), ("content-type", "application/grpc; charset=utf-8")], SERVING),
    "grpc-web": says([(":status", "200"), ("content-type", "application/grpc-web")], SERVING),
    "GRPC": says([(":status", "200"), ("content-type", "Application/GRPC")], SERVING),
    "no status": says([("content-type", "application/grpc")], SERVING),
    "many headers": says([*HEAD, *((f"x-{number}", "ä~" * 50) for number in range(200))], SERVING),
    "all characters": says([*HEAD, ("x", "".join(map(chr, range(32, 127))))], SERVING),
    "a reset": lambda connection, stream: connection.reset_stream(stream, 2),
    "a reset after the message": together(
        says(HEAD, SERVING, end=None, more=True), lambda connection, stream: connection.reset_stream(stream, 0)
    ),
    "100 first": together(
        lambda connection, stream: connection.send_headers(stream, [(":status", "103")]), says(HEAD, SERVING)
    ),
    "a ping": together(lambda connection, _stream: connection.ping(b"12345678"), says(HEAD, SERVING)),
    "a smaller table": together(
        lambda connection, _stream: connection.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0}),
        says(HEAD, SERVING),
    ),
    "twice the same headers": says(
        [*HEAD, *[("x-a", "b")] * 3, ("grpc-encoding", "identity")], SERVING, end=[*[("x-a", "b")] * 3, *GOOD]
    ),
    "a binary header": says([*HEAD, ("x-bin", "AAE")], SERVING),
    "a message and four bytes": says(HEAD, SERVING + b"\0\0\0\0"),
    "a message and an empty one": says(HEAD, SERVING + b"\0\0\0\0\0"),
    "a message and half of another": says(HEAD, SERVING + b"\0\0\0\0\2\x08"),
    "DATA after its end": together(
        says(HEAD, SERVING), lambda connection, stream: emit(connection, b"\0\0\1\0\0", stream, b"x")
    ),
    "frames of an unknown type": together(
        lambda connection, stream: emit(connection, b"\0\0\1\xee\0", stream, b"x"), says(HEAD, SERVING)
    ),
    "headers in the middle": together(
        says(HEAD, SERVING, end=None, more=True),
        lambda connection, stream: emit(connection, b"\0\0\1\1\4", stream, b"\x88"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
async def test_answer(kubelet: Kubelet, name: str) -> None:
    await compare(kubelet, ANSWERS[name])


async def test_answer_after_a_goaway(kubelet: Kubelet) -> None:
    """A server that ends gracefully answers the calls that have begun."""

    def goaway(connection: Any, stream: int) -> None:
        emit(connection, b"\0\0\x08\x07\0", 0, stream.to_bytes(4, "big") + bytes(4))

    assert (await compare(kubelet, together(goaway, says(HEAD, SERVING)))).healthy
