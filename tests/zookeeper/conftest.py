from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.zookeeper.real import Ensemble, Reader, ensemble, missing, reader


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ensemble]:
    """An ensemble of three real servers."""
    if reason := missing():
        pytest.skip(reason)
    with ensemble(tmp_path_factory.mktemp("ensemble"), 3) as servers:
        yield servers


@pytest.fixture(scope="session")
def curator_of_three(three: Ensemble, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    with reader(three.address, Path(tmp_path_factory.mktemp("curator")) / "reader.log") as running:
        yield running
