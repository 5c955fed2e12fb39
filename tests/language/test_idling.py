"""What an idle task gets of its pod, and the pods that it refuses."""

from typing import Any

import pytest

from pidone.actions._packets import MAX_PORTS as WATCHED
from pidone.errors import LanguageError
from pidone.language.idling import MAX_PORTS, with_pod


def pod(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"shareProcessNamespace": True, "containers": list(containers) or [app()], **spec},
        "status": {"hostIP": "10.0.0.1", "hostIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
    }


def app(name: str = "app", **fields: Any) -> dict[str, Any]:
    return {"name": name, "ports": [{"containerPort": 8080}], **fields}


def rendered(given: dict[str, Any], idle: dict[str, Any] | None = None) -> dict[str, Any]:
    return with_pod({"after": 900, "action": "freeze", **(idle or {})}, given)


def refusal(given: dict[str, Any], **idle: Any) -> str:
    with pytest.raises(LanguageError) as error:
        rendered(given, idle)
    return str(error.value)


def test_ports_are_those_that_the_containers_declare() -> None:
    both = [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53, "protocol": "TCP"}]
    sctp = [{"containerPort": 9, "protocol": "SCTP"}]
    assert rendered(pod(app(), app("dns", ports=both + sctp)))["ports"] == ["53/TCP", "53/UDP", "8080/TCP"]
    assert rendered(pod(app("dns", ports=both)), {"ports": [53, 9090]})["ports"] == [
        "53/TCP",
        "53/UDP",
        "9090/TCP",
    ]


def test_it_knows_the_node_and_the_probes() -> None:
    agent = {"httpHeaders": [{"name": "User-Agent", "value": "checker"}]}
    slow = app(livenessProbe={"timeoutSeconds": 7, "tcpSocket": {"port": 1}}, startupProbe={"exec": {}})
    plan = rendered(pod(slow, app("other", readinessProbe={"httpGet": agent, "timeoutSeconds": 0})))
    assert (plan["nodes"], plan["probeTimeout"], plan["agents"]) == (
        ["10.0.0.1", "fd00::1"],
        7,
        ["checker"],
    )
    assert rendered(pod())["probeTimeout"] == 1


def test_it_needs_the_processes() -> None:
    assert "set shareProcessNamespace: true" in refusal(pod(shareProcessNamespace=False))
    assert "remove hostPID" in refusal(pod(hostPID=True))
    assert "remove hostNetwork" in refusal(pod(hostNetwork=True))
    assert rendered(pod(shareProcessNamespace=False), {"action": "report"})


def test_it_needs_a_port() -> None:
    assert "declares a TCP or UDP port" in refusal(pod({"name": "app"}))
    many = [{"containerPort": number} for number in range(1, MAX_PORTS + 2)]
    assert f"has {MAX_PORTS + 1} ports" in refusal(pod(app(ports=many)))
    assert MAX_PORTS == WATCHED


def test_process_1_may_freeze_its_own_user_or_as_root_all() -> None:
    other = app("other", securityContext={"runAsUser": 2000})
    assert "give pod and container the same runAsUser" in refusal(
        pod(other, securityContext={"runAsUser": 1000})
    )
    assert rendered(pod(other))
    assert rendered(pod(other, securityContext={"runAsUser": 0}))
    assert rendered(pod(app(), other, securityContext={"runAsUser": 1000}), {"containers": ["app"]})


def test_a_container_that_is_not_there() -> None:
    assert 'has no container "proxy"; it has app' in refusal(pod(), containers=["proxy"])
