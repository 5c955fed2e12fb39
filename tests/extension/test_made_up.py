"""An action or a registry is one schema file and one module, and nothing else.

A copy of the source gets the four files beside this one: the action ``countdown`` and the registry ``ledger``. All that
pidone does with an action or a registry is then done with them, by the copy's programs.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from pidone.errors import TransferError
from pidone.generate.assembly import TOP
from pidone.http.client import request
from pidone.http.message import Request, Response
from tests.http.serving import http_server
from tests.patience import PATIENCE_SECONDS

HERE = Path(__file__).parent
COPIED = ("pidone", "controller/pidone_controller", "schema")
ADDED = {
    "countdown.json": "schema/actions",
    "countdown.py": "pidone/actions",
    "ledger.json": "schema/registries",
    "ledger.py": "pidone/registries",
}
ADDRESS = "127.0.77.1"
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web", "namespace": "shop", "uid": "uid-web", "labels": {"app": "web"}},
    "spec": {"nodeName": "node-1", "containers": [{"name": "app", "image": "app:1"}]},
    "status": {"phase": "Running", "podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}]},
}
HEAD = {"apiVersion": "pidone.dev/v1alpha1", "kind": "TaskSet", "metadata": {"name": "made-up"}}
BINDING = {
    **HEAD,
    "kind": "TaskBinding",
    "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "taskSets": ["made-up"]},
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy of the source with the four files added and the schemas assembled."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in COPIED:
        shutil.copytree(TOP / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file, folder in ADDED.items():
        shutil.copy(HERE / file, tree / folder)
    run(tree, "pidone.generate.assembly")
    return tree


def environment(tree: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{tree}:{tree}/controller", "NO_COLOR": "1", **more}


def run(tree: Path, *command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run ``python -m COMMAND`` of the copy, and expect its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=tree, env=environment(tree), capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == code, f"{done.stdout}{done.stderr}"
    return done


def registration(server: str = "http://127.0.0.1:9", **fields: Any) -> dict[str, Any]:
    ledger = {"server": server, "book": "web", "openPort": 8080, **fields}
    return {
        "name": "registration",
        "needs": ["count"],
        "stopTimeout": "2s",
        "register": {"onPodGone": "controller", "ledger": ledger},
    }


COUNT: dict[str, Any] = {"name": "count", "countdown": {"from": 3}}
BEAT: dict[str, Any] = {"name": "beat", "needs": ["registration"], "heartbeat": {"of": "registration"}}


def write(file: Path, *tasks: dict[str, Any]) -> Path:
    """Write a TaskSet in JSON, which is YAML too."""
    file.write_text(json.dumps({**HEAD, "spec": {"tasks": tasks}}), "utf-8")
    return file


def findings(tree: Path, file: Path) -> dict[str, str]:
    """The messages of ``pidone check``, by rule."""
    done = subprocess.run(
        [sys.executable, "-m", "pidone", "check", "--format", "json", str(file)],
        cwd=tree, env=environment(tree), capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {finding["rule"]: finding["message"] for finding in json.loads(done.stdout)["findings"]}


def test_it_is_checked(tree: Path, tmp_path: Path) -> None:
    assert not findings(tree, write(tmp_path / "good.yaml", COUNT, registration()))
    wrong = write(tmp_path / "wrong.yaml", {"name": "count", "countdown": {"form": 3}})
    assert 'did you mean "from"' in findings(tree, wrong)["unknown-field"]
    never = write(tmp_path / "never.yaml", COUNT, {"name": "m", "needs": ["count.healthy"], "metrics": {}})
    assert "counting, landed" in findings(tree, never)["unknown-state"]


def test_two_registrations_are_one_instance_if_they_agree_in_what_identifies_it(
    tree: Path, tmp_path: Path
) -> None:
    """With the field names of Eureka, which this registry does not have, any two would."""
    second = {**registration(line="second"), "name": "second"}
    tasks = [COUNT, BEAT, {**BEAT, "name": "second-beat", "needs": ["second"], "heartbeat": {"of": "second"}}]
    different = write(tmp_path / "different.yaml", *tasks, registration(line="first"), second)
    assert not findings(tree, different)
    same = write(tmp_path / "same.yaml", *tasks, registration(line="second", openPort=8081), second)
    assert "give each a different line" in findings(tree, same)["instance-clash"]


def test_the_linter_knows_its_lease_and_its_port(tree: Path, tmp_path: Path) -> None:
    late = write(tmp_path / "late.yaml", COUNT, registration(validFor="20s"), {**BEAT, "every": "20s"})
    assert "ends after 20s" in findings(tree, late)["lease"]
    metrics = {"name": "metrics", "metrics": {"port": 8080}}
    misled = write(tmp_path / "misled.yaml", COUNT, registration(), BEAT, metrics)
    assert "8080 is where pidone itself serves metrics" in findings(tree, misled)["registered-metrics"]


def test_it_is_explained_and_planned(tree: Path, tmp_path: Path) -> None:
    page = run(tree, "pidone", "explain", "TaskSet.spec.tasks.countdown").stdout
    assert "counting, landed, exploded. A plain needs waits for landed." in page
    file = write(tmp_path / "set.yaml", COUNT, registration(), BEAT)
    (tmp_path / "pod.yaml").write_text(json.dumps(POD), "utf-8")
    plan = json.loads(run(tree, "pidone", "render", str(file), "--pod", str(tmp_path / "pod.yaml")).stdout)
    tasks = {task["name"]: task for task in plan["tasks"]}
    assert tasks["registration"]["needs"] == ["count.landed"]
    assert tasks["registration"]["register"]["ledger"]["line"] == "web"
    assert tasks["count"]["countdown"] == {"from": 3, "explodes": False}


def test_it_is_simulated(tree: Path, tmp_path: Path) -> None:
    write(tmp_path / "set.yaml", COUNT, registration(), BEAT)
    steps = [
        {"at": "1s", "expect": {"count": "landed", "registration": "registered"}},
        {"at": "1m5s", "calls": {"registration": ["register UP", "heartbeat x 3"]}},
        {"at": "2m", "pod": "terminates", "expect": {"registration": "gone"}},
    ]
    case = {"name": "it registers", "pod": {"metadata": {"name": "web"}}, "steps": steps}
    failing = [
        {"at": "0s", "given": {"count": "fails"}},
        {"at": "10s", "expect": {"registration": "waiting"}},
    ]
    cases = [case, {**case, "name": "it does not", "steps": failing}]
    (tmp_path / "set.test.yaml").write_text(json.dumps({"cases": cases}), "utf-8")
    run(tree, "pidone", "test", str(tmp_path))


class Server:
    """The server of the ledger: the status of each instance, by path."""

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}
        self.changed = trio.Event()

    async def handle(self, asked: Request) -> Response:
        known = asked.path in self.lines
        match asked.method:
            case "PUT":
                self.lines[asked.path] = asked.body.decode()
            case "DELETE":
                self.lines.pop(asked.path, None)
        event, self.changed = self.changed, trio.Event()
        event.set()
        return Response(200 if known or asked.method == "PUT" else 404)

    async def until(self, lines: dict[str, str]) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while self.lines != lines:
                await self.changed.wait()


@pytest.fixture
async def server(nursery: trio.Nursery) -> tuple[Server, str]:
    server = Server()
    return server, f"http://127.0.0.1:{await http_server(nursery, server.handle)}"


@asynccontextmanager
async def process(tree: Path, *command: str, **more: str) -> AsyncIterator[trio.Process]:
    """``python -m COMMAND`` of the copy; its standard error is a pipe."""
    program = await trio.lowlevel.open_process(
        [sys.executable, "-m", *command], cwd=tree, env=environment(tree, **more),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield program
    finally:
        if program.poll() is None:
            program.kill()
        await program.wait()


async def scraped(url: str, *lines: str) -> None:
    """Return when the page has these lines."""
    page = ""
    with trio.move_on_after(PATIENCE_SECONDS):
        while True:
            try:
                page = (await request("GET", url, timeout=PATIENCE_SECONDS)).text
            except TransferError:
                page = ""
            if all(line in page for line in lines):
                return
            await trio.sleep(0.05)
    raise AssertionError(page)


async def test_it_runs_and_has_metrics(
    tree: Path,
    tmp_path: Path,
    server: tuple[Server, str],
    nursery: trio.Nursery,
    free_port: Callable[[], int],
) -> None:
    ledger, url = server
    port = free_port()
    metrics = {"name": "metrics", "metrics": {"port": port}}
    file = write(tmp_path / "set.yaml", COUNT, registration(url), BEAT, metrics)
    (tmp_path / "pod.yaml").write_text(json.dumps(POD), "utf-8")
    command = ("pidone", "run", str(file), "--pod", str(tmp_path / "pod.yaml"))
    async with process(tree, *command, PIDONE_POD_IP=ADDRESS, PIDONE_STATUS_PORT="0") as program:
        await ledger.until({"/web/web": "UP"})
        await scraped(
            f"http://{ADDRESS}:{port}/metrics",
            'made_up_landed{task="count"} 1',
            'pidone_registration_up{task="registration",registry="ledger",target="' + url + '"} 1',
            'pidone_task_state{task="count",state="landed"} 1',
        )
        program.send_signal(signal.SIGTERM)
        assert await program.wait() == 0
        await ledger.until({})
    nursery.cancel_scope.cancel()


async def test_its_states_are_reported(
    tree: Path, tmp_path: Path, server: tuple[Server, str], nursery: trio.Nursery
) -> None:
    ledger, url = server
    (tmp_path / "tasks").mkdir()
    write(tmp_path / "tasks" / "set.yaml", COUNT, registration(url), BEAT)
    (tmp_path / "tasks" / "binding.yaml").write_text(json.dumps(BINDING), "utf-8")
    pods = {"apiVersion": "v1", "kind": "List", "items": [POD]}
    (tmp_path / "pods.json").write_text(json.dumps(pods), "utf-8")
    files = ("--tasks", str(tmp_path / "tasks"), "--inventory", str(tmp_path / "pods.json"))
    async with process(
        tree, "pidone_controller", "standalone", *files, "--listen", "127.0.0.1:0"
    ) as controller:
        repo = await address(controller)
        settings = {"PIDONE_REPO": repo, "PIDONE_POD_IP": ADDRESS, "PIDONE_STATUS_PORT": "0"}
        async with process(tree, "pidone", **settings, PIDONE_DOZE="/nowhere"):
            await ledger.until({"/web/web": "UP"})
            tasks = dict[str, str]()
            with trio.fail_after(PATIENCE_SECONDS):
                while tasks.get("registration") != "registered" or tasks.get("count") != "landed":
                    page = await request("GET", f"{repo}/v1/pods/shop/web", timeout=PATIENCE_SECONDS)
                    reported = json.loads(page.body).get("reported") or {"tasks": {}}
                    tasks = {name: task["state"] for name, task in reported["tasks"].items()}
                    await trio.sleep(0.05)
    nursery.cancel_scope.cancel()


async def address(controller: trio.Process) -> str:
    """The URL at which the controller listens, from its log."""
    assert controller.stderr is not None
    log = b""
    with trio.fail_after(PATIENCE_SECONDS):
        async for data in controller.stderr:
            log += data
            if found := re.search(rb"event=listening .*?address=(\S+)", log):
                return f"http://{found[1].decode()}"
    raise AssertionError(log.decode())


async def test_the_controller_halts_a_rollout_and_deregisters(
    tree: Path, server: tuple[Server, str], nursery: trio.Nursery
) -> None:
    ledger, url = server
    ledger.lines["/web/web"] = "UP"
    program = [sys.executable, str(HERE / "controller_side.py"), url]
    done = await trio.run_process(program, cwd=tree, env=environment(tree), capture_stdout=True)
    result = json.loads(done.stdout)
    assert result["phase"] == "Halted"
    assert '"count" of shop/web, exploded' in result["message"]
    assert result["results"] == {"deregistered": 1}
    assert not ledger.lines
    nursery.cancel_scope.cancel()
