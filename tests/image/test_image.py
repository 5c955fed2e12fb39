"""What is in the image, and that it is enough: as root and as nobody, under a root file system that is read-only."""

import json
import os
import shlex
import signal
import stat
import statistics
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from tests import folders
from tests.image.podman import ARCHIVE, ROOT, Podman, missing, podman, until, version
from tests.image.world import ALL, World, world
from tests.patience import PATIENCE_SECONDS
from tests.ports import free_address, free_port

pytestmark = [
    pytest.mark.image,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

LIMIT = 8_000_000  # bytes of the compressed layer
SNAPSHOT = 2_600_000  # bytes more with the snapshot
ACTIVE = 12.0 * 1024  # KiB of an active pod; four at once vary by 0.1 MiB, and have 11.6, at a load of 35 too
DOZING = 22  # KiB: half of pause's
# None of them is there for a pod that probes, registers, heartbeats and is scraped over plain http.
NOT_LOADED = {
    "ssl",
    "_ssl",
    "ctypes",
    "idna",
    "asyncio",
    "ast",
    "dis",
    "email",
    "http",
    "traceback",
    "tokenize",
    "pathlib",
    "locale",
}
MODULES = 205  # 200 before the processes of containers were read
HERE = Path(__file__).parent
# A sandbox as a runtime makes it, as far as files go: own mounts and PIDs, a read-only root, /dev and /proc.
SANDBOX = """
root=$1 uid=$2; shift 2
mount --bind "$root" "$root" && mount --rbind /dev "$root/dev" && mount -t proc proc "$root/proc" || exit 125
mount -o remount,bind,ro "$root" && exec /usr/sbin/chroot --groups= --userspec="$uid:$uid" "$root" "$@"
"""


@pytest.fixture(scope="module")
def runtime() -> Iterator[Podman]:
    with podman(folders.reserve(ROOT / "build" / "podman"), 6060) as program:
        yield program


@pytest.fixture(scope="module")
def config(runtime: Podman) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(runtime("image", "inspect", f"localhost/pidone:{version()}"))[0]
    return found


@pytest.fixture(scope="module")
def root(runtime: Podman) -> Path:
    return Path(runtime("image", "mount", f"localhost/pidone:{version()}"))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("world"), free_port(), free_port(), "127.0.0.1") as found:
        yield found


def sandbox(root: Path, uid: int, *command: str) -> list[str]:
    own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", SANDBOX, "sandbox"]
    return [*own, str(root), str(uid), *command]


def environment(config: dict[str, Any], **changes: str) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in config["Config"]["Env"]) | changes


def test_the_compressed_image_is_within_its_limit(root: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        index = json.load(archive.extractfile("index.json"))  # type: ignore[arg-type]
        digest = index["manifests"][0]["digest"].removeprefix("sha256:")
        manifest = json.load(archive.extractfile(f"blobs/sha256/{digest}"))  # type: ignore[arg-type]
    assert [layer["mediaType"].rpartition("+")[2] for layer in manifest["layers"]] == ["zstd"]
    with_snapshot = (root / "pidone.snapshot").exists()
    assert sum(layer["size"] for layer in manifest["layers"]) <= LIMIT + SNAPSHOT * with_snapshot


def test_there_is_no_source_no_shell_and_nothing_that_gains_rights(root: Path) -> None:
    programs = set()
    for path in root.rglob("*"):
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (0, 0), path
        assert path.suffix not in {".py", ".sh"}, path
        assert path.name not in {"__pycache__", "sh", "bash", "dash", "busybox", "tests", "testing"}, path
        if stat.S_ISLNK(status.st_mode):
            assert (path.parent / os.readlink(path)).exists(), path
            continue
        assert stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode), path
        assert not status.st_mode & (
            stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | stat.S_IWGRP | stat.S_IWOTH
        ), path
        assert status.st_mode & stat.S_IROTH, path
        if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IXUSR:
            programs.add(path.name)
    assert {name for name in programs if ".so" not in name} - {"pidone.snapshot"} == {"doze", "python3.15"}


def test_the_configuration_is_the_dockerfile_s(config: dict[str, Any]) -> None:
    stage = (ROOT / "k3d" / "Dockerfile").read_text().rpartition("FROM scratch")[2].replace("\\\n", " ")
    lines = dict(line.split(maxsplit=1) for line in stage.splitlines() if line and not line.startswith("#"))
    assert lines["COPY"] == "--from=files /image /"
    assert config["Config"]["Entrypoint"] == json.loads(lines["ENTRYPOINT"])
    assert config["Config"]["Env"] == shlex.split(lines["ENV"])
    assert not config["Config"].get("User"), "a pod's runAsUser decides"
    assert config["Config"]["Entrypoint"][0] == "/doze"


