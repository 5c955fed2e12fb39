"""Where requests come in: listeners for http and https, before one repo."""

import errno
import os
import resource
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any

import trio

from pidone.errors import PidoneError
from pidone.http.server import serve
from pidone_controller.pods.reports import MAX_REPORT
from pidone_controller.repo import certificates
from pidone_controller.repo.certificates import Pair
from pidone_controller.repo.server import Repo

MAX_CONNECTIONS = 25_000  # one replica's share; at 6 KB a held request that is 150 MB
OWN_FILES = 64  # open files that are not connections

Listeners = Sequence[trio.SocketListener]


class StartError(PidoneError):
    """The server cannot start; the text says what is in the way."""


class Tls:
    """The certificate that connections from now on get; those that are open keep theirs, for a minute at most."""

    def __init__(self, pair: Pair) -> None:
        self.use(pair)

    def use(self, pair: Pair) -> None:
        """Serve with this one. Raises ``CertificateError``; the one before stays then."""
        self._context = certificates.context(pair)

    async def secure(self, stream: trio.SocketStream) -> trio.SSLStream[trio.SocketStream]:
        """After the handshake. Raises ``trio.BrokenResourceError``."""
        over = trio.SSLStream(stream, self._context, server_side=True, https_compatible=True)
        await over.do_handshake()
        return over


async def listen(host: str, port: int) -> list[trio.SocketListener]:
    """On one address, or on all with an empty host. Raises ``StartError``."""
    where = shown((host, port))
    try:
        return await trio.open_tcp_listeners(port, host=host or None)
    except socket.gaierror as error:
        raise StartError(
            f"cannot listen on {where}: {host} is not an address of this machine ({error.strerror})"
        ) from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.EADDRINUSE:
            reason = "another program listens there; stop it, or choose another port"
        elif error.errno == errno.EADDRNOTAVAIL:
            reason = f"{host} is not an address of this machine"
        elif error.errno == errno.EACCES:
            reason = "not allowed; ports below 1024 need the capability NET_BIND_SERVICE"
        raise StartError(f"cannot listen on {where}: {reason}") from error


async def answer(
    repo: Repo,
    plain: Listeners,
    secure: Listeners = (),
    tls: Tls | None = None,
    *,
    max_body: int = MAX_REPORT,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. https serves all that there is; http no plan that needs a repo which proved itself."""
    served = partial(serve, max_connections=most_connections(), max_body=max_body, fatal=repo.died)
    async with trio.open_nursery() as nursery:
        if plain:
            await nursery.start(partial(served, repo.begin, plain))
        if secure:
            assert tls is not None
            handler = partial(repo.begin, secure=True)
            await nursery.start(partial(served, handler, secure, secure=tls.secure))
        task_status.started()


def most_connections() -> int:
    """How many connections may be open: as many as the hard limit on files allows, less our own files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OWN_FILES
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    return (
        MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, soft - OWN_FILES))
    )


def shown(address: tuple[Any, ...]) -> str:
    """``10.1.2.3:6060``, ``[::1]:6060``: of a socket's name, or of a host and a port."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
