"""The program that is the control plane: built once for each content of its module, by ``make cluster``."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

from tests import golang

MODULE = Path(__file__).parent / "server"
BUILD = "make cluster"


def find() -> Path:
    """Where it is, or will be when it is built."""
    digest = hashlib.sha256()
    for file in sorted(MODULE.iterdir()):
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return golang.CACHE / "cluster" / digest.hexdigest()[:16] / "cluster"


def missing() -> str | None:
    """Why the control plane cannot be started here, with the remedy; None where it can."""
    return None if find().exists() else f"no API server: {BUILD} (needs Go 1.26; ten minutes, once)"


def build() -> Path:
    """Build it if it is not there: about 600 packages, some minutes on two cores.

    Raises:
        golang.NoGo: there is no Go, or modules cannot be fetched.
        subprocess.CalledProcessError: the compiler refused.
    """
    program = find()
    if program.exists():
        return program
    found = re.search(r"k8s\.io/kubernetes v1\.(\d+)\.\d+", (MODULE / "go.mod").read_text())
    assert found
    of = "k8s.io/component-base/version.git"
    stamps = {
        "Version": found[0].split()[1],
        "Major": "1",
        "Minor": found[1],
        "Commit": "",
        "TreeState": "clean",
    }
    linker = ["-s", "-w", *(f"-X {of}{name}={value}" for name, value in stamps.items())]
    program.parent.mkdir(parents=True, exist_ok=True)
    new = program.with_name(f"new-{program.name}")
    golang.build(MODULE, new, f"-ldflags={' '.join(linker)}")
    new.rename(program)
    return program


if __name__ == "__main__":
    try:
        print(build())
    except golang.NoGo as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
