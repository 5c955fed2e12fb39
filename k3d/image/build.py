#!/usr/bin/env python3
"""The files of the image, from Debian packages and wheels alone: no registry, no container, no root.

    build.py root --arch amd64 --out DIR     the root file system, as a folder
    build.py pack --arch amd64 --root DIR --out FILE.tar
                                             the same as an OCI archive, by buildah, after k3d/Dockerfile's last stage
    build.py modules LOG...                  module names in what python -X importtime has written

What goes into the image stands in three lists beside this script: ``packages.txt`` (which Debian packages are
fetched), ``system.txt`` (which of their files), ``modules.txt`` (which modules of the standard library and of
the wheels). pidone itself is there as a whole, without its command line; ``instead/`` has small modules in the
place of the standard library's large ones, where Trio or attrs ask little of them.

Modules are there as sourceless byte code beside their path (``trio/_path.pyc``), compiled with -OO by the
interpreter that will run them: no source to compare with, so no stat of one, no time stamps in the files, and
nothing that could be written anew under a read-only root. Byte code does not know the processor, so an image
for another one is compiled by this machine's own 3.15.
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
LISTS_AGE = 86400  # seconds for which the suite's index is not fetched again
WHEELS = ("attrs", "h11", "outcome", "sniffio", "sortedcontainers", "trio")
LEFT_OUT = ("pidone/__main__.py", "pidone/cli/*", "pidone/language/*")  # of pidone's own wheel
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
LOADERS = {"amd64": "lib64/ld-linux-x86-64.so.2", "arm64": "lib/ld-linux-aarch64.so.1"}
HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"  # runtimes make none for a sandbox
NSSWITCH = "hosts: files dns\n"

# The standard library tries these and does without; nothing of the pod's needs them.
OPTIONAL = {"_bz2", "_hashlib", "_hmac", "_lzma", "_queue", "bz2", "lzma", "site"}
LEVEL = 22  # of zstd; 3 s

RECOMPRESS = """
import sys
from compression import zstd
sys.stdout.buffer.write(zstd.compress(sys.stdin.buffer.read(), int(sys.argv[1])))
"""

# Line numbers are kept of pidone's own code alone: of the others they are 0.5 MiB of each active pod's memory, and
# a traceback names their files and functions all the same.
WITHOUT_LINES = """
import types

