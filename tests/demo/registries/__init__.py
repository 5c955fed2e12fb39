"""The registries that the demo can show: one module each, named as in ``register: NAME``.

A module has ``missing()``, which returns why the demo cannot run with this registry and the remedy, or None; and
``build(folder)``, which returns a ``Registry`` with its logs in the folder. It has the ready-made set of its name
(``tasks/NAME.yaml``), and the first pod of the demo has the label ``pidone.dev/registry: NAME``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Protocol

from tests.demo.service import Service

APP = "ratings"  # the name of the application, which the pod registers
PORT = 8080  # of the application
BEAT_SECONDS = 2  # between two heartbeats


@dataclass(frozen=True, slots=True)
class Instance:
    """The instance of the demo as the registry has it."""

    name: str  # of the instance in the registry, for people
    address: str
    port: int
    status: str  # in the registry's words; UP if clients find it
    registered: str  # differs after another registration
    renewed: int  # is another number after each heartbeat, for a reader that asks often enough


class Registry(Protocol):
    """One registry with its server, read in the way of people."""

    title: str  # for people: "Eureka"
    kind: str  # which server it is: "Spring Cloud Eureka"
    url: str  # where people can look
    service: Service
    params: Mapping[str, str]  # of the ready-made set, so that a heartbeat comes every BEAT_SECONDS
    unhealthy: (
        str  # the status of an instance whose probe fails; "not registered" if the registry does not show it
    )

    def empty(self) -> None:
        """Delete the data of the server, which has ended."""

    def answers(self) -> bool:
        """True if the server answers."""

    def instance(self) -> Instance | None:
        """Return the instance; None if there is none, or the server does not answer."""


def names() -> list[str]:
    """Return the names of the registries that have a module."""
    return sorted(module.name for module in iter_modules(__path__))


def missing(name: str) -> str | None:
    """Return why the demo cannot run with this registry, with the remedy; None if it can."""
    reason: str | None = import_module(f"{__name__}.{name}").missing()
    return reason


def build(name: str, folder: Path) -> Registry:
    """Return the registry of this name, with its logs in the folder."""
    registry: Registry = import_module(f"{__name__}.{name}").build(folder)
    return registry
