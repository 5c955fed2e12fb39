"""How ``make test`` distributes the tests among parallel workers: a plugin of pytest-xdist."""

import re

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Tests that share a fixture which is expensive to make run in the same worker. The first match counts.
GROUPS = {
    r"tests/cluster/test_scenario\.py": "scenario",
    r"tests/cluster/test_(node|installed|scraping|idle)\.py": "node",
    r"tests/cluster/": "cluster",
    r"tests/k3d/test_(installation|policies|running)\.py": "installation",
    r"tests/probes/test_(http|generated|grpc|other)\.py": "prober",
    r"tests/cri/.*\[(1\.6|1\.7|2)\b": r"containerd \1",
    r"tests/entrypoint/test_docker\.py": "docker",
    r"tests/pid1/test_environment\.py": "wheel",
    r"tests/image/test_image\.py": "image",
    r"tests/image/test_podman\.py": "podman",
    r"tests/image/test_snapshot\.py": "snapshot",
    r"tests/language/test_kubectl\.py": "kubectl",
    r"tests/pid1/test_environment\.py.*\[wheel": "wheel",
    r"tests/extension/": "extension",
    r"tests/etcd/.*\[.*\b(etcd-\w+)\b": r"\1",
    r"tests/eureka/test_peers\.py": "peers",
    r"tests/eureka/test_secured\.py": "secured",
    r"tests/registries/test_faults\.py.*\[(\w+)-": r"faults of \1",
    r"tests/nacos/|.*\[nacos-": "nacos",
    r".*\[.*\bspring\b.*\]$": "eureka",
    # 95 s, in which it waits
    r"tests/registries/test_consul\.py::test_what_the_agent_has_taken_out": "reaped",
    # classes have agents of their own
    r"tests/(?:consul|registries)/test_consul\w*\.py::test_.*\[.*\bconsul\b.*\]$": "consul",
    r".*\[.*\bzookeeper\b.*\]$": "zookeeper",
    r"tests/zookeeper/": "ensemble",
}

# The longest begin first, in this order, so that no worker is left with one at the end.
LONGEST = (
    "tests/registries/test_faults",
    "tests/registries/test_consul.py::test_what_the_agent_has_taken_out",
    "tests/cluster/test_scenario",
    "tests/cluster/test_installed",
    "tests/cluster/test_node",
    "tests/cluster/test_scraping",
    "tests/cri/",
    "tests/demo/",
    "tests/image/",
    "tests/cluster/",
    "tests/k3d/",
    "tests/engine/test_faults",
    "tests/engine/test_invariants",
    "tests/pod/",
    "tests/pid1/",
    "tests/extension/",
    "tests/etcd/",
    "tests/language/test_kubectl",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    return next((rank for rank, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST))


class Groups(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
    """Assigns whole groups to a worker, and all other tests one by one, in the order of the collection.

    pytest-xdist's own ``loadgroup`` changes the ids of tests, which pytest 9.2 no longer allows.
    """

    def _split_scope(self, nodeid: str) -> str:
        matches = (
            match.expand(name) for pattern, name in GROUPS.items() if (match := re.match(pattern, nodeid))
        )
        return next(matches, nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Groups:
    config.option.loadscopereorder = False  # xdist would begin with the group of the most tests
    return Groups(config, log)
