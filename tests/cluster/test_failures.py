"""What breaks around the controller, at a real API server: plans stay, and what changed meanwhile comes."""

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from tests.cluster.apiserver import Cluster, ControlPlane
from tests.cluster.pods import Asking, asking
from tests.cluster.process import until
from tests.cluster.replicas import SET, Replica, Replicas, address, replicas, told, written
from tests.cluster.wire import wire

SHOP = "shop"
T = TypeVar("T")


@asynccontextmanager
async def shop(cluster: Cluster, folder: Path, count: int = 1) -> AsyncIterator[tuple[Replicas, Asking]]:
    """Replicas, and one pod that runs its plan."""
    cluster.make_namespace(SHOP)
    cluster.apply(*written(SET, SHOP))
    with replicas(cluster, folder) as found:
        for number in range(count):
            await off(partial(found.add, f"c{number}"))
        at = address()
        cluster.run_pod(SHOP, "web-0", labels={"web": "yes"}, ips=[at])
        pod = Asking(found.urls, at)
        async with asking(pod):
            await pod.until(lambda pod: pod.tasks == ["ready"])
            await told(cluster, SHOP, "web", Ready=("True", "AllApplied"))
            yield found, pod


async def off(call: Callable[[], T]) -> T:
    """In a thread, while the pods go on asking."""
    return await trio.to_thread.run_sync(call)


async def test_a_replica_that_is_killed_at_any_step_is_not_missed(
    plane: ControlPlane, tmp_path: Path
) -> None:
    async with shop(plane, tmp_path, count=2) as (found, pod):
        for number, leading in enumerate((True, False, True)):
            leader = await off(lambda: until_led(found))
            victim = next(one for one in found.all if (one.name == leader) is leading)
            victim.process.kill()
            # while one is dead and perhaps nobody leads: what people do reaches the pod all the same
            plane.label(SHOP, "web-0", {"web": None})
            await pod.until(lambda pod: pod.tasks == [])
            plane.label(SHOP, "web-0", {"web": "yes"})
            await pod.until(lambda pod: pod.tasks == ["ready"])
            await off(victim.process.start)
            at = address()
            name = f"web-{number + 1}"
            plane.run_pod(SHOP, name, labels={"web": "yes"}, ips=[at])
            another = Asking(found.urls, at)
            async with asking(another):
                await another.until(lambda pod: pod.tasks == ["ready"])
                await told(plane, SHOP, "web", Ready=("True", "AllApplied"))
            plane.finish_pod(SHOP, name)


def until_led(found: Replicas) -> str:
    until(found.leader)
    return found.leader()


async def test_an_api_server_that_comes_back_without_its_history_is_believed(
    plane: ControlPlane, tmp_path: Path
) -> None:
    async with shop(plane, tmp_path) as (_, pod):
        taken = len(pod.history)
        await off(plane.apiserver.kill)
        # the repo goes on with what it has: who asks now is served
        later = Asking(pod.client._urls, pod.address)
        async with asking(later):
            await later.until(lambda pod: pod.tasks == ["ready"])
        await off(plane.apiserver.start)
        await off(plane.lose_history)
        plane.label(SHOP, "web-0", {"web": None})
        await pod.until(lambda pod: pod.tasks == [])
        assert len(pod.history) == taken + 1
        plane.label(SHOP, "web-0", {"web": "yes"})
        await pod.until(lambda pod: pod.tasks == ["ready"])
        await told(plane, SHOP, "web", Ready=("True", "AllApplied"))


async def test_deletions_that_nobody_told_are_found_by_the_next_list(
    plane: ControlPlane, tmp_path: Path
) -> None:
    async with shop(plane, tmp_path) as (found, _):
        (replica,) = found.all
        os.kill(replica.process.pid, signal.SIGSTOP)
        plane.kubectl("delete", "taskbinding", "web", "--namespace", SHOP)
        plane.finish_pod(SHOP, "web-0")
        again = address()
        plane.run_pod(SHOP, "web-1", labels={"web": "yes"}, ips=[again])
        await off(plane.lose_history)
        os.kill(replica.process.pid, signal.SIGCONT)
        another = Asking(found.urls, again)
        async with asking(another):
            await another.until(lambda pod: bool(pod.history) and pod.tasks == [])
            await off(lambda: until(lambda: pods(replica) == [f"{SHOP}/web-1"]))


def pods(replica: Replica) -> list[str]:
    return [f"{one['namespace']}/{one['name']}" for one in replica.get("/v1/pods").json()["pods"]]


async def test_a_slow_etcd_delays_what_is_new_and_nothing_else(plane: ControlPlane, tmp_path: Path) -> None:
    async with shop(plane, tmp_path) as (found, pod):
        (replica,) = found.all
        with plane.etcd.paused():
            # until it cannot lead any more, which needs writing; serving needs nothing
            await off(lambda: until(lambda: "lost-the-lead" in replica.process.told()))
            assert replica.ready
            later = Asking(found.urls, pod.address)
            async with asking(later):
                await later.until(lambda pod: pod.tasks == ["ready"])
        plane.label(SHOP, "web-0", {"web": None})
        await pod.until(lambda pod: pod.tasks == [])
        plane.label(SHOP, "web-0", {"web": "yes"})
        await pod.until(lambda pod: pod.tasks == ["ready"])
        await told(plane, SHOP, "web", Ready=("True", "AllApplied"))


async def test_a_watch_that_is_cut_in_the_middle_of_an_event_loses_nothing(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    async with wire(cluster) as between:
        with replicas(cluster, tmp_path) as found:
            await off(lambda: found.add("a", server=between.url))
            cluster.apply(*written(SET, namespace))
            at = address()
            cluster.run_pod(namespace, "web-0", labels={"web": "no"}, ips=[at])
            pod = Asking(found.urls, at)
            async with asking(pod):
                await pod.until(lambda pod: bool(pod.history))
                between.cut_in(b"marker-of-this-test")
                cluster.label(namespace, "web-0", {"web": "yes", "seen": "marker-of-this-test"})
                await pod.until(lambda pod: pod.tasks == ["ready"])
