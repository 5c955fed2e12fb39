"""The repo without Kubernetes: from a folder of TaskSets and TaskBindings and a file of pods.

For podman hosts, virtual machines, the demo and tests. All but the files is what a cluster has too.
"""

import errno
import os
import resource
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from pidone import __version__
from pidone.errors import PidoneError
from pidone.http.server import serve
from pidone_controller.files import InventoryFile, TaskFiles
from pidone_controller.inventory import Pod
from pidone_controller.log import Log, log, say
from pidone_controller.reports import MAX_REPORT
from pidone_controller.serving import Repo

# Seconds between two looks at the files. A change is read after two, and with its pods within a second.
LOOK = 0.2
MAX_CONNECTIONS = 25_000  # one replica's share; at 6 KB a held request that is 150 MB
OWN_FILES = 64  # open files that are not connections


class StartError(PidoneError):
    """The server cannot start; the text says what is in the way."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The command line."""

    tasks: Sequence[Path]
    inventory: Path
    host: str
    port: int


async def run(settings: Settings, log: Log = log) -> None:
    """Serve until SIGTERM or SIGINT. Raises ``StartError``."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        listeners = await _listen(settings.host, settings.port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve, settings, listeners, log)
            async for number in signals:
                # Held requests are closed, not answered: a 304 would say "ask again at once" to everybody;
                # a connection that ends makes each pod keep its plan and wait a random while first.
                log("stopping", signal=signal.Signals(number).name)
                nursery.cancel_scope.cancel()
                break


async def _serve(settings: Settings, listeners: list[trio.SocketListener], log: Log) -> None:
    repo = Repo(log)
    tasks = TaskFiles(settings.tasks, log, say)
    inventory = InventoryFile(settings.inventory, log)

    def look() -> None:
        tasks.look()
        inventory.look()

    listed: Sequence[Pod] | None = None  # what the repo was told last

    async def refresh() -> None:
        nonlocal listed
        # In a thread: a large inventory takes seconds to read, and held requests are not to notice.
        await trio.to_thread.run_sync(look)
        pods, rules = inventory.pods, tasks.rules
        # Nothing is served until every file was read: who has a plan must not be told that there is none.
        if pods is None or (tasks.pending and not repo.ready):
            return
        if rules is not repo.rules:
            repo.rule(rules)
        if pods is not listed:
            repo.replace(pods)
            listed = pods

    bugs = set[str]()

    async def look_again() -> None:
        await trio.sleep(LOOK)
        try:
            await refresh()
        except Exception as error:  # noqa: BLE001 - what one file brings out must not end the plans of all pods
            text = f"{type(error).__name__}: {error}"
            if text not in bugs:
                log("bug", error=text)
                bugs.add(text)

    await look_again()
    await look_again()  # what stands still is read at the second look
    async with trio.open_nursery() as nursery:
        nursery.start_soon(repo.run)
        connections = _connections()
        await nursery.start(_accept, repo, listeners, connections)
        for listener in listeners:
            log(
                "listening",
                address=_shown(listener.socket.getsockname()),
                version=__version__,
                ready=repo.ready,
            )
        while True:
            await look_again()


async def _accept(
    repo: Repo,
    listeners: list[trio.SocketListener],
    connections: int,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    await serve(
        repo.handle,
        listeners,
        max_connections=connections,
        max_body=MAX_REPORT,
        fatal=repo.died,
        task_status=task_status,
    )


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    shown = _shown((host, port))
    try:
        return await trio.open_tcp_listeners(port, host=host or None)
    except socket.gaierror as error:
        raise StartError(
            f"cannot listen on {shown}: {host} is not an address of this machine ({error.strerror})"
        ) from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.EADDRINUSE:
            reason = "another program listens there; stop it, or choose another port"
        elif error.errno == errno.EADDRNOTAVAIL:
            reason = f"{host} is not an address of this machine"
        elif error.errno == errno.EACCES:
            reason = "not allowed; ports below 1024 need the capability NET_BIND_SERVICE"
        raise StartError(f"cannot listen on {shown}: {reason}") from error


def _connections() -> int:
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


def _shown(address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
