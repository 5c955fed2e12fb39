"""The versions of containerd under which sandboxes are tested: Debian's packages of several releases.

``make containerds`` fetches them into the cache, verified by apt, and unpacks them there; nothing is installed.
"""

import platform
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = Path.home() / ".cache" / "pidone" / "image"
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
RELEASES = {"1.6": "bookworm", "1.7": "trixie", "2": "forky"}  # by the version that Debian has there
PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr")


def programs(version: str) -> Path:
    """The folder of its programs."""
    return CACHE / f"containerd-{version}-{ARCH}" / "root/usr/bin"


def missing(version: str) -> str | None:
    """Why this version is not to be had here, with the remedy; None where it is."""
    if all((programs(version) / name).exists() for name in PROGRAMS):
        return None
    return f"no containerd {version} in the cache: make containerds (on Debian)"


def fetch() -> None:
    """Bring all of them into the cache.

    Raises:
        Missing: this is no Debian, or a release lacks the package.
    """
    sys.path.insert(0, str(ROOT / "k3d/image"))
    builder = import_module("build")  # a program, in no package

    for version, release in RELEASES.items():
        builder.unpack_packages(ARCH, ["containerd"], suite=release, cache=f"containerd-{version}")


if __name__ == "__main__":
    fetch()
