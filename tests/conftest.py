import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import folders, ports, results
from tests.consul.agents import RUN, Agent
from tests.consul.reader import Reader, program, reading
from tests.consul.real import FETCH, RealConsul, foreign, leave, real_consul
from tests.consul.real import missing as no_consul
from tests.eureka.real import RealEureka, missing, spring_eureka
from tests.nacos.real import NacosServers, nacos_servers
from tests.nacos.real import missing as missing_nacos
from tests.patience import ENDURANCE
from tests.zookeeper import real as real_zookeeper

EXAMPLES = 40 * ENDURANCE  # of each property


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    return ports.free_port


@pytest.fixture(scope="session")
def spring(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[RealEureka]:
    """The real Eureka server, one for all tests of a run."""
    if reason := missing():
        pytest.skip(reason)
    with spring_eureka(free_port(), tmp_path_factory.mktemp("eureka") / "server.log") as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="session")
def consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """A real Consul agent, one for all tests of a run: that of CONSUL_HTTP_ADDR, or else one of ours."""
    if agent := foreign():
        yield agent
        leave(agent, RUN)
        return
    if reason := no_consul():
        pytest.skip(reason)
    with real_consul(tmp_path_factory.mktemp("consul")) as server:
        yield server.agent


@pytest.fixture(scope="session")
def consul_reader(consul: Agent) -> Iterator[Reader]:
    """Consul's own client, which reads from that agent."""
    if not program().exists():
        pytest.skip(f"no client of Consul: {FETCH}")
    with reading(consul.url, consul.token) as reader:
        yield reader


@pytest.fixture(scope="session")
def guarded_consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealConsul]:
    """A real Consul agent with ACLs."""
    if reason := no_consul():
        pytest.skip(reason)
    with real_consul(tmp_path_factory.mktemp("consul"), acls=True) as server:
        yield server


@pytest.fixture
def own_consul(tmp_path: Path) -> Iterator[RealConsul]:
    """A real Consul agent of one test, which may restart it."""
    if reason := no_consul():
        pytest.skip(reason)
    with real_consul(tmp_path) as server:
        yield server


@pytest.fixture
def own_guarded_consul(tmp_path: Path) -> Iterator[RealConsul]:
    """A real Consul agent with ACLs of one test, which makes and deletes tokens in it."""
    if reason := no_consul():
        pytest.skip(reason)
    with real_consul(tmp_path, acls=True) as server:
        yield server


@pytest.fixture(scope="session")
def zookeeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[real_zookeeper.Ensemble]:
    """A real ZooKeeper server, one for all tests of a run."""
    if reason := real_zookeeper.server_missing():
        pytest.skip(reason)
    with real_zookeeper.ensemble(tmp_path_factory.mktemp("zookeeper")) as server:
        yield server


@pytest.fixture(scope="session")
def real_nacos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NacosServers]:
    """Real Nacos servers, each started at its first use, for all tests of a run."""
    if reason := missing_nacos():
        pytest.skip(reason)
    with nacos_servers(tmp_path_factory.mktemp("nacos")) as servers:
        yield servers


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(results)
    # The same examples in every run, so that a failure is the change's doing, and no example is too slow on a busy
    # machine. PIDONE_TEST_RANDOM=1 looks for new ones.
    new = bool(os.environ.get("PIDONE_TEST_RANDOM"))
    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    settings.register_profile(
        "pidone", max_examples=EXAMPLES, deadline=None, derandomize=not new, suppress_health_check=slow
    )
    settings.load_profile("pidone")
    # A script's background job starts with these ignored, and so would every process that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    if not hasattr(config, "workerinput") and config.option.basetemp is None:  # workers have theirs below it
        config.option.basetemp = str(folders.reserve(config.rootpath / "build" / "pytest"))
