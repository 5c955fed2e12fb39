"""The interface of registries. A module of its own: only annotations name it, so pods of the image never load it."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pidone.registries import Entry, Status


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

    async def register(self, status: "Status") -> str:
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

    async def read(self) -> "Entry | None":
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
