"""A real registry of one to three servers, which tests treat badly: the same calls for every registry.

``tests/NAME/world.py`` of a registry defines:

    def missing() -> str | None             why the servers cannot be started here, with the remedy
    def running(folder: Path)               a context manager whose value is a ``World``; its logs are in the folder

One world serves all tests of a registry, one after the other. So each test has a ``service`` of its own, an app or a
service name, and ``mend`` comes before it. Calls block; tests make them in a worker thread, and never two at once.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from tests.registries.checks import FAULTS

FIRST_PORT = 9000


def pod_ip(number: int) -> str:
    """Return the address of pod ``number``, which its instance has by default."""
    return f"10.42.{number // 250}.{number % 250 + 1}"


def port(number: int) -> int:
    """Return the port of the instance of pod ``number``. A reader tells the instances apart by it."""
    return FIRST_PORT + number


@dataclass(frozen=True, slots=True, order=True)
class Seen:
    """An instance as the reader has it."""

    number: int  # of the pod, by the port
    status: str  # UP, or the world's ``unhealthy``


class World(Protocol):
    """The servers of one registry, and a client of it that reads."""

    name: str  # of the registry, as in ``register: NAME``
    server: str  # with the version, for people: "Netflix Eureka 1.10.18, two peers"
    reader: str  # who reads back, with the version: "Netflix DiscoveryClient 1.10.18"; "fake" if the server is ours
    addresses: Sequence[str]  # of the servers, as HOST:PORT; tests put proxies before them
    is_http: bool  # False if an answer of HTTP in between has no meaning
    unhealthy: str  # the status of an unhealthy instance; "" if the registry does not show it at all
    # By fault (tests.registries.checks.FAULTS): why it has no meaning for these servers
    without_meaning: Mapping[str, str]

    def config(self, service: str, number: int, addresses: Sequence[str], lease: int) -> dict[str, Any]:
        """Return the fields of ``register: NAME`` for the instance of pod ``number``.

        It asks these addresses (the servers', or proxies before them), has ``port(number)``, the pod's own address,
        and a lease of so many seconds, or of as many as the servers allow.
        """

    def lapse_seconds(self, lease: int) -> float:
        """Return the seconds after which an instance that is not renewed is not shown as UP any more."""

    def mend(self) -> None:
        """End all faults. Returns when all servers answer."""

    def kill(self, server: int) -> None:
        """End a server by SIGKILL."""

    def restart(self, server: int, *, empty: bool) -> None:
        """Start a killed server again; ``empty``: without its data. It need not answer yet."""

    def pause(self, server: int) -> None:
        """Stop a server by SIGSTOP."""

    def resume(self, server: int) -> None:
        """Let a paused server go on."""

    def change_leader(self) -> None:
        """Let another server lead, or the server in use go away; ``mend`` brings it back."""

    def revoke_token(self) -> None:
        """Let the servers refuse the credentials of ``config`` from now on, those in use too."""

    def restore_token(self) -> None:
        """Let the servers accept them again."""

    def instances(self, service: str) -> Sequence[Seen] | None:
        """Return the service's instances as the reader has them, each entry once; None if the servers do not answer."""


def missing(name: str) -> str | None:
    """Return why the servers of a registry cannot be started here; None if they can."""
    reason: str | None = import_module(f"tests.{name}.world").missing()
    return reason


def running(name: str, folder: Path) -> AbstractContextManager[World]:
    """Return a context manager that runs the servers of a registry."""
    world: AbstractContextManager[World] = import_module(f"tests.{name}.world").running(folder)
    return world


def check_without_meaning(world: World) -> None:
    """Raise ``ValueError`` if the world names a fault that does not exist."""
    unknown = world.without_meaning.keys() - set(FAULTS)
    if unknown:
        raise ValueError(f"tests/{world.name}/world.py: no such fault: {', '.join(sorted(unknown))}")
