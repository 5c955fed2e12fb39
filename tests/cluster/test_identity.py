"""Who is who, with a real API server: a pod gets its own plan, whatever it says and wherever its address goes."""

import base64
import ssl
from collections.abc import Iterator, Mapping

import httpx
import pytest

from tests.cluster.apiserver import Cluster
from tests.cluster.process import until
from tests.cluster.replicas import HOME, SET, Replica, address, replicas, written


@pytest.fixture(scope="module")
def replica(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    with replicas(cluster, tmp_path_factory.mktemp("controllers")) as found:
        yield found.add("a")


@pytest.fixture
def web(cluster: Cluster, namespace: str) -> str:
    """The namespace, with a set for the pods that ask for it."""
    cluster.apply(*written(SET, namespace))
    return namespace


def ask(replica: Replica, source: str, headers: Mapping[str, str] = {}) -> httpx.Response:
    transport = httpx.HTTPTransport(local_address=source)
    with httpx.Client(transport=transport, trust_env=False, timeout=30) as client:
        return client.get(f"{replica.url}/v1/bundle", headers=dict(headers))


def plan(replica: Replica, source: str, headers: Mapping[str, str] = {}) -> list[str]:
    """The names of the tasks, as soon as there are any."""

    def answered() -> bool:
        answer = ask(replica, source, headers)
        return answer.status_code == 200 and bool(answer.json()["tasks"])

    until(answered)
    return [task["name"] for task in ask(replica, source, headers).json()["tasks"]]


def test_claims_only_narrow(cluster: Cluster, web: str, replica: Replica) -> None:
    mine, theirs = address(), address()
    own = cluster.run_pod(web, "own", labels={"web": "yes"}, ips=[mine])["metadata"]["uid"]
    other = cluster.run_pod(web, "other", ips=[theirs])["metadata"]["uid"]
    assert plan(replica, mine) == plan(replica, mine, {"Pidone-Pod-UID": own}) == ["ready"]
    # a pod that nobody labelled says that it is the other one, in every way that there is
    claims = {"Pidone-Hostname": "own", "Pidone-Namespace": web}
    assert ask(replica, theirs, {"Pidone-Pod-UID": own}).status_code == 409
    assert ask(replica, theirs, claims).status_code == 409
    for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
        answer = ask(replica, theirs, {name: mine})
        assert (answer.status_code, answer.json()["tasks"]) == (200, [])
    assert ask(replica, theirs, {"Pidone-Pod-UID": other}).json()["tasks"] == []


def test_an_address_that_is_used_again_is_its_new_pod_s(cluster: Cluster, web: str, replica: Replica) -> None:
    at = address()
    old = cluster.run_pod(web, "old", labels={"web": "yes"}, ips=[at])["metadata"]["uid"]
    assert plan(replica, at) == ["ready"]
    # it has ended, and keeps its address in its status, as finished pods do
    cluster.end_pod(web, "old")
    until(lambda: ask(replica, at).status_code == 404)
    new = cluster.run_pod(web, "new", ips=[at])["metadata"]["uid"]
    until(lambda: ask(replica, at).status_code == 200)
    assert ask(replica, at, {"Pidone-Pod-UID": new}).json()["tasks"] == []
    assert ask(replica, at, {"Pidone-Pod-UID": old}).status_code == 409


def test_two_pods_with_one_address_are_not_guessed_at(cluster: Cluster, web: str, replica: Replica) -> None:
    at = address()
    uids = [
        cluster.run_pod(web, name, labels=labels, ips=[at])["metadata"]["uid"]
        for name, labels in {"one": {"web": "yes"}, "two": {}}.items()
    ]
    until(lambda: ask(replica, at).status_code == 409)
    assert plan(replica, at, {"Pidone-Pod-UID": uids[0]}) == ["ready"]
    assert ask(replica, at, {"Pidone-Pod-UID": uids[1]}).json()["tasks"] == []


def test_a_node_s_address_is_nobody_s(cluster: Cluster, web: str, replica: Replica) -> None:
    node = address()
    cluster.run_pod(web, "web", labels={"web": "yes"}, ips=[address()], host=node)
    until(lambda: ask(replica, node).status_code == 403)
    cluster.run_pod(web, "host", labels={"web": "yes"}, ips=[node], host=node, hostNetwork=True)
    assert ask(replica, node).status_code == 403


def test_a_token_says_which_pod_asks_from_wherever(cluster: Cluster, web: str, replica: Replica) -> None:
    pod = cluster.run_pod(web, "web", labels={"web": "yes"}, ips=[address()])
    token = cluster.token(web, "default", pod=pod)
    secret = cluster.request("GET", f"/api/v1/namespaces/{HOME}/secrets/pidone-ca")
    trusted = ssl.create_default_context(cadata=base64.b64decode(secret["data"]["ca.crt"]).decode())
    with httpx.Client(verify=trusted, trust_env=False, timeout=30) as client:

        def asked(token: str) -> httpx.Response:
            url = f"https://127.0.0.1:{replica.tls}/v1/bundle"
            return client.get(url, headers={"authorization": f"Bearer {token}"})

        until(lambda: asked(token).status_code == 200 and asked(token).json()["tasks"])
        assert asked(token).json()["pod"]["name"] == "web"
        # of no pod, of somebody else, and of nobody
        assert asked(cluster.token(web, "default")).status_code == 403
        assert asked("made-up").status_code == 401
    assert ask(replica, "127.0.0.1").status_code == 404, "without the token the address counts"


def test_what_can_harm_is_not_given_over_http(cluster: Cluster, web: str, replica: Replica) -> None:
    text = SET.replace(
        "probe: {httpGet: {path: /, port: $(params.port)}}", "exec: {command: [/opt/pidone/x]}"
    )
    cluster.apply(*written(text, web))
    at = address()
    cluster.run_pod(web, "web", labels={"web": "yes"}, ips=[at])
    until(lambda: ask(replica, at).status_code not in {200, 404, 503})
    answer = ask(replica, at)
    assert "https" in answer.text, answer.text


def test_people_see_a_pod_with_the_right_to(cluster: Cluster, web: str, replica: Replica) -> None:
    at = address()
    cluster.run_pod(web, "web", labels={"web": "yes"}, ips=[at])
    assert plan(replica, at) == ["ready"]
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
    cluster.account(web, "reader", rule)
    cluster.account(web, "stranger")
    secret = cluster.request("GET", f"/api/v1/namespaces/{HOME}/secrets/pidone-ca")
    trusted = ssl.create_default_context(cadata=base64.b64decode(secret["data"]["ca.crt"]).decode())
    # From a pod's address: loopback belongs to people.
    elsewhere = httpx.HTTPTransport(local_address=at)
    secure = httpx.HTTPTransport(local_address=at, verify=trusted)
    mounts = {"https://": secure}
    with httpx.Client(transport=elsewhere, mounts=mounts, trust_env=False, timeout=30) as client:

        def seen(account: str) -> int:
            headers = {"authorization": f"Bearer {cluster.token(web, account)}"}
            url = f"https://127.0.0.1:{replica.tls}/v1/pods/{web}/web"
            return client.get(url, headers=headers).status_code

        assert client.get(f"{replica.url}/v1/pods/{web}/web").status_code in {401, 403}
        assert (seen("reader"), seen("stranger")) == (200, 403)
    assert replica.get(f"/v1/pods/{web}/web").json()["expected"]["tasks"] == 1
