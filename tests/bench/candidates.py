"""The programs that are compared: pause, other init programs from Debian packages, doze, and pidone with a plan."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build/bench"
ARCHIVE = ROOT / "build/image.oci.tar"
UNPACKED = ROOT / "build/image/rootfs"
SNAPSHOT = "pidone.snapshot"

LAZY = ("-OO", "-X", "no_debug_ranges", "-X", "lazy_imports=all")  # options of Python in an unpacked root


@dataclass(frozen=True)
class Candidate:
    """One program as process 1. An active one runs a plan from the repo of the bench."""

    name: str
    command: list[str]
    root: Path | None = None
    active: bool = False
    env: dict[str, str] = field(default_factory=dict)

    def options(self) -> list[str]:
        """Return options for ``namespace``. An active one gets its own /proc, which its metrics read."""
        return [*(["-p"] if self.active else []), *(["-r", str(self.root)] if self.root else [])]


def build() -> Path:
    """Compile the C helpers, and return their folder."""
    BUILD.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CC", "gcc")
    for name in ("pause", "namespace"):
        if (
            not (BUILD / name).exists()
            or (BUILD / name).stat().st_mtime < (HERE / f"{name}.c").stat().st_mtime
        ):
            subprocess.run(
                [compiler, "-Os", "-static", "-s", "-o", BUILD / name, HERE / f"{name}.c"], check=True
            )
    return BUILD


def doze() -> Path:
    """Return the doze of images and wheels if it is built, else that of the system's compiler."""
    released = ROOT / f"build/doze-{os.uname().machine}"
    return released if released.exists() else ROOT / "build/doze"


def find(root: Path | None, say: Any) -> tuple[list[Candidate], int | None]:
    """Return the candidates on this machine, and the compressed size of the image in bytes (None: no image)."""
    candidates = [Candidate("pause", [str(BUILD / "pause")])]
    for name, words in {
        "tini": ["tini", "--", "sleep", "infinity"],
        "dumb-init": ["dumb-init", "sleep", "infinity"],
        "catatonit -P": ["catatonit", "-P"],
    }.items():
        path = shutil.which(words[0])
        if path:
            candidates.append(Candidate(name, [path, *words[1:]]))
        else:
            say(f"{words[0]} is missing: apt-get install -y --no-install-recommends {words[0]}")
    candidates.append(Candidate("doze", [str(doze())]))

    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    env = {"PIDONE_DOZE": str(doze()), "PYTHONPATH": str(ROOT)}
    command = [str(doze()), sys.executable, "-m", "pidone"]
    candidates.append(Candidate(f"active, clone ({python})", command, active=True, env=env))

    size = None
    if ARCHIVE.exists() and root is None:
        command, environ, size, layers = _archive()
        root = BUILD / "rootfs"
        _unpack(layers, root)
        env = dict(word.split("=", 1) for word in environ)
    else:
        root = root or (UNPACKED if UNPACKED.exists() else None)
        env = {"PYTHONDONTWRITEBYTECODE": "1"}
        if root:
            command = _guess(root, env)
    if root:
        (root / "proc").mkdir(exist_ok=True)
        plain = env | {"PIDONE_SNAPSHOT": ""}
        candidates.append(Candidate("active, image", command, root.resolve(), active=True, env=plain))
        if (root / SNAPSHOT).exists():
            env["PIDONE_SNAPSHOT"] = f"/{SNAPSHOT}"
            candidates.append(Candidate("active, snapshot", command, root.resolve(), active=True, env=env))
        else:
            say("the image has no snapshot: make image SNAPSHOT=1")
    else:
        say("the image is missing: make image, or --root DIR")
    return candidates, size


def _archive() -> tuple[list[str], list[str], int, list[str]]:
    """Return the command, the environment, the layers' size in bytes and their names in the OCI archive."""
    with tarfile.open(ARCHIVE) as archive:

        def read(name: str) -> Any:
            member = archive.extractfile(name)
            assert member is not None
            return json.load(member)

        def blob(descriptor: dict[str, Any]) -> str:
            return f"blobs/{descriptor['digest'].replace(':', '/')}"

        manifest = read(blob(read("index.json")["manifests"][0]))
        config = read(blob(manifest["config"]))["config"]
        command = [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]
        size = sum(layer["size"] for layer in manifest["layers"])
        return command, config.get("Env") or [], size, [blob(layer) for layer in manifest["layers"]]


def _unpack(layers: list[str], root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for name in layers:
        with tarfile.open(ARCHIVE) as archive:
            member = archive.extractfile(name)
            assert member is not None
            data = member.read()
        program = {b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip"}
        unpacker = next((word for magic, word in program.items() if data.startswith(magic)), "cat")
        words = [unpacker] if unpacker == "cat" else [unpacker, "-dc"]
        plain = subprocess.run(words, input=data, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-x", "-C", root], input=plain, check=True)


def _guess(root: Path, env: dict[str, str]) -> list[str]:
    """Return the command in a root without an image configuration. doze is copied into it if it is missing."""
    inside = next((path for path in ("doze", "usr/bin/doze", "bin/doze") if (root / path).is_file()), "doze")
    if not (root / inside).exists():
        shutil.copy(doze(), root / inside)
    env["PIDONE_DOZE"] = f"/{inside}"
    pythons = sorted(root.glob("usr/bin/python3.[0-9]*")) or sorted(root.glob("usr/local/bin/python3.[0-9]*"))
    python = f"/{pythons[-1].relative_to(root)}"
    lazy = LAZY if int(python.rpartition(".")[2]) >= 15 else LAZY[:3]
    return [f"/{inside}", python, *lazy, "-m", "pidone"]
