"""The program that is the control plane: built once for each content of its module, by ``make cluster``."""

from pathlib import Path

from tests import golang

MODULE = Path(__file__).parent / "server"
BUILD = "make cluster"


def find() -> Path:
    """Where it is, or will be when it is built."""
    return golang.cached(MODULE, "cluster")


def missing() -> str | None:
    """Why the control plane cannot be started here, with the remedy; None where it can."""
    return None if find().exists() else f"no API server: {BUILD} (needs Go 1.26; ten minutes, once)"


def build() -> Path:
    """Build it if it is not there: about 600 packages, some minutes on two cores. Raises as ``golang.build`` does."""
    return golang.build_cached(MODULE, "cluster", golang.kubernetes_flags(MODULE))


if __name__ == "__main__":
    golang.run(build)
