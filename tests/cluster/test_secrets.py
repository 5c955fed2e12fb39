"""Secrets against a real API server with real RBAC: a real process 1 registers by a password that its namespace grants.

Two replicas have the rights of ``k3d/rbac.yaml``. What people see of the password anywhere is looked for at each step.
"""

import base64
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import trio

from pidone.http.message import Request, Response
from tests import pidns
from tests.cluster.apiserver import OURS, Cluster
from tests.cluster.process import until
from tests.cluster.replicas import HOME, ROOT, Replicas, address, conditions, replicas, told, written
from tests.eureka.fake import FakeEureka
from tests.http.serving import http_server
from tests.mounted import mount
from tests.patience import PATIENCE_SECONDS

FIRST, SECOND, WRONG = "correct-horse-battery", "staple and/more", "wrong-password"
SECOND_IN_URL = "staple%20and%2Fmore"  # as the Secret has it, since it stands in a URL
SET = """
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: registered}
spec:
  params:
    - {name: port, type: integer}
    - name: password
      valueFrom: {secretKeyRef: {name: eureka-login, key: password}}
  tasks:
    - name: registration
      register:
        eureka:
          url: http://pidone:$(params.password)@127.0.0.1:$(params.port)/eureka
          app: web
          port: 8080
          renewalInterval: 1s
      backoff: {initial: 1s, max: 2s}
      stopTimeout: 5s
    - {name: beat, needs: [registration], every: 1s, heartbeat: {of: registration}}
    - {name: ready, probe: {tcpSocket: {port: $(params.port)}}}
---
apiVersion: pidone.dev/v1alpha1
kind: TaskBinding
metadata: {name: registered}
spec:
  podSelector: {matchLabels: {web: "yes"}}
  taskSets: [registered]
  params: {port: PORT}
"""


class GuardedEureka:
    """A fake Eureka that wants a user and a password."""

    def __init__(self) -> None:
        self.registry = FakeEureka()
        self.password = FIRST
        self.refused = 0

    async def handle(self, request: Request) -> Response:
        right = base64.b64encode(f"pidone:{self.password}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {right}":
            self.refused += 1
            return Response(401, {"www-authenticate": 'Basic realm="eureka"'}, b"unauthorized")
        return Response(*self.registry.handle(request.method, request.target, request.body, time.time()))

    @property
    def addresses(self) -> list[str]:
        found = json.loads(self.registry.handle("GET", "/eureka/apps/", b"", time.time())[-1])
        applications = found["applications"]["application"]
        return [one["ipAddr"] for application in applications for one in application["instance"]]


@pytest.fixture(scope="module")
def controllers(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    with replicas(cluster, tmp_path_factory.mktemp("controllers")) as found:
        for name in ("a", "b"):
            found.add(name)
        yield found


def ready(cluster: Cluster, namespace: str) -> str:
    """The message of the binding's Ready."""
    path = f"{OURS}/namespaces/{namespace}/taskbindings/registered"
    found = cluster.request("GET", path).get("status", {}).get("conditions", ())
    return next((one["message"] for one in found if one["type"] == "Ready"), "")


async def says(cluster: Cluster, namespace: str, words: str) -> str:
    """Wait until the binding has no Secret, and says why in these words. Return the message."""
    await told(cluster, namespace, "registered", Stalled=("True", "NoSecret"), Ready=("False", "NoSecret"))
    await trio.to_thread.run_sync(until, lambda: words in ready(cluster, namespace), 2 * PATIENCE_SECONDS)
    return ready(cluster, namespace)


def put(cluster: Cluster, namespace: str, **values: str) -> None:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "eureka-login", "namespace": namespace},
    }
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps({**body, "data": data}))


def everything(cluster: Cluster, namespace: str, controllers: Replicas, pod_log: Path, at: str) -> str:
    """All that people and monitoring see of the namespace's tasks, but for the Secret itself."""
    kinds = "tasksets,taskbindings,controllerrevisions,pods,events"
    texts = [cluster.kubectl("get", kinds, "--namespace", namespace, "--output=json"), pod_log.read_text()]
    for replica in controllers.all:
        texts.append(replica.process.log.read_text())
        texts += [replica.get(path).text for path in ("/metrics", "/v1/pods", f"/v1/pods/{namespace}/web-0")]
    texts.append(httpx.get(f"http://{at}:19101/status", trust_env=False).text)
    return "\n".join(texts)


