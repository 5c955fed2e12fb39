#!/usr/bin/env python3
"""Builds the pod's image from Debian packages and wheels, without a registry, a container or root.

    build.py root --arch amd64 --out DIR     write the root file system into a folder
    build.py pack --arch amd64 --root DIR --out FILE.tar
                                             pack that folder as an OCI archive, with buildah and the last stage of
                                             k3d/Dockerfile
    build.py modules LOG...                  print the modules in the output of python -X importtime, for modules.txt

Three lists beside this script define the contents: ``packages.txt`` (Debian packages to fetch), ``system.txt`` (their
files) and ``modules.txt`` (modules of the standard library and of the wheels). pidone is included without its command
line. ``instead/`` contains small modules that replace large ones of the standard library, of which Trio and attrs use
little.

Modules are included as byte code without source (``trio/_path.pyc``), compiled with -OO by the interpreter that runs
them. Python then makes no stat call for the source, the files contain no time stamps, and nothing is written under the
read-only root. Byte code does not depend on the processor, so the interpreter of this machine compiles for all.

The last file is ``pidone.snapshot``: Python as it is after its imports, as an executable (``snapshot.c``,
``snapshot.py``, docs/footprint.md). It is made on a machine of the same architecture, and needs ptrace.
"""

import argparse
import fnmatch
import gzip
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import time
import urllib.parse
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLONE = HERE.parents[1]
CACHE = Path(os.environ.get("CACHE") or Path.home() / ".cache" / "pidone") / "image"
SUITE = "forky"
PYTHON = "python3.15"
KEYRINGS = Path("/usr/share/keyrings")
LISTS_AGE_SECONDS = 86400  # before the suite's index is fetched again
WHEELS = ("attrs", "h11", "outcome", "sniffio", "sortedcontainers", "trio")
LEFT_OUT = ("pidone/__main__.py", "pidone/cli/*", "pidone/language/*")  # of pidone's own wheel
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
SNAPSHOT_TRIES = 20  # starts of a new snapshot
# Debian's interpreter is linked with this library for its module pyexpat, which the pod never imports. It binds
# functions at the first call, so an empty library with the same name does, and takes 73 kB less. libzstd stays, because
# libcrypto is linked with it.
EMPTY = "libexpat.so.1"
LOADERS = {"amd64": "lib64/ld-linux-x86-64.so.2", "arm64": "lib/ld-linux-aarch64.so.1"}
HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"  # runtimes write no hosts file for a sandbox
NSSWITCH = "hosts: files dns\n"

# Optional imports of the standard library, which the pod does not need.
OPTIONAL = {"_bz2", "_hashlib", "_hmac", "_lzma", "_queue", "bz2", "lzma", "site"}
ZSTD_LEVEL = 22  # takes 3 s

SNAPSHOT = "pidone.snapshot"
# Features of processors by which the C library chooses its functions: the snapshot must not remember that this machine
# has them. Without XSAVE, which saves the registers of AVX, it uses no form of AVX.
HIDDEN = (
    "XSAVE XSAVEC SSSE3 SSE4_1 SSE4_2 MOVBE POPCNT LZCNT BMI1 BMI2 ERMS FSRM RTM FMA FMA4 F16C AVX AVX2 "
    "AVX_Fast_Unaligned_Load"
)
TUNABLES = f"glibc.cpu.hwcaps={','.join(f'-{name}' for name in HIDDEN.split())}"
# What the loader's --list-diagnostics must not show with these tunables: words of features by CPUID leaf (1, 7 and
# 0x80000001) and register, and the bits of these names and of AVX-512.
FORBIDDEN = {
    "features[0x0].active[0x2]": 1 << 9
    | 1 << 12
    | 1 << 19
    | 1 << 20
    | 1 << 22
    | 1 << 23
    | 1 << 26
    | 1 << 28
    | 1 << 29,
    "features[0x1].active[0x1]": 1 << 3 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 16 | 1 << 17 | 0xDC << 24,
    "features[0x2].active[0x2]": 1 << 5 | 1 << 16,
    "preferred.AVX_Fast_Unaligned_Load": 1,
    "xsave_state_size": -1,
}

