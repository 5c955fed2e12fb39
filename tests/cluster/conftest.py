import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests import folders
from tests.cluster import apiserver, network, node, program
from tests.cluster.apiserver import Cluster, ControlPlane, control_plane
from tests.cluster.node import NodeCluster
from tests.cri.conftest import BUILD, BUSYBOX, busybox


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The API server that all tests share, with the CRDs: nobody may break it, each has a ``namespace``."""
    if reason := apiserver.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cluster")
    with apiserver.foreign(folder) if os.environ.get(apiserver.FOREIGN) else control_plane(folder) as found:
        found.install_crds()
        yield found


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    with cluster.namespace() as name:
        yield name


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """An API server for this test alone, with the CRDs, that it may kill, slow and rob of its history."""
    if reason := program.missing():
        pytest.skip(reason)
    with control_plane(tmp_path / "plane") as found:
        found.install_crds()
        yield found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test of the node, and its fixtures, are in the node's network."""
    if "real_node" not in getattr(item, "fixturenames", ()) or node.missing():
        return (yield)
    with network.private():
        return (yield)


@pytest.fixture(scope="package")
def real_node() -> Iterator[NodeCluster]:
    """A cluster with a node that runs pods, with the CRDs. Each sandbox is of the image that was put there last."""
    if reason := node.missing():
        pytest.skip(reason)
    with node.node(folders.reserve(BUILD / "node")) as found:
        found.containerd.put(busybox(BUSYBOX, "sh"), found.containerd.busybox)
        yield found
