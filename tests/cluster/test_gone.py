"""Pods that are gone, on the real API server: what they left in a registry is taken out by the replica that leads."""

import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
from trio.to_thread import run_sync

from pidone.actions._address import addresses, choose
from pidone.http.client import request
from pidone.http.urls import authority
from tests import pidns
from tests.cluster.apiserver import Cluster
from tests.cluster.pods import Asking, asking
from tests.cluster.replicas import Replica, Replicas, address, replicas, written
from tests.eureka.fake import FakeEureka
from tests.eureka.real import RealEureka
from tests.http.serving import http_server
from tests.patience import PATIENCE_SECONDS
from tests.registries.test_eureka import fake_eureka

pytestmark = pytest.mark.pidns

OBJECTS = """
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: web}
spec:
  params: [{name: registry}]
  tasks:
    - name: registration
      stopTimeout: 5s
      register:
        eureka: {url: $(params.registry), app: APP, port: 8080, leaseDuration: 10m}
    - name: beat
      needs: [registration]
      every: 30s
      heartbeat: {of: registration}
---
apiVersion: pidone.dev/v1alpha1
kind: TaskBinding
metadata: {name: web}
spec:
  podSelector: {matchLabels: {web: "yes"}}
  taskSets: [web]
  params: {registry: URL}
"""


@pytest.fixture(params=["fake", pytest.param("spring", marks=pytest.mark.eureka)])
def real(request: pytest.FixtureRequest) -> RealEureka | None:
    if request.param == "fake":
        return None
    server: RealEureka = request.getfixturevalue("spring")
    return server


@pytest.fixture
async def eureka(real: RealEureka | None, nursery: trio.Nursery) -> str:
    """The URL of a registry. The controller calls no address of loopback, so it is at another one of this machine."""
    if real is not None:
        port = urlsplit(real.url).port or 0
    else:
        port = await http_server(nursery, fake_eureka(FakeEureka()), body=1 << 16)
    host = choose(["inet"], "", addresses())
    if not host:
        pytest.skip("this machine has no IPv4 address but that of loopback")
    listeners = await trio.open_tcp_listeners(0, host=host)
    await nursery.start(trio.serve_listeners, partial(forward, port), listeners)
    return f"http://{authority(host, listeners[0].socket.getsockname()[1])}/eureka/"


async def forward(port: int, caller: trio.SocketStream) -> None:
    """Pass the bytes of a connection to this port of loopback, and the answers back."""

    async def copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
        async for data in source:
            await target.send_all(data)
        await target.send_eof()

    with suppress_errors():
        server = await trio.open_tcp_stream("127.0.0.1", port)
        async with caller, server, trio.open_nursery() as nursery:
            nursery.start_soon(copy, caller, server)
            nursery.start_soon(copy, server, caller)


@contextmanager
def suppress_errors() -> Iterator[None]:
    """Suppress the errors of a connection that either side has closed."""
    try:
        yield
    except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass


