"""Real Nacos servers and the fake get the same questions, and give the same answers."""

import json
import time
from typing import Any

import pytest

from tests.nacos.conftest import SERVERS, Service
from tests.nacos.real import READERS, VERSIONS, NacosServers
from tests.patience import PATIENCE_SECONDS

SHORT = {
    "preserved.heart.beat.interval": "1000",
    "preserved.heart.beat.timeout": "2000",
    "preserved.ip.delete.timeout": "4000",
}


def code(answer: tuple[int, dict[str, Any]]) -> tuple[int, int]:
    return answer[0], answer[1]["code"]


@pytest.mark.check("nacos", "20404 and 21003 inside HTTP 200")
def test_a_beat_before_the_registration_is_answered_200_with_a_code(service: Service) -> None:
    unknown = (200, 21_003 if service.api == "v3" else 20_404)
    assert code(service.beat()) == unknown
    assert service.hosts() == []  # a light beat registers nothing
    service.register()
    assert code(service.beat()) == (200, 0 if service.api == "v3" else 10_200)
    assert service.call("DELETE")[0] == 200
    assert code(service.beat()) == unknown


@pytest.mark.check("nacos", "grouped names in beats")
def test_a_beat_names_the_group_in_the_service(service: Service) -> None:
    service.group = "shop"
    service.register()
    known = (200, 0 if service.api == "v3" else 10_200)
    assert code(service.beat()) == known
    if service.api == "v1":  # the beat goes to the group DEFAULT_GROUP
        bare = service.server.call(
            "PUT", f"{service.path}/beat", {"serviceName": service.name, **service.defaults}
        )
        assert (bare[0], json.loads(bare[1])["code"]) == (200, 20_404)
    if service.api == "v2":
        assert code(service.beat(service.name)) == (400, 20_002)


@pytest.mark.check("nacos", "persistent instance refuses beats")
def test_a_persistent_instance_is_unknown_to_beats_and_its_service_takes_no_other(service: Service) -> None:
    service.register(ephemeral="false")
    assert code(service.beat()) == (200, 21_003 if service.api == "v3" else 20_404)
    status, text = service.call("POST", ephemeral="true")
    assert status == 400
    assert "is persistent service, can't register ephemeral instance" in text
    assert service.call("DELETE", ephemeral="false")[0] == 200


def test_a_delete_is_always_ok(service: Service) -> None:
    done = "ok" if service.api == "v1" else {"code": 0, "message": "success", "data": "ok"}
    for _ in range(2):
        status, text = service.call("DELETE")
        assert (status, text if service.api == "v1" else json.loads(text)) == (200, done)
    service.register()
    assert service.call("DELETE")[0] == 200
    service.until_listed(0)


def test_a_list_leaves_out_what_is_not_enabled_and_a_beat_does_not(service: Service) -> None:
    service.register(enabled="false")
    service.until_listed(0)
    assert code(service.beat()) == (200, 0 if service.api == "v3" else 10_200)
    service.register(enabled="true")
    assert service.until_listed(1)[0]["enabled"] is True


def test_another_cluster_is_the_same_instance(service: Service) -> None:
    service.register(clusterName="east", cluster="east")
    service.register()
    assert service.until_listed(1)[0]["clusterName"] == "DEFAULT"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"serviceName": "a b"}, "Param 'serviceName' is illegal"),
        ({"serviceName": "评分"}, ""),
        ({"groupName": "a/b"}, "Param 'group' is illegal"),
        ({"namespaceId": "a b"}, "Param 'namespaceId/tenant' is illegal"),
        ({"clusterName": "a.b", "cluster": "a.b"}, "Param 'cluster' is illegal"),
        ({"weight": "10001"}, "The weights range from 0.0 to 10000.0"),
        ({"metadata": json.dumps({"a": "x" * 1024})}, "Param 'Metadata' is illegal"),
        ({"metadata": json.dumps(SHORT | {"preserved.heart.beat.interval": "3000"})}, "must less than"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_server_refuses(service: Service, wrong: dict[str, str], words: str) -> None:
    status, text = service.call("POST", **wrong)
    assert status == 400, text
    assert words in text


def test_a_server_says_how_often_beats_are_to_come(service: Service) -> None:
    service.register()
    answers = [service.beat()[1].get("clientBeatInterval")]
    service.register(metadata=json.dumps(SHORT))
    answers.append(service.beat()[1].get("clientBeatInterval"))
    assert answers == ([None, None] if service.api == "v3" else [5000, 1000])


def test_without_beats_it_is_unhealthy_and_then_removed(service: Service) -> None:
    service.register(metadata=json.dumps(SHORT))
    assert service.until_listed(1)[0]["healthy"]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(host["healthy"] for host in service.hosts()):
        assert time.monotonic() < deadline
        service.server.pass_time(0.2)
    service.until_listed(0)
    assert code(service.beat()) == (200, 21_003 if service.api == "v3" else 20_404)


NEWEST = [server for server in SERVERS if server[2] != "v1"]  # half a minute each


@pytest.mark.check("nacos", "15 s / 30 s")
@pytest.mark.parametrize("service", NEWEST, ids="-".join, indirect=True)
def test_the_defaults_are_15_and_30_seconds(service: Service) -> None:
    begin = time.monotonic()
    service.register()
    host = service.until_listed(1)[0]
    assert (host["instanceHeartBeatTimeOut"], host["ipDeleteTimeout"]) == (15_000, 30_000)
    waited, unhealthy = 0.0, 0.0
    while hosts := service.hosts():
        if not unhealthy and not hosts[0]["healthy"]:
            unhealthy = max(waited, time.monotonic() - begin)
        service.server.pass_time(0.5)
        waited += 0.5
        assert waited < PATIENCE_SECONDS
    removed = max(waited, time.monotonic() - begin)
    # the server looks every 5 s; a busy machine delays it, and makes nothing earlier
    assert unhealthy > 14.9
    assert removed > 29.9


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("client", READERS)
def test_the_official_client_reads_it(real_nacos: NacosServers, version: str, client: str) -> None:
    server, name = real_nacos.get(version), f"read-{client}"
    values = {
        "serviceName": name,
        "groupName": "shop",
        "ip": "10.42.0.18",
        "port": "9080",
        "clusterName": "east",
    }
    status, text = server.call(
        "POST", "v1/ns/instance", values | {"weight": "2.5", "metadata": json.dumps({"zone": "a"})}
    )
    assert (status, text) == (200, "ok")
    reader = real_nacos.reader(version, client)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := reader.instances(name, group="shop")) is None:  # it is not connected yet
        assert time.monotonic() < deadline
    assert found == [
        {
            "ip": "10.42.0.18",
            "port": 9080,
            "healthy": True,
            "enabled": True,
            "weight": 2.5,
            "cluster": "east",
            "metadata": {"zone": "a"},
        }
    ]
    assert reader.instances(name) == []
