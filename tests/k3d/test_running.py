"""The controller as it is installed: its command, its rights, and the policies that it lives under."""

import json
from pathlib import Path

from pidone_controller.__main__ import _parser
from tests.cluster.apiserver import Cluster, Object
from tests.cluster.process import until
from tests.cluster.replicas import HOME, conditions, replicas
from tests.k3d.folders import INSTALLATION, built

SET = INSTALLATION.parent / "tasks" / "eureka.yaml"
BINDING = INSTALLATION / "apps" / "binding.yaml"


def test_the_command_takes_the_words_of_the_deployment() -> None:
    (deployment,) = [one for one in built(INSTALLATION) if one["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    given = _parser().parse_args(container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert given.listen == ("", ports["http"])
    assert given.listen_tls == ("", ports["https"])


def test_nothing_that_it_does_is_forbidden(installed: Cluster, shop: str, tmp_path: Path) -> None:
    """Lead, tell, keep versions, roll out, refuse: all that it writes, with two replicas."""
    labels = {"app": "web", "pidone.dev/registry": "eureka"}
    with replicas(installed, tmp_path) as running:
        both = [running.add("a"), running.add("b")]
        installed.kubectl("apply", "-n", shop, "-f", SET, "-f", BINDING)
        installed.run_pod(shop, "web-0", labels=labels, ips=["127.77.0.9"])
        installed.run_pod(shop, "nameless", labels=labels | {"app": ""}, ips=["127.77.0.10"])
        until(lambda: versions(installed, shop) == 1)
        until(lambda: matched(installed, shop) == 2)
        patch = {"spec": {"rollout": {"canary": "50%", "pause": "1s"}}}
        installed.kubectl(
            "patch", "taskbinding", "eureka", "-n", shop, "--type=merge", "-p", json.dumps(patch)
        )
        installed.kubectl("annotate", "taskset", "eureka", "-n", shop, "a=b")
        edit = [{"op": "replace", "path": "/spec/tasks/0/probe/periodSeconds", "value": 7}]
        installed.kubectl("patch", "taskset", "eureka", "-n", shop, "--type=json", "-p", json.dumps(edit))
        until(lambda: versions(installed, shop) == 2)
        installed.apply(*another(shop))  # its task has a name that is taken, which an Event tells
        until(lambda: "TaskBinding" in told(installed, shop))
        secret = installed.request("GET", f"/api/v1/namespaces/{HOME}/secrets/pidone-ca")
        assert {"tls.crt", "tls.key"} <= secret["data"].keys()
        assert running.leader() in {"a", "b"}
        logs = [replica.process.told() for replica in both]
    for log in logs:
        assert "forbidden: User" not in log, log  # RBAC's words
        assert "denied request" not in log, log  # those of a policy
    assert conditions(installed, "taskset", "eureka", shop)


def versions(cluster: Cluster, namespace: str) -> int:
    found = cluster.request("GET", f"/apis/apps/v1/namespaces/{namespace}/controllerrevisions")
    return len(found["items"])


def matched(cluster: Cluster, namespace: str) -> int:
    said = cluster.kubectl("get", "taskbinding", "eureka", "-n", namespace, "--output=json")
    return int(json.loads(said).get("status", {}).get("matched", 0))


def told(cluster: Cluster, namespace: str) -> set[str]:
    """The kinds that Events are about."""
    found = cluster.request("GET", f"/api/v1/namespaces/{namespace}/events")
    return {one["involvedObject"]["kind"] for one in found["items"]}


def another(namespace: str) -> list[Object]:
    metadata = {"name": "another", "namespace": namespace}
    selector = {"matchLabels": {"pidone.dev/registry": "eureka"}}
    return [
        {
            "apiVersion": "pidone.dev/v1alpha1",
            "kind": "TaskSet",
            "metadata": metadata,
            "spec": {"tasks": [{"name": "ready", "probe": {"tcpSocket": {"port": 1}}}]},
        },
        {
            "apiVersion": "pidone.dev/v1alpha1",
            "kind": "TaskBinding",
            "metadata": metadata,
            "spec": {"podSelector": selector, "taskSets": ["another"]},
        },
    ]
