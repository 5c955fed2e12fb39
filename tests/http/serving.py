"""Servers for tests, each on a free port of 127.0.0.1, until the nursery is cancelled."""

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from pidone.http.admission import Assign
from pidone.http.server import Fatal, Handler, Refuse, serve

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
