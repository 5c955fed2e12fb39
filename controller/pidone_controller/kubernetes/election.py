"""Elects one replica as the leader, by a Lease, as client-go's leaderelection does.

The clocks of other replicas are not trusted: a leader counts as dead when its record has not *changed* for the lease
duration in it, by the clock of this replica; its timestamps are ignored. The leader itself stops ten seconds after it
sent the last renewal that was accepted: five seconds before a replica that saw this renewal may begin. Every write
carries the version that was read, so if two replicas try at once, one gets ``Conflict``.
"""

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from random import Random
from typing import Any, NoReturn

import trio

from pidone.metrics.exposition import Family, gauge
from pidone_controller.kubernetes.client import Client, Object
from pidone_controller.kubernetes.errors import ApiError, Conflict, NotFound
from pidone_controller.kubernetes.resources import LEASES

Log = Callable[..., None]

LEASE_SECONDS = 15.0  # without a change, after which another replica may lead
DEADLINE_SECONDS = 10.0  # without a renewal, after which the leader stops
RETRY_SECONDS = 2.0  # between two reads, and between two renewals
RELEASE_SECONDS = 3.0  # limit for giving the lease back


class Election:
    """The election among the replicas. ``leader``: this replica leads. ``holder``: the identity in the Lease, or "".

    ``identity`` differs for each process. It may contain more, such as an address, for readers of ``holder``.
    """

    def __init__(
        self,
        client: Client,
        *,
        namespace: str,
        name: str,
        identity: str,
        log: Log,
        random: Random | None = None,
    ) -> None:
        self.identity = identity
        self.leader = False
        self.holder = ""
        # Renewals must not wait behind status writes.
        self._client = client.apart()
        self._namespace, self._name, self._log = namespace, name, log
        self._random = random or Random()
        self._changed = trio.Event()
        self._lease: Object | None = None  # as last read or written
        self._own = False  # this replica probably wrote it last: it can be renewed without reading it
        self._changed_at = -math.inf  # clock time when the present record was read first
        self._renewed_at = -math.inf  # clock time when the last accepted renewal was sent

    async def run(self, work: Callable[[], Awaitable[None]]) -> NoReturn:
        """Run ``work`` in each term of this replica, forever; at the end of a term it is cancelled and waited for.

        A ``work`` that returns is not started again in the same term. When ``run`` is cancelled, ``work`` ends first
        and then the lease is given back, so that another replica leads within seconds. A ``work`` that shields itself
        from cancellation overlaps with the next leader.
        """
        try:
            while True:
                await self._acquire()
                await self._lead(work)
        finally:
            await self._release()

    def families(self) -> Iterator[Family]:
        """Yield the metrics, with client-go's name."""
        leading = gauge("leader_election_master_status", "Whether this replica leads.")
        yield leading.add(float(self.leader), name=self._name)

    async def holder_after(self, previous: str) -> str:
        """Wait until the holder is not ``previous``, and return it."""
        while self.holder == previous:
            await self._changed.wait()
        return self.holder

    async def _acquire(self) -> None:
        while True:
            if await self._try():
                return
            # A random wait, or replicas that collided once would collide again.
            await trio.sleep(RETRY_SECONDS * (1 + 1.2 * self._random.random()))

    async def _lead(self, work: Callable[[], Awaitable[None]]) -> None:
        self._log("leading", lease=self._title, identity=self.identity)
        self.leader = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work)
                await self._renew()
                self.leader = False
                nursery.cancel_scope.cancel()
        finally:
            self.leader = False
        self._log("lost-the-lead", lease=self._title, holder=self.holder)

    async def _renew(self) -> None:
        """Renew until another replica holds the lease, or it was not renewed in time."""
        while self.holder == self.identity:
            with trio.move_on_at(self._renewed_at + DEADLINE_SECONDS) as late:
                await trio.sleep(RETRY_SECONDS)
                await self._try()
            if late.cancelled_caught:
                return

    async def _try(self) -> bool:
        """Try to take or keep the lease. Return True if this replica holds it now."""
        own, self._own = self._own, False
        with trio.move_on_after(DEADLINE_SECONDS / 2):
            try:
                self._own = await self._take(own=own)
            except Conflict:
                pass  # another replica was faster; the next attempt reads which
            except ApiError as error:
                self._log("lease-failed", lease=self._title, error=error)
        return self._own

    async def _take(self, *, own: bool) -> bool:
        lease = self._lease
        if lease is None or not own:
            try:
                lease = await self._client.get(LEASES, self._name, self._namespace)
            except NotFound:
                lease = {"metadata": {"name": self._name, "namespace": self._namespace}}
            self._observe(lease)
        if self.holder not in {"", self.identity} and not self._expired():
            return False
        sent = trio.current_time()
        write = self._client.replace if "resourceVersion" in lease["metadata"] else self._client.create
        self._observe(
            await write(LEASES, {**lease, "spec": self._record(lease, self.identity, LEASE_SECONDS)})
        )
        self._renewed_at = sent
        return True

    def _observe(self, lease: Object) -> None:
        if self._lease is None or lease.get("spec") != self._lease.get("spec"):
            self._changed_at = trio.current_time()
        self._lease = lease
        holder = (lease.get("spec") or {}).get("holderIdentity") or ""
        if holder != self.holder:
            self.holder = holder
            changed, self._changed = self._changed, trio.Event()
            changed.set()

    def _expired(self) -> bool:
        assert self._lease is not None
        duration = self._lease["spec"].get("leaseDurationSeconds") or LEASE_SECONDS
        return trio.current_time() >= self._changed_at + duration

    def _record(self, lease: Object, holder: str, duration: float) -> Mapping[str, Any]:
        """Return the spec of the Lease. Its times are for people: replicas ignore them."""
        old = lease.get("spec") or {}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        record = {**old, "holderIdentity": holder, "leaseDurationSeconds": int(duration), "renewTime": now}
        if old.get("holderIdentity") != holder:
            record["acquireTime"] = now
            record["leaseTransitions"] = (old.get("leaseTransitions") or 0) + (1 if holder else 0)
        return record

    async def _release(self) -> None:
        if self._lease is None or self.holder != self.identity:
            return
        with trio.move_on_after(RELEASE_SECONDS, shield=True):
            try:
                lease = {**self._lease, "spec": self._record(self._lease, "", 1)}
                self._observe(await self._client.replace(LEASES, lease))
            except ApiError as error:
                self._log("lease-failed", lease=self._title, error=error)

    @property
    def _title(self) -> str:
        return f"{self._namespace}/{self._name}"
