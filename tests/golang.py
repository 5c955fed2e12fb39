"""Go programs that tests need: built from modules of ours, with all that Go writes below the cache."""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

CACHE = Path.home() / ".cache" / "pidone"
GO = CACHE / "go"
TOOLCHAIN = "1.26.8"  # fetched as a module where the machine's own Go is too old for what is built
INSTALL = "apt-get install golang-go"


class NoGo(Exception):
    """There is no Go here, or what it needs cannot be fetched; says why and what to do."""


def environment() -> dict[str, str]:
    """Modules, sums, objects and the counters of Go's own use go into the cache; nothing needs a C compiler."""
    return os.environ | {
        "GOENV": os.environ.get("GOENV") or str(Path.home() / ".config/go/env"),
        "XDG_CONFIG_HOME": str(GO / "config"),
        "GOPATH": str(GO),
        "GOMODCACHE": str(GO / "mod"),
        "GOCACHE": str(GO / "build"),
        "GOFLAGS": "-buildvcs=false",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }


def cached(module: Path, name: str) -> Path:
    """Return the place in the cache of the program that this module makes; another content has another place."""
    digest = hashlib.sha256()
    for file in sorted(module.iterdir()):
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return CACHE / name / digest.hexdigest()[:16] / name


def build_cached(module: Path, name: str, *flags: str) -> Path:
    """Build the program of this module if the cache does not have it. Raises as ``build`` does."""
    program = cached(module, name)
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        new = program.with_name(f"new-{os.getpid()}-{program.name}")
        build(module, new, *flags)
        new.rename(program)
    return program


def run(make: Callable[[], Path]) -> None:
    """Build a program from the command line, and print where it is. Exits with the reason if that fails."""
    try:
        print(make())
    except NoGo as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)


def kubernetes_flags(module: Path) -> str:
    """Return the linker's flags that give the program the version of the module's k8s.io/kubernetes."""
    required = re.search(r"k8s\.io/kubernetes v1\.(\d+)\.\d+", (module / "go.mod").read_text())
    assert required
    of = "k8s.io/component-base/version.git"
    stamps = {
        "Version": required[0].split()[1],
        "Major": "1",
        "Minor": required[1],
        "Commit": "",
        "TreeState": "clean",
    }
    return " ".join(["-ldflags=-s", "-w", *(f"-X {of}{name}={value}" for name, value in stamps.items())])


def build(module: Path, program: Path, *flags: str) -> None:
    """Fetch what ``module`` requires, and build it.

    Raises:
        NoGo: there is no Go, or something cannot be fetched.
        subprocess.CalledProcessError: the compiler refused.
    """
    wanted = re.search(r"^go (\d+\.\d+)", (module / "go.mod").read_text(), re.MULTILINE)
    assert wanted
    go = find(wanted[1])
    _fetch([go, "mod", "download"], module)
    subprocess.run([go, "build", *flags, "-o", program, "."], cwd=module, env=environment(), check=True)


def find(wanted: str) -> str:
    """A Go of at least this version: the machine's, or one fetched by it."""
    if shutil.which("go") is None:
        raise NoGo(f"no go: {INSTALL}")
    words = ["go", "env", "GOVERSION", "GOARCH"]
    said = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True).stdout.split()
    if _number(said[0]) >= _number(wanted):
        return "go"
    name = f"golang.org/toolchain@v0.0.1-go{TOOLCHAIN}.{platform.system().lower()}-{said[1]}"
    folder = Path(json.loads(_fetch(["go", "mod", "download", "-json", name], GO))["Dir"])
    for program in [*(folder / "bin").iterdir(), *(folder / "pkg" / "tool").rglob("*")]:
        program.chmod(0o755)  # an old Go unpacks a module as texts
    return str(folder / "bin" / "go")


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _fetch(words: list[str], folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoGo(
            f"Go's modules cannot be fetched (GOPROXY?): {(done.stderr or done.stdout).strip()[-200:]}"
        )
    return done.stdout
