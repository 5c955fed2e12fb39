"""tcpSocket and exec, timeouts, ports and defaults have the kubelet's verdict."""

import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from pidone.language.rendering import render
from tests.probes import test_grpc
from tests.probes.comparing import (
    HANG,
    OWN_PROBE,
    Outcome,
    Server,
    of_action,
    of_kubelet,
    of_pidone,
    pod_with,
)
from tests.probes.kubelet import Kubelet
from tests.probes.test_http import CHUNKED, EMPTY, OK, certificate, status, tls

__all__ = ["certificate"]  # a fixture


async def compare(
    kubelet: Kubelet, probe: dict[str, Any], ip: str = "127.0.0.1", **container: Any
) -> Outcome:
    pod = pod_with(probe, ip, **container)
    expected = await of_kubelet(kubelet, pod)
    assert expected
    outcome = await of_pidone(pod)
    assert outcome == expected, f"{outcome.why} / {expected.why}"
    return expected


@contextmanager
def listening(ip: str = "127.0.0.1", backlog: int = 9) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.create_server((ip, 0), family=family, backlog=backlog) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
async def test_tcp(kubelet: Kubelet, ip: str, free_port: Callable[[], int]) -> None:
    with listening(ip) as port:
        assert (await compare(kubelet, {"tcpSocket": {"port": port}}, ip)).healthy
    assert not (await compare(kubelet, {"tcpSocket": {"port": free_port()}}, ip)).healthy


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "", "::1", "[::1]", "no.such.invalid", "a b"])
async def test_host_of_tcp(kubelet: Kubelet, host: str) -> None:
    with listening() as port:
        await compare(kubelet, {"tcpSocket": {"port": port, "host": host}})


async def test_a_connection_that_the_server_closes_at_once(kubelet: Kubelet) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, trio.aclose_forcefully, listeners)
        port = listeners[0].socket.getsockname()[1]
        assert (await compare(kubelet, {"tcpSocket": {"port": port}})).healthy
        assert not (await compare(kubelet, {"httpGet": {"port": port}})).healthy
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("handler", ["httpGet", "tcpSocket"])
async def test_a_named_port_of_the_container(kubelet: Kubelet, handler: str) -> None:
    async with trio.open_nursery() as nursery:
        server = Server(lambda _head, _port: [OK])
        await server.start(nursery, "127.0.0.1")
        ports = [{"name": "other", "containerPort": 1}, {"name": "web", "containerPort": server.port}]
        probe = {handler: {"port": "web"}, "timeoutSeconds": 60}
        assert (await compare(kubelet, probe, ports=ports)).healthy
        probe = {handler: {"port": "other"}, "timeoutSeconds": 60}
        assert not (await compare(kubelet, probe, ports=ports)).healthy
        nursery.cancel_scope.cancel()


def python(script: str) -> list[str]:
    return [sys.executable, "-S", "-c", script]


@pytest.mark.parametrize(
    "command",
    [
        ["/bin/true"],
        ["/bin/false"],
        ["/no/such"],
        ["/"],
        ["/etc/passwd"],
        *(["/bin/sh", "-c", f"exit {code}"] for code in (0, 1, 2, 3, 126, 127, 128, 143, 255)),
        *(["/bin/sh", "-c", f"kill -{signal} $$"] for signal in ("TERM", "KILL", "SEGV")),
        ["/bin/sh", "-c", "echo out; echo err >&2"],
        ["/bin/sh", "-c", "echo out; exit 1"],
        python("print('x' * 1_000_000)"),
        python("import sys; sys.exit('no')"),
    ],
    ids=str,
)
async def test_exec(kubelet: Kubelet, command: list[str]) -> None:
    config = {"exec": {"command": command}, "timeoutSeconds": 60}
    expected = await of_kubelet(kubelet, pod_with(config, "127.0.0.1"))
    assert expected
    assert (await of_action(config, "127.0.0.1")).healthy == expected.healthy


NUMBERS = ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "successThreshold", "failureThreshold")


@pytest.mark.parametrize(
    "given", [{}, dict.fromkeys(NUMBERS, 0), dict.fromkeys(NUMBERS, 7), {"periodSeconds": 3}]
)
async def test_defaults_are_those_of_the_api_server(kubelet: Kubelet, given: dict[str, int]) -> None:
    pod = pod_with({"httpGet": {"port": 1}} | given, "127.0.0.1")
    stored = (await kubelet.probe(pod))["pod"]["spec"]["containers"][0]["readinessProbe"]
    rendered = render([OWN_PROBE], {}, pod)[0]["probe"]
    for name in NUMBERS:
        assert rendered[name] == stored.get(name, 0)
    for name in ("path", "scheme"):
        assert rendered["httpGet"][name] == stored["httpGet"][name]
    # and the plan of a pod as the API server returns it is the same
    stored_pod = pod_with(stored, "127.0.0.1")
    assert render([OWN_PROBE], {}, stored_pod)[0]["probe"] == rendered


