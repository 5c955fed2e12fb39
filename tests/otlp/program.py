"""Receivers of OTLP for tests, one program: built once for each content of its module, by ``make otlp``."""

from pathlib import Path

from tests import golang

MODULE = Path(__file__).parent / "server"
BUILD = "make otlp"


def find() -> Path:
    """Return where it is, or will be when it is built."""
    return golang.cached(MODULE, "otlp")


def missing() -> str | None:
    """Return why the receivers cannot be started here, with the remedy; None if they can."""
    return None if find().exists() else f"no receivers of OTLP: {BUILD} (needs Go 1.26; some minutes, once)"


def build() -> Path:
    """Build it if it is not there. Raises as ``golang.build`` does."""
    return golang.build_cached(MODULE, "otlp", "-ldflags=-s -w")


if __name__ == "__main__":
    golang.run(build)
