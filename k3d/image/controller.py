#!/usr/bin/env python3
"""Builds the controller's image from the Debian packages of the pod's image and wheels, without a registry.

    controller.py root --arch amd64 --out DIR                   write the root file system into a folder
    controller.py pack --arch amd64 --root DIR --out FILE.tar   pack it with the last stage of k3d/Dockerfile.controller

The image contains the standard library without the parts that only a desk uses. A cluster runs two replicas, so the
image need not be small, and tracebacks keep their source lines. The root is read-only in a container, so all byte code
is compiled here.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from build import CLONE, MACHINES, PYTHON, Missing, Root, pack, recipe, run_python, unpack_wheels

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
# Minor versions of glibc that wheels (manylinux) may need. The glibc of the packages is newer.
GLIBC = (17, 28, 34)
LEFT_OUT = (
    *("_pyrepl", "curses", "dbm", "ensurepip", "idlelib", "lib-dynload", "profiling", "pydoc_data"),
    *("sqlite3", "test", "tkinter", "turtledemo", "turtle.py", "unittest", "venv", "wsgiref", "xmlrpc"),
)
# In addition to system.txt: Trio imports ctypes, and wheels are linked with libraries that newer glibc has merged.
LIBRARIES = ("libdl.so.2", "libffi.so.8", "libpthread.so.0", "librt.so.1")
# The extensions of lib-dynload whose libraries are in the image, or that need none.
EXTENSIONS = (
    *("_ctypes", "_decimal", "_hashlib", "_hmac", "_interpchannels", "_interpqueues", "_interpreters"),
    *("_multiprocessing", "_posixshmem", "_queue", "_ssl", "_zoneinfo", "mmap", "resource", "termios"),
)
ZSTD_LEVEL = 19

COMPILE = """
import compileall, sys
root, *folders = sys.argv[1:]
options = {"stripdir": root, "prependdir": "/", "quiet": 1, "optimize": 0}
options["invalidation_mode"] = compileall.py_compile.PycInvalidationMode.UNCHECKED_HASH
sys.exit(not all([compileall.compile_dir(f"{root}/{folder}", **options) for folder in folders]))
"""


class Controller(Root):
    """The root file system of the controller's image, for one architecture."""

    def make(self) -> None:
        packages, host_arch, host_packages = self.begin()
        stdlib, libraries = f"usr/lib/{PYTHON}", "usr/lib/python3/dist-packages"
        (self.out / stdlib).mkdir()
        for path in sorted((packages / stdlib).iterdir()):
            if not path.is_symlink() and (path.suffix == ".py" or path.is_dir()):
                self._copy(path, stdlib)
        (self.out / stdlib / "lib-dynload").mkdir()
        for name in EXTENSIONS:
            (extension,) = (packages / stdlib / "lib-dynload").glob(f"{name}.*.so")
            shutil.copy(extension, self.out / stdlib / "lib-dynload")
        for name in LIBRARIES:
            place = f"usr/lib/{self.triplet}/{name}"
            shutil.copy(packages / place, self.out / place)

        target = [f"--platform=manylinux_2_{minor}_{MACHINES[self.arch]}" for minor in GLIBC]
        target += [f"--python-version={PYTHON.removeprefix('python')}", "--implementation=cp"]
        wheels = unpack_wheels(
            WHEELS,
            (CLONE, CLONE / "controller"),
            folder=CLONE / "build" / "controller-wheels",
            target=target,
        )
        for path in sorted(wheels.iterdir()):
            if path.suffix not in {".whl", ".txt"} and path.name != "fetched":
                self._copy(path, libraries)

        run_python(host_arch, host_packages, COMPILE, str(self.out), stdlib, libraries)
        (self.out / "tmp").mkdir()
        self.finish()

    def _copy(self, path: Path, folder: str) -> None:
        target = self.out / folder / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name in LEFT_OUT:
            return
        if path.is_dir():
            shutil.copytree(path, target, ignore=lambda _, names: unneeded(names))
        else:
            shutil.copy(path, target)


def unneeded(names: Iterable[str]) -> set[str]:
    """Return the names of folders that the image does not need."""
    return {name for name in names if name in {"__pycache__", "test", "tests"}}


def main() -> int:
    parser = argparse.ArgumentParser(prog="controller.py", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("root", "pack"):
        command = commands.add_parser(name)
        command.add_argument("--arch", choices=MACHINES, default="amd64")
        command.add_argument("--out", type=Path, required=True)
    commands.choices["pack"].add_argument("--root", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        if arguments.command == "root":
            Controller(arguments.arch, arguments.out).make()
        else:
            images = {"pidone-controller": (recipe("Dockerfile.controller"), arguments.root)}
            pack(arguments.arch, arguments.out, images, level=ZSTD_LEVEL)
    except Missing as missing:
        print(f"the image cannot be built: {missing}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as failed:
        print(f"{' '.join(map(str, failed.cmd[:3]))} ...: exit code {failed.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
