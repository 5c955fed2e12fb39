"""The controller's image: all that the controller imports is there, for a user without a name, on a read-only root."""

import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import pidone.language
import pidone_controller
from tests import folders
from tests.image.podman import ROOT, Podman, missing, version

ARCHIVE = ROOT / "build" / "controller.oci.tar"
NAME = f"localhost/pidone-controller:{version()}"
LIMIT = 25_000_000  # bytes; most of it are OpenSSL twice and the standard library
IMPORT = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; print('all')"
CONTAINED = ("--rm", "--read-only", "--user", "65532:65532", "--network", "none", "--cap-drop", "all")


def skip_without_archive() -> None:
    if not ARCHIVE.exists():
        pytest.skip(f"no build/{ARCHIVE.name}: make controller-image")


@pytest.fixture(scope="module")
def runtime() -> Iterator[Podman]:
    if reason := missing():
        pytest.skip(reason)
    skip_without_archive()
    program = Podman(folders.reserve(ROOT / "build" / "podman"))
    program.settle()
    try:
        program("load", "-q", "-i", str(ARCHIVE))
        yield program
    finally:
        program.close()


def modules() -> list[str]:
    """Of the controller, and of the language, which it renders plans with."""
    packages = (pidone_controller, pidone.language)
    return [
        found.name
        for package in packages
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not found.name.endswith("__main__")
    ]


def test_it_has_all_that_is_imported(runtime: Podman) -> None:
    words = ("--entrypoint", "/usr/bin/python3.15", NAME, "-B", "-P", "-s", "-c", IMPORT)
    assert runtime("run", *CONTAINED, *words, *modules()) == "all"


def test_its_command_is_the_controller(runtime: Podman) -> None:
    assert runtime("run", *CONTAINED, NAME, "--version") == f"pidone-controller {version()}"


def test_it_is_small_and_has_byte_code_for_all_modules() -> None:
    skip_without_archive()
    assert ARCHIVE.stat().st_size < LIMIT
    root = ROOT / "build" / "controller-root" / "usr" / "lib" / "python3" / "dist-packages"
    without = [path for path in root.rglob("*.py") if not compiled(path)]
    assert not without


def compiled(path: Path) -> bool:
    return any((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))