@pytest.fixture(scope="module")
def controllers(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    with replicas(cluster, tmp_path_factory.mktemp("controllers")) as found:
        for name in ("a", "b"):
            found.add(name)
        yield found


@contextmanager
def living(cluster: Cluster, namespace: str, at: str, url: str) -> Iterator[pidns.ProcessOne]:
    """A pod and its process 1, which asks one replica alone."""
    made = cluster.run_pod(namespace, "web-0", labels={"web": "yes"}, ips=[at])
    env = {"PIDONE_REPO": url, "PIDONE_POD_IP": at, "PIDONE_POD_UID": made["metadata"]["uid"]}
    with pidns.process_one(
        [sys.executable, "-m", "pidone"], env={**env, "PIDONE_DOZE": "/nowhere"}
    ) as process:
        yield process


async def end(process: pidns.ProcessOne) -> None:
    """As containerd does."""
    process.signal(signal.SIGKILL)
    await run_sync(process.wait, PATIENCE_SECONDS)


async def roles(controllers: Replicas) -> list[Replica]:
    """The one that leads, and the others."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not (name := await run_sync(controllers.leader)):
            await trio.sleep(0.1)  # other processes have no event
    return sorted(controllers.all, key=lambda one: one.name != name)


async def instance(eureka: str, app: str, name: str) -> dict[str, Any] | None:
    """What the registry has."""
    headers = {"accept": "application/json"}
    answer = await request(
        "GET", f"{eureka}apps/{app}/{name}:{app.lower()}:8080", timeout=30, headers=headers
    )
    return json.loads(answer.body)["instance"] if answer.status == 200 else None


async def registered(eureka: str, app: str, name: str, leader: Replica, path: str) -> None:
    """Until the instance is there, and the leader has heard of it."""
    with trio.fail_after(PATIENCE_SECONDS):
        while await instance(eureka, app, name) is None:
            await trio.sleep(0.05)
        while '"state": "registered"' not in (await run_sync(leader.get, f"/v1/pods/{path}")).text:
            await trio.sleep(0.05)


async def taken_out(eureka: str, app: str, name: str, seconds: float) -> float:
    """How long it took. Raises ``trio.TooSlowError``."""
    began = trio.current_time()
    with trio.fail_after(seconds):
        while await instance(eureka, app, name) is not None:
            await trio.sleep(0.02)
    return trio.current_time() - began


@pytest.mark.parametrize("told", ["the leader", "the other"])
async def test_a_pod_that_was_killed_is_out_long_before_its_lease_ends(
    cluster: Cluster, namespace: str, controllers: Replicas, eureka: str, told: str
) -> None:
    at, app = address(), f"GONE{address().replace('.', '-')}"
    leader, other = await roles(controllers)
    cluster.apply(*written(OBJECTS.replace("URL", eureka).replace("APP", app), namespace))
    # one replica is told by the pod, and it need not be the one that leads
    with living(cluster, namespace, at, (leader if told == "the leader" else other).url) as process:
        await registered(eureka, app, "web-0", leader, f"{namespace}/web-0")
        await end(process)
    assert await instance(eureka, app, "web-0") is not None, "nobody has taken it out yet"
    await run_sync(cluster.finish_pod, namespace, "web-0")
    took = await taken_out(eureka, app, "web-0", 30)
    print(f"out of {eureka} {took * 1000:.0f} ms after the pod was gone, told to {told}")
    line = rf"pod={namespace}/web-0 event=deregistered task=registration .*{app}"
    with trio.fail_after(PATIENCE_SECONDS):  # it is written when the registry has answered
        while not re.search(line, leader.process.log.read_text()):
            await trio.sleep(0.02)


async def test_a_pod_that_takes_it_back_itself_leaves_nothing_to_do(
    cluster: Cluster, namespace: str, controllers: Replicas, eureka: str
) -> None:
    at, app = address(), f"GONE{address().replace('.', '-')}"
    leader, other = await roles(controllers)
    cluster.apply(*written(OBJECTS.replace("URL", eureka).replace("APP", app), namespace))
    with living(cluster, namespace, at, other.url) as process:
        await registered(eureka, app, "web-0", leader, f"{namespace}/web-0")
        await run_sync(cluster.delete_pod, namespace, "web-0")
        took = await taken_out(eureka, app, "web-0", 30)
        print(f"out of {eureka} {took * 1000:.0f} ms after its deletion, by the pod")
        with trio.fail_after(PATIENCE_SECONDS):
            while '"tasks": {}' not in (await run_sync(leader.get, f"/v1/pods/{namespace}/web-0")).text:
                await trio.sleep(0.02)
        await end(process)
    await run_sync(cluster.finish_pod, namespace, "web-0")
    await trio.sleep(0.5)  # for what must not happen
    assert f"pod={namespace}/web-0 event=deregistered" not in leader.process.log.read_text()


async def test_the_next_pod_of_the_name_keeps_its_instance(
    cluster: Cluster, namespace: str, controllers: Replicas, eureka: str
) -> None:
    """As of a StatefulSet: the name, the address and so the instance come back while the old one is being taken out."""
    at, app = address(), f"GONE{address().replace('.', '-')}"
    leader, other = await roles(controllers)
    cluster.apply(*written(OBJECTS.replace("URL", eureka).replace("APP", app), namespace))
    for turn in range(2):
        with living(cluster, namespace, at, other.url) as process:
            await registered(eureka, app, "web-0", leader, f"{namespace}/web-0")
            if turn == 1:
                await trio.sleep(3)  # for what must not happen
                assert await instance(eureka, app, "web-0") is not None
            await end(process)
        await run_sync(cluster.finish_pod, namespace, "web-0")
    await taken_out(eureka, app, "web-0", 30)


def events(cluster: Cluster, namespace: str, kind: str, name: str) -> list[tuple[str, str]]:
    """Reason and message of those about one object, as ``kubectl describe`` finds them."""
    about = f"involvedObject.kind={kind},involvedObject.name={name}"
    found = json.loads(
        cluster.kubectl("get", "events", "-n", namespace, "--field-selector", about, "-o", "json")
    )
    return [(one["reason"], one["message"]) for one in found["items"]]


async def test_a_refusal_is_an_event_on_the_pod_and_a_conflict_one_on_each_binding(
    cluster: Cluster, namespace: str, controllers: Replicas
) -> None:
    _, other = await roles(controllers)
    at = address()
    cluster.apply(*written(OBJECTS.replace("URL", "http://127.0.0.1:9/").replace("APP", "WEB"), namespace))
    cluster.run_pod(namespace, "web-0", labels={"web": "yes"}, ips=[at])
    pod = Asking([other.url], at, refuses=lambda bundle: "no such program" if bundle.plan.tasks else "")
    async with asking(pod):
        with trio.fail_after(PATIENCE_SECONDS):
            while not (found := await run_sync(events, cluster, namespace, "Pod", "web-0")):
                await trio.sleep(0.05)
        text = f"the plan of TaskBinding {namespace}/web was refused: no such program"
        assert found == [("PlanRefused", text)]
        # two that disagree
        second = OBJECTS.replace("URL", "http://127.0.0.1:9/other/").replace("APP", "WEB")
        cluster.apply(
            *written(second.replace("metadata: {name: web}", "metadata: {name: more}"), namespace)[1:]
        )
        with trio.fail_after(PATIENCE_SECONDS):
            for name in ("web", "more"):
                while not (found := await run_sync(events, cluster, namespace, "TaskBinding", name)):
                    await trio.sleep(0.05)
                assert [reason for reason, _ in found] == ["Conflict"]
                assert f"TaskBinding {namespace}/more and TaskBinding {namespace}/web" in found[0][1]
    assert len(await run_sync(events, cluster, namespace, "Pod", "web-0")) == 1


async def test_an_annotation_without_effect_is_an_event_on_the_pod(
    cluster: Cluster, namespace: str, controllers: Replicas
) -> None:
    await roles(controllers)
    cluster.run_pod(namespace, "web-0", ips=[address()])
    cluster.kubectl("annotate", "pod", "web-0", "pidone.dev/maintenance=yes", "-n", namespace)
    with trio.fail_after(PATIENCE_SECONDS):
        while not (found := await run_sync(events, cluster, namespace, "Pod", "web-0")):
            await trio.sleep(0.05)
    ((reason, message),) = found
    assert reason == "UnknownMaintenance"
    assert 'the annotation pidone.dev/maintenance is "yes", and has no effect' in message


async def test_the_death_of_the_leader_takes_no_binding_out_of_service(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    """The next one hears from its peers what pods have told them; meanwhile what stands is left standing."""
    with replicas(cluster, tmp_path) as found:
        for name in ("d", "e", "f"):
            await run_sync(found.add, name)
        leader, *others = await roles(found)
        pods = {f"web-{number}": address() for number in range(2)}
        cluster.apply(
            *written(OBJECTS.replace("URL", "http://127.0.0.1:9/").replace("APP", "WEB"), namespace)
        )
        for name, at in pods.items():
            cluster.run_pod(namespace, name, labels={"web": "yes"}, ips=[at])
        # each tells one that does not lead: whichever is next knows of one pod by itself, and of the other not
        asked = (Asking([one.url], at) for one, at in zip(others, pods.values(), strict=True))
        async with asking(*asked):
            ready = ("wait", "--for=condition=Ready", "taskbinding/web", "-n", namespace, "--timeout=120s")
            await run_sync(lambda: cluster.kubectl(*ready))
            before = status_of(cluster, namespace)
            assert (before["matched"], before["applied"]) == (2, 2)
            leader.process.kill()
            deadline = trio.current_time() + 60
            led = 0.0
            while trio.current_time() < (led or deadline):
                assert status_of(cluster, namespace) == before, "to the second of the last transition"
                if not led and await run_sync(found.leader) not in {"", leader.name}:
                    led = trio.current_time() + 18  # it has heard all by then, and judges by itself
                await trio.sleep(0.5)
            assert led


def status_of(cluster: Cluster, namespace: str) -> dict[str, Any]:
    found = json.loads(cluster.kubectl("get", "taskbinding", "web", "-n", namespace, "-o", "json"))
    return {key: value for key, value in found["status"].items() if key != "rollout"}