def without_lines(code):
    # "No location", for eight instructions with each byte (Objects/locations.md): without an entry for an
    # instruction the traceback module fails.
    rounds, rest = divmod(len(code.co_code) // 2, 8)
    table = b"\\xff" * rounds + (bytes([0xF8 | rest - 1]) if rest else b"")
    inner = (without_lines(one) if isinstance(one, types.CodeType) else one for one in code.co_consts)
    return code.replace(co_linetable=table, co_consts=tuple(inner))
"""

COMPILE = (
    WITHOUT_LINES
    + """
import json, marshal, py_compile, sys

for source, target, shown in json.load(sys.stdin):
    py_compile.compile(source, target, shown, doraise=True, optimize=2,
                       invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    if not shown.startswith("/pidone/pidone/"):
        with open(target, "r+b") as compiled:
            head, code = compiled.read(16), marshal.load(compiled)
            compiled.seek(16)
            compiled.write(marshal.dumps(without_lines(code)))
            compiled.truncate()
"""
)

# A pod with tasks, for as long as it takes to load what such a pod loads: see generated.py.
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

async def answer(asked):
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
    commands.choices["pack"].add_argument("--root", type=Path, required=True)
    commands.add_parser("modules").add_argument("logs", type=Path, nargs="+")
    given = parser.parse_args()
    try:
        if given.command == "root":
            Root(given.arch, given.out).make()
        elif given.command == "pack":
            pack(given.arch, given.out, {"pidone": (recipe("Dockerfile"), given.root)})
        else:
            print("\n".join(sorted(modules_in(given.logs))))
    except Missing as missing:
        print(f"the image cannot be built: {missing}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as failed:
        print(f"{' '.join(map(str, failed.cmd[:3]))} ...: exit code {failed.returncode}", file=sys.stderr)
        return 1
    return 0


class Missing(Exception):
    pass


class Root:
    """The root file system of one architecture."""

    def __init__(self, arch: str, out: Path) -> None:
        self.arch = arch
        self.out = out.resolve()
        self.triplet = f"{MACHINES[arch]}-linux-gnu"

    def make(self) -> None:
        doze = CLONE / "build" / f"doze-{MACHINES[self.arch]}"
        if not doze.exists():
            raise Missing(f"{doze.relative_to(CLONE)} is not there: make doze")
        full, own, compiler = self.begun()
        wheels = unpacked_wheels()
        byte_code = [*self._modules(full, wheels), *self._own(wheels)]
        compile_all(own, compiler, byte_code)
        run_python(own, compiler, GENERATE, str(self.out), PYTHON)
        shutil.copy(doze, self.out / "doze")
        self.end()

    def begun(self) -> tuple[Path, str, Path]:
        """With the system's files: the unpacked packages, this machine's architecture and its unpacked packages."""
        for tool, package in {"apt-get": "apt", "dpkg-deb": "dpkg", "dpkg": "dpkg"}.items():
            need(tool, package)
        own = said("dpkg", "--print-architecture")
        full = unpacked(self.arch)
        compiler = full if own == self.arch else unpacked(own)
        if self.out.exists():
            shutil.rmtree(self.out)
        self.out.mkdir(parents=True)
        for folder in ("dev", "etc", "proc", "sys", "usr/lib64"):
            (self.out / folder).mkdir(parents=True)
        for name in ("lib", "lib64"):
            (self.out / name).symlink_to(f"usr/{name}")
        self._copy_system(full)
        return full, own, compiler

    def end(self) -> None:
        (self.out / "etc/hosts").write_text(HOSTS)
        (self.out / "etc/nsswitch.conf").write_text(NSSWITCH)
        for path in self.out.rglob("*"):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(0o755 if stat.S_ISDIR(mode) or mode & stat.S_IXUSR else 0o644)

    def _copy_system(self, full: Path) -> None:
        for line in listed("system.txt"):
            loader = LOADERS[self.arch]
            name = line.format(
                triplet=self.triplet, python=PYTHON, loader=loader, loader_name=Path(loader).name
            )
            source = full / name
            if not source.exists():
                raise Missing(f"{name} (system.txt) is in no package of packages.txt")
            target = self.out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_symlink() and name == f"usr/{loader}":
                target.symlink_to(os.readlink(source))
            else:
                shutil.copy(source, target)

    def _modules(self, full: Path, wheels: Path) -> Iterator[tuple[Path, Path, str]]:
        """Byte code to make, of the modules in the list; extension modules are copied at once."""
        stdlib = f"usr/lib/{PYTHON}"
        (self.out / stdlib / "lib-dynload").mkdir(parents=True)
        for name in listed("modules.txt"):
            path = name.replace(".", "/")
            for base, place in ((full / stdlib, stdlib), (wheels, "pidone")):
                found = [one for one in (f"{path}.py", f"{path}/__init__.py") if (base / one).exists()]
                if found:
                    yield self._byte_code(base / found[0], f"{place}/{found[0]}")
                    break
            else:
                extensions = list((full / stdlib / "lib-dynload").glob(f"{name}.*.so"))
                if not extensions:
                    raise Missing(f"module {name} (modules.txt) is in no package and no wheel")
                shutil.copy(extensions[0], self.out / stdlib / "lib-dynload")

    def _own(self, wheels: Path) -> Iterator[tuple[Path, Path, str]]:
        yield self._byte_code(wheels / "pidone/__main__.py", "pidone/__main__.py")
        yield self._byte_code(HERE / "generated.py", "pidone/pidone/generated.py")
        # Found before the standard library's: the script's folder leads sys.path.
        for source in sorted((HERE / "instead").glob("*.py")):
            yield self._byte_code(source, f"pidone/{source.name}")
        for source in sorted((wheels / "pidone").rglob("*.py")):
            name = str(source.relative_to(wheels))
            if not any(fnmatch.fnmatch(name, pattern) for pattern in LEFT_OUT):
                yield self._byte_code(source, f"pidone/{name}")

    def _byte_code(self, source: Path, name: str) -> tuple[Path, Path, str]:
        target = (self.out / name).with_suffix(".pyc")
        target.parent.mkdir(parents=True, exist_ok=True)
        return source, target, f"/{name}"


def compile_all(own: str, root: Path, byte_code: Iterable[tuple[Path, Path, str]]) -> None:
    words = [[str(word) for word in words] for words in byte_code]
    run_python(own, root, COMPILE, data=json.dumps(words).encode())


OPTIONS = ["-S", "-s", "-P", "-B", "-OO", "-X", "no_debug_ranges", "-X", "lazy_imports=all"]


def run_python(own: str, root: Path, program: str, *argv: str, data: bytes = b"") -> bytes:
    """By the unpacked interpreter, through its own loader: it runs on a machine whose libc is older."""
    libraries = root / f"usr/lib/{MACHINES[own]}-linux-gnu"
    command = [libraries / Path(LOADERS[own]).name, "--library-path", libraries, root / f"usr/bin/{PYTHON}"]
    done = subprocess.run(
        [*map(str, command), *OPTIONS, "-c", program, *argv],
        input=data,
        env={"PYTHONHOME": str(root / "usr"), "LC_ALL": "C.UTF-8"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout


def unpacked(
    arch: str, names: Sequence[str] = (), *, suite: str = SUITE, kept: str = "apt", quiet: bool = False
) -> Path:
    """Debian packages, else those of ``packages.txt``; no script of theirs is run, apt's own state not touched."""
    names = names or listed("packages.txt")
    state = CACHE / f"{kept}-{arch}"
    for folder in ("lists/partial", "archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    sources = state / "sources.list"
    keyring = next((file for file in sorted(KEYRINGS.glob("debian-archive-keyring.[gp]*"))), None)
    if keyring is None:
        raise Missing("Debian's keys are not there: apt-get install debian-archive-keyring")
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
    if stale or not stamp.exists() or time.time() - stamp.stat().st_mtime > LISTS_AGE:
        subprocess.run([*apt, "update"], check=True)
        stamp.touch()
    wanted = said(*apt, "download", "--print-uris", *names).splitlines()
    # 'uri' name_version_arch.deb size hash
    files = [state / "archives" / line.split()[1] for line in wanted if line.startswith("'")]
    if len(files) != len(names):
        raise Missing(f"{len(names)} packages are wanted, {suite} has {len(files)} of them")
    if not all(file.exists() for file in files):
        subprocess.run([*apt, "download", *names], cwd=state / "archives", check=True)
    full, mark = state / "root", "\n".join(file.name for file in files)
    done = state / "unpacked"
    if not done.exists() or done.read_text() != mark:
        shutil.rmtree(full, ignore_errors=True)
        for folder in ("usr/lib", "usr/lib64"):
            (full / folder).mkdir(parents=True)
        for name in ("lib", "lib64"):
            (full / name).symlink_to(f"usr/{name}")
        for file in files:
            subprocess.run(["dpkg-deb", "--extract", file, full], check=True)  # noqa: S607 - from PATH
        done.write_text(mark)
    for file in files if not quiet else ():
        print(f"  {file.name}")
    return full


def mirror() -> str:
    """Debian's mirror as this machine's apt has it; the suite needs not be among its sources."""
    targets = said("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").splitlines()
    for uri in targets:
        if urllib.parse.urlsplit(uri).path.rstrip("/").endswith("/debian"):
            return uri
    raise Missing("apt-get indextargets names no Debian mirror: this needs a Debian with apt sources")


def unpacked_wheels(
    wanted: Sequence[str] = WHEELS,
    own: Sequence[Path] = (CLONE,),
    *,
    folder: Path = CLONE / "build" / "image-wheels",
    target: Sequence[str] = (),
) -> Path:
    """The clone's own wheels, and those they need as requirements.lock has them, hash by hash."""
    wheels = CACHE / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    locked = folder / "requirements.txt"
    locked.write_text("".join(locked_lines(wanted)))
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    fetch = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(locked), *target]
    fetched = folder / "fetched"
    subprocess.run([*pip, "download", *fetch, "-d", str(wheels), "-f", str(wheels)], check=True)
    subprocess.run(
        [*pip, "download", *fetch, "-d", str(fetched), "-f", str(wheels), "--no-index"], check=True
    )
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*pip, *build, *map(str, own)], check=True)
    for file in [*fetched.glob("*.whl"), *folder.glob("*.whl")]:
        with zipfile.ZipFile(file) as wheel:
            wheel.extractall(folder)  # noqa: S202 - hashes were compared
        print(f"  {file.name}")
    return folder


