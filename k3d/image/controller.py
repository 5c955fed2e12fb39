#!/usr/bin/env python3
"""The files of the controller's image, from the same packages as the pod's, and wheels: no registry, no container.

    controller.py root --arch amd64 --out DIR
    controller.py pack --arch amd64 --root DIR --out FILE.tar     after the last stage of k3d/Dockerfile.controller

The whole standard library, less what only a desk has use for; two replicas of a cluster need not be small, and a
traceback is to have its lines. Nothing is written in a container, so all byte code is made here.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from build import CLONE, MACHINES, PYTHON, Missing, Root, pack, recipe, run_python, unpacked_wheels

WHEELS = (
    "anyio",
    "attrs",
    "certifi",
    "cffi",
    "cryptography",
    "h11",
    "httpcore",
    "httpx",
    "idna",
    "jsonschema",
    "jsonschema-specifications",
    "outcome",
    "pycparser",
    "referencing",
    "rpds-py",
    "ruamel-yaml",
    "sniffio",
    "sortedcontainers",
    "trio",
)
GLIBC = (17, 28, 34)  # the wheels' manylinux; that of the packages is newer
LEFT_OUT = (
    *("_pyrepl", "curses", "dbm", "ensurepip", "idlelib", "lib-dynload", "profiling", "pydoc_data"),
    *("sqlite3", "test", "tkinter", "turtledemo", "turtle.py", "unittest", "venv", "wsgiref", "xmlrpc"),
)
# Beside those of system.txt: Trio imports ctypes, and wheels are linked with what older C libraries had apart.
LIBRARIES = ("libdl.so.2", "libffi.so.8", "libpthread.so.0", "librt.so.1")
# Those of lib-dynload whose libraries are there, or that need none.
EXTENSIONS = (
    *("_ctypes", "_decimal", "_hashlib", "_hmac", "_interpchannels", "_interpqueues", "_interpreters"),
    *("_multiprocessing", "_posixshmem", "_queue", "_ssl", "_zoneinfo", "mmap", "resource", "termios"),
)
LEVEL = 19  # of zstd

COMPILE = """
import compileall, sys
root, *folders = sys.argv[1:]
said = {"stripdir": root, "prependdir": "/", "quiet": 1, "optimize": 0}
said["invalidation_mode"] = compileall.py_compile.PycInvalidationMode.UNCHECKED_HASH
sys.exit(not all([compileall.compile_dir(f"{root}/{folder}", **said) for folder in folders]))
"""


class Controller(Root):
    def make(self) -> None:
        full, own, compiler = self.begun()
        stdlib, libraries = f"usr/lib/{PYTHON}", "usr/lib/python3/dist-packages"
        (self.out / stdlib).mkdir()
        for path in sorted((full / stdlib).iterdir()):
            if not path.is_symlink() and (path.suffix == ".py" or path.is_dir()):
                self._copy(path, stdlib)
        (self.out / stdlib / "lib-dynload").mkdir()
        for name in EXTENSIONS:
            (found,) = (full / stdlib / "lib-dynload").glob(f"{name}.*.so")
            shutil.copy(found, self.out / stdlib / "lib-dynload")
        for name in LIBRARIES:
            place = f"usr/lib/{self.triplet}/{name}"
            shutil.copy(full / place, self.out / place)
        target = [f"--platform=manylinux_2_{minor}_{MACHINES[self.arch]}" for minor in GLIBC]
        target += [f"--python-version={PYTHON.removeprefix('python')}", "--implementation=cp"]
        wheels = unpacked_wheels(
            WHEELS,
            (CLONE, CLONE / "controller"),
            folder=CLONE / "build" / "controller-wheels",
            target=target,
        )
        for path in sorted(wheels.iterdir()):
            if path.suffix not in {".whl", ".txt"} and path.name != "fetched":
                self._copy(path, libraries)
        run_python(own, compiler, COMPILE, str(self.out), stdlib, libraries)
        (self.out / "tmp").mkdir()
        self.end()

    def _copy(self, path: Path, folder: str) -> None:
        target = self.out / folder / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name in LEFT_OUT:
            return
        if path.is_dir():
            shutil.copytree(path, target, ignore=lambda _, names: pointless(names))
        else:
            shutil.copy(path, target)


def pointless(names: Iterable[str]) -> set[str]:
    return {name for name in names if name in {"__pycache__", "test", "tests"}}


def main() -> int:
    parser = argparse.ArgumentParser(prog="controller.py", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("root", "pack"):
        command = commands.add_parser(name)
        command.add_argument("--arch", choices=MACHINES, default="amd64")
        command.add_argument("--out", type=Path, required=True)
    commands.choices["pack"].add_argument("--root", type=Path, required=True)
    given = parser.parse_args()
    try:
        if given.command == "root":
            Controller(given.arch, given.out).make()
        else:
            images = {"pidone-controller": (recipe("Dockerfile.controller"), given.root)}
            pack(given.arch, given.out, images, level=LEVEL)
    except Missing as missing:
        print(f"the image cannot be built: {missing}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as failed:
        print(f"{' '.join(map(str, failed.cmd[:3]))} ...: exit code {failed.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
