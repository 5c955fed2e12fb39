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


class Registry(Protocol):
    """One instance in one registry. Calls come one after the other, never two at once.

    A driver that keeps a connection between calls also has ``close``, see ``Connected``.

    All calls raise ``RegistryError`` and ``TransferError``. An answer that the registry itself does not give (a login
    page, an ingress' 404) is an error, and another server is asked if there is one. A request without an answer may
    have been carried out; the driver reads the instance before it reports a failure. A call takes ``lease`` seconds at
    most, and not longer than the deadline of its scope.
    """

    @property
    def where(self) -> str:
        """The registry's servers for people, without a password."""

    @property
    def endpoint(self) -> str:
        """The server in use, for people, without a password. The path of its API need not be in it."""

    @property
    def places(self) -> frozenset[str]:
        """The servers, each in one spelling. Two drivers with a common server have the same registry."""

    @property
    def instance(self) -> str:
        """The identity of our instance in the registry. Two instances with the same one overwrite each other."""

    @property
    def address(self) -> str:
        """The ``Entry.address`` of our instance."""

    @property
    def interval(self) -> float:
        """Seconds between two heartbeats: the registry's own pace.

        Eureka's renewalInterval; two thirds of Consul's TTL; a third of etcd's TTL and of ZooKeeper's session timeout;
        what Nacos' server says, else 5 s. It may change with an answer of the registry.
        """

    @property
    def lease(self) -> float:
        """Seconds that the registry keeps the instance without a heartbeat, at least."""

    async def register(self, status: Status) -> str:
        """Make the registry show this status, and return the status that it shows then.

        Each call sends the whole document, also if the registry has the instance. A registry without a status DOWN
        stops leading clients to the instance, and keeps the lease: DOWN then costs no registration at the next UP.

        OUT_OF_SERVICE is shown in the registry's own way. The next call with another status lifts what this driver
        has set, and nothing else: an override by an operator stays, and the returned status differs from ours.
        """

    async def heartbeat(self) -> bool:
        """Renew the lease. Returns False if the registry itself says that it does not have this instance.

        It may be cancelled at any time, and registers nothing. An instance that is DOWN or OUT_OF_SERVICE has a lease
        too.
        """

    async def read(self) -> Entry | None:
        """Return the registry's copy of our instance; None if the registry itself says that it has none."""

    async def deregister(self) -> None:
        """Deregister the instance. It returns when the registry itself says that the instance is gone."""

    def succeeds(self, previous: "Registry") -> bool:
        """True if ``previous`` is the same instance of the same registry; the documents may differ."""

    def take_over(self, previous: "Registry") -> None:
        """Continue after ``previous``: the next document is newer than its last one.

        A connection, a session or a lease of ``previous`` is ours from then on, and so is the maintenance that it has
        set.
        """


@runtime_checkable
class Connected(Protocol):
    """A registry whose driver keeps a connection between calls."""

    async def close(self) -> None:
        """Close the connection. The instance stays. A later call connects again.

        The action calls it after the last deregistration, the controller after its calls. It raises nothing, and may
        be cancelled at any time.
        """


@runtime_checkable
class Preparable(Protocol):
    """A registry that can do before the first registration what that would wait for, such as a login."""

    async def prepare(self) -> None:
        """Do it. It changes nothing in the registry, and may be cancelled at any time."""


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
