import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import folders
from tests.cri import containerds, images
from tests.cri.images import Image
from tests.cri.node import Node, missing, node

BUILD = Path(__file__).parents[2] / "build"
DOZE = BUILD / f"doze-{platform.machine()}"
IMAGE = BUILD / "image.oci.tar"
BUSYBOX = "/bin/busybox"


@pytest.fixture(scope="package", params=containerds.RELEASES)
def containerd(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node, with an image for applications; one of each version of containerd."""
    version = request.param
    programs = containerds.programs(version)
    if reason := containerds.missing(version) or missing(programs):
        pytest.skip(reason)
    with node(folders.reserve(BUILD / f"cri-{version}"), programs=programs) as found:
        found.put(busybox(BUSYBOX, "sh"), found.busybox)
        yield found


@pytest.fixture(scope="package")
def pause() -> Image:
    """doze and nothing else: what pause is."""
    return images.of_files({"doze": doze()}, ["/doze"], PIDONE_REPO="http://127.0.0.1:9")


@pytest.fixture(scope="package")
def image() -> Image:
    """The image that ``make image`` built."""
    if not IMAGE.exists():
        pytest.skip(f"no build/{IMAGE.name}: make image")
    return images.read(IMAGE)


def doze() -> bytes:
    if not DOZE.exists():
        pytest.skip(f"no build/{DOZE.name}: make doze")
    return DOZE.read_bytes()


def busybox(*entrypoint: str, **files: bytes) -> Image:
    """An image with Debian's static busybox, and maybe more."""
    return images.of_files({BUSYBOX: Path(BUSYBOX).read_bytes(), **files}, entrypoint)