def environment_of(cluster: Cluster, controllers: Replicas, folder: Path, at: str) -> dict[str, str]:
    """Return the environment of a pod at this address, which trusts the controllers by a file in ``folder``."""
    authority = cluster.request("GET", f"/api/v1/namespaces/{HOME}/secrets/pidone-ca")["data"]["ca.crt"]
    (folder / "ca.crt").write_bytes(base64.b64decode(authority))
    return {
        "PIDONE_REPO": ",".join(f"https://127.0.0.1:{replica.tls}" for replica in controllers.all),
        "PIDONE_CA": str(folder / "ca.crt"),
        "PIDONE_POD_IP": at,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'controller'}",
    }


def hidden(text: str) -> None:
    for value in (FIRST, SECOND, SECOND_IN_URL, WRONG):
        assert value not in text
        for plain in (value, f"pidone:{value}"):
            assert base64.b64encode(plain.encode()).decode().rstrip("=") not in text
    assert '"salt"' not in text


async def test_a_pod_registers_by_a_password_that_its_namespace_grants(
    cluster: Cluster, namespace: str, controllers: Replicas, nursery: trio.Nursery, tmp_path: Path
) -> None:
    eureka, at = GuardedEureka(), address()
    port = await http_server(nursery, eureka.handle, body=1 << 16)
    cluster.apply(*written(SET.replace("PORT", str(port)), namespace))

    # without pods too, people see what is missing, and the commands that they are told are the right ones
    message = await says(cluster, namespace, "has not granted to the controller: kubectl")
    cluster.run_pod(namespace, "web-0", labels={"web": "yes"}, ips=[at])
    await says(cluster, namespace, "pod ")
    commands = re.findall(r"kubectl (-n \S+ create [^;]+)", message)
    assert len(commands) == 2
    for command in commands:
        cluster.kubectl(*command.split())
    await says(cluster, namespace, f"which is not there; create it in {namespace}")
    put(cluster, namespace, user="pidone")
    await says(cluster, namespace, 'the key "password", which Secret "eureka-login" does not have')

    environment = environment_of(cluster, controllers, tmp_path, at)
    log = tmp_path / "pod.log"
    with (
        log.open("wb") as output,
        pidns.process_one([sys.executable, "-m", "pidone"], env=environment, output=output),
    ):
        put(cluster, namespace, password=FIRST)
        await waits(lambda: eureka.addresses == [at])
        await told(cluster, namespace, "registered", Ready=("True", "AllApplied"))
        hidden(everything(cluster, namespace, controllers, log, at))
        answer = ask(controllers.urls[0], at)
        assert answer.status_code == 426
        assert 'task "registration": a value of a Secret is served over https only' in answer.text

        # another password: only what uses it is changed, and the set has the version that it had
        before = bundle(controllers, at)
        eureka.password = SECOND
        put(cluster, namespace, password=SECOND_IN_URL)
        await waits(lambda: changed(before, bundle(controllers, at)) == ["registration"])
        refused = eureka.refused
        await told(cluster, namespace, "registered", Ready=("True", "AllApplied"))
        await waits(lambda: eureka.addresses == [at] and eureka.refused >= refused)
        revisions = cluster.kubectl("get", "controllerrevisions", "--namespace", namespace, "--output=name")
        assert len(revisions.split()) == 1
        hidden(everything(cluster, namespace, controllers, log, at))

        # what the registry says of a wrong one is told, without it
        put(cluster, namespace, password=WRONG)
        await waits(lambda: "401" in everything(cluster, namespace, controllers, log, at))
        hidden(everything(cluster, namespace, controllers, log, at))
        put(cluster, namespace, password=SECOND_IN_URL)

        # without the grant nothing is sent again, and the pod keeps what it has
        await told(cluster, namespace, "registered", Ready=("True", "AllApplied"))
        cluster.kubectl("delete", "rolebinding", "pidone-eureka-login", "--namespace", namespace)
        await says(cluster, namespace, "has not granted to the controller")
        await waits(lambda: bundle(controllers, at) == {})
        assert eureka.addresses == [at]
        cluster.kubectl(*commands[1].split())
        await told(cluster, namespace, "registered", Ready=("True", "AllApplied"))
        cluster.kubectl("delete", "secret", "eureka-login", "--namespace", namespace)
        await says(cluster, namespace, "which is not there")
        cluster.kubectl("delete", "taskbinding", "registered", "--namespace", namespace)
        await waits(lambda: eureka.addresses == [])
        hidden(everything(cluster, namespace, controllers, log, at))
    assert conditions(cluster, "taskset", "registered", namespace)["Ready"][0] == "True"
    nursery.cancel_scope.cancel()


