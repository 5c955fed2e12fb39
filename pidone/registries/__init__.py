"""Service registries: one module per registry, named as people write it, imported when a plan has it.

A module of this folder has ``build(fields, pod, source) -> Registry``, which raises ``Refused`` and does no I/O. The
registry maps answers of the server to ``RegistryError``. Its fields, and those that identify an instance, are in
``schema/registries``. Modules whose names begin with ``_`` are shared by several registries.
"""

import os
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, Protocol, runtime_checkable

from pidone.errors import Refused
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries._interface import Registry as Registry


class Status(StrEnum):
    """The status of an instance, in Eureka's words. STARTING, UP and DOWN are the health of the application.

    OUT_OF_SERVICE is maintenance: a person has taken the instance out, whatever its health is.
    """

    STARTING = "STARTING"
    UP = "UP"
    DOWN = "DOWN"
    OUT_OF_SERVICE = "OUT_OF_SERVICE"


class Entry(NamedTuple):
    """A registry's copy of an instance."""

    status: str  # in the registry's words; it differs from ours if an operator overrides it
    address: str  # that clients get; it tells the entry of one pod from that of another


@runtime_checkable
class Connected(Protocol):
    """A registry whose driver keeps a connection between calls."""

    async def close(self) -> None:
        """Close the connection. The instance stays. A later call connects again.

        The action calls it after the last deregistration, the controller after its calls. It raises nothing, and may
        be cancelled at any time.
        """


@cache
def names() -> frozenset[str]:
    """Return the names of the registries of this program."""
    files = (file for folder in __path__ for file in os.listdir(folder))
    return frozenset(file.partition(".")[0] for file in files if not file.startswith("_"))


def name_of(config: Mapping[str, Any]) -> str:
    """Return the name of the registry in the configuration of a register task; empty if it has none."""
    return next((key for key in config if key in names()), "")


def build(fields: Fields, pod: Pod, source: str | None) -> Registry:
    """Build the one registry that these fields name. ``pod.ip`` is the address to register. Raises ``Refused``."""
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
