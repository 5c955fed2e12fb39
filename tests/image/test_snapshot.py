"""The snapshot of Python in the image: it starts everywhere, remembers nothing of the build, and costs little."""

import ast
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.image.podman import ROOT, missing, until
from tests.image.test_image import (
    Running,
    anonymous,
    childless,
    config,
    doze_of,
    dozes,
    environment,
    here,
    root,
    runtime,
    sandbox,
)
from tests.image.world import ALL, World
from tests.patience import PATIENCE_SECONDS
from tests.ports import free_address

__all__ = ["config", "here", "root", "runtime"]  # fixtures

ACTIVE = 3.5 * 1024  # KiB of an active pod
STARTS = 1000
NO_ANSWER = 4  # the exit code where no repo answers, see pidone.pid1.ask
ASK = {"PIDONE_STAGE": "ask", "PIDONE_REPO": "http://127.0.0.1:1"}
BECOME = "import os, sys; os.execve(sys.argv[1], sys.argv[2:], os.environ)"

needs_image = [
    pytest.mark.image,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]


@pytest.fixture(scope="module")
def snapshot(root: Path) -> Iterator[Path]:
    path = root / "pidone.snapshot"
    if not path.exists():
        pytest.skip("the image has no snapshot: make SNAPSHOT=1 image")
    with tempfile.TemporaryDirectory() as folder:  # where nobody may execute it too
        Path(folder).chmod(0o755)
        yield Path(shutil.copy(path, folder))


@pytest.fixture(scope="module")
def words(config: dict[str, Any]) -> list[str]:
    found: list[str] = config["Config"]["Entrypoint"][1:]
    return found


