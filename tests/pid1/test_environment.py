"""The environment is the command's alone: nothing in it changes how pidone starts, or runs inside process 1."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent

import pytest

from tests import pidns
from tests.patience import PATIENCE_SECONDS
from tests.pid1.test_entrypoint import PIDONE
from tests.pid1.test_process_one import private, wait_for

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not Path(PIDONE[0]).exists(), reason="pidone is not built: make doze")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """``pidone`` of a wheel that is installed in a virtual environment of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run(build, check=True, timeout=PATIENCE_SECONDS)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    install = [
        *pip,
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        *map(str, folder.glob("*.whl")),
    ]
    subprocess.run(install, check=True, timeout=PATIENCE_SECONDS)
    # its requirements are those of the development environment
    packages = next((folder / "venv/lib").glob("python*/site-packages"))
    (packages / "requirements.pth").write_text(str(Path(pytest.__file__).parents[1]))
    return str(folder / "venv/bin/pidone")


@pytest.fixture(params=["wheel", "clone"])
def program(request: pytest.FixtureRequest) -> str:
    if request.param == "wheel":
        return str(request.getfixturevalue("wheel"))
    return str(Path(sys.executable).with_name("pidone"))


@pytest.fixture
def injected(tmp_path: Path) -> dict[str, str]:
    """What operators and images set. Each file writes its name to the folder ``ran``, if Python imports it."""
    folder = tmp_path / "injected"
    (folder / "ran").mkdir(parents=True)
    for name in ("sitecustomize", "usercustomize", "encodings", "site", "os", "pidone", "trio", "_signal"):
        (folder / f"{name}.py").write_text(
            f"open({str(folder / 'ran' / name)!r}, 'w')\n"
            "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
        )
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(folder),
        "PYTHONHOME": "/app/python",
        "PYTHONSTARTUP": str(folder / "site.py"),
        "PYTHONUSERBASE": str(folder),
        "PYTHONWARNINGS": "error",
        "PYTHONINSPECT": "1",
        "PYTHONVERBOSE": "1",
        "PYTHONMALLOC": "nonsense",
        "PYTHONUTF8": "nonsense",
        "PYTHONHASHSEED": "nonsense",
        "PYTHONPLATLIBDIR": "nonsense",
        "LD_LIBRARY_PATH": str(folder),
        "LD_PRELOAD": "",
        "GLIBC_TUNABLES": "glibc.malloc.check=3",
        "LC_ALL": "C",
        "LANG": "xx_YY.nonsense",
        "SECRET": "of the application",
        "a.b-c": "names of properties",
    }


def ran(environment: dict[str, str]) -> list[str]:
    return sorted(file.name for file in (Path(environment["PYTHONPATH"]) / "ran").iterdir())


