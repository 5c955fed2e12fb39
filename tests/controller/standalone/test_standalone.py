"""The whole of it: `pidone-controller standalone` as a process, asked from several addresses.

Nothing sleeps: a change is waited for by the held request or by a line of the log, each within a deadline.
"""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from pidone.errors import TransferError
from pidone.http import client
from pidone.http.message import Response
from pidone.plan.format import decode_bundle
from pidone.plan.model import Bundle
from pidone_controller.repo import certificates
from tests.controller.factories import binding, manifest, task_set
from tests.patience import PATIENCE_SECONDS

PROGRAM = [sys.executable, "-m", "pidone_controller"]
CHECKED = {"check": "yes"}
SOON = 50.0  # seconds from a change to its pods: before a held request would be answered anyway


class Controller:
    """The process, its folder, its log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.url = ""
        self._more = trio.Event()
        self.process: trio.Process

    def write(self, name: str, value: object) -> None:
        new = self.folder / f".{Path(name).name}"
        new.write_text(value if isinstance(value, str) else json.dumps(value))
        new.rename(self.folder / name)

    def pods(self, *items: dict[str, Any]) -> None:
        self.write("pods.json", {"apiVersion": "v1", "kind": "List", "items": items})

    async def ask(self, source: str, path: str = "/v1/bundle", **headers: str) -> Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.request(
            "GET", self.url + path, source=source, headers=named, timeout=PATIENCE_SECONDS
        )

    async def bundle(self, source: str, **headers: str) -> tuple[Bundle, str]:
        response = await self.ask(source, **headers)
        assert response.status == 200, response.text
        return decode_bundle(response.body, ["probe"]), response.headers["etag"]

    async def line(self, *parts: str) -> str:
        """The first line from now on, or before, that has all the parts."""
        seen = 0
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                for text in self.lines[seen:]:
                    if all(part in text for part in parts):
                        return text
                seen = len(self.lines)
                await self._more.wait()

    async def read(self) -> None:
        rest = b""
        assert self.process.stderr is not None
        async for data in self.process.stderr:
            *whole, rest = (rest + data).split(b"\n")
            self.lines += [text.decode() for text in whole]
            self._more.set()
            self._more = trio.Event()


@asynccontextmanager
async def running(folder: Path, *more: str) -> AsyncIterator[Controller]:
    controller = Controller(folder)
    arguments = ["--tasks", str(folder / "tasks"), "--inventory", str(folder / "pods.json")]
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [*PROGRAM, "standalone", *arguments, "--listen", "127.0.0.1:0", *more], stderr=subprocess.PIPE
        )
        controller.process = process
        nursery.start_soon(controller.read)
        try:
            listening = await controller.line("event=listening")
            address = next(part for part in listening.split() if part.startswith("address="))
            controller.url = f"http://{address.removeprefix('address=')}"
            yield controller
        finally:
            if process.poll() is None:
                process.kill()
            await process.wait()
            nursery.cancel_scope.cancel()


@pytest.fixture
def desk(tmp_path: Path) -> Controller:
    (tmp_path / "tasks").mkdir()
    desk = Controller(tmp_path)
    desk.write("tasks/check.yaml", task_set())
    desk.write("tasks/binding.yaml", binding())
    desk.pods(manifest(labels=CHECKED), manifest("db", "127.0.0.3"))
    return desk


@asynccontextmanager
async def soon(
    controller: Controller, source: str, known: str, changes: list[tuple[Bundle, str]]
) -> AsyncIterator[None]:
    """A held request around a change: its answer must come within ``SOON``, and goes to ``changes``."""
    async with trio.open_nursery() as nursery:

        async def held() -> None:
            changes.append(await controller.bundle(source, prefer="wait=55", if_none_match=known))

        nursery.start_soon(held)
        yield
        nursery.cancel_scope.deadline = trio.current_time() + SOON
    assert not nursery.cancel_scope.cancelled_caught, f"nothing new for {source} within {SOON} s"


async def test_changes_reach_the_held_requests_at_once(desk: Controller) -> None:
    async with running(desk.folder) as controller:
        web, etag = await controller.bundle("127.0.0.2", pidone_pod_uid="uid-web")
        assert web.plan.tasks[0].config["periodSeconds"] == 5
        db, db_etag = await controller.bundle("127.0.0.3")
        assert db.plan.tasks == ()

        changes: list[tuple[Bundle, str]] = []
        async with soon(controller, "127.0.0.2", etag, changes):
            controller.write("tasks/check.yaml", task_set(period=7))
        web, etag = changes[-1]
        assert web.plan.tasks[0].config["periodSeconds"] == 7

        async with soon(controller, "127.0.0.3", db_etag, changes):
            controller.pods(manifest(labels=CHECKED), manifest("db", "127.0.0.3", labels=CHECKED))
        assert [task.name for task in changes[-1][0].plan.tasks] == ["ready"]
        assert (await controller.ask("127.0.0.2", if_none_match=etag)).status == 304

        async with soon(controller, "127.0.0.4", "", changes):
            controller.pods(manifest(labels=CHECKED), manifest("new", "127.0.0.4"))
        assert changes[-1][0].pod.name == "new"
        assert (await controller.ask("127.0.0.3")).status == 404

        async with soon(controller, "127.0.0.2", etag, changes):
            controller.pods(manifest(labels=CHECKED, terminating=True))
        assert changes[-1][0].phase == "Terminating"


async def test_a_mistake_is_shown_whole_and_the_last_good_version_served(desk: Controller) -> None:
    async with running(desk.folder) as controller:
        _, etag = await controller.bundle("127.0.0.2")
        controller.write("tasks/check.yaml", task_set(period=9).replace("periodSeconds", "periodSecond"))
        await controller.line("event=broken", "check.yaml", "the version before stays in force")
        await controller.line("check.yaml:11:9: ", 'did you mean "periodSeconds"?')
        await controller.line("^~")
        controller.write("pods.json", "{")
        await controller.line("event=broken", "pods.json", "the version before stays in force")
        assert (await controller.ask("127.0.0.2", if_none_match=etag)).status == 304

        changes: list[tuple[Bundle, str]] = []
        async with soon(controller, "127.0.0.2", etag, changes):
            controller.write("tasks/check.yaml", task_set(period=9))
        assert changes[-1][0].plan.tasks[0].config["periodSeconds"] == 9


async def test_a_pod_that_cannot_have_a_plan_keeps_its_own_and_people_see_why(desk: Controller) -> None:
    async with running(desk.folder) as controller:
        _, etag = await controller.bundle("127.0.0.2")
        controller.write("tasks/more.yaml", binding("more", sets="gone"))
        await controller.line("pod=shop/web", "event=error", "TaskBinding more", "gone")
        assert (await controller.ask("127.0.0.2", if_none_match=etag)).status == 304
        web = json.loads((await controller.ask("127.0.0.1", "/v1/pods/shop/web")).body)
        assert "TaskBinding more" in web["error"]
        assert web["expected"]["tasks"] == 1


async def test_a_broken_inventory_at_the_start_is_waited_for(desk: Controller) -> None:
    desk.write("pods.json", "kind: Deployment\n")
    async with running(desk.folder) as controller:
        assert (await controller.ask("127.0.0.1", "/livez")).status == 200
        assert (await controller.ask("127.0.0.1", "/readyz")).status == 503
        assert (await controller.ask("127.0.0.2")).status == 503
        controller.pods(manifest(labels=CHECKED))
        await controller.line("pod=shop/web", "event=plan", "tasks=1")
        assert (await controller.bundle("127.0.0.2"))[0].pod.name == "web"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_when_told_and_closes_what_it_holds(desk: Controller, number: signal.Signals) -> None:
    async with running(desk.folder) as controller:
        _, etag = await controller.bundle("127.0.0.2")

        async def held() -> None:
            with pytest.raises(TransferError):
                await controller.ask("127.0.0.2", prefer="wait=55", if_none_match=etag)

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(held)
                await controller.ask("127.0.0.2")
                controller.process.send_signal(number)
            assert await controller.process.wait() == 0
        assert "Traceback" not in "\n".join(controller.lines)


# The command line


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage:"),
        (["standalone"], "--tasks, --inventory"),
        (["standalone", "--tasks", "/dev/null/x"], "/dev/null/x is not a folder"),
        (["standalone", "--inventory", "gone.yaml"], "gone.yaml is not a file"),
        (["standalone", "--listen", "6060"], "expected ADDR:PORT"),
        (["standalone", "--listen", "127.0.0.1:70000"], "expected ADDR:PORT"),
        (["standalone", "--listen", "::1:80"], "[::1]:80"),
    ],
)
def test_wrong_usage_is_told(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "192.0.2.1:80", "no-such-host.invalid:80"])
def test_an_address_that_cannot_be_had_is_told(tmp_path: Path, address: str) -> None:
    (tmp_path / "pods.yaml").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = address.format(port=taken.getsockname()[1])
        files = ["--tasks", str(tmp_path), "--inventory", str(tmp_path / "pods.yaml")]
        done = run("standalone", *files, "--listen", listen)
    assert done.returncode == 1
    assert f"cannot listen on {listen}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_shows_how(tmp_path: Path) -> None:
    assert "standalone" in run("--help").stdout
    assert "curl http://127.0.0.1:6060/v1/pods" in run("standalone", "--help").stdout


@pytest.mark.parametrize(
    ("objects", "pods", "reason"),
    [
        ([task_set()], [manifest()], "1 TaskSets and no TaskBinding"),
        ([], [manifest()], "no TaskSet and no TaskBinding"),
        ([task_set(), binding()], [], "lists no pods"),
        (
            [task_set(), binding()],
            [manifest("web"), manifest("db", "127.0.0.3")],
            "selects one of the 2 pods",
        ),
    ],
)
async def test_a_repo_that_serves_nothing_says_why_before_it_listens(
    desk: Controller, objects: list[str], pods: list[dict[str, Any]], reason: str
) -> None:
    for file in (desk.folder / "tasks").iterdir():
        file.unlink()
    for index, item in enumerate(objects):
        desk.write(f"tasks/{index}.yaml", item)
    desk.write("tasks/cases.test.yaml", "cases: []")
    desk.pods(*pods)
    async with running(desk.folder) as controller:
        idle = await controller.line("event=idle")
        assert reason in idle
        events = [text.split()[1] for text in controller.lines]
        assert events.index("event=idle") < events.index("event=listening")
        assert not any("cases.test.yaml" in text for text in controller.lines)


async def test_a_repo_whose_pods_get_tasks_is_not_idle(desk: Controller) -> None:
    async with running(desk.folder) as controller:
        await controller.line("event=listening")
        assert not any("event=idle" in text for text in controller.lines)


SECRET_SET = """\
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: check}
spec:
  params:
    - {name: token, valueFrom: {secretKeyRef: {name: hook, key: token}}}
    - {name: port, type: integer, valueFrom: {file: port}}
    - {name: other, default: none, valueFrom: {secretKeyRef: {name: hook, key: other, optional: true}}}
  tasks:
    - name: ready
      probe: {httpGet: {port: $(params.port), httpHeaders: [{name: X, value: "$(params.token) $(params.other)"}]}}
