"""Serves http and https on TCP listeners with one request handler."""

import errno
import os
import resource
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import trio

from pidone.errors import PidoneError
from pidone.http.admission import Assign
from pidone.http.message import Held, Request, Response
from pidone.http.server import Fatal
from pidone.http.server import serve as serve_http
from pidone.http.urls import authority
from pidone_controller.repo import certificates
from pidone_controller.repo.certificates import Pair

MAX_CONNECTIONS = 25_000  # one replica's share; at 6 KB for a held request that is 150 MB
OWN_FILES = 64  # open files that are not connections

Listeners = Sequence[trio.SocketListener]


class StartError(PidoneError):
    """The server cannot start; the text is the reason."""


class RequestHandler(Protocol):
    """Answers a request, or holds it. ``secure``: it came over TLS."""

    async def __call__(self, request: Request, *, secure: bool = False) -> Response | Held: ...


class Refuse(Protocol):
    """Gets the head of a request that has a body, and returns the answer to it if the body is not wanted."""

    async def __call__(self, request: Request, *, secure: bool = False) -> Response | None: ...


class Bounds(Protocol):
    """Returns the bounds for the connections of one server with at most ``connections``."""

    def __call__(self, connections: int, *, secure: bool) -> Assign: ...


class Tls:
    """The certificate of new connections. Open connections keep the one they began with, for at most a minute."""

    def __init__(self, pair: Pair) -> None:
        self.use(pair)

    def use(self, pair: Pair) -> None:
        """Use another certificate. Raises ``CertificateError`` and keeps the present one."""
        self._context = certificates.context(pair)

    async def secure(self, stream: trio.SocketStream) -> trio.SSLStream[trio.SocketStream]:
        """Return TLS over a connection, after the handshake. Raises ``trio.BrokenResourceError``."""
        tls_stream = trio.SSLStream(stream, self._context, server_side=True, https_compatible=True)
        await tls_stream.do_handshake()
        return tls_stream


async def listen(host: str, port: int) -> list[trio.SocketListener]:
    """Listen on one address, or with an empty host on all. Raises ``StartError``."""
    address = host_port((host, port))
    try:
        return await trio.open_tcp_listeners(port, host=host or None)
    except socket.gaierror as error:
        raise StartError(
            f"cannot listen on {address}: {host} is not an address of this machine ({error.strerror})"
        ) from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.EADDRINUSE:
            reason = "another program listens there; stop it, or choose another port"
        elif error.errno == errno.EADDRNOTAVAIL:
            reason = f"{host} is not an address of this machine"
        elif error.errno == errno.EACCES:
            reason = "not allowed; ports below 1024 need the capability NET_BIND_SERVICE"
        raise StartError(f"cannot listen on {address}: {reason}") from error


async def serve(
    handler: RequestHandler,
    plain: Listeners,
    secure: Listeners = (),
    tls: Tls | None = None,
    *,
    max_body: int,
    bounds: Bounds,
    refuse: Refuse,
    fatal: Fatal | None = None,
    servers: int = 1,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve http on ``plain`` and https on ``secure`` until cancelled.

    ``max_body`` is the largest request body in bytes; ``refuse`` and ``fatal`` are called as in
    ``pidone.http.server.serve``. ``servers`` is how many servers of this process share its open files.
    """
    connections = max_connections(servers)
    serve_all = partial(serve_http, max_connections=connections, max_body=max_body, fatal=fatal)
    async with trio.open_nursery() as nursery:
        if plain:
            plain_bounds = bounds(connections, secure=False)
            await nursery.start(partial(serve_all, handler, plain, assign=plain_bounds, refuse=refuse))
        if secure:
            assert tls is not None
            serve_secure = partial(
                serve_all,
                assign=bounds(connections, secure=True),
                refuse=partial(refuse, secure=True),
                secure=tls.secure,
            )
            await nursery.start(partial(serve_secure, partial(handler, secure=True), secure))
        task_status.started()


def max_connections(servers: int) -> int:
    """Return the most connections of each server: its part of the hard limit on open files, less ``OWN_FILES``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS * servers + OWN_FILES
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        soft = limit
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, (soft - OWN_FILES) // servers))


def host_port(address: tuple[Any, ...]) -> str:
    """Return ``10.1.2.3:6060`` or ``[::1]:6060`` for a socket's name or a host and a port."""
    host, port = address[:2]
    return authority(host, port)
