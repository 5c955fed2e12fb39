"""Rollouts with two replicas and real pods' clients: some first, halted where it goes wrong, back, and pinned."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from pidone.plan.model import Bundle
from tests.cluster.apiserver import Cluster
from tests.cluster.pods import Asking, asking
from tests.cluster.replicas import SET, Replicas, address, replicas, told, written
from tests.patience import PATIENCE_SECONDS

CAREFUL = SET + "  rollout: {canary: 10%, pause: 2s, maxRejected: 0}\n"
PODS = 6


@pytest.fixture(scope="module")
def controllers(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    with replicas(cluster, tmp_path_factory.mktemp("controllers")) as found:
        for name in ("a", "b"):
            found.add(name)
        yield found


@asynccontextmanager
async def fleet(cluster: Cluster, namespace: str, urls: list[str]) -> AsyncIterator[list[Asking]]:
    """Pods that run the first version, once that is everywhere."""
    cluster.apply(*written(CAREFUL, namespace))
    pods = []
    for number in range(PODS):
        at = address()
        cluster.run_pod(namespace, f"web-{number}", labels={"web": "yes"}, ips=[at])
        pods.append(Asking(urls, at))
    async with asking(*pods):
        for pod in pods:
            # a rollout too, from nothing; a leader that is new hears what the others know first
            await pod.until(lambda pod: pod.tasks == ["ready"])
            pod.report(ready="healthy")
        await told(cluster, namespace, "web", Ready=("True", "AllApplied"))
        yield pods


def port(bundle: Bundle) -> int:
    """Of the probe that the plan has; 0 where it has none."""
    return next((task.config["httpGet"]["port"] for task in bundle.plan.tasks), 0)


def change(cluster: Cluster, namespace: str, number: int) -> None:
    """A new version of the set."""
    text = CAREFUL.partition("---")[0].replace("default: 8080", f"default: {number}")
    cluster.apply(*written(text, namespace))


def rollout(cluster: Cluster, namespace: str) -> dict[str, object]:
    found = json.loads(
        cluster.kubectl("get", "taskbinding", "web", "--namespace", namespace, "--output=json")
    )
    state: dict[str, object] = found["status"]["rollout"]
    return state


async def test_some_pods_first_and_the_rest_when_those_are_well(
    cluster: Cluster, namespace: str, controllers: Replicas
) -> None:
    async with fleet(cluster, namespace, controllers.urls) as pods:
        change(cluster, namespace, 81)
        with trio.fail_after(PATIENCE_SECONDS):
            while not any(port(pod.history[-1]) == 81 for pod in pods):
                await trio.sleep(0.05)
        first = [pod for pod in pods if port(pod.history[-1]) == 81]
        assert len(first) < PODS, "all of them at once is no canary"
        await told(cluster, namespace, "web", Ready=("False", "RollingOut"))
        for pod in pods:
            await pod.until(lambda pod: port(pod.history[-1]) == 81)
        await told(cluster, namespace, "web", Ready=("True", "AllApplied"))
        # nobody had a version between, and nobody had one twice
        assert all(
            [port(bundle) for bundle in pod.history if bundle.plan.tasks] == [8080, 81] for pod in pods
        )


async def test_refused_it_is_halted_and_undone_it_is_as_before(
    cluster: Cluster, namespace: str, controllers: Replicas
) -> None:
    async with fleet(cluster, namespace, controllers.urls) as pods:
        before = {pod.digest for pod in pods}
        for pod in pods:
            pod.refuses = lambda bundle: "no port but 8080" if port(bundle) == 82 else ""
        change(cluster, namespace, 82)
        await told(cluster, namespace, "web", Stalled=("True", "RolloutHalted"))
        assert rollout(cluster, namespace)["phase"] == "Halted"
        assert {pod.digest for pod in pods} == before
        change(cluster, namespace, 8080)
        await told(cluster, namespace, "web", Ready=("True", "AllApplied"))
        assert {pod.digest for pod in pods} == before


async def test_a_task_that_was_well_and_fails_halts_it_and_the_pods_go_back(
    cluster: Cluster, namespace: str, controllers: Replicas
) -> None:
    async with fleet(cluster, namespace, controllers.urls) as pods:
        change(cluster, namespace, 83)
        with trio.fail_after(PATIENCE_SECONDS):
            while not (first := [pod for pod in pods if port(pod.history[-1]) == 83]):
                await trio.sleep(0.05)
        first[0].report(ready="unhealthy")
        await told(cluster, namespace, "web", Stalled=("True", "RolloutHalted"))
        for pod in pods:
            await pod.until(lambda pod: port(pod.history[-1]) == 8080)


async def test_a_pin_holds_a_version_whatever_comes(
    cluster: Cluster, namespace: str, controllers: Replicas
) -> None:
    async with fleet(cluster, namespace, controllers.urls) as pods:
        current = rollout(cluster, namespace)["current"]
        assert isinstance(current, dict)
        pin = current["sets"][0]["digest"]
        annotation = f"pidone.dev/pin={pin}"
        cluster.kubectl("annotate", "taskbinding", "web", annotation, "--namespace", namespace)
        # the next version is there before the pin goes, so that what the pods do not get was there to be had
        change(cluster, namespace, 84)
        await told(cluster, namespace, "web", kind="taskset", Ready=("True", "Accepted"))
        late = address()
        cluster.run_pod(namespace, "web-late", labels={"web": "yes"}, ips=[late])
        pod = Asking(controllers.urls, late)
        async with asking(pod):
            await pod.until(lambda pod: pod.tasks == ["ready"])
            assert port(pod.history[-1]) == 8080
            assert {port(one.history[-1]) for one in pods} == {8080}
            cluster.kubectl("annotate", "taskbinding", "web", "pidone.dev/pin-", "--namespace", namespace)
            for one in (*pods, pod):
                await one.until(lambda pod: port(pod.history[-1]) == 84)
