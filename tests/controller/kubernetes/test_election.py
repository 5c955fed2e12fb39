"""Who leads, on the virtual clock: never two at once, and somebody again soon."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pidone_controller.kubernetes.client import connect
from pidone_controller.kubernetes.config import Config
from pidone_controller.kubernetes.election import Election
from pidone_controller.kubernetes.resources import LEASES
from tests.controller.kubernetes.fake import FakeAPIServer, refused
from tests.controller.kubernetes.wires import Answer, Wires


class Replica:
    """One process that would lead, on wires of its own. ``working`` says when its work runs."""

    def __init__(self, cluster: "Cluster", name: str) -> None:
        self.cluster, self.name = cluster, name
        self.wires = Wires(cluster.nursery, cluster.server.handle)
        self.scope = trio.CancelScope()
        self.working = False
        self.spans: list[tuple[float, float]] = []
        self.election: Election | None = None

    async def run(self) -> None:
        with self.scope:
            async with connect(Config("http://fake"), transport=self.wires.transport()) as client:
                self.election = Election(
                    client,
                    namespace="pidone",
                    name="controller",
                    identity=self.name,
                    log=lambda *_, **__: None,
                    random=Random(self.name),
                )
                await self.election.run(self._work)

    async def _work(self) -> None:
        began = trio.current_time()
        self.working = True
        assert sum(replica.working for replica in self.cluster.replicas) == 1, "two lead"
        try:
            await trio.sleep_forever()
        finally:
            self.working = False
            self.spans.append((began, trio.current_time()))

    def cut_off(self) -> None:
        """The network between it and the API server is gone; the process goes on."""
        self.wires.refuses = True
        self.wires.hang_up()


class Cluster:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.server = FakeAPIServer()
        self.replicas: list[Replica] = []

    def start(self, name: str) -> Replica:
        replica = Replica(self, name)
        self.replicas.append(replica)
        self.nursery.start_soon(replica.run)
        return replica

    @property
    def lease(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.server.objects[LEASES, "pidone", "controller"]["spec"]
        return spec

    def leading(self) -> str:
        return " ".join(replica.name for replica in self.replicas if replica.working)


@asynccontextmanager
async def a_cluster() -> AsyncIterator[Cluster]:
    async with trio.open_nursery() as nursery:
        yield Cluster(nursery)
        nursery.cancel_scope.cancel()


async def test_one_of_three_leads_and_goes_on_leading(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster:
        first = cluster.start("a")
        await trio.sleep(1)
        cluster.start("b")
        cluster.start("c")
        await trio.sleep(120)
        assert cluster.leading() == "a"
        assert not first.spans
        assert cluster.lease["holderIdentity"] == "a"
        assert cluster.lease["leaseDurationSeconds"] == 15
        assert cluster.lease["leaseTransitions"] == 1


async def test_three_that_start_together_elect_one(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster:
        for name in "abc":
            cluster.start(name)
        await trio.sleep(10)
        assert len(cluster.leading()) == 1


async def test_a_leader_that_stops_gives_the_lease_back(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster:
        first = cluster.start("a")
        await trio.sleep(1)
        cluster.start("b")
        await trio.sleep(30)
        stopped = trio.current_time()
        first.scope.cancel()
        await trio.sleep(0.01)
        assert cluster.lease["holderIdentity"] == ""
        while cluster.leading() != "b":
            await trio.sleep(0.1)
        assert trio.current_time() - stopped < 5
        assert cluster.lease["leaseTransitions"] == 2


async def test_the_lease_is_given_back_after_the_work_has_ended(autojump_clock: MockClock) -> None:
    async with (
        a_cluster() as cluster,
        connect(
            Config("http://fake"), transport=Wires(cluster.nursery, cluster.server.handle).transport()
        ) as client,
    ):
        election = Election(
            client, namespace="pidone", name="controller", identity="a", log=lambda *_, **__: None
        )
        holders = list[str]()

        async def work() -> None:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(2)
                holders.append(cluster.lease["holderIdentity"])

        with trio.move_on_after(5):
            await election.run(work)
        assert holders == ["a"]
        assert cluster.lease["holderIdentity"] == ""
        assert not election.leader


async def test_a_leader_that_dies_is_followed_after_its_lease(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster:
        first = cluster.start("a")
        await trio.sleep(1)
        cluster.start("b")
        await trio.sleep(30)
        first.cut_off()
        died = trio.current_time()
        while cluster.leading() != "b":
            await trio.sleep(0.1)
        assert 13 <= trio.current_time() - died <= 15 + 4.4 + 0.2


async def test_a_leader_that_cannot_renew_stops_before_another_begins(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster:
        first = cluster.start("a")
        await trio.sleep(1)
        second = cluster.start("b")
        await trio.sleep(30)
        first.cut_off()
        cut = trio.current_time()
        await trio.sleep(40)
        assert cluster.leading() == "b"
        (_, stopped), began = first.spans[0], 0.0
        second.scope.cancel()
        await trio.sleep(0.01)
        began = second.spans[0][0]
        assert 8 <= stopped - cut <= 10
        assert began - stopped >= 5 - 0.01


async def test_a_renewal_whose_answer_never_comes_does_not_keep_it_leading(autojump_clock: MockClock) -> None:
    """The server hears it and stays silent: the leader must count from the last answer that it got."""
    async with a_cluster() as cluster:
        first = cluster.start("a")
        await trio.sleep(1)
        cluster.start("b")
        await trio.sleep(20.5)

        async def never(request: object) -> Answer:
            await trio.sleep_forever()
            raise AssertionError

        first.wires.handler = never
        hung = trio.current_time()
        await trio.sleep(40)
        assert cluster.leading() == "b"
        assert first.spans[0][1] - hung <= 10


async def test_a_short_outage_of_the_api_server_changes_nothing(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster:
        first = cluster.start("a")
        second = cluster.start("b")
        await trio.sleep(30)
        leader = cluster.leading()
        for replica in (first, second):
            replica.cut_off()
        await trio.sleep(6)
        for replica in (first, second):
            replica.wires.refuses = False
        await trio.sleep(60)
        assert cluster.leading() == leader
        assert cluster.lease["leaseTransitions"] == 1


async def test_a_long_outage_of_the_api_server_ends_with_one_leader(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster:
        replicas = [cluster.start(name) for name in "abc"]
        await trio.sleep(30)
        for replica in replicas:
            replica.cut_off()
        await trio.sleep(12)
        assert cluster.leading() == "", "nobody leads what nobody can see"
        await trio.sleep(100)
        for replica in replicas:
            replica.wires.refuses = False
        await trio.sleep(30)
        assert len(cluster.leading()) == 1


@pytest.mark.parametrize("time", ["1970-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z", None])
async def test_the_times_in_the_record_are_not_believed(time: str | None, autojump_clock: MockClock) -> None:
    """Only that it does not change counts: another's clock may be years away."""
    async with a_cluster() as cluster:
        spec = {
            "holderIdentity": "dead",
            "leaseDurationSeconds": 15,
            "renewTime": time,
            "leaseTransitions": 6,
        }
        cluster.server.put(LEASES, "controller", "pidone", spec=spec)
        cluster.start("a")
        await trio.sleep(14.9)
        assert cluster.leading() == ""
        await trio.sleep(5)
        assert cluster.leading() == "a"
        assert cluster.lease["leaseTransitions"] == 7


