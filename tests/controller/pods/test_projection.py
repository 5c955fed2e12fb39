from typing import Any

import pytest

from pidone_controller.pods.model import Pool
from pidone_controller.pods.projection import ProjectionError, project
from tests.controller.factories import manifest, pod

CHECKED = {"check": "yes"}


def test_what_nobody_reads_makes_no_pod_another() -> None:
    one, other = manifest(), manifest(lastTransitionTime="later")
    other["metadata"]["managedFields"] = [{"manager": "kubelet"}]
    assert one != other
    assert project(one) == project(other)


def test_a_deletion_timestamp_is_the_beginning_of_the_end() -> None:
    assert pod(terminating=True).terminating
    assert not pod().terminating


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metadata": {"name": ""}}, "without metadata.name"),
        ({"kind": "Deployment"}, "expected a Pod, not kind: Deployment"),
        (
            {"metadata": {"name": "web", "annotations": {"pidone.dev/port": 8080}}},
            "annotations.pidone.dev/port: expected a string, not a number; write it in quotation marks",
        ),
        ({"status": {"podIP": ["10.1.2.3"]}}, "is not an IP address"),
        ({"status": {"podIP": "10.1.2"}}, 'status.podIP: "10.1.2" is not an IP address'),
        ({"spec": {"containers": {}}, "status": []}, "status: expected a mapping"),
        ({"spec": {"containers": ["app"]}}, "spec.containers[0]: expected a mapping, not 'app'"),
    ],
)
def test_what_is_not_a_pod_is_said_so(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ProjectionError) as raised:
        project({**manifest(), **change})
    assert said in str(raised.value)


def test_what_network_plugins_write_about_a_pod_is_no_change() -> None:
    noisy = {"cni.projectcalico.org/podIP": "10.1.0.2/32", "k8s.v1.cni.cncf.io/network-status": "[{}]"}
    assert pod(annotations=noisy) == pod()
    assert pod(annotations={"pidone.dev/port": "1"}) != pod()


def test_pods_of_one_deployment_share_what_they_have_in_common() -> None:
    pool = Pool()
    one, other = (
        project(manifest(name, ip, labels=dict(CHECKED)), pool)
        for name, ip in (("a", "10.1.0.2"), ("b", "10.1.0.3"))
    )
    assert one.template is other.template
    assert one.node is other.node
    uid = "0f0e0d0c-0b0a-4909-8807-060504030201"
    assert project(manifest(uid=uid)).uid == uid
    assert project(manifest(uid=uid.upper())).uid == uid.upper()


def test_what_a_task_must_know_of_processes_is_kept() -> None:
    one = manifest()
    one["spec"] |= {"shareProcessNamespace": True, "hostNetwork": True, "hostPID": False}
    one["spec"]["securityContext"] = {"runAsUser": 1000, "fsGroup": 1000}
    one["spec"]["containers"] = [{"name": "app", "securityContext": {"runAsUser": 0, "privileged": True}}]
    one["status"]["hostIPs"] = [{"ip": "10.9.0.1"}]
    spec, status = project(one).manifest["spec"], project(one).manifest["status"]
    assert spec["shareProcessNamespace"] is spec["hostNetwork"] is True
    assert "hostPID" not in spec
    assert spec["securityContext"] == {"runAsUser": 1000}
    assert spec["containers"] == [{"name": "app", "securityContext": {"runAsUser": 0}}]
    assert {"ip": "10.9.0.1"} in status["hostIPs"]
