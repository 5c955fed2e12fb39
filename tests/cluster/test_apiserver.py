"""The API server of the tests does what real ones do, where tests of the controller rely on it."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.cluster.apiserver import Cluster, ControlPlane, missing
from tests.cluster.process import until

PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}


def test_a_pod_s_life_is_that_of_a_real_one(cluster: Cluster, namespace: str) -> None:
    pod = cluster.run_pod(namespace, "web-0", labels={"app": "web"}, ips=["10.77.1.1", "fd00::1"])
    assert pod["status"]["podIPs"] == [{"ip": "10.77.1.1"}, {"ip": "fd00::1"}]
    line = cluster.kubectl("get", "pods", "-n", namespace, "--no-headers").split()
    assert line[:3] == ["web-0", "1/1", "Running"]

    cluster.label(namespace, "web-0", {"app": None, "tier": "api"})
    cluster.delete_pod(namespace, "web-0")
    pod = cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods/web-0")
    assert pod["metadata"]["labels"] == {"tier": "api"}
    assert pod["metadata"]["deletionTimestamp"]
    assert "Terminating" in cluster.kubectl("get", "pods", "-n", namespace)

    cluster.finish_pod(namespace, "web-0")
    assert cluster.kubectl("get", "pods", "-n", namespace, "--output=name") == ""


def test_an_account_may_do_what_its_rules_say_and_nothing_else(cluster: Cluster, namespace: str) -> None:
    config = cluster.account(namespace, "reader", PODS)
    assert cluster.try_kubectl("get", "pods", "-A", kubeconfig=config).returncode == 0
    done = cluster.try_kubectl("delete", "pod", "web-0", "-n", namespace, kubeconfig=config)
    assert f"system:serviceaccount:{namespace}:reader" in done.stderr
    assert "Forbidden" in done.stderr


def test_a_token_names_its_audience_and_its_pod(cluster: Cluster, namespace: str) -> None:
    pod = cluster.run_pod(namespace, "web-0")
    token = cluster.token(namespace, "default", audience="pidone", pod=pod)

    def review(audience: str) -> dict[str, object]:
        body = {"spec": {"token": token, "audiences": [audience]}}
        status: dict[str, object] = cluster.request(
            "POST", "/apis/authentication.k8s.io/v1/tokenreviews", body
        )["status"]
        return status

    found = review("pidone")
    assert found["authenticated"]
    assert json.loads(json.dumps(found["user"]))["extra"]["authentication.kubernetes.io/pod-uid"] == [
        pod["metadata"]["uid"]
    ]
    assert not review("somebody-else").get("authenticated")


def test_a_namespace_is_gone_with_all_that_was_in_it(cluster: Cluster) -> None:
    with cluster.namespace() as name:
        cluster.run_pod(name, "web-0")
        cluster.apply(binding("web", name))
    until(lambda: name not in cluster.kubectl("get", "namespaces", "--output=name"))
    assert name not in cluster.kubectl("get", "pods,taskbindings", "-A")


def test_killed_it_comes_back_with_what_it_had(plane: ControlPlane) -> None:
    plane.make_namespace("shop")
    plane.run_pod("shop", "web-0")
    with plane.down(), pytest.raises(httpx.TransportError):
        plane.request("GET", "/version")
    assert "web-0" in plane.kubectl("get", "pods", "-n", "shop")

    plane.etcd.kill()
    plane.etcd.start()
    until(lambda: reachable(plane))
    assert "web-0" in plane.kubectl("get", "pods", "-n", "shop")


def test_lost_history_answers_410_to_who_comes_from_before(plane: ControlPlane) -> None:
    plane.make_namespace("shop")
    before = plane.run_pod("shop", "web-0")["metadata"]["resourceVersion"]
    watch = f"/api/v1/pods?watch=1&timeoutSeconds=2&resourceVersion={before}"
    plane.label("shop", "web-0", {"tier": "api"})
    assert [event["type"] for event in events(plane, watch)] == ["MODIFIED"]

    plane.lose_history()
    first = events(plane, watch)[0]
    assert (first["type"], first["object"]["code"], first["object"]["reason"]) == ("ERROR", 410, "Expired")


def test_an_etcd_that_stands_still_lets_requests_wait(plane: ControlPlane) -> None:
    with ThreadPoolExecutor(1) as pool:
        with plane.etcd.paused():
            late = pool.submit(plane.make_namespace, "late")
            with pytest.raises(httpx.ReadTimeout):
                plane.http.get("/api/v1/namespaces/default", timeout=1)
            assert plane.http.get("/version").is_success
            assert not late.done()
        late.result(30)
    assert "late" in plane.kubectl("get", "namespaces")


def reachable(plane: ControlPlane) -> bool:
    return plane.http.get("/readyz").is_success


def events(plane: ControlPlane, path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in plane.http.get(path).text.splitlines()]


def binding(name: str, namespace: str) -> dict[str, object]:
    return {
        "apiVersion": "pidone.dev/v1alpha1",
        "kind": "TaskBinding",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": {}, "taskSets": ["web"]},
    }


def test_without_the_program_the_reason_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr("tests.golang.CACHE", tmp_path)
    monkeypatch.delenv("PIDONE_TEST_KUBECONFIG", raising=False)
    assert "make cluster" in str(missing())
