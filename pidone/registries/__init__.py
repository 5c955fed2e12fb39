"""Service registries: one module per registry, named as people write it, imported when a plan has it.

A module of this folder has ``build(fields, pod, source) -> Registry``, which raises ``Refused`` and does no I/O. The
registry maps answers of the server to ``RegistryError``. Its fields, and those that identify an instance, are in
``schema/registries``.
"""

import os
from collections.abc import Mapping
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


class Registry(Protocol):
    """One instance in one registry. Calls come one after the other, never two at once."""

    @property
    def where(self) -> str:
        """The registry's servers, without a password."""

    @property
    def instance(self) -> str:
        """What tells our instance from all others there: two that have the same overwrite each other."""

    async def register(self, status: Status) -> str:
        """Make the registry hold our whole document with this status; returns the status that it then shows.

        Raises ``RegistryError`` and ``TransferError``, as the other two do.
        """

    async def heartbeat(self) -> bool:
        """Renew; False where the registry does not know this instance (any more)."""

    async def deregister(self) -> None:
        """Take the instance out; one that is not there is a success."""


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
    except ModuleNotFoundError as error:
        raise Refused(f'{fields.path}: this pidone has no registry "{name}"') from error
    registry: Registry = module.build(fields.object(name), pod, source)
    return registry
