"""How ``make test`` shares the tests out among parallel workers: a plugin of pytest-xdist."""

import re

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Tests that share what is expensive to start, or what a machine has only once, run in the same worker.
# The first match counts.
GROUPS = {
    r"tests/cluster/test_(node|scenario|installed)\.py": "node",
    r"tests/cluster/": "cluster",
    r"tests/k3d/test_(installation|policies|running)\.py": "installation",
    r"tests/cri/.*\[(1\.6|1\.7|2)\b": r"containerd \1",
    r"tests/image/test_image\.py": "image",
    r"tests/image/test_podman\.py": "podman",
    r".*\[.*\bspring\b.*\]$": "eureka",
}

# Long ones begin first, so that no worker is left with one at the end.
LONG = ("tests/pid1/", "tests/pod/", "tests/demo/", "tests/engine/", "tests/generate/", "tests/repo/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


class Groups(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
    """Gives whole groups to a worker, and all other tests one by one.

    pytest-xdist's own ``loadgroup`` changes the ids of tests, which pytest 9.2 no longer allows.
    """

    def _split_scope(self, nodeid: str) -> str:
        matches = (
            match.expand(name) for pattern, name in GROUPS.items() if (match := re.match(pattern, nodeid))
        )
        return next(matches, nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Groups:
    return Groups(config, log)
