"""Real pods: podman with pidone as their infra container, the application's orphans, plans, ends, and many at once."""

import statistics
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psutil
import pytest

from tests import folders
from tests.image.podman import ENGINE, ROOT, Pod, Podman, missing, podman, until
from tests.image.world import ALL, World, world
from tests.patience import PATIENCE_SECONDS
from tests.ports import free_port
from tests.processes import command

pytestmark = [
    pytest.mark.image,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

# From the application's shell: each parent ends at once, so that process 1 gets the child.
ORPHANS = "i=0; while [ $i -lt 300 ]; do (true &); i=$((i+1)); done; (sleep 300 &)"


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    return free_port(), free_port()


@pytest.fixture(scope="module")
def runtime(ports: tuple[int, int]) -> Iterator[Podman]:
    with podman(folders.reserve(ROOT / "build" / "podman"), ports[0]) as program:
        yield program


@pytest.fixture(scope="module")
def here(
    runtime: Podman, ports: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("world"), *ports, runtime.gateway) as found:
        yield found


@pytest.fixture
def pods(runtime: Podman) -> Iterator[list[Pod]]:
    """What the test puts here is removed at its end."""
    started: list[Pod] = []
    yield started
    runtime.remove(*started)


def at_rest(pod: Pod) -> None:
    """It has asked whether there is a plan: no process beside it."""
    until("the first question is answered", lambda: not pod.process.children() or None)
    assert pod.shape == "doze"


def test_an_application_s_orphans_come_to_process_1_and_are_reaped(
    runtime: Podman, here: World, pods: list[Pod]
) -> None:
    pod = runtime.pod("orphans", "--share", "pid,net,ipc,uts")
    pods.append(pod)
    application = runtime.application(pod)
    at_rest(pod)

    runtime("exec", application, "sh", "-c", ORPHANS)

    def adopted() -> psutil.Process | None:
        found = [child for child in pod.process.children() if command(child) == ["sleep", "300"]]
        return found[0] if found and len(pod.process.children()) == 1 else None

    sleeper = until("300 orphans are reaped, and one that lives is there", adopted)
    sleeper.terminate()
    until("that one too", lambda: not pod.process.children() or None)
    assert pod.process.status() == psutil.STATUS_SLEEPING


def test_without_a_shared_pid_namespace_the_orphans_of_its_own_are_reaped(
    runtime: Podman, here: World, pods: list[Pod]
) -> None:
    pod = runtime.pod("alone")
    pods.append(pod)
    runtime.application(pod)
    at_rest(pod)
    # "kubectl exec" into a sandbox, as an administrator on the node does it
    enter = [
        "nsenter",
        "--target",
        str(pod.pid),
        "--pid",
        "/bin/busybox",
        "sh",
        "-c",
        ORPHANS.replace("sleep 300", "sleep 0.2"),
    ]
    subprocess.run(enter, check=True, timeout=PATIENCE_SECONDS)
    until("all are reaped", lambda: not pod.process.children() or None)
    assert pod.shape == "doze"


@pytest.mark.parametrize("share", ["net,ipc,uts", "pid,net,ipc,uts"], ids=["alone", "shared pid namespace"])
def test_a_plan_runs_against_the_application_in_the_pod(
    runtime: Podman, here: World, pods: list[Pod], share: str
) -> None:
    pod = runtime.pod(f"plan{len(share)}", "--share", share)
    pods.append(pod)
    application = runtime.application(pod)
    at_rest(pod)

    here.pods(**{pod.name: (pod.ip, ALL)})

    instance = until("registered, and UP", lambda: here.registered(pod.name))
    assert (instance["ipAddr"], instance["status"]) == (pod.ip, "UP")
    assert pod.shape in ENGINE
    first = here.renewed(pod.name)
    until("a heartbeat", lambda: here.renewed(pod.name) > first or None)
    page = until("metrics", lambda: here.metrics(pod.ip))
    assert "pidone_" in page
    if "pid" in share.split(","):
        runtime("exec", application, "sh", "-c", ORPHANS.replace("sleep 300", "true"))
        until("the engine reaps as well", lambda: pod.zombies() == 0 or None)

    here.pods(**{pod.name: (pod.ip, {"app": "ratings"})})
    until("out of Eureka", lambda: here.registered(pod.name) is None or None)
    until("asleep again, the same process", lambda: pod.shape == "doze" or None)
    here.pods(**{pod.name: None})


def test_a_pod_s_stop_does_not_wait_for_the_grace_period(
    runtime: Podman, here: World, pods: list[Pod]
) -> None:
    dozing, active = runtime.pod("stopdoze"), runtime.pod("stopactive")
    pods += [dozing, active]
    for pod in (dozing, active):
        runtime.application(pod)
        at_rest(pod)
    here.pods(stopactive=(active.ip, ALL))
    until("registered", lambda: here.registered("stopactive"))
    for pod in (dozing, active):
        runtime("pod", "stop", "--time", "3600", pod.name)
        state = runtime("pod", "inspect", pod.name, "--format", "{{.State}}")
        assert state == "Exited", state
    until("out of Eureka by TERM", lambda: here.registered("stopactive") is None or None)
    here.pods(stopactive=None)


def test_twenty_pods_at_once_and_what_they_cost(
    runtime: Podman, here: World, pods: list[Pod], capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        pods += pool.map(runtime.pod, [f"many{number}" for number in range(20)])
    took = time.monotonic() - began
    for pod in pods:
        at_rest(pod)
        assert pod.zombies() == 0
    assert len({pod.ip for pod in pods}) == 20
    dozing = statistics.median(pod.anonymous for pod in pods)

    busy = pods[:4]
    for pod in busy:
        runtime.application(pod)
    here.pods(**{pod.name: (pod.ip, ALL) for pod in busy})
    for pod in busy:
        until(f"{pod.name} is registered", partial(here.registered, pod.name))
        until("metrics", partial(here.metrics, pod.ip))
    first = {pod.name: here.renewed(pod.name) for pod in busy}
    for pod in busy:
        until("a heartbeat", partial(here.renewed_after, pod.name, first[pod.name]))
    active = statistics.median(pod.anonymous for pod in busy)
    with capsys.disabled():
        print(
            f"\n20 pods in {took:.1f} s; anonymous memory: dozing {dozing:g} KiB, active {active / 1024:.2f} MiB"
        )
    assert {pod.shape for pod in pods[4:]} == {"doze"}
    here.pods(**{pod.name: None for pod in busy})