async def test_a_pod_registers_by_a_password_that_it_mounts_itself(
    cluster: Cluster, namespace: str, controllers: Replicas, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """The namespace grants nothing, and the controller never has the value."""
    eureka, at, secrets, log = GuardedEureka(), address(), tmp_path / "secrets", tmp_path / "pod.log"
    port = await http_server(nursery, eureka.handle, body=1 << 16)
    text = SET.replace("secretKeyRef: {name: eureka-login, key: password}", "file: eureka/password")
    cluster.apply(*written(text.replace("PORT", str(port)), namespace))
    cluster.run_pod(namespace, "web-0", labels={"web": "yes"}, ips=[at])
    secrets.mkdir()
    mount(secrets / "eureka", password=FIRST)
    environment = environment_of(cluster, controllers, tmp_path, at)
    python = [sys.executable, "-m", "pidone"]

    # a pod without the folder, as a sandbox: the binding says what to do
    with log.open("wb") as output, pidns.process_one(python, env=environment, output=output):
        await told(cluster, namespace, "registered", Stalled=("True", "PlanRefused"))
        status = cluster.request("GET", f"{OURS}/namespaces/{namespace}/taskbindings/registered")["status"]
        (refusal,) = status["rejections"]
        assert "with PIDONE_SECRETS=FOLDER, or use valueFrom: {secretKeyRef" in refusal["message"]

    environment["PIDONE_SECRETS"] = str(secrets)
    with log.open("ab") as output, pidns.process_one(python, env=environment, output=output):
        await waits(lambda: eureka.addresses == [at])
        await told(cluster, namespace, "registered", Ready=("True", "AllApplied"))
        hidden(everything(cluster, namespace, controllers, log, at))

        before = bundle(controllers, at)
        eureka.password = SECOND
        refused = eureka.refused
        await waits(lambda: eureka.refused > refused)
        mount(secrets / "eureka", password=SECOND_IN_URL)
        eureka.registry = (
            FakeEureka()
        )  # forgets all: only a registration with the new password is there again
        await waits(lambda: eureka.addresses == [at])
        assert changed(before, bundle(controllers, at)) == []
        await told(cluster, namespace, "registered", Ready=("True", "AllApplied"))
        hidden(everything(cluster, namespace, controllers, log, at))

    # the pod is killed: the controller cannot log in for it, and says so
    cluster.finish_pod(namespace, "web-0")
    about = ("--namespace", namespace, "--field-selector", "reason=LeftRegistered")
    await waits(lambda: cluster.kubectl("get", "events", *about, "--output=name"))
    message = cluster.kubectl("get", "events", *about, "--output=jsonpath={.items[*].message}")
    assert "a value is in the file eureka/password of the pod, which only the pod reads" in message
    assert eureka.addresses == [at]
    nursery.cancel_scope.cancel()


async def waits(condition: Callable[[], object]) -> None:
    await trio.to_thread.run_sync(until, condition, 2 * PATIENCE_SECONDS)


def ask(url: str, at: str) -> httpx.Response:
    """The answer to a new process at this address."""
    transport = httpx.HTTPTransport(local_address=at, verify=False)
    with httpx.Client(transport=transport, trust_env=False, timeout=30) as client:
        return client.get(f"{url}/v1/bundle")


def bundle(controllers: Replicas, at: str) -> dict[str, object]:
    """The tasks that it gets, by name."""
    answer = ask(f"https://127.0.0.1:{controllers.all[1].tls}", at)
    tasks = answer.json()["tasks"] if answer.status_code == 200 else []
    return {task["name"]: task for task in tasks}


def changed(before: dict[str, object], after: dict[str, object]) -> list[str]:
    return [name for name in before if before[name] != after.get(name)]