RECOMPRESS = """
import sys
from compression import zstd
sys.stdout.buffer.write(zstd.compress(sys.stdin.buffer.read(), int(sys.argv[1])))
"""

# Only pidone's own code keeps its line numbers. Those of libraries would take 0.5 MiB of each active pod's memory, and
# tracebacks still name the files and functions of libraries.
WITHOUT_LINES = """
import types

def without_lines(code):
    # "No location", for eight instructions with each byte (Objects/locations.md): without an entry for an
    # instruction the traceback module fails.
    rounds, rest = divmod(len(code.co_code) // 2, 8)
    table = b"\\xff" * rounds + (bytes([0xF8 | rest - 1]) if rest else b"")
    constants = (without_lines(value) if isinstance(value, types.CodeType) else value for value in code.co_consts)
    return code.replace(co_linetable=table, co_consts=tuple(constants))
"""

# Nothing reads annotations of functions and modules, and each function with them would have a second function that
# returns them: 1 MiB of each active pod's memory. Dataclasses, attrs and named tuples read those of classes.
WITHOUT_ANNOTATIONS = """
import ast

class WithoutAnnotations(ast.NodeTransformer):
    def visit_Module(self, node):
        self.generic_visit(node)
        node.body = [kept for part in node.body for kept in self.without(part)]
        return node

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        node.returns = None
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_arg(self, node):
        node.annotation = None
        return node

    def without(self, part):
        if not isinstance(part, ast.AnnAssign):
            return [part]
        if part.value is None:
            return []
        return [ast.copy_location(ast.Assign([part.target], part.value), part)]
"""

COMPILE = (
    WITHOUT_LINES
    + WITHOUT_ANNOTATIONS
    + """
import importlib.util, json, marshal, sys

for source, target, path_in_image in json.load(sys.stdin):
    with open(source, "rb") as file:
        text = file.read()
    tree = WithoutAnnotations().visit(ast.parse(text, source))
    code = compile(tree, path_in_image, "exec", dont_inherit=True, optimize=2)
    if not path_in_image.startswith("/pidone/pidone/"):
        code = without_lines(code)
    with open(target, "wb") as compiled:
        flags = 1  # names the source by its hash, which is not checked
        compiled.write(importlib.util.MAGIC_NUMBER + flags.to_bytes(4, "little") + importlib.util.source_hash(text))
        compiled.write(marshal.dumps(code))
"""
)