"""


async def test_values_of_secrets_are_files_of_one_folder_and_come_over_https(
    desk: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    authority = certificates.make_ca(now)
    pair = certificates.issue(authority, ["127.0.0.1"], now)
    for name, data in {"ca.crt": authority.certificate, "crt": pair.certificate, "key": pair.key}.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setenv("PIDONE_CA", str(tmp_path / "ca.crt"))
    (tmp_path / "secrets/hook").mkdir(parents=True)
    (tmp_path / "secrets/hook/token").write_text("t0ken\n")
    (tmp_path / "secrets/port").write_text("8081")
    desk.write("tasks/check.yaml", SECRET_SET)
    more = [
        "--listen-tls",
        "127.0.0.1:0",
        "--certificate",
        str(tmp_path / "crt"),
        "--key",
        str(tmp_path / "key"),
    ]
    async with running(desk.folder, *more, "--secrets", str(tmp_path / "secrets")) as controller:
        answer = await controller.ask("127.0.0.2")
        assert answer.status == 426
        assert "t0ken" not in answer.text
        await controller.line("event=withheld", "a value of a Secret is served over https only")
        listening = [line for line in controller.lines if "event=listening" in line]
        controller.url = f"https://{listening[1].split('address=')[1].split()[0]}"
        bundle, etag = await controller.bundle("127.0.0.2")
        (task,) = bundle.plan.tasks
        assert task.config["httpGet"]["port"] == 8081
        assert task.config["httpGet"]["httpHeaders"][0]["value"] == "t0ken none"
        changes: list[tuple[Bundle, str]] = []
        async with soon(controller, "127.0.0.2", etag, changes):
            (tmp_path / "secrets/hook/token").write_text("another")
        ((changed, _),) = changes
        assert changed.plan.tasks[0].config["httpGet"]["httpHeaders"][0]["value"] == "another none"
        assert not any("t0ken" in line or "another" in line for line in controller.lines)


async def test_without_a_folder_no_file_is_read(desk: Controller, tmp_path: Path) -> None:
    (tmp_path / "port").write_text("8081")
    text = SECRET_SET.replace("{file: port}", f"{{file: {tmp_path}/port}}")
    desk.write("tasks/check.yaml", text)
    async with running(desk.folder) as controller:
        await controller.line("event=error", "is not read, since the repo was started without --secrets DIR")
        bundle, _ = await controller.bundle("127.0.0.2")
        assert bundle.plan.tasks == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--listen-tls", "127.0.0.1:0"],
            "https needs a certificate: give --certificate FILE and --key FILE",
        ),
        (["--listen-tls", "127.0.0.1:0", "--certificate", "FILE", "--key", "FILE"], "pidone-controller: "),
    ],
)
def test_https_without_a_certificate_is_refused(desk: Controller, arguments: list[str], message: str) -> None:
    words = [*PROGRAM, "standalone", "--tasks", str(desk.folder / "tasks")]
    words += ["--inventory", str(desk.folder / "pods.json"), "--listen", "127.0.0.1:0"]
    words += [str(desk.folder / "pods.json") if word == "FILE" else word for word in arguments]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert (done.returncode, message in done.stderr) == (1, True), done.stderr