FULL = status("200 OK", "Content-Length: 20000", body=b"x" * 12_000)
SLOW: dict[str, tuple[dict[str, Any], list[bytes | str], bool]] = {
    "no answer": ({}, [HANG], False),
    "no answer, and no timeout": ({"timeoutSeconds": 0}, [HANG], False),
    "half a head": ({}, [b"HTTP/1.1 200 OK\r\nA: b\r\n", HANG], False),
    "100 alone": ({}, [b"HTTP/1.1 100 Continue\r\n\r\n", HANG], False),
    "half a body": ({}, [status("200 OK", "Content-Length: 5", body=b"x"), HANG], False),
    "half a body of 404": ({}, [status("404 x", "Content-Length: 5", body=b"x"), HANG], False),
    "half a chunk": ({}, [status("200 OK", CHUNKED, body=b"5\r\nx"), HANG], False),
    "no last chunk": ({}, [status("200 OK", CHUNKED, body=b"1\r\nx\r\n"), HANG], False),
    "no end": ({}, [status("200 OK", body=b"x"), HANG], False),
    "ten kilobytes": ({}, [FULL, HANG], True),
    "a redirect to nothing": ({}, [status("302 x", "Location: /", EMPTY), HANG], False),
    "a whole body": ({}, [OK, HANG], True),
}


async def test_slow_servers(kubelet: Kubelet) -> None:
    """All at the same time, since each takes the timeout of a second, up to three times."""

    async def one(name: str, ask: Callable[..., Awaitable[Outcome | None]]) -> None:
        options, steps, _ = SLOW[name]
        async with trio.open_nursery() as nursery:
            server = Server(lambda head, _port: [HANG] if b"Referer" in head else steps)
            await server.start(nursery, "127.0.0.1")
            pod = pod_with({"httpGet": {"port": server.port}} | options, "127.0.0.1")
            outcome = await ask(pod, server)
            assert outcome
            outcomes.setdefault(name, []).append(
                (outcome.healthy, [len(record) for record in outcome.requests])
            )
            nursery.cancel_scope.cancel()

    outcomes: dict[str, list[Any]] = {}
    async with trio.open_nursery() as nursery:
        for name in SLOW:
            nursery.start_soon(one, name, lambda pod, server: of_kubelet(kubelet, pod, server))
            nursery.start_soon(one, name, of_pidone)
    for name, (_, _, healthy) in SLOW.items():
        first, second = outcomes[name]
        assert first == second, name
        assert first[0] == healthy, name


async def test_slow_calls(kubelet: Kubelet, free_port: Callable[[], int], certificate: Path) -> None:
    """What a gRPC server can do to be waited for; the kubelet connects again until the timeout."""

    async def silent(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass

    async def http1(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await silent(stream)

    async def ping_first(stream: trio.SocketStream) -> None:
        await stream.send_all(b"\0\0\x08\x06\0\0\0\0\0" + bytes(8) + b"\0\0\0\x04\0\0\0\0\0")
        await silent(stream)

    async def settings_alone(stream: trio.SocketStream) -> None:
        await stream.send_all(b"\0\0\0\x04\0\0\0\0\0")
        await silent(stream)

    context = tls(certificate)
    context.set_alpn_protocols(["h2"])

    async def secure(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await trio.SSLStream(stream, context, server_side=True).do_handshake()

    async def one(serve: Callable[[trio.SocketStream], Awaitable[None]] | None) -> None:
        async with trio.open_nursery() as nursery:
            port = free_port()
            if serve is not None:
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                await nursery.start(trio.serve_listeners, serve, listeners)
                port = listeners[0].socket.getsockname()[1]
            assert not (await compare(kubelet, {"grpc": {"port": port}})).healthy
            nursery.cancel_scope.cancel()

    async def unanswered() -> None:
        await test_grpc.compare(kubelet, lambda _connection, _stream: None, timeout=1)

    async def reset() -> None:
        await test_grpc.compare(
            kubelet, test_grpc.says(test_grpc.HEAD, test_grpc.SERVING, end=None, more=True), timeout=1
        )

    async with trio.open_nursery() as nursery:
        for serve in (None, silent, http1, ping_first, settings_alone, secure, trio.aclose_forcefully):
            nursery.start_soon(one, serve)
        nursery.start_soon(unanswered)
        nursery.start_soon(reset)


@pytest.mark.parametrize("handler", ["httpGet", "tcpSocket"])
async def test_a_server_that_accepts_no_connection(kubelet: Kubelet, handler: str) -> None:
    with listening(backlog=0) as port:
        waiting = []
        for _ in range(3):  # the kernel drops a SYN when the queue is full
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            waiting.append(client)
        assert not (await compare(kubelet, {handler: {"port": port}})).healthy
        for client in waiting:
            client.close()
