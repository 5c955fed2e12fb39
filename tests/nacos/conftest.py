import itertools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlencode

import pytest

from pidone.http.message import Request
from tests.nacos.fake import PREFIX, VERSIONS, FakeNacos
from tests.nacos.real import NacosServers, RealNacos
from tests.patience import PATIENCE_SECONDS
from tests.results import FAKE, serve_with

FORM = {"content-type": "application/x-www-form-urlencoded"}
SERVERS = [
    (kind, version, api) for kind in ("fake", "nacos") for version, apis in VERSIONS.items() for api in apis
]


class Server(Protocol):
    def call(self, method: str, path: str, parameters: dict[str, str]) -> tuple[int, str]: ...
    def pass_time(self, seconds: float) -> None: ...


@dataclass
class FakeServer:
    fake: FakeNacos
    now: float = 1_700_000_000.0

    def call(self, method: str, path: str, parameters: dict[str, str]) -> tuple[int, str]:
        form = urlencode(parameters)
        post = method == "POST"
        target = f"{PREFIX}{path}" + ("" if post else f"?{form}")
        request = Request(method, target, FORM if post else {}, form.encode() if post else b"", "")
        answer = self.fake.answer(request, self.now)
        return answer.status, answer.body.decode()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class JavaServer:
    real: RealNacos

    def call(self, method: str, path: str, parameters: dict[str, str]) -> tuple[int, str]:
        return self.real.call(method, path, parameters)

    def pass_time(self, seconds: float) -> None:
        time.sleep(seconds)  # a server in Java has no clock that could be turned


@dataclass
class Service:
    """A service of its own at a server: tests share the real ones."""

    server: Server
    api: str
    name: str
    group: str = "DEFAULT_GROUP"
    defaults: dict[str, str] = field(default_factory=lambda: {"ip": "10.42.0.18", "port": "9080"})

    @property
    def path(self) -> str:
        return "v3/client/ns/instance" if self.api == "v3" else f"{self.api}/ns/instance"

    def call(self, method: str, suffix: str = "", **more: str) -> tuple[int, str]:
        given = {"serviceName": self.name, "groupName": self.group, **self.defaults, **more}
        return self.server.call(method, self.path + suffix, given)

    def register(self, **more: str) -> None:
        status, text = self.call("POST", **more)
        assert (status, text if self.api == "v1" else json.loads(text)["code"]) == (
            200,
            "ok" if self.api == "v1" else 0,
        )

    def beat(self, name: str = "", **more: str) -> tuple[int, dict[str, Any]]:
        """A light beat; by default with the name as it must be."""
        if self.api == "v3":
            status, text = self.call("POST", heartBeat="true", **more)
        else:
            status, text = self.call("PUT", "/beat", serviceName=name or f"{self.group}@@{self.name}", **more)
        return status, json.loads(text)

    def hosts(self, **more: str) -> list[dict[str, Any]]:
        """The instances that clients get."""
        clusters = "clusters" if self.api == "v1" else "clusterName"
        status, text = self.call("GET", "/list", **{clusters: "DEFAULT"}, **more)
        assert status == 200, text
        value = json.loads(text)
        hosts: list[dict[str, Any]] = (
            value["hosts"]
            if self.api == "v1"
            else value["data"]
            if self.api == "v3"
            else value["data"]["hosts"]
        )
        return hosts

    def until_listed(self, number: int) -> list[dict[str, Any]]:
        """Return the list when it has so many instances: it is up to half a second old."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(hosts := self.hosts()) != number:
            assert time.monotonic() < deadline, hosts
            self.server.pass_time(0.1)
        return hosts


_names = (f"ratings{number}-{os.getpid()}" for number in itertools.count(1))


@pytest.fixture(params=SERVERS, ids="-".join)
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    kind, version, api = request.param
    serve_with(request, FAKE if kind == "fake" else f"Nacos {version}")
    if kind == "fake":
        yield Service(FakeServer(FakeNacos(VERSIONS[version])), api, next(_names))
        return
    servers: NacosServers = request.getfixturevalue("real_nacos")
    yield Service(JavaServer(servers.get(version)), api, next(_names))
