"""Instances that people take out of service, and those of dead pods that the controller takes out, at real servers."""

import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pidone.plan.digest import digest
from pidone.plan.report import Report, TaskReport
from pidone_controller.deregistration import Deregistration
from tests.controller.factories import pod as kubernetes_pod
from tests.registries.checks import CHECKS, is_built
from tests.registries.test_faults import KILLED, Bench, closing, until, world_of
from tests.registries.world import World, pod_ip

__all__ = ["closing", "world_of"]

NAMES = [pytest.param(name, id=f"{name}-people") for name in CHECKS if is_built(name)]
LEASE_SECONDS = 30  # or as many as the servers allow; the log tells that no lease had to end
MAINTAINED = 4  # the pod, by number
LIVING = 5


@pytest.fixture
async def bench(
    name: str,
    world_of: Callable[[str], World],
    tmp_path: Path,
    nursery: trio.Nursery,
    closing: AsyncExitStack,
) -> Bench:
    bench = Bench(world_of(name), f"people{os.getpid()}", tmp_path, closing)
    bench.nursery, bench.lease = nursery, LEASE_SECONDS
    await bench.call(bench.world.mend)
    await bench.start(lambda _: list(bench.world.addresses))
    return bench


async def shows(bench: Bench, number: int, *, up: bool) -> None:
    """Wait until clients get this instance, or get it no more."""

    async def wrong() -> str:
        seen = await bench.call(bench.world.instances, bench.service)
        if seen is None:
            return "the servers do not answer, or do not agree"
        is_up = any((one.number, one.status) == (number, "UP") for one in seen)
        return "" if is_up is up else f"{seen}"

    await until(wrong)


@pytest.mark.parametrize("name", NAMES)
async def test_people_take_an_instance_out_and_the_controller_those_of_dead_pods(
    bench: Bench, nursery: trio.Nursery
) -> None:
    await bench._homes[MAINTAINED].order(maintenance={MAINTAINED: True})
    await shows(bench, MAINTAINED, up=False)
    await bench.renewed(1)
    await shows(bench, MAINTAINED, up=False)
    await bench._homes[MAINTAINED].order(maintenance={MAINTAINED: False})
    await bench.settled()

    results = list[tuple[str, Any]]()

    def log(event: str, **values: Any) -> None:
        results.append((event, values.get("error") or values.get("by")))

    deregistration = Deregistration(log, random=Random(1))
    nursery.start_soon(deregistration.run)
    await wait_all_tasks_blocked()
    keys = {number: hears(bench, deregistration, number) for number in (*KILLED, LIVING)}
    # the next pod of the same name has another address, and holds the instance by its plan
    hears(bench, deregistration, LIVING, uid="next")
    await bench.change()
    for number in KILLED:
        deregistration.gone(keys[number])
    deregistration.gone(keys[LIVING], namesake=True)
    await bench.settled()
    while deregistration.pending:
        await trio.sleep(0.1)
    assert sorted(event for event, _ in results) == [*["deregistered"] * len(KILLED), "registered-anew"], (
        results
    )
    await bench.leave(*bench.expected)
    await bench.settled()
    nursery.cancel_scope.cancel()


def hears(bench: Bench, deregistration: Deregistration, number: int, uid: str = "") -> str:
    """The controller gets the report of a pod. Returns the pod's key."""
    config = bench.world.config(bench.service, number, list(bench.world.addresses), LEASE_SECONDS)
    tasks = [{"name": "web", "register": {bench.world.name: config}}]
    reported = Report("applied", digest=digest(tasks), tasks={"web": TaskReport("registered", runs=1)})
    pod = kubernetes_pod(f"web-{number}", pod_ip(number), uid=uid or f"uid-{number}")
    deregistration.reported(pod, reported, digest(tasks), partial(list, tasks))
    return pod.key
