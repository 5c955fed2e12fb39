from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import program
from tests.cluster.apiserver import OURS, Cluster, Object, Refused, control_plane
from tests.cluster.process import until
from tests.k3d.folders import INSTALLATION

REFUSED: list[tuple[str, Object]] = [
    ("tasksets", {"tasks": [{"name": "a", "exec": {"command": ["/a"]}}]}),
    ("taskbindings", {"podSelector": {}, "taskSets": ["a"]}),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and "installed" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An API server of its own, for the policies hold in all of it, with what ``kubectl apply -k k3d`` brings."""
    if reason := program.missing():
        pytest.skip(reason)
    older = "--runtime-config=admissionregistration.k8s.io/v1beta1=true"  # for components of older versions
    with control_plane(tmp_path_factory.mktemp("installed"), older) as plane:
        done = plane.try_kubectl("apply", "-k", INSTALLATION)
        assert done.returncode == 0, done.stderr
        assert not done.stderr, "the API server warns of something"
        crds = [
            f"crd/{one}s.pidone.dev"
            for one in ("taskset", "clustertaskset", "taskbinding", "clustertaskbinding")
        ]
        plane.kubectl("wait", "--for=condition=Established", "--timeout=120s", *crds)
        # the API server looks for new policies now and then
        until(lambda: [_refuses(plane, *one) for one in REFUSED] == [True, True])
        yield plane


def _refuses(cluster: Cluster, plural: str, spec: Object) -> bool:
    kind = {"tasksets": "TaskSet", "taskbindings": "TaskBinding"}[plural]
    body = {"apiVersion": "pidone.dev/v1alpha1", "kind": kind, "metadata": {"name": "probe"}, "spec": spec}
    try:
        cluster.request("POST", f"{OURS}/namespaces/default/{plural}?dryRun=All", body)
    except Refused as error:
        return error.code in {403, 422}
    return False


@pytest.fixture
def shop(installed: Cluster) -> Iterator[str]:
    with installed.namespace("shop") as name:
        yield name