def locked_lines(names: Sequence[str]) -> Iterator[str]:
    inside = False
    for line in (CLONE / "requirements.lock").read_text().splitlines(keepends=True):
        if not line.startswith((" ", "#")):
            inside = line.partition("==")[0] in names
        if inside:
            yield line


def recipe(dockerfile: str) -> str:
    """The last stage of a Dockerfile of k3d/, for a folder that has the files already."""
    stage = (CLONE / "k3d" / dockerfile).read_text().rpartition("\nFROM scratch")[2]
    return "FROM scratch" + stage.replace("COPY --from=files /image /", "COPY . /")


def pack(
    arch: str, out: Path, images: Mapping[str, tuple[str, Path]], *, level: int | None = LEVEL, tag: str = ""
) -> None:
    """Folders as images, each after its recipe, in one archive; without a level their layers are gzip, and shared."""
    need("buildah", "buildah")
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
                archive.add(layout / part, part, filter=anonymous)
    finally:
        subprocess.run([*buildah, "rmi", "--all", "--force"], check=False, capture_output=True)
        shutil.rmtree(store, ignore_errors=True)
    roots = {root for _, root in images.values()}
    files = [path for root in roots for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    print(f"{out}: {out.stat().st_size // 1000} kB; {size // 1000} kB in {len(files)} files")


def recompress(layout: Path, level: int) -> None:
    """The layers of one image as zstd can, and not as buildah does (its levels end at about 11: 1.3 MB more)."""
    blobs = layout / "blobs" / "sha256"
    index = json.loads((layout / "index.json").read_text())
    entry = index["manifests"][0]
    old = blobs / entry["digest"].removeprefix("sha256:")
    manifest = json.loads(old.read_text())
    old.unlink()
    own = said("dpkg", "--print-architecture")
    for layer in manifest["layers"]:
        plain = blobs / layer["digest"].removeprefix("sha256:")
        data = gzip.decompress(plain.read_bytes())  # what buildah writes into a layout, whatever it is told
        data = run_python(own, unpacked(own, quiet=True), RECOMPRESS, str(level), data=data)
        plain.unlink()
        layer |= {"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", **blob(blobs, data)}
    entry |= blob(blobs, json.dumps(manifest, separators=(",", ":")).encode())
    (layout / "index.json").write_text(json.dumps(index, separators=(",", ":")))


def blob(blobs: Path, data: bytes) -> dict[str, str | int]:
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def version() -> str:
    text = (CLONE / "pyproject.toml").read_text()
    return text.partition('\nversion = "')[2].partition('"')[0]


def modules_in(logs: Iterable[Path]) -> set[str]:
    """The list for modules.txt: of the standard library and the wheels, without what is built in."""
    names = set()
    for log in logs:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("import time:") and line.count("|") == 2:
                names.add(line.rpartition("|")[2].strip())
    own = said("dpkg", "--print-architecture")
    root = unpacked(own, quiet=True)
    full, wheels = root / f"usr/lib/{PYTHON}", CLONE / "build" / "image-wheels"
    ask = "import _imp, sys; print(*(name for name in sys.argv[1:] if _imp.is_frozen(name)))"
    # What the interpreter carries itself is not read from files; os is the landmark by which it finds the others.
    frozen = set(run_python(own, root, ask, *names).decode().split()) - {"os"}

    def file(name: str) -> bool:
        path = name.replace(".", "/")
        places = [base / one for base in (full, wheels) for one in (f"{path}.py", f"{path}/__init__.py")]
        return any(place.exists() for place in places) or any(full.glob(f"lib-dynload/{name}.*.so"))

    left_out = frozen | OPTIONAL | {path.stem for path in (HERE / "instead").iterdir()}
    names = {name for name in names if name not in left_out and not name.startswith("compression")}
    return {name for name in names if name.partition(".")[0] not in {"pidone", "__main__"} and file(name)}


def listed(name: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (HERE / name).read_text().splitlines())
    return [line for line in lines if line]


def need(tool: str, package: str) -> None:
    if not shutil.which(tool):
        raise Missing(f"{tool} is not there: apt-get install {package}")


def said(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
