"""The differences that docs/probes.md lists are there, so that the list stays true."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trio

from pidone.http import probing
from tests.probes import test_grpc
from tests.probes.comparing import Outcome, Server, of_kubelet, of_pidone, pod_with
from tests.probes.kubelet import Kubelet
from tests.probes.test_http import EMPTY, OK, certificate, lenient, says, self_signed, status, tls

__all__ = ["certificate"]  # a fixture


async def both(kubelet: Kubelet, probe: dict[str, Any], server: Any = None) -> tuple[Outcome, Outcome]:
    """Return the kubelet's outcome and pidone's."""
    pod = pod_with(probe, "127.0.0.1")
    expected = await of_kubelet(kubelet, pod, server)
    assert expected
    return expected, await of_pidone(pod, server)


async def test_http_2_over_tls(kubelet: Kubelet, certificate: Path, nursery: trio.Nursery) -> None:
    """A server that speaks HTTP/2 alone is healthy for the kubelet only; one that speaks both is healthy for both."""
    protocols: list[str | None] = []

    async def serve(stream: trio.SocketStream) -> None:
        secure = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            await secure.do_handshake()
            protocols.append(secure.selected_alpn_protocol())
            if protocols[-1] != "h2":
                await secure.receive_some()
                await secure.send_all(OK if alone is False else b"")
                await secure.aclose()
                return
            connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
            connection.initiate_connection()
            while True:
                await secure.send_all(connection.data_to_send())
                data = await secure.receive_some()
                if not data:
                    return
                for event in connection.receive_data(bytes(data)):
                    if isinstance(event, h2.events.RequestReceived):
                        connection.send_headers(event.stream_id, [(":status", "200")], end_stream=True)
        except trio.BrokenResourceError:
            await trio.aclose_forcefully(stream)

    context: ssl.SSLContext = tls(certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(trio.serve_listeners, serve, listeners)
    port = listeners[0].socket.getsockname()[1]
    for alone in (True, False):
        probe = {"httpGet": {"port": port, "scheme": "HTTPS"}, "timeoutSeconds": 60}
        expected, outcome = await both(kubelet, probe)
        assert (expected.healthy, outcome.healthy) == (True, not alone)
    assert protocols[0] == "h2"
    assert None in protocols
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("key", ["-newkey ed448", "-newkey rsa:2048 -md5", "-newkey rsa:2048 -set_serial -5"])
async def test_weak_certificates(kubelet: Kubelet, tmp_path: Path, key: str, nursery: trio.Nursery) -> None:
    server = Server(says(OK))
    await server.start(nursery, "127.0.0.1", lenient(self_signed(tmp_path / "key.pem", key)))
    probe = {"httpGet": {"port": server.port, "scheme": "HTTPS"}, "timeoutSeconds": 60}
    expected, outcome = await both(kubelet, probe)
    assert (expected.healthy, outcome.healthy) == (False, True)
    nursery.cancel_scope.cancel()


async def test_a_line_of_more_than_256_kilobytes(kubelet: Kubelet, nursery: trio.Nursery) -> None:
    for size, healthy in ((probing.LINE_MAX - 10, True), (probing.LINE_MAX + 10, False)):
        server = Server(says(status("200 OK", f"X: {'x' * size}", EMPTY)))
        await server.start(nursery, "127.0.0.1")
        expected, outcome = await both(kubelet, {"httpGet": {"port": server.port}, "timeoutSeconds": 60})
        assert (expected.healthy, outcome.healthy) == (True, healthy)
    nursery.cancel_scope.cancel()


async def test_a_host_that_is_not_ascii(kubelet: Kubelet, nursery: trio.Nursery) -> None:
    server = Server(says(OK))
    await server.start(nursery, "127.0.0.1")
    headers = [{"name": "Host", "value": "prüfung.example"}]
    probe = {"httpGet": {"port": server.port, "httpHeaders": headers}, "timeoutSeconds": 60}
    expected, outcome = await both(kubelet, probe, server)
    assert b"Host: xn--prfung-4ya.example\r\n" in expected.requests[0][0]
    assert not outcome.healthy
    assert "the header Host is not ASCII" in outcome.why
    nursery.cancel_scope.cancel()


async def test_a_grpc_server_that_starts_within_the_timeout(
    kubelet: Kubelet, nursery: trio.Nursery, free_port: Callable[[], int]
) -> None:
    port = free_port()
    pod = pod_with({"grpc": {"port": port}, "timeoutSeconds": 60}, "127.0.0.1")
    assert "Connection refused" in (await of_pidone(pod)).why

    async def start() -> None:
        await trio.sleep(0.2)
        server = test_grpc.Server(test_grpc.says(test_grpc.HEAD, test_grpc.SERVING))
        await server.start(nursery, "127.0.0.1", port)

    nursery.start_soon(start)
    expected = await of_kubelet(kubelet, pod)
    assert expected
    assert expected.healthy
    nursery.cancel_scope.cancel()


async def test_a_grpc_answer_of_more_than_64_kilobytes(kubelet: Kubelet, nursery: trio.Nursery) -> None:
    filler = b"\x1a\x80\x80\x04" + b"x" * 65_536  # field 3, a string
    message = b"\x08\x01" + filler

    def respond(connection: Any, stream: int) -> None:
        connection.send_headers(stream, test_grpc.HEAD)
        framed = test_grpc.framed(message)
        window = connection.local_flow_control_window(stream)
        for at in range(0, min(window, len(framed)), 16_384):
            connection.send_data(stream, framed[at : min(at + 16_384, window)])

    server = test_grpc.Server(respond)
    await server.start(nursery, "127.0.0.1")
    outcome = await of_pidone(pod_with({"grpc": {"port": server.port}}, "127.0.0.1"))
    assert not outcome.healthy
    nursery.cancel_scope.cancel()
