"""One of the replicas leads, by a Lease, as client-go's leaderelection does it.

Others' clocks are not believed: a leader is dead when its record has not *changed* for the record's own lease
duration of our time, whatever timestamps stand in it. The leader itself stops when ten seconds have gone since it
sent the renewal that was last accepted: five seconds before anybody who saw that renewal may begin. Every write
carries the version that was read, so of two who try, one gets ``Conflict``.
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

LEASE = 15.0  # seconds without a change after which others may lead
DEADLINE = 10.0  # seconds without a renewal after which the leader stops
RETRY = 2.0  # seconds between two looks, and two renewals
RELEASE = 3.0  # seconds that giving back may take


class Election:
    """Who leads. ``leader``: it is us. ``holder``: the identity in the record, "" where there is none.

    ``identity`` is another for each process; what it says besides (an address) is for those who read ``holder``.
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
        # Renewals must not wait in one queue with everybody's status writes.
        self._client = client.apart()
        self._namespace, self._name, self._log = namespace, name, log
        self._random = random or Random()
        self._changed = trio.Event()
        self._lease: Object | None = None  # as last read or written
        self._known = False  # we wrote it last, as far as we know: it can be renewed without being read
        self._seen = -math.inf  # when its record was first seen so
        self._renewed = -math.inf  # when the renewal was sent that was last accepted

    async def run(self, work: Callable[[], Awaitable[None]]) -> NoReturn:
        """Run ``work`` whenever we lead, for ever; it is cancelled, and waited for, when we no longer do.

        A ``work`` that ends by itself is not begun again in the same term. When this is cancelled, ``work`` ends
        first, and then the lease is given back, so that another replica leads within seconds. A ``work`` that
        shields itself from being cancelled overlaps with the next leader.
        """
        try:
            while True:
                await self._acquire()
                await self._lead(work)
        finally:
            await self._release()

    def families(self) -> Iterator[Family]:
        """Metrics, with client-go's name."""
        leading = gauge("leader_election_master_status", "Whether this replica leads.")
        yield leading.add(float(self.leader), name=self._name)

    async def holder_after(self, known: str) -> str:
        """The holder, as soon as it is another one than ``known``."""
        while self.holder == known:
            await self._changed.wait()
        return self.holder

    async def _acquire(self) -> None:
        while True:
            if await self._try():
                return
            # another wait for each replica, or those that met once would meet again
            await trio.sleep(RETRY * (1 + 1.2 * self._random.random()))

    async def _lead(self, work: Callable[[], Awaitable[None]]) -> None:
        self._log("leading", lease=self._shown, identity=self.identity)
        self.leader = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work)
                await self._renew()
                self.leader = False
                nursery.cancel_scope.cancel()
        finally:
            self.leader = False
        self._log("lost-the-lead", lease=self._shown, holder=self.holder)

    async def _renew(self) -> None:
        """Until somebody else holds it, or nobody knows: we have not renewed it in time."""
        while self.holder == self.identity:
            with trio.move_on_at(self._renewed + DEADLINE) as late:
                await trio.sleep(RETRY)
                await self._try()
            if late.cancelled_caught:
                return

    async def _try(self) -> bool:
        """One attempt to take or keep the lease: whether we hold it now."""
        known, self._known = self._known, False
        with trio.move_on_after(DEADLINE / 2):
            try:
                self._known = await self._take(known=known)
            except Conflict:
                pass  # somebody was faster; the next attempt sees who
            except ApiError as error:
                self._log("lease-failed", lease=self._shown, error=error)
        return self._known

    async def _take(self, *, known: bool) -> bool:
        lease = self._lease
        if lease is None or not known:
            try:
                lease = await self._client.get(LEASES, self._name, self._namespace)
            except NotFound:
                lease = {"metadata": {"name": self._name, "namespace": self._namespace}}
            self._observe(lease)
        if self.holder not in {"", self.identity} and not self._expired():
            return False
        sent = trio.current_time()
        write = self._client.replace if "resourceVersion" in lease["metadata"] else self._client.create
        self._observe(await write(LEASES, {**lease, "spec": self._record(lease, self.identity, LEASE)}))
        self._renewed = sent
        return True

    def _observe(self, lease: Object) -> None:
        if self._lease is None or lease.get("spec") != self._lease.get("spec"):
            self._seen = trio.current_time()
        self._lease = lease
        holder = (lease.get("spec") or {}).get("holderIdentity") or ""
        if holder != self.holder:
            self.holder = holder
            changed, self._changed = self._changed, trio.Event()
            changed.set()

    def _expired(self) -> bool:
        assert self._lease is not None
        lasts = self._lease["spec"].get("leaseDurationSeconds") or LEASE
        return trio.current_time() >= self._seen + lasts

    def _record(self, lease: Object, holder: str, lasts: float) -> Mapping[str, Any]:
        """The times are for people: no replica judges by them."""
        old = lease.get("spec") or {}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        record = {**old, "holderIdentity": holder, "leaseDurationSeconds": int(lasts), "renewTime": now}
        if old.get("holderIdentity") != holder:
            record["acquireTime"] = now
            record["leaseTransitions"] = (old.get("leaseTransitions") or 0) + (1 if holder else 0)
        return record

    async def _release(self) -> None:
        if self._lease is None or self.holder != self.identity:
            return
        with trio.move_on_after(RELEASE, shield=True):
            try:
                lease = {**self._lease, "spec": self._record(self._lease, "", 1)}
                self._observe(await self._client.replace(LEASES, lease))
            except ApiError as error:
                self._log("lease-failed", lease=self._shown, error=error)

    @property
    def _shown(self) -> str:
        return f"{self._namespace}/{self._name}"
