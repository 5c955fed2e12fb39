"""Service registries: one module per registry, named as people write it, imported when a plan has it.

A module of this folder has ``build(fields, pod, source) -> Registry``, which raises ``Refused`` and does no I/O. The
registry maps answers of the server to ``RegistryError``. Its fields, and those that identify an instance, are in
``schema/registries``. Modules whose names begin with ``_`` are what several registries share.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import import_module
from typing import Any, Protocol

from pidone.errors import Refused
from pidone.plan.fields import Fields
from pidone.plan.model import Pod


class Status(StrEnum):
    """How the instance is, in the words of Eureka."""

    STARTING = "STARTING"
    UP = "UP"
    DOWN = "DOWN"


@dataclass(frozen=True, slots=True)
class Entry:
    """What a registry has of an instance."""

    status: str  # in the registry's words; another one than was registered where an operator overrides it
    address: str  # where callers are sent; tells the entry of one pod from that of another


class Registry(Protocol):
    """One instance in one registry. Calls come one after the other, never two at once.

    All calls raise ``RegistryError`` and ``TransferError``. What the registry itself would not answer (a login page,
    an ingress' 404) is neither a yes nor a no, but an error, and another server is asked if there is one. A call
    that got no answer in time may have had its effect; the driver looks before it calls that a failure. How long a
    call may take is bounded by ``lease``, and by the deadline of the scope it is made in.
    """

    @property
    def where(self) -> str:
        """The registry's servers, without a password."""

    @property
    def places(self) -> frozenset[str]:
        """Each server in one spelling. Two drivers that have one in common are of the same registry."""

    @property
    def instance(self) -> str:
        """What tells our instance from all others there: two that have the same overwrite each other."""

    @property
    def address(self) -> str:
        """The ``Entry.address`` of what this driver registers."""

    @property
    def interval(self) -> float:
        """Seconds between two heartbeats, as the registry expects them."""

    @property
    def lease(self) -> float:
        """Seconds that the registry keeps the instance without a heartbeat, at least."""

    async def register(self, status: Status) -> str:
        """Make the registry hold our whole document with this status; returns the status that it then shows."""

    async def heartbeat(self) -> bool:
        """Renew; False where the registry does not know this instance (any more).

        May be cut off at any time, and does not bring back an instance that is gone.
        """

    async def read(self) -> Entry | None:
        """What the registry has; None if the registry says, and nobody in its place, that it has nothing."""

    async def deregister(self) -> None:
        """Take the instance out. Success is the registry's own word that it is gone, or was not there."""

    def succeeds(self, previous: "Registry") -> bool:
        """Whether this is the same instance of the same registry, perhaps with another document."""

    def take_over(self, previous: "Registry") -> None:
        """Go on from where ``previous`` ended: the next document is newer than its last one."""


@cache
def names() -> frozenset[str]:
    """The registries that this program has."""
    files = (file for folder in __path__ for file in os.listdir(folder))
    return frozenset(file.partition(".")[0] for file in files if not file.startswith("_"))


def name_of(config: Mapping[str, Any]) -> str:
    """Return the name of the registry in the configuration of a register task; empty if it has none."""
    return next((key for key in config if key in names()), "")


def build(fields: Fields, pod: Pod, source: str | None) -> Registry:
    """Build the one registry that these fields name. Raises ``Refused``."""
    name = fields.only_name()
    if not name.isidentifier() or name.startswith("_"):
        raise Refused(f'{fields.path}: "{name}" is not a registry')
    try:
        module = import_module(f"{__name__}.{name}")
        build_one = module.build
    except (ModuleNotFoundError, AttributeError) as error:
        raise Refused(f'{fields.path}: this pidone has no registry "{name}"') from error
    registry: Registry = build_one(fields.object(name), pod, source)
    return registry