def test_the_command_gets_the_environment_and_pidone_reads_none_of_it(
    program: str, injected: dict[str, str]
) -> None:
    done = subprocess.run(
        [program, "--", "/usr/bin/env", "-0"],
        env=injected,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert dict(item.split("=", 1) for item in done.stdout.split("\0") if item) == injected
    assert ran(injected) == []


@pytest.mark.parametrize("name", ["PYTHONHOME", "PYTHONPATH", "PYTHONMALLOC", "PYTHONPLATLIBDIR"])
def test_no_variable_keeps_the_command_from_starting(
    program: str, injected: dict[str, str], name: str
) -> None:
    environment = {"PATH": injected["PATH"], name: injected[name]}
    done = subprocess.run([program, "--", "sh", "-c", "exit 4"], env=environment, check=False)
    assert done.returncode == 4


def test_the_command_line_works_under_the_same_environment(program: str, injected: dict[str, str]) -> None:
    done = subprocess.run(
        [program, "--version"],
        env=injected,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "pidone 0.1.0\n", "")
    assert ran(injected) == []


class Repo(ThreadingHTTPServer):
    """Says that there is a plan, and records the paths that are requested."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.paths: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Repo)
        self.server.paths.append(self.path)
        self.send_response(303 if "doorbell" in self.path else 503)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def repo() -> Iterator[Repo]:
    with Repo() as server:
        yield server
        server.shutdown()


@pytest.mark.pidns
@private
@pytest.mark.parametrize("form", ["wheel", "clone", "image"])
def test_the_sidecar_starts_its_engine_and_process_1_has_no_variable_of_the_application(
    request: pytest.FixtureRequest, form: str, injected: dict[str, str], repo: Repo
) -> None:
    programs = {
        "wheel": lambda: [str(request.getfixturevalue("wheel"))],
        "clone": lambda: [str(Path(sys.executable).with_name("pidone"))],
        "image": lambda: [str(ROOT / "build/doze"), sys.executable, "-I", "-m", "pidone"],
    }
    environment = {**injected, "PIDONE_REPO": repo.url, "PIDONE_POD_UID": "", "PIDONE_STATUS_PORT": "0"}
    outer = subprocess.Popen([*pidns.way()[1], *programs[form]()], env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: any("doorbell" not in path for path in repo.paths))
        pid = pidns.child(outer).pid
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert {entry.partition(b"_")[0] for entry in entries if entry} == {b"PIDONE"}
        assert ran(injected) == []
        os.kill(pid, signal.SIGTERM)
        assert outer.wait(PATIENCE_SECONDS) == 0
    finally:
        outer.kill()
        outer.wait(PATIENCE_SECONDS)


def test_the_environment_of_process_1_of_a_container_is_wiped() -> None:
    """A program that the application starts as the same user, without its secrets, must not read them there."""
    script = "cat /proc/$PPID/environ | tr -d '\\000'; echo end"
    done = subprocess.run(
        [*PIDONE, "--", "sh", "-c", script],
        env={"SECRET": "x", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"end\n"


THREAD = dedent("""
    import threading, time
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
""")


@pytest.mark.pidns
@private
@pytest.mark.parametrize("stage", ["container", "doze", "engine"])
def test_a_thread_that_something_injected_takes_no_signal(tmp_path: Path, repo: Repo, stage: str) -> None:
    """``python -m pidone`` has run the sitecustomize before it can do anything. No later start runs it."""
    (tmp_path / "sitecustomize.py").write_text(THREAD)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "PIDONE_REPO": repo.url if stage == "engine" else "http://127.0.0.1:9/",
        "PIDONE_DOZE": str(ROOT / "build/doze"),
        "PIDONE_STATUS_PORT": "0",
    }
    command = ["--", "sleep", "1000"] if stage == "container" else []
    for trial in range(8):
        outer = subprocess.Popen(
            [*pidns.way()[1], sys.executable, "-m", "pidone", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        try:
            pid = pidns.child(outer).pid
            wait_for(lambda pid=pid: reached(pid, stage))  # type: ignore[misc] # the loop's own
            until = time.perf_counter() + trial * (0.02 if stage == "engine" else 0.0005)
            while time.perf_counter() < until:
                pass
            os.kill(pid, signal.SIGTERM)
            assert outer.wait(PATIENCE_SECONDS) == (143 if stage == "container" else 0)
        finally:
            outer.kill()
            outer.wait(PATIENCE_SECONDS)


def reached(pid: int, stage: str) -> bool:
    """Whether the process is one that has blocked TERM, or inherited the block."""
    if stage == "engine":
        return b"PIDONE_STAGE=run" in Path(f"/proc/{pid}/environ").read_bytes()
    name = Path(f"/proc/{pid}/exe").readlink().name
    static = name.startswith(("doze", "pidone"))  # `make doze` writes pidone-x86_64 beside the package
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(next(line for line in status.splitlines() if line.startswith("SigBlk:")).split()[1], 16)
    # sigtimedwait unblocks while it waits, and then there is a child
    return static and (
        bool(mask >> (signal.SIGTERM - 1) & 1) or bool(Path(f"/proc/{pid}/task/{pid}/children").read_text())
    )
