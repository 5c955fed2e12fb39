"""Between a client and the API server: a wire that tests cut, in the middle of a line too, or that falls silent.

The client speaks plain HTTP with it, so that a cut is where the test wants it and not where TLS has its records.
"""

import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import trio

from tests.cluster.apiserver import Cluster

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: what was not sent is forgotten, the peer gets a reset


class Wire:
    """``url`` is where clients ask; ``cluster.kubeconfig_of(token, wire.url)`` makes a kubeconfig with it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.url = ""
        self.taken = 0  # connections until now
        self.refusing = False  # new connections are closed at once
        self._cut_in = b""
        self._flows = trio.Event()
        self._flows.set()
        self._open: dict[trio.SocketStream, trio.CancelScope] = {}

    def cut(self, *, reset: bool = False) -> int:
        """Close all connections, as a balancer in the middle does; how many there were."""
        for client, scope in self._open.items():
            if reset:
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            scope.cancel()
        return len(self._open)

    def cut_in(self, marker: bytes) -> None:
        """Cut the connection in which the API server next says this: the client gets the half of it."""
        self._cut_in = marker

    def fall_silent(self) -> None:
        """Connections stay and are accepted, and nothing passes, as after a cable was drawn."""
        self._flows = trio.Event()

    def speak(self) -> None:
        """What was held back passes, and what comes."""
        self._flows.set()

    async def _serve(self, client: trio.SocketStream) -> None:
        self.taken += 1
        with trio.CancelScope() as scope:
            self._open[client] = scope
            try:
                if not self.refusing:
                    await self._connect(client)
            except* (OSError, trio.BrokenResourceError):
                pass  # whose end it was the client is to find out
            finally:
                del self._open[client]

    async def _connect(self, client: trio.SocketStream) -> None:
        to = urlsplit(self.cluster.server)
        assert to.hostname
        assert to.port
        server: trio.abc.Stream = await trio.open_tcp_stream(to.hostname, to.port)
        if self.cluster.certificate:
            context = ssl.create_default_context(cafile=self.cluster.certificate)
            server = trio.SSLStream(server, context, server_hostname=to.hostname, https_compatible=True)
        async with server, trio.open_nursery() as nursery:

            async def back() -> None:
                while data := await server.receive_some():
                    await self._flows.wait()
                    if self._cut_in and self._cut_in in data:
                        half = data.index(self._cut_in) + len(self._cut_in) // 2
                        self._cut_in = b""
                        await client.send_all(data[:half])
                        break
                    await client.send_all(data)
                nursery.cancel_scope.cancel()

            nursery.start_soon(back)
            while data := await client.receive_some():
                await self._flows.wait()
                await server.send_all(data)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def wire(cluster: Cluster) -> AsyncIterator[Wire]:
    """One to this API server, until the end of the block."""
    found = Wire(cluster)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        found.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.start_soon(trio.serve_listeners, found._serve, listeners)
        try:
            yield found
        finally:
            nursery.cancel_scope.cancel()
