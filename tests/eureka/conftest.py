import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import pytest

from tests.eureka.fake import PREFIX, FakeEureka
from tests.eureka.real import RealEureka, version
from tests.results import FAKE, serve_with

Document = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Server(Protocol):
    def call(self, method: str, path: str, body: bytes = b"") -> Answer: ...
    def pass_time(self, seconds: float) -> None: ...


@dataclass
class FakeServer:
    registry: FakeEureka = field(default_factory=FakeEureka)
    now: float = 1_700_000_000.0

    def call(self, method: str, path: str, body: bytes = b"") -> Answer:
        status, _, answer = self.registry.handle(method, PREFIX + path, body, self.now)
        return Answer(status, answer.decode())

    def pass_time(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class SpringServer:
    client: httpx.Client

    def call(self, method: str, path: str, body: bytes = b"") -> Answer:
        headers = {"content-type": "application/json"} if body else {}
        answer = self.client.request(method, path, content=body, headers=headers)
        return Answer(answer.status_code, answer.text)

    def pass_time(self, seconds: float) -> None:
        time.sleep(seconds)  # a server in Java has no clock that could be turned


@dataclass
class App:
    """One app of its own at a server: tests share the real one, and overrides are kept by instance id."""

    server: Server
    name: str
    dirty: int = 1000

    @property
    def instance_id(self) -> str:
        return f"web-7d9c:{self.name.lower()}:9080"

    def document(self, **changes: object) -> Document:
        """A complete document; a change to None leaves the key out."""
        document = {
            "instanceId": self.instance_id,
            "app": self.name,
            "hostName": "10.42.0.18",
            "ipAddr": "10.42.0.18",
            "vipAddress": self.name.lower(),
            "secureVipAddress": self.name.lower(),
            "status": "UP",
            "overriddenstatus": "UNKNOWN",
            "port": {"$": 9080, "@enabled": "true"},
            "securePort": {"$": 443, "@enabled": "false"},
            "countryId": 1,
            "dataCenterInfo": {
                "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo",
                "name": "MyOwn",
            },
            "leaseInfo": {"renewalIntervalInSecs": 30, "durationInSecs": 90},
            "metadata": {"management.port": "9080"},
            "homePageUrl": "http://10.42.0.18:9080/",
            "healthCheckUrl": "http://10.42.0.18:9080/health",
            "lastUpdatedTimestamp": str(self.dirty),
            "lastDirtyTimestamp": str(self.dirty),
        }
        return {key: value for key, value in (document | changes).items() if value is not None}

    def post(self, document: Document) -> Answer:
        return self.server.call("POST", f"apps/{self.name}", json.dumps({"instance": document}).encode())

    def register(self, status: str = "UP", **changes: object) -> None:
        """Post a document that is newer than the one before."""
        self.dirty += 1
        assert self.post(self.document(status=status, **changes)).status == 204

    def call(self, method: str, suffix: str = "") -> int:
        return self.server.call(method, f"apps/{self.name}/{self.instance_id}{suffix}").status

    def heartbeat(self, dirty: int | None = None, *, status: str = "UP") -> int:
        dirty = self.dirty if dirty is None else dirty
        return self.call("PUT", f"?status={status}&lastDirtyTimestamp={dirty}")

    def override(self, status: str) -> int:
        return self.call("PUT", f"/status?value={status}")

    def lift_override(self, query: str = "?value=UP") -> int:
        return self.call("DELETE", f"/status{query}")

    def leave(self) -> int:
        return self.call("DELETE")

    def read(self, instance_id: str | None = None) -> Document:
        """The document as the server has it."""
        answer = self.server.call("GET", f"apps/{self.name}/{instance_id or self.instance_id}")
        assert answer.status == 200, answer
        document: Document = answer.json["instance"]
        return document

    @property
    def status(self) -> str:
        return str(self.read()["status"])

    @property
    def overridden(self) -> str:
        return str(self.read()["overriddenStatus"])


@pytest.fixture(params=["fake", pytest.param("spring", marks=pytest.mark.eureka)])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "fake":
        serve_with(request, FAKE)
        yield FakeServer()
        return
    real: RealEureka = request.getfixturevalue("spring")
    serve_with(request, version())
    with httpx.Client(base_url=real.url, headers={"accept": "application/json"}) as client:
        yield SpringServer(client)


_names = (f"RATINGS{number}" for number in itertools.count(1))


@pytest.fixture
def app(server: Server) -> App:
    return App(server, next(_names))