def ask(
    snapshot: Path, words: Sequence[str], before: Sequence[str] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the snapshot as the child that asks for a plan, after the commands ``before``."""
    return subprocess.run(
        [*before, sys.executable, "-c", BECOME, str(snapshot), *words], env=ASK | {"PATH": os.environ["PATH"]} | env,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip


@pytest.mark.parametrize("needed", [pytest.param(None, marks=needs_image)])
def test_each_of_a_thousand_starts_is_right(snapshot: Path, words: list[str], needed: None) -> None:
    def start(_: int) -> int:
        return subprocess.run(
            words, executable=snapshot, env=ASK, capture_output=True, check=False, timeout=PATIENCE_SECONDS
        ).returncode

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(start, range(STARTS))) == {NO_ANSWER}


SURROUNDINGS = {
    "as it is": [],
    "without randomized addresses": ["setarch", "-R"],
    "the old layout of addresses": ["setarch", "-L"],
    "a small stack": ["prlimit", "--stack=262144"],
    "a stack without limit": ["prlimit", "--stack=unlimited"],
    "nobody, without any right": [
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "--bounding-set=-all",
    ],
    "without /proc": ["unshare", "--mount", "sh", "-c", 'umount -l /proc && exec "$@"', "sh"],
    "all descriptors closed": ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"],
}  # fmt: skip


@pytest.mark.parametrize("before", [pytest.param(before, marks=needs_image) for before in SURROUNDINGS])
def test_it_starts_where_python_starts(snapshot: Path, words: list[str], before: str) -> None:
    done = ask(snapshot, words, SURROUNDINGS[before])
    assert done.returncode == NO_ANSWER, done.stderr
    assert ("event=repo-away" in done.stderr) == (before != "all descriptors closed")


@pytest.mark.parametrize("processor", [pytest.param(name, marks=needs_image) for name in ("qemu64", "max")])
def test_it_starts_on_other_processors(snapshot: Path, words: list[str], processor: str) -> None:
    qemu = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if qemu is None:
        pytest.skip("no other processor: apt-get install qemu-user-static")
    done = subprocess.run(
        [qemu, "-cpu", processor, "-0", words[0], str(snapshot), *words[1:]],
        env=ASK, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == NO_ANSWER, done.stderr


@pytest.mark.parametrize("needed", [pytest.param(None, marks=needs_image)])
def test_what_it_was_not_made_for_is_left_to_ordinary_python(
    snapshot: Path, words: list[str], needed: None
) -> None:
    other = [*words[:1], "-v", *words[1:]]
    assert ask(snapshot, other).returncode == 126
    long = {f"PIDONE_{number}": "x" * 100_000 for number in range(3)}
    assert ask(snapshot, words, **long).returncode == 126


RESTORE = """
import os, posix, random, runpy, signal, sys
snapshot = runpy.run_path(sys.argv[1], run_name="snapshot")
strings = [b"/usr/bin/python", b"-E", b"/script", b"more", b"PIDONE_A=b=c", b"PIDONE_A=second", b"EMPTY=", b"odd"]
used = 16 + sum(len(each) + 1 for each in strings)
content = used.to_bytes(8, "little") + (4).to_bytes(8, "little") + b"".join(each + b"\\0" for each in strings)
generators = [random.Random(1), random.Random(1)]
os.environ["BUILD"] = "1"
posix.environ[b"LC_CTYPE"] = b"C.UTF-8"
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os.close(1)
snapshot["restored"](content.ljust(300, b"\\0"), ["/usr/bin/python", "-E"], generators)
assert (sys.executable, sys.argv) == ("/usr/bin/python", ["/script", "more"]), sys.argv
assert dict(os.environ) == {"PIDONE_A": "b=c", "EMPTY": "", "LC_CTYPE": "C.UTF-8"}, os.environ
assert len({generator.random() for generator in [random.Random(1), *generators]}) == 3
assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert sys.stdout is None and sys.stderr.line_buffering
os._exit(7)
"""


def test_what_belongs_to_one_process_is_renewed() -> None:
    program = [sys.executable, "-c", f"import threading\n{RESTORE}", str(ROOT / "k3d/image/snapshot.py")]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    assert done.returncode == 7, done.stderr


# Calls that must not be made at import: the snapshot would keep the build's result. Caches of what is in the image's
# files stay right.
CALLS = {
    "Random", "SystemRandom", "current_time", "environ", "gethostname", "getenv", "getpid", "listdir", "monotonic",
    "now", "open", "perf_counter", "read_bytes", "read_text", "resources", "time", "uname", "urandom",
}  # fmt: skip
IN_POD = [
    path
    for path in sorted((ROOT / "pidone").rglob("*.py"))
    if not {"cli", "language", "generate"} & set(path.relative_to(ROOT).parts)
]


def at_import(tree: ast.AST) -> list[ast.AST]:
    """Return the nodes that are executed when the module is imported."""
    found: list[ast.AST] = []
    for node in ast.iter_child_nodes(tree):
        found.append(node)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            parts: list[ast.AST] = [*node.decorator_list, *node.args.defaults]
            found += [inner for part in parts for inner in ast.walk(part)]
        elif not isinstance(node, ast.Lambda):
            found += at_import(node)
    return found


@pytest.mark.parametrize("path", IN_POD, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_reads_at_import_what_differs_between_processes(path: Path) -> None:
    names = set()
    for node in at_import(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            names.add(function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", ""))
        elif isinstance(node, ast.Attribute) and node.attr in {"environ", "argv", "executable"}:
            names.add("environ")
    assert not names & CALLS


@pytest.mark.parametrize("uid", [pytest.param(uid, marks=needs_image) for uid in (0, 65534)])
def test_pods_run_their_tasks_in_a_fifth_of_the_memory(
    root: Path, config: dict[str, Any], here: World, snapshot: Path, uid: int, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The last pod's file is no snapshot: it falls back, and says so."""
    (tmp_path / "index.html").write_text("well")
    names = [f"s{uid}n{number}" for number in range(1, 6)]
    addresses = {name: free_address() for name in names}
    with ExitStack() as closing:
        pods: dict[str, psutil.Process] = {}
        for name, ip in addresses.items():
            httpd = ["/bin/busybox", "httpd", "-f", "-p", f"{ip}:8080", "-h", str(tmp_path)]
            closing.enter_context(Running(httpd, {}))
            env = environment(
                config, PIDONE_REPO=here.repo, PIDONE_POD_IP=ip, PIDONE_POD_UID=f"uid-{name}", PIDONE_LINGER="1",
                PIDONE_SNAPSHOT="/etc/hosts" if name == names[-1] else "/pidone.snapshot",
            )  # fmt: skip
            outer = closing.enter_context(Running(sandbox(root, uid, *config["Config"]["Entrypoint"]), env))
            pods[name] = until("process 1", partial(doze_of, outer.pid))
        for name in names:
            until("the first question", partial(childless, pods[name]))
        here.pods(**{name: (ip, ALL | {"app": "ratings"}) for name, ip in addresses.items()})
        for name, ip in addresses.items():
            until(f"{name} is registered", partial(here.registered, name))
            form = "exit code 127" if name == names[-1] else "used"
            assert f'pidone_snapshot_info{{snapshot="{form}"}} 1' in until(
                "metrics", partial(here.metrics, ip)
            )
        first = {name: here.renewed(name) for name in names}
        for name in names:
            until("a heartbeat", partial(here.renewed_after, name, first[name]))
        active = [anonymous(pods[name].pid) for name in names[:-1]]
        with capsys.disabled():
            print(f"\nuid {uid}: memory with the snapshot: {statistics.median(active) / 1024:.2f} MiB")
        assert statistics.median(active) <= ACTIVE
        here.pods(**{name: (ip, {}) for name, ip in addresses.items()})
        for process in pods.values():
            until("asleep again", partial(dozes, process))