def test_the_dockerfile_s_files_are_made_by_the_same_target() -> None:
    # It cannot be built without a registry; both call the same line of the Makefile.
    commands = [
        line for line in (ROOT / "k3d" / "Dockerfile").read_text().splitlines() if line.startswith("RUN")
    ]
    assert commands[-1].startswith("RUN make image-root ")
    made = subprocess.run(
        ["make", "-n", "image"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_SECONDS,
    ).stdout
    assert "k3d/image/build.py root" in made


@pytest.mark.parametrize("uid", [0, 1000, 65534])
@pytest.mark.parametrize("how", ["lazily", "eagerly"])
def test_every_module_and_every_failure_path_finds_what_it_imports(
    root: Path, config: dict[str, Any], uid: int, how: str
) -> None:
    python = config["Config"]["Entrypoint"][1:-1]
    if how == "eagerly":
        python = [word.replace("lazy_imports=all", "lazy_imports=normal") for word in python]
    program = "import sys; sys.path.insert(0, '/pidone')\n" + (HERE / "every_path.py").read_text()
    words = ["eager"] if how == "eagerly" else []
    done = subprocess.run(
        sandbox(root, uid, *python, "-c", program, *words),
        env=environment(config), capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert (done.returncode, done.stdout.rpartition("\n")[0][-9:]) == (0, "all right"), done.stderr[-2000:]


def test_functions_in_the_image_have_no_annotations(root: Path, config: dict[str, Any]) -> None:
    program = """
import gc, sys, types
sys.path.insert(0, "/pidone")
import trio, pidone.actions.register, pidone.pod.live, pidone.registries.eureka
trio.run(trio.sleep, 0), pidone.actions.register.build, pidone.pod.live.live, pidone.registries.eureka.Eureka
functions = [each for each in gc.get_objects() if isinstance(each, types.FunctionType)]
written = [each for each in functions if each.__code__.co_filename.startswith("/")]  # and not generated
print(len(written), *(each.__qualname__ for each in written if each.__annotations__))
"""
    python = config["Config"]["Entrypoint"][1:-1]
    done = subprocess.run(
        sandbox(root, 65534, *python, "-c", program), env=environment(config), capture_output=True, text=True,
        check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    number, *annotated = done.stdout.split() or ["0"]
    assert int(number) > 1000, done.stderr[-2000:]
    assert annotated == []


def test_the_path_is_the_standard_library_and_pidone(root: Path, config: dict[str, Any]) -> None:
    # Asked of the process itself: -X importtime names what was loaded, -v from where.
    entry = [*config["Config"]["Entrypoint"][1:-1], "-v", config["Config"]["Entrypoint"][-1]]
    env = environment(config, PIDONE_STAGE="ask", PIDONE_REPO="http://127.0.0.1:1")
    done = subprocess.run(
        sandbox(root, 65534, *entry),
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 4, done.stderr[-1000:]
    loaded = [
        line.split("'")[1] for line in done.stderr.splitlines() if line.startswith("# code object from '")
    ]
    assert loaded
    assert [path for path in loaded if not path.startswith(("/usr/lib/python3.15/", "/pidone/"))] == []


@pytest.mark.parametrize("uid", [0, 65534])
def test_pods_run_their_tasks_and_go_back_to_sleep(
    root: Path,
    config: dict[str, Any],
    here: World,
    uid: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    www = tmp_path
    (www / "index.html").write_text("well")
    names = [f"u{uid}n{number}" for number in range(1, 5)]
    addresses = {name: free_address() for name in names}
    with ExitStack() as closing:
        pods: dict[str, psutil.Process] = {}
        for name, ip in addresses.items():
            application = [
                "/bin/busybox",
                "httpd",
                "-f",
                "-p",
                f"{ip}:8080",
                "-h",
                str(www),
            ]
            closing.enter_context(Running(application, {}))
            env = environment(
                config,
                PIDONE_SNAPSHOT="",  # test_snapshot.py has the other form
                PIDONE_REPO=here.repo,
                PIDONE_POD_IP=ip,
                PIDONE_POD_UID=f"uid-{name}",
                PIDONE_LINGER="1",
            )
            outer = closing.enter_context(Running(sandbox(root, uid, *config["Config"]["Entrypoint"]), env))
            pods[name] = until("process 1", partial(doze_of, outer.pid))
        for name in names:
            until("the first question", partial(childless, pods[name]))
        dozing = [anonymous(process.pid) for process in pods.values()]
        assert {process.uids().effective for process in pods.values()} == {uid}

        here.pods(**{name: (ip, ALL | {"app": "ratings"}) for name, ip in addresses.items()})
        for name, ip in addresses.items():
            until(f"{name} is registered", partial(here.registered, name))
            page = until("metrics", partial(here.metrics, ip))
            assert "pidone_collector_success{" in page
            assert [
                line for line in page.splitlines() if "_collector_success{" in line and line[-1] == "0"
            ] == []
        first = {name: here.renewed(name) for name in names}
        for name in names:
            until("a heartbeat", partial(here.renewed_after, name, first[name]))
        active = [anonymous(process.pid) for process in pods.values()]
        assert statistics.median(dozing) <= DOZING
        assert statistics.median(active) <= ACTIVE
        with capsys.disabled():
            middle = statistics.median(active) / 1024
            print(
                f"\nuid {uid}: anonymous memory: dozing {statistics.median(dozing):g} KiB, active {middle:.2f} MiB"
            )

        here.pods(**{name: (ip, {}) for name, ip in addresses.items()})
        for process in pods.values():
            until("asleep again", partial(dozes, process))
            process.send_signal(signal.SIGTERM)


def test_an_active_pod_loads_no_more_than_it_needs(
    root: Path, config: dict[str, Any], here: World, tmp_path: Path
) -> None:
    ip, log = free_address(), tmp_path / "imports"
    *words, script = config["Config"]["Entrypoint"][1:]
    env = environment(
        config, PIDONE_STAGE="run", PIDONE_REPO=here.repo, PIDONE_POD_IP=ip, PIDONE_POD_UID="uid-one"
    )
    with ExitStack() as closing:
        httpd = ["/bin/busybox", "httpd", "-f", "-p", f"{ip}:8080", "-h", str(tmp_path)]
        closing.enter_context(Running(httpd, {}))
        (tmp_path / "index.html").write_text("well")
        here.pods(one=(ip, ALL | {"app": "ratings"}))
        output = closing.enter_context(log.open("wb"))
        closing.enter_context(Running(sandbox(root, 1000, *words, "-X", "importtime", script), env, output))
        until("registered", partial(here.registered, "one"))
        until("metrics", partial(here.metrics, ip))
        first = here.renewed("one")
        until("a heartbeat", partial(here.renewed_after, "one", first))
        here.pods(one=None)
    lines = [line for line in log.read_text().splitlines() if line.startswith("import time:") and "|" in line]
    loaded = {line.rpartition("|")[2].strip() for line in lines} - {"imported package"}  # the head
    assert "trio._core._run" in loaded
    assert not loaded & NOT_LOADED
    assert len(loaded) <= MODULES


class Running:
    """A process of the test's, killed at the end, and with it what it holds (``--kill-child``)."""

    def __init__(
        self, command: Sequence[str], env: dict[str, str], errors: IO[bytes] | int = subprocess.DEVNULL
    ) -> None:
        self._command, self._env, self._errors = command, env, errors

    def __enter__(self) -> subprocess.Popen[bytes]:
        null = subprocess.DEVNULL
        self._process = subprocess.Popen(
            self._command, env=self._env, stdin=null, stdout=null, stderr=self._errors
        )
        return self._process

    def __exit__(self, *exception: object) -> None:
        # What it started first: a change of the user takes the order to die with its parent from process 1.
        for child in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self._process.kill()
        self._process.wait(PATIENCE_SECONDS)


def doze_of(pid: int) -> psutil.Process | None:
    """The process 1 that ``unshare`` has started, once it is doze."""
    for child in psutil.Process(pid).children():
        try:
            if dozes(child):
                return child
        except OSError:
            pass
    return None


def anonymous(pid: int) -> int:
    """KiB that the process has written. Pages of files are shared, by as many processes as happen to use them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def childless(process: psutil.Process) -> bool:
    return not process.children()


def dozes(process: psutil.Process) -> bool:
    # psutil's answer would be the first one, for ever
    return os.readlink(f"/proc/{process.pid}/exe").endswith("/doze")
