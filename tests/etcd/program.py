"""etcd 3.6 and the readers of its layouts, one program: built once for each content of its module, by ``make etcd``."""

from pathlib import Path

from tests import golang

MODULE = Path(__file__).parent / "reader"
BUILD = "make etcd"


def find() -> Path:
    """Return where it is, or will be when it is built."""
    return golang.cached(MODULE, "etcd")


def missing() -> str | None:
    """Why it cannot be started here, with the remedy; None where it can."""
    return None if find().exists() else f"no etcd 3.6: {BUILD} (needs Go 1.26; some minutes, once)"


def build() -> Path:
    """Build it if it is not there. Raises as ``golang.build`` does."""
    return golang.build_cached(MODULE, "etcd", "-ldflags=-s -w")


if __name__ == "__main__":
    golang.run(build)
