"""Servers for tests, each on a free port of 127.0.0.1, until the nursery is cancelled."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial

import trio

from pidone.http.admission import Assign
from pidone.http.pod_rooms import CONNECTIONS
from pidone.http.server import Fatal, Handler, Refuse, serve
from tests.patience import PATIENCE_SECONDS

Talk = Callable[[trio.SocketStream], Awaitable[None]]


async def http_server(
    nursery: trio.Nursery,
    handler: Handler,
    *,
    connections: int = 9,
    body: int = 999,
    fatal: Fatal | None = None,
    assign: Assign | None = None,
    refuse: Refuse | None = None,
) -> int:
    """A server of ours; returns its port."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(
        partial(
            serve, handler, listeners,
            max_connections=connections, max_body=body, fatal=fatal, assign=assign, refuse=refuse,
        )
    )  # fmt: skip
    port: int = listeners[0].socket.getsockname()[1]
    return port


async def raw_server(nursery: trio.Nursery, talk: Talk) -> int:
    """A server that reads the head of a request and then does what ``talk`` says; returns its port."""

    async def converse(stream: trio.SocketStream) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            received += await stream.receive_some() or b"\r\n\r\n"
        await talk(stream)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(trio.serve_listeners, converse, listeners)
    port: int = listeners[0].socket.getsockname()[1]
    return port


def says(*parts: bytes) -> Talk:
    """Send this and close."""

    async def talk(stream: trio.SocketStream) -> None:
        for part in parts:
            await stream.send_all(part)
        await stream.aclose()

    return talk


async def flood_and_ask(
    port: int, path: str, sent: bytes, sources: str, askers: list[str], host: str = "127.0.0.1"
) -> None:
    """Open many connections from ``sources`` that send this, and see meanwhile that all ``askers`` get 200."""
    connect = partial(trio.open_tcp_stream, host, port)
    async with AsyncExitStack() as stack:
        for number in range(3 * CONNECTIONS):
            stream = await connect(local_address=sources.format(number % 30))
            await stack.enter_async_context(stream)
            with suppress(trio.BrokenResourceError):
                await stream.send_all(sent)
        for source in askers * 3:
            with trio.fail_after(PATIENCE_SECONDS):
                async with await connect(local_address=source) as stream:
                    await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    assert await stream.receive_some(12) == b"HTTP/1.1 200"
