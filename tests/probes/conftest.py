from collections.abc import Iterator

import pytest

from tests.probes.kubelet import Kubelet, missing, running


@pytest.fixture(scope="session")
def kubelet() -> Iterator[Kubelet]:
    """The kubelet's prober, one for all tests of a worker."""
    if reason := missing():
        pytest.skip(reason)
    with running() as kubelet:
        yield kubelet
