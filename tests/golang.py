"""Go programs that tests need: built from modules of ours, with all that Go writes below the cache."""

import os
import subprocess
from pathlib import Path

CACHE = Path.home() / ".cache" / "pidone"
GO = CACHE / "go"


def environment() -> dict[str, str]:
    """Modules, sums, objects and the counters of Go's own use go into the cache; nothing needs a C compiler."""
    return os.environ | {
        "GOENV": os.environ.get("GOENV") or str(Path.home() / ".config/go/env"),
        "XDG_CONFIG_HOME": str(GO / "config"),
        "GOPATH": str(GO),
        "GOMODCACHE": str(GO / "mod"),
        "GOCACHE": str(GO / "build"),
        "GOFLAGS": "-buildvcs=false",
        "GOTOOLCHAIN": os.environ.get("GOTOOLCHAIN", "local"),
        "CGO_ENABLED": "0",
    }


def download(module: Path) -> str | None:
    """Fetch what ``module`` requires; why that is impossible, or None."""
    words = ["go", "mod", "download"]
    done = subprocess.run(words, cwd=module, env=environment(), capture_output=True, text=True, check=False)
    return (
        f"Go's modules cannot be fetched (GOPROXY?): {done.stderr.strip()[-200:]}"
        if done.returncode
        else None
    )


def build(module: Path, program: Path, *flags: str) -> None:
    subprocess.run(["go", "build", *flags, "-o", program, "."], cwd=module, env=environment(), check=True)