async def test_a_record_that_changes_is_alive_whoever_changes_it(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster:
        cluster.start("a")
        for count in range(20):
            spec = {"holderIdentity": "other", "leaseDurationSeconds": 15, "renewTime": f"{count}"}
            cluster.server.put(LEASES, "controller", "pidone", spec=spec)
            await trio.sleep(10)
            assert cluster.leading() == ""


async def test_the_lease_duration_is_the_records(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster:
        spec = {"holderIdentity": "slow", "leaseDurationSeconds": 60}
        cluster.server.put(LEASES, "controller", "pidone", spec=spec)
        cluster.start("a")
        await trio.sleep(59)
        assert cluster.leading() == ""
        await trio.sleep(6)
        assert cluster.leading() == "a"


async def test_a_lease_that_somebody_took_is_lost_at_once(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster:
        first = cluster.start("a")
        await trio.sleep(20)
        cluster.server.put(
            LEASES, "controller", "pidone", spec={"holderIdentity": "thief", "leaseDurationSeconds": 15}
        )
        await trio.sleep(4.1)
        assert cluster.leading() == ""
        assert cluster.lease["holderIdentity"] == "thief"
        assert first.election is not None
        assert first.election.holder == "thief"


async def test_a_lease_that_somebody_deleted_is_made_again(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster:
        first = cluster.start("a")
        await trio.sleep(20)
        cluster.server.drop(LEASES, "controller", "pidone")
        await trio.sleep(6)
        assert cluster.leading() == "a"
        assert not first.spans
        assert cluster.lease["holderIdentity"] == "a"


async def test_a_conflict_that_is_only_a_label_does_not_cost_the_lead(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster:
        first = cluster.start("a")
        await trio.sleep(20)
        cluster.server.put(LEASES, "controller", "pidone", metadata={"labels": {"app": "pidone"}})
        await trio.sleep(20)
        assert not first.spans
        assert cluster.server.objects[LEASES, "pidone", "controller"]["metadata"]["labels"] == {
            "app": "pidone"
        }


async def test_renewals_do_not_wait_behind_other_requests(autojump_clock: MockClock) -> None:
    """Five hundred status writes in the queue: at 20 a second they would cost the lead."""
    async with (
        a_cluster() as cluster,
        connect(
            Config("http://fake"), transport=Wires(cluster.nursery, cluster.server.handle).transport()
        ) as client,
    ):
        election = Election(
            client, namespace="pidone", name="controller", identity="a", log=lambda *_, **__: None
        )
        ends = list[float]()

        async def work() -> None:
            try:
                async with trio.open_nursery() as nursery:
                    for _ in range(500):
                        nursery.start_soon(client.get, LEASES, "controller", "pidone")
                    nursery.start_soon(trio.sleep_forever)
            finally:
                ends.append(trio.current_time())

        with trio.move_on_after(30):
            await election.run(work)
        assert ends == [pytest.approx(30, abs=0.1)]


async def test_replicas_know_who_leads_as_soon_as_they_see_it(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster:
        first = cluster.start("a=10.0.0.1:8443")
        await trio.sleep(1)
        second = cluster.start("b=10.0.0.2:8443")
        await trio.sleep(1)
        assert second.election is not None
        seen = await second.election.holder_after("")
        assert seen == "a=10.0.0.1:8443"
        first.scope.cancel()
        with trio.fail_after(10):
            while (seen := await second.election.holder_after(seen)) != "b=10.0.0.2:8443":
                pass
        assert second.election.leader


async def test_errors_on_the_way_to_the_lead_are_waited_out(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster:
        cluster.server.fail("/leases/controller", *[refused(503, "")] * 3, refused(403, "Forbidden"))
        cluster.start("a")
        await trio.sleep(20)
        assert cluster.leading() == "a"


async def test_work_that_fails_gives_the_lease_back_and_is_told(autojump_clock: MockClock) -> None:
    async with (
        a_cluster() as cluster,
        connect(
            Config("http://fake"), transport=Wires(cluster.nursery, cluster.server.handle).transport()
        ) as client,
    ):
        election = Election(
            client, namespace="pidone", name="controller", identity="a", log=lambda *_, **__: None
        )

        async def work() -> None:
            await trio.sleep(1)
            raise ZeroDivisionError

        with pytest.raises(ExceptionGroup) as caught:
            await election.run(work)
        assert caught.group_contains(ZeroDivisionError)
        assert cluster.lease["holderIdentity"] == ""
