"""Where the controller listens, and for how many at once."""

import errno
import os
import resource
import socket
from typing import Any

import trio

from pidone.errors import PidoneError

MAX_CONNECTIONS = 25_000  # one replica's share; at 6 KB a held request that is 150 MB
OWN_FILES = 64  # open files that are not connections


class StartError(PidoneError):
    """The server cannot start; the text says what is in the way."""


async def listen(host: str, port: int) -> list[trio.SocketListener]:
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
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
