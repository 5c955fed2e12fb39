"""One etcd of each kind for all tests of a worker; each test has keys of its own."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import build
from pidone.registries.etcd import Etcd
from tests.etcd import real
from tests.etcd.real import Cluster, Reader
from tests.results import serve_with

POD = Pod("web-7d9c", "shop", "uid-1", "10.42.0.18", "node-1")
USER, PASSWORD, PREFIX = "pods", "s3cret", "/services/"


def make(endpoints: str, service: str = "ratings", *, pod: Pod = POD, **more: Any) -> Etcd:
    """Return the driver of an instance in go-kit's layout, unless ``more`` says otherwise."""
    config = {"endpoints": endpoints, "layout": "go-kit", "service": service, "port": 9080, **more}
    config = {name: value for name, value in config.items() if value is not None}
    registry = build(Fields({"etcd": config}, 'task "r".register'), pod, None)
    assert isinstance(registry, Etcd)
    return registry


@dataclass
class Bench:
    """An etcd, and a service of its own in it, seen from outside."""

    cluster: Cluster
    service: str
    credentials: dict[str, Any]

    def driver(self, **more: Any) -> Etcd:
        return make(self.cluster.endpoints, self.service, **self.credentials, **more)

    @property
    def key(self) -> str:
        return f"{PREFIX}{self.service}/10.42.0.18:9080"

    def values(self) -> list[str]:
        """Return the values of all instances of the service."""
        return [found["value"] for found in self.found()]

    def found(self) -> list[dict[str, str]]:
        """Return key, value and lease of each instance of the service."""
        prefix = f"{PREFIX}{self.service}/"
        answer = self.cluster.ask(
            "kv/range", {"key": _base64(prefix), "range_end": _base64(prefix[:-1] + "0")}
        )
        return [
            {"key": _text(kv["key"]), "value": _text(kv["value"]), "lease": str(kv.get("lease", "0"))}
            for kv in answer.get("kvs", ())
        ]

    def put(self, key: str, value: str, lease: str = "0") -> None:
        self.cluster.ask("kv/put", {"key": _base64(key), "value": _base64(value), "lease": lease})

    def delete(self, key: str) -> None:
        self.cluster.ask("kv/deleterange", {"key": _base64(key)})

    def grant(self, ttl: int) -> str:
        return str(self.cluster.ask("lease/grant", {"TTL": str(ttl)})["ID"])

    def revoke(self, lease: str) -> None:
        self.cluster.ask("lease/revoke", {"ID": lease})

    def left(self, lease: str) -> int:
        """Return the seconds that a lease has left; -1 if it is dead."""
        return int(self.cluster.ask("lease/timetolive", {"ID": lease}).get("TTL", 0))


def _base64(text: str) -> str:
    from base64 import b64encode

    return b64encode(text.encode()).decode()


def _text(encoded: str) -> str:
    from base64 import b64decode

    return b64decode(encoded).decode()


@pytest.fixture(scope="session")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, bool], Cluster]]:
    """The clusters of this worker, by server and whether authentication is on; each starts at its first use."""
    from contextlib import ExitStack

    with ExitStack() as closing:
        yield _Clusters(tmp_path_factory, closing)


class _Clusters(dict[tuple[str, bool], Cluster]):
    def __init__(self, paths: pytest.TempPathFactory, closing: Any) -> None:
        self._paths, self._closing = paths, closing

    def __missing__(self, kind: tuple[str, bool]) -> Cluster:
        server, authenticated = kind
        folder = self._paths.mktemp(f"etcd-{server}-{authenticated}")
        cluster: Cluster = self._closing.enter_context(real.running(server, folder))
        if authenticated:
            cluster.enable_authentication(USER, PASSWORD, PREFIX)
        self[kind] = cluster
        return cluster


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        metafunc.parametrize("server", [pytest.param(name, id=f"etcd-{name}") for name in real.SERVERS])
    if "authenticated" in metafunc.fixturenames:
        metafunc.parametrize("authenticated", [False, True], ids=["open", "authenticated"])


_names = (f"reviews{number}" for number in itertools.count(1))


@pytest.fixture
def bench(
    server: str,
    authenticated: bool,
    clusters: dict[tuple[str, bool], Cluster],
    request: pytest.FixtureRequest,
) -> Bench:
    if reason := real.missing(server):
        pytest.skip(reason)
    serve_with(request, f"etcd {real.version(server)}")
    credentials = {"user": USER, "password": PASSWORD} if authenticated else {}
    return Bench(clusters[server, authenticated], next(_names), credentials)


@pytest.fixture
def lone(server: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A server of one test alone, which may kill it."""
    if reason := real.missing(server):
        pytest.skip(reason)
    serve_with(request, f"etcd {real.version(server)}")
    with real.running(server, tmp_path) as cluster:
        yield cluster


@pytest.fixture
def reader(bench: Bench, tmp_path: Path) -> Iterator[Reader]:
    if reason := real.missing(real.MODULE):
        pytest.skip(reason)
    credentials = ("root", bench.cluster.password) if bench.cluster.password else ()
    with real.reading(bench.cluster.endpoints, tmp_path / "reader.log", *credentials) as reader:
        yield reader
