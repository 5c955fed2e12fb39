import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "image: needs the image (make image), podman and root")