# Runs a pod with tasks until it has loaded what such pods load, and records what is compiled meanwhile: generated.py.
GENERATE = (
    WITHOUT_LINES
    + """
import sys
root = sys.argv[1]
sys.path[:] = [f"{root}/pidone", f"{root}/usr/lib/{sys.argv[2]}", f"{root}/usr/lib/{sys.argv[2]}/lib-dynload"]
from pidone import generated
generated.record()
from random import Random
import trio
from pidone.http.client import request
from pidone.http.message import Response
from pidone.http.server import serve
from pidone.journal import Journal
from pidone.plan.digest import canonical
from pidone.plan.format import encode_bundle
from pidone.plan.model import Phase, Pod
from pidone.pod.live import live
from pidone.pod.program import PodProgram
from pidone.pod.settings import Settings

async def answer(request):
    return Response(503, {"content-type": "text/plain"}, b"no")

async def main():
    listeners = await trio.open_tcp_listeners(0, host=b"127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    tasks = [
        {"name": "ready", "probe": {"httpGet": {"port": port}}},
        {"name": "open", "probe": {"tcpSocket": {"port": port}}},
        {"name": "up", "needs": ["open.healthy"], "register": {
            "eureka": {"url": f"http://127.0.0.1:{port}/eureka", "app": "a", "port": 1}, "follow": "open"}},
        {"name": "beat", "every": 1, "heartbeat": {"of": "up"}},
        {"name": "metrics", "metrics": {"port": 0}},
    ]
    bundle = encode_bundle(tasks, phase=Phase.RUNNING, pod=Pod("p", "n", "u", "127.0.0.1"))
    bundle["tasks"][-1]["metrics"]["port"] = port + 1 if port < 65535 else port - 1
    bundle = encode_bundle(bundle["tasks"], phase=Phase.RUNNING, pod=Pod("p", "n", "u", "127.0.0.1"))
    settings = Settings(repos=(f"http://127.0.0.1:{port}",))
    program = PodProgram(settings, Journal(lambda line: None))
    with trio.move_on_after(1.5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: serve(answer, listeners, max_connections=9))
            nursery.start_soon(live, program)
            await trio.sleep(0.2)
            program.apply(canonical(bundle), trusted=False)
            await trio.sleep_forever()

trio.run(main)
generated.save(without_lines)
"""
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="build.py", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("root", "pack"):
        command = commands.add_parser(name)
        command.add_argument("--arch", choices=MACHINES, default="amd64")
        command.add_argument("--out", type=Path, required=True)
    commands.choices["root"].add_argument(
        "--no-snapshot", dest="snapshot", action="store_false", help=f"leave out {SNAPSHOT}"
    )
    commands.choices["pack"].add_argument("--root", type=Path, required=True)
    commands.add_parser("modules").add_argument("logs", type=Path, nargs="+")
    arguments = parser.parse_args()
    try:
        if arguments.command == "root":
            root = Root(arguments.arch, arguments.out)
            root.make()
            if arguments.snapshot:
                root.take_snapshot()
        elif arguments.command == "pack":
            pack(arguments.arch, arguments.out, {"pidone": (recipe("Dockerfile"), arguments.root)})
        else:
            print("\n".join(sorted(modules_in(arguments.logs))))
    except Missing as missing:
        print(f"the image cannot be built: {missing}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as failed:
        print(f"{' '.join(map(str, failed.cmd[:3]))} ...: exit code {failed.returncode}", file=sys.stderr)
        return 1
    return 0


class Missing(Exception):
    """A file, tool or package that the build needs; the text names the remedy."""


class Root:
    """The root file system of one architecture."""

    def __init__(self, arch: str, out: Path) -> None:
        self.arch = arch
        self.out = out.resolve()
        self.triplet = f"{MACHINES[arch]}-linux-gnu"

    def make(self) -> None:
        machine = MACHINES[self.arch]
        doze, empty = CLONE / "build" / f"doze-{machine}", CLONE / "build" / f"empty-{machine}"
        for path in (doze, empty):
            if not path.exists():
                raise Missing(f"{path.relative_to(CLONE)} is missing: make image-root ARCH={self.arch}")
        packages, host_arch, host_packages = self.begin()
        shutil.copy(empty / EMPTY, self.out / "usr" / "lib" / self.triplet / EMPTY)
        wheels = unpack_wheels()
        byte_code = [*self._modules(packages, wheels), *self._own(wheels)]
        compile_all(host_arch, host_packages, byte_code)
        run_python(host_arch, host_packages, GENERATE, str(self.out), PYTHON)
        shutil.copy(doze, self.out / "doze")
        self.finish()

    def take_snapshot(self) -> None:
        """Write ``pidone.snapshot``, and test that it starts. On another architecture the image has none."""
        host_arch = output_of("dpkg", "--print-architecture")
        if self.arch != "amd64" or host_arch != self.arch:
            print(f"  no {SNAPSHOT}: it is made for amd64, on amd64")
            return
        tracer, snapshot = CLONE / "build" / f"snapshot-{MACHINES[self.arch]}", self.out / SNAPSHOT
        words = json.loads(
            next(line for line in recipe("Dockerfile").splitlines() if line.startswith("ENTRYPOINT"))[11:]
        )[1:]
        environment = {"GLIBC_TUNABLES": TUNABLES}
        check_processor(self.out / LOADERS[self.arch], environment)
        packages = unpack_packages(host_arch, quiet=True)
        program = self._byte_code(HERE / "snapshot.py", "pidone/snapshot.py")
        compile_all(host_arch, packages, [program])
        try:
            command = [tracer, snapshot, self.out, *words[:-1], f"/{program[1].relative_to(self.out)}"]
            subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=True)
            for _ in range(SNAPSHOT_TRIES):
                asked = subprocess.run(
                    words, executable=snapshot, env={"PIDONE_STAGE": "ask", "PIDONE_REPO": "http://127.0.0.1:1"},
                    capture_output=True, check=False,
                )  # fmt: skip
                if asked.returncode != 4:  # no repo answers, see pidone.pid1.ask
                    raise Missing(f"{SNAPSHOT} ends with {asked.returncode}: {asked.stderr!r}")
        except (Missing, subprocess.CalledProcessError, OSError) as error:
            snapshot.unlink(missing_ok=True)
            raise Missing(f"{SNAPSHOT}: {error}. make SNAPSHOT=0 image builds without it") from error
        finally:
            program[1].unlink()

    def begin(self) -> tuple[Path, str, Path]:
        """Create the root with the files of ``system.txt``.

        Return the folder with the unpacked packages, this machine's architecture, and the folder with the unpacked
        packages of this machine's architecture, whose interpreter compiles.
        """
        for tool, package in {"apt-get": "apt", "dpkg-deb": "dpkg", "dpkg": "dpkg"}.items():
            require(tool, package)
        host_arch = output_of("dpkg", "--print-architecture")
        packages = unpack_packages(self.arch)
        host_packages = packages if host_arch == self.arch else unpack_packages(host_arch)
        if self.out.exists():
            shutil.rmtree(self.out)
        self.out.mkdir(parents=True)
        for folder in ("dev", "etc", "proc", "sys", "usr/lib64"):
            (self.out / folder).mkdir(parents=True)
        for name in ("lib", "lib64"):
            (self.out / name).symlink_to(f"usr/{name}")
        self._copy_system(packages)
        return packages, host_arch, host_packages

    def finish(self) -> None:
        """Write the files of /etc, and set all modes."""
        (self.out / "etc/hosts").write_text(HOSTS)
        (self.out / "etc/nsswitch.conf").write_text(NSSWITCH)
        for path in self.out.rglob("*"):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(0o755 if stat.S_ISDIR(mode) or mode & stat.S_IXUSR else 0o644)

    def _copy_system(self, packages: Path) -> None:
        for line in read_list("system.txt"):
            loader = LOADERS[self.arch]
            name = line.format(
                triplet=self.triplet, python=PYTHON, loader=loader, loader_name=Path(loader).name
            )
            source = packages / name
            if not source.exists():
                raise Missing(f"{name} (system.txt) is in no package of packages.txt")
            target = self.out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_symlink() and name == f"usr/{loader}":
                target.symlink_to(os.readlink(source))
            else:
                shutil.copy(source, target)

    def _modules(self, packages: Path, wheels: Path) -> Iterator[tuple[Path, Path, str]]:
        """Yield the modules of ``modules.txt`` to compile, as ``_byte_code`` does; copy extension modules."""
        stdlib = f"usr/lib/{PYTHON}"
        (self.out / stdlib / "lib-dynload").mkdir(parents=True)
        for name in read_list("modules.txt"):
            path = name.replace(".", "/")
            for base, place in ((packages / stdlib, stdlib), (wheels, "pidone")):
                sources = [name for name in (f"{path}.py", f"{path}/__init__.py") if (base / name).exists()]
                if sources:
                    yield self._byte_code(base / sources[0], f"{place}/{sources[0]}")
                    break
            else:
                extensions = list((packages / stdlib / "lib-dynload").glob(f"{name}.*.so"))
                if not extensions:
                    raise Missing(f"module {name} (modules.txt) is in no package and no wheel")
                shutil.copy(extensions[0], self.out / stdlib / "lib-dynload")

    def _own(self, wheels: Path) -> Iterator[tuple[Path, Path, str]]:
        yield self._byte_code(wheels / "pidone/__main__.py", "pidone/__main__.py")
        yield self._byte_code(HERE / "generated.py", "pidone/pidone/generated.py")
        # These come before the standard library, because the script's folder is the first of sys.path.
        for source in sorted((HERE / "instead").glob("*.py")):
            yield self._byte_code(source, f"pidone/{source.name}")
        for source in sorted((wheels / "pidone").rglob("*.py")):
            name = str(source.relative_to(wheels))
            if not any(fnmatch.fnmatch(name, pattern) for pattern in LEFT_OUT):
                yield self._byte_code(source, f"pidone/{name}")

    def _byte_code(self, source: Path, name: str) -> tuple[Path, Path, str]:
        """Return the source, the file of byte code, and the path of the source in tracebacks."""
        target = (self.out / name).with_suffix(".pyc")
        target.parent.mkdir(parents=True, exist_ok=True)
        return source, target, f"/{name}"


def compile_all(host_arch: str, root: Path, byte_code: Iterable[tuple[Path, Path, str]]) -> None:
    words = [[str(word) for word in words] for words in byte_code]
    run_python(host_arch, root, COMPILE, data=json.dumps(words).encode())


def check_processor(loader: Path, environment: dict[str, str]) -> None:
    """Raise ``Missing`` if the C library would use more of this processor than every x86-64 has."""
    command = [loader, "--list-diagnostics"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    for name, bits in FORBIDDEN.items():
        value = int(found.get(f"x86.cpu_features.{name}", "0"), 16)
        if value & bits:
            raise Missing(
                f"{SNAPSHOT} would need a processor like this one: {name} is {value:#x}; "
                "HIDDEN in build.py lacks a name. make SNAPSHOT=0 image builds without it"
            )


OPTIONS = ["-S", "-s", "-P", "-B", "-OO", "-X", "no_debug_ranges", "-X", "lazy_imports=all"]


def run_python(host_arch: str, root: Path, program: str, *argv: str, data: bytes = b"") -> bytes:
    """Run a program with the unpacked interpreter, and return its output.

    The interpreter is started by the unpacked loader, because this machine's libc may be older.
    """
    libraries = root / f"usr/lib/{MACHINES[host_arch]}-linux-gnu"
    command = [
        libraries / Path(LOADERS[host_arch]).name,
        "--library-path",
        libraries,
        root / f"usr/bin/{PYTHON}",
    ]
    done = subprocess.run(
        [*map(str, command), *OPTIONS, "-c", program, *argv],
        input=data,
        env={"PYTHONHOME": str(root / "usr"), "LC_ALL": "C.UTF-8"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout


def unpack_packages(
    arch: str, names: Sequence[str] = (), *, suite: str = SUITE, cache: str = "apt", quiet: bool = False
) -> Path:
    """Fetch and unpack Debian packages, by default those of ``packages.txt``; return the folder.

    No script of a package is run. apt uses its own state in ``cache``, and does not change that of this machine.
    """
    names = names or read_list("packages.txt")
    state = CACHE / f"{cache}-{arch}"
    for folder in ("lists/partial", "archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    sources = state / "sources.list"
    keyring = next((file for file in sorted(KEYRINGS.glob("debian-archive-keyring.[gp]*"))), None)
    if keyring is None:
        raise Missing("Debian's keys are missing: apt-get install debian-archive-keyring")

    line = f"deb [signed-by={keyring}] {mirror()} {suite} main\n"
    stale = not sources.exists() or sources.read_text() != line
    sources.write_text(line)
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "APT::Architecture": arch,
        "APT::Architectures": arch,
        "APT::Sandbox::User": "",
        "APT::Update::Post-Invoke-Success": "",
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        "DPkg::Post-Invoke": "",
    }

    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    stamp = state / "updated"
    if stale or not stamp.exists() or time.time() - stamp.stat().st_mtime > LISTS_AGE_SECONDS:
        subprocess.run([*apt, "update"], check=True)
        stamp.touch()

    lines = output_of(*apt, "download", "--print-uris", *names).splitlines()
    # 'uri' name_version_arch.deb size hash
    files = [state / "archives" / line.split()[1] for line in lines if line.startswith("'")]
    if len(files) != len(names):
        raise Missing(f"of the {len(names)} packages {', '.join(names)}, {suite} has {len(files)}")
    if not all(file.exists() for file in files):
        subprocess.run([*apt, "download", *names], cwd=state / "archives", check=True)

    packages, content = state / "root", "\n".join(file.name for file in files)
    stamp = state / "unpacked"
    if not stamp.exists() or stamp.read_text() != content:
        shutil.rmtree(packages, ignore_errors=True)
        for folder in ("usr/lib", "usr/lib64"):
            (packages / folder).mkdir(parents=True)
        for name in ("lib", "lib64"):
            (packages / name).symlink_to(f"usr/{name}")
        for file in files:
            subprocess.run(["dpkg-deb", "--extract", file, packages], check=True)  # noqa: S607 - from PATH
        stamp.write_text(content)
    for file in files if not quiet else ():
        print(f"  {file.name}")
    return packages


def mirror() -> str:
    """Return the Debian mirror in this machine's apt sources, which need not contain the suite."""
    targets = output_of(
        "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"
    ).splitlines()
    for uri in targets:
        if urllib.parse.urlsplit(uri).path.rstrip("/").endswith("/debian"):
            return uri
    raise Missing("apt-get indextargets names no Debian mirror: this needs a Debian with apt sources")


def unpack_wheels(
    names: Sequence[str] = WHEELS,
    projects: Sequence[Path] = (CLONE,),
    *,
    folder: Path = CLONE / "build" / "image-wheels",
    target: Sequence[str] = (),
) -> Path:
    """Build the wheels of the clone's projects, fetch those in requirements.lock by their hashes, and unpack all."""
    wheels = CACHE / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    locked = folder / "requirements.txt"
    locked.write_text("".join(locked_lines(names)))

    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(locked), *target]
    fetched = folder / "fetched"
    subprocess.run([*pip, "download", *options, "-d", str(wheels), "-f", str(wheels)], check=True)
    subprocess.run(
        [*pip, "download", *options, "-d", str(fetched), "-f", str(wheels), "--no-index"], check=True
    )
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*pip, *build, *map(str, projects)], check=True)

    for file in [*fetched.glob("*.whl"), *folder.glob("*.whl")]:
        with zipfile.ZipFile(file) as wheel:
            wheel.extractall(folder)  # noqa: S202 - hashes were compared
        print(f"  {file.name}")
    return folder


def locked_lines(names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of these packages in requirements.lock."""
    inside = False
    for line in (CLONE / "requirements.lock").read_text().splitlines(keepends=True):
        if not line.startswith((" ", "#")):
            inside = line.partition("==")[0] in names
        if inside:
            yield line


def recipe(dockerfile: str) -> str:
    """Return the last stage of a Dockerfile of k3d/, changed to copy the files from the build context."""
    stage = (CLONE / "k3d" / dockerfile).read_text().rpartition("\nFROM scratch")[2]
    return "FROM scratch" + stage.replace("COPY --from=files /image /", "COPY . /")


def pack(
    arch: str,
    out: Path,
    images: Mapping[str, tuple[str, Path]],
    *,
    level: int | None = ZSTD_LEVEL,
    tag: str = "",
) -> None:
    """Build images with buildah and write them as one OCI archive.

    ``images`` maps the name of each image to its Containerfile (text) and the folder with its files. ``level`` is the
    level of zstd for the layers of a single image. None: layers are compressed by gzip, and images share equal layers.
    """
    require("buildah", "buildah")
    store = CLONE / "build" / f"image-store-{next(iter(images))}"
    file = store / "Containerfile"
    store.mkdir(parents=True, exist_ok=True)
    buildah = [
        "buildah",
        "--storage-driver",
        "vfs",
        "--root",
        str(store / "root"),
        "--runroot",
        str(store / "run"),
    ]
    layout = store / "layout"

    try:
        for name, (text, root) in images.items():
            file.write_text(text)
            image = ["--arch", arch, "--timestamp", "0", "--format", "oci", "--tag", name]
            layers = f"--layers={'false' if level else 'true'}"
            subprocess.run([*buildah, "build", "-q", layers, *image, "-f", str(file), str(root)], check=True,
                           stdout=subprocess.DEVNULL)  # fmt: skip
            target = f"oci:{layout}:localhost/{name}:{tag or version()}"
            subprocess.run([*buildah, "push", "-q", name, target], check=True)
        if level:
            recompress(layout, level)
        out.unlink(missing_ok=True)
        with tarfile.open(out, "w") as archive:
            for part in ("oci-layout", "index.json", "blobs"):
                archive.add(layout / part, part, filter=without_owner)
    finally:
        subprocess.run([*buildah, "rmi", "--all", "--force"], check=False, capture_output=True)
        shutil.rmtree(store, ignore_errors=True)

    roots = {root for _, root in images.values()}
    files = [path for root in roots for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    form = (
        ""
        if any((root / SNAPSHOT).exists() for root in roots) or "pidone" not in images
        else f"; no {SNAPSHOT}"
    )
    print(f"{out}: {out.stat().st_size // 1000} kB; {size // 1000} kB in {len(files)} files{form}")


def recompress(layout: Path, level: int) -> None:
    """Compress the layers of one image by zstd. buildah's levels end at about 11, which makes 1.3 MB more."""
    blobs = layout / "blobs" / "sha256"
    index = json.loads((layout / "index.json").read_text())
    entry = index["manifests"][0]
    old = blobs / entry["digest"].removeprefix("sha256:")
    manifest = json.loads(old.read_text())
    old.unlink()
    host_arch = output_of("dpkg", "--print-architecture")
    for layer in manifest["layers"]:
        plain = blobs / layer["digest"].removeprefix("sha256:")
        data = gzip.decompress(plain.read_bytes())  # buildah always writes gzip into a layout
        data = run_python(
            host_arch, unpack_packages(host_arch, quiet=True), RECOMPRESS, str(level), data=data
        )
        plain.unlink()
        layer |= {"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", **blob(blobs, data)}
    entry |= blob(blobs, json.dumps(manifest, separators=(",", ":")).encode())
    (layout / "index.json").write_text(json.dumps(index, separators=(",", ":")))


def blob(blobs: Path, data: bytes) -> dict[str, str | int]:
    """Write a blob, and return its OCI descriptor without the media type."""
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return the entry without owner and time, so that equal files make equal archives."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def version() -> str:
    """Return the version in pyproject.toml."""
    text = (CLONE / "pyproject.toml").read_text()
    return text.partition('\nversion = "')[2].partition('"')[0]


def modules_in(logs: Iterable[Path]) -> set[str]:
    """Return the names for modules.txt: modules of the standard library and the wheels that are not built in."""
    names = set()
    for log in logs:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("import time:") and line.count("|") == 2:
                names.add(line.rpartition("|")[2].strip())

    host_arch = output_of("dpkg", "--print-architecture")
    root = unpack_packages(host_arch, quiet=True)
    stdlib, wheels = root / f"usr/lib/{PYTHON}", CLONE / "build" / "image-wheels"
    program = "import _imp, sys; print(*(name for name in sys.argv[1:] if _imp.is_frozen(name)))"
    # Frozen modules are part of the interpreter. os is needed as a file: the interpreter finds its library by it.
    frozen = set(run_python(host_arch, root, program, *names).decode().split()) - {"os"}

    def has_file(name: str) -> bool:
        path = name.replace(".", "/")
        sources = [base / f"{path}{end}" for base in (stdlib, wheels) for end in (".py", "/__init__.py")]
        return any(source.exists() for source in sources) or any(stdlib.glob(f"lib-dynload/{name}.*.so"))

    left_out = frozen | OPTIONAL | {path.stem for path in (HERE / "instead").iterdir()}
    names = {name for name in names if name not in left_out and not name.startswith("compression")}
    return {name for name in names if name.partition(".")[0] not in {"pidone", "__main__"} and has_file(name)}


def read_list(name: str) -> list[str]:
    """Return the lines of a list beside this script, without comments."""
    lines = (line.partition("#")[0].strip() for line in (HERE / name).read_text().splitlines())
    return [line for line in lines if line]


def require(tool: str, package: str) -> None:
    if not shutil.which(tool):
        raise Missing(f"{tool} is missing: apt-get install {package}")


def output_of(*command: str) -> str:
    """Run a command, and return its output without the last newline."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
