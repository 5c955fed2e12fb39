"""A real process 1, seen and drained from inside, and how it ends."""

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from trio.testing import MockClock

from pidone.errors import ConnectError, PidoneError, Refused
from pidone.http.client import request
from pidone.http.message import Request, Response
from pidone.journal import Journal
from pidone.plan.digest import canonical, digest
from pidone.plan.format import encode_bundle
from pidone.plan.model import Phase, Pod
from pidone.pod.program import PodProgram
from pidone.pod.settings import STATUS_PORT, Settings
from tests import pidns
from tests.eureka.fake import FakeEureka
from tests.http.serving import flood_and_ask, http_server
from tests.patience import PATIENCE_SECONDS
from tests.pod.test_pod import ADDRESS, DOZE, Repo, listening, metrics, pod, serve_repo
from tests.processes import named

FACTS = Pod("web", "shop", "u", ADDRESS)


@pytest.fixture
async def repo(nursery: trio.Nursery) -> Repo:
    return Repo()


async def ask(port: int, path: str) -> dict[str, Any]:
    answer = await request("GET", f"http://{ADDRESS}:{port}{path}", timeout=PATIENCE_SECONDS)
    assert answer.status == 200, answer.text
    found: dict[str, Any] = json.loads(answer.text)
    return found


async def maintain(method: str, port: int) -> dict[str, Any]:
    """Send a request for maintenance until the status port listens, and return the answer."""
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            try:
                answer = await request(
                    method, f"http://{ADDRESS}:{port}/maintenance", timeout=PATIENCE_SECONDS
                )
            except ConnectError:
                await trio.sleep(0.05)  # another process's port has no event
                continue
            value: dict[str, Any] = json.loads(answer.text)
            return value


def probe(port: int, **more: Any) -> dict[str, Any]:
    return {"probe": {"tcpSocket": {"port": port, "host": ADDRESS}, "failureThreshold": 1}, **more}


async def until(good: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while not good():
            await trio.sleep(0.02)  # another process's state has no event


async def running(repo: Repo, tasks: list[dict[str, Any]]) -> None:
    repo.put(tasks)
    await repo.report(lambda report: report["tasks"].get("metrics", {}).get("state") == "listening")


async def test_what_a_pod_does_is_seen_from_inside_with_the_reasons(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    url, port = await serve_repo(repo, nursery), free_port()
    tasks = [
        metrics(free_port()),
        probe(9, name="ready"),
        probe(9, name="late", needs=["ready.healthy"]),
        probe(9, name="bell", runOn=["signal.SIGHUP"]),
        probe(9, name="beat", every=3600),
    ]
    with pod(url, tmp_path / "log", PIDONE_STATUS_PORT=str(port)):
        await running(repo, tasks)
        await repo.report(lambda report: report["tasks"]["ready"]["state"] == "unhealthy")
        await flood_and_ask(port, "/status", b"", ADDRESS, [ADDRESS], ADDRESS)
        await flood_and_ask(port, "/status", b"GET /st", "127.9.0.{}", [ADDRESS, "127.8.0.1"], ADDRESS)
        seen = await ask(port, "/status")
        env = {**os.environ, "PIDONE_POD_IP": ADDRESS, "PIDONE_STATUS_PORT": str(port)}
        shown_to_people = await trio.run_process(
            [sys.executable, "-m", "pidone", "status"], capture_stdout=True, env=env
        )
    assert b" needs ready.healthy (is unhealthy)\n" in shown_to_people.stdout
    assert seen["repo"] == {"urls": [url], "reached": True}
    assert (seen["digest"], seen["phase"], seen["ending"]) == (digest(tasks), "Running", False)
    shown = seen["tasks"]
    assert {name: (task["action"], task["stage"], task["state"]) for name, task in shown.items()} == {
        "metrics": ("metrics", "running", "listening"),
        "ready": ("probe", "running", "unhealthy"),
        "late": ("probe", "waiting", "waiting"),
        "bell": ("probe", "armed", "armed"),
        "beat": ("probe", "due", "due"),
    }
    assert shown["late"]["why"] == "needs ready.healthy (is unhealthy)"
    assert shown["bell"]["why"] == "runs on signal.SIGHUP"
    assert 0 < shown["beat"]["next"] <= 3600
    assert shown["ready"]["next"] is None
    assert -1 <= shown["ready"]["since"] - seen["applied"] < PATIENCE_SECONDS
    assert any(" event=state task=ready state=unhealthy" in line for line in seen["logs"])
    nursery.cancel_scope.cancel()


@pytest.mark.pidns
async def test_a_drain_is_answered_when_all_is_taken_back_and_is_for_good(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    url, port, page = await serve_repo(repo, nursery), free_port(), free_port()
    with pod(url, tmp_path / "log", PIDONE_STATUS_PORT=str(port)) as process:
        await running(repo, [metrics(page), probe(9, name="ready", needs=["metrics.listening"])])
        done = await ask(port, "/drain")
        assert not await listening(page)
        assert (done["undone"], done["left"]) == (["metrics", "ready"], [])
        assert ' event=ending by="GET /drain" tasks=2' in done["logs"][0]
        assert (await ask(port, "/drain"))["undone"] == [], "a second one has nothing left to do"

        again = [metrics(page)]
        repo.put(again)
        while not any("event=plan-ignored" in line for line in (await ask(port, "/status"))["logs"]):
            await repo.held.wait()
        assert (await ask(port, "/status"))["tasks"] == {}
        report = await repo.report(lambda report: any("plan-ignored" in line for line in report["logs"]))
        assert report["state"] == "applied", "nothing is wrong with the plan"

        repo.put(again, phase=Phase.TERMINATING)
        await repo.report(lambda report: report["phase"] == "Terminating")
        assert process.same()
        process.signal(signal.SIGTERM)
        with trio.fail_after(PATIENCE_SECONDS):
            assert await trio.to_thread.run_sync(process.wait, PATIENCE_SECONDS) == 0
    said = (tmp_path / "log").read_text()
    assert said.count("event=ending ") == 1
    nursery.cancel_scope.cancel()


@pytest.mark.pidns
async def test_people_take_a_pod_out_of_service_by_the_port_and_by_the_annotation(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    registry = FakeEureka()

    async def handler(asked: Request) -> Response:
        return Response(*registry.handle(asked.method, asked.target, asked.body, time.time()))

    eureka = {
        "url": f"http://127.0.0.1:{await http_server(nursery, handler, body=1 << 16)}/eureka",
        "app": "web",
        "port": 80,
    }
    tasks = [metrics(free_port()), {"name": "registration", "register": {"eureka": eureka}}]
    plain, annotated = (
        canonical(encode_bundle(tasks, phase=Phase.RUNNING, pod=FACTS, maintenance=on))
        for on in (False, True)
    )

    def status() -> str:
        found = registry.handle("GET", "/eureka/apps/WEB/web%3Aweb%3A80", b"", time.time())
        return str(json.loads(found[2])["instance"]["status"]) if found[0] == 200 else ""

    url, port = await serve_repo(repo, nursery), free_port()
    repo.tasks = True
    repo.put_bytes(plain)
    env = {"PIDONE_REPO": url, "PIDONE_POD_IP": ADDRESS, "PIDONE_POD_UID": "u", "PIDONE_DOZE": "/nowhere"}
    program = [sys.executable, str(Path(__file__).with_name("forgetful.py"))]
    with (
        (tmp_path / "log").open("wb") as output,
        pidns.process_one(program, env=env | {"PIDONE_STATUS_PORT": str(port)}, output=output) as process,
    ):
        await repo.report(lambda report: report["tasks"].get("registration", {}).get("state") == "registered")
        assert status() == "UP"
        with suppress(PidoneError):  # the program fails meanwhile
            await maintain("POST", port)
        await repo.report(lambda report: report.get("maintenance") and report["after"] and report["tasks"])
        assert (await maintain("POST", port))["by"] == ["POST /maintenance"]
        await until(lambda: status() == "OUT_OF_SERVICE")

        repo.put_bytes(annotated)
        await repo.report(
            lambda report: any('by="POST /maintenance, annotation' in line for line in report["logs"])
        )
        assert (await maintain("DELETE", port))["by"] == ["annotation"]
        assert status() == "OUT_OF_SERVICE"
        repo.put_bytes(plain)
        await repo.report(lambda report: not report.get("maintenance"))
        await until(lambda: status() == "UP")
        assert process.same()
        assert (await ask(port, "/status"))["digest"] == digest(tasks)
        await ask(port, "/drain")
        assert status() == ""
    nursery.cancel_scope.cancel()


@pytest.mark.pidns
async def test_a_drain_reports_a_deregistration_that_failed(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    registered, refused = trio.Event(), list[str]()

    async def handler(asked: Request) -> Response:
        if asked.method == "DELETE":
            refused.append(asked.target)
            return Response(503)
        if asked.method == "POST":
            registered.set()
        return Response({"POST": 204}.get(asked.method, 404))

    registry = await http_server(nursery, handler, body=1 << 16)
    url, port = await serve_repo(repo, nursery), free_port()
    eureka = {"url": f"http://127.0.0.1:{registry}/eureka", "app": "web", "port": 80}
    with pod(url, tmp_path / "log", PIDONE_STATUS_PORT=str(port)):
        await running(repo, [metrics(free_port()), {"name": "registration", "register": {"eureka": eureka}}])
        await registered.wait()
        done = await ask(port, "/drain")
        assert (done["undone"], done["left"]) == (["metrics"], [])
        assert list(done["failed"]) == ["registration"]
        assert "answered 503" in done["failed"]["registration"]
    assert len(refused) == 1
    nursery.cancel_scope.cancel()


@pytest.mark.pidns
async def test_the_last_word_before_the_end_is_that_all_is_taken_back(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    url = await serve_repo(repo, nursery)
    with pod(url, tmp_path / "log") as process:
        await running(repo, [metrics(free_port())])
        process.signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(process.wait, PATIENCE_SECONDS) == 0
        last = repo.reports[-1]
    assert (last["tasks"], last["left"]) == ({}, [])
    assert any("event=stopped" in line for line in last["logs"])
    nursery.cancel_scope.cancel()


WITH_A_DAEMON = ("/bin/sh", "-c", '/bin/sleep 1000 & exec "$@"', "sh")


def end_daemon(process: pidns.ProcessOne) -> None:
    """What the application's own daemon does at last; its parent is process 1, as with all daemons."""
    named(process.pid, "sleep")[0].kill()


@pytest.mark.pidns
@pytest.mark.skipif(pidns.blind() is not None, reason=str(pidns.blind()))
@pytest.mark.parametrize("late", [False, True])
async def test_the_last_process_of_an_application_that_runs_once_begins_the_end(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int], late: bool
) -> None:
    url, port, page = await serve_repo(repo, nursery), free_port(), free_port()
    tasks = [metrics(page)]
    with pod(url, tmp_path / "log", before=WITH_A_DAEMON, PIDONE_STATUS_PORT=str(port)) as process:
        repo.put(tasks, policy="Never", started=not late)
        state = "running" if late else "listening"
        await repo.report(lambda report: report["tasks"].get("metrics", {}).get("state") == state)
        process.make_orphans(50)
        process.end_helper()
        await until(lambda: len(psutil.Process(process.pid).children()) == 1)
        assert not (await ask(port, "/status"))["ending"], "its daemon is there"
        end_daemon(process)
        if late:  # it has ended, but another container may not have been started
            await until(process.childless)
            assert not (await ask(port, "/status"))["ending"]
            repo.put(tasks, policy="Never", started=True)
        await repo.report(lambda report: not report["tasks"])
        assert not await listening(page)
        repo.put(tasks, phase=Phase.TERMINATING, policy="Never", started=True)
        await repo.report(lambda report: report["phase"] == "Terminating")
        assert process.same(), "the end of the process is the runtime's to make"
    (line,) = [line for line in (tmp_path / "log").read_text().splitlines() if "event=ending" in line]
    assert line.endswith(' event=ending by="last application process" tasks=1')
    nursery.cancel_scope.cancel()


@pytest.mark.pidns
async def test_containers_that_have_started_are_an_event(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path
) -> None:
    def asked(name: str) -> Any:
        return probe(9, name=name) | {"runOn": ["pod.containersStarted"]}

    def failures(name: str, number: int) -> Any:
        return lambda report: report["tasks"].get(name, {}).get("failures") == number

    url = await serve_repo(repo, nursery)
    with pod(url, tmp_path / "log"):
        repo.put([asked("first")], policy="Always")
        report = await repo.report(lambda report: report["tasks"].get("first", {}).get("state") == "armed")
        assert report["tasks"]["first"]["runs"] == 0
        repo.put([asked("first")], policy="Always", started=True)
        await repo.report(lambda report: report["tasks"]["first"]["runs"] == 1)
        repo.put([asked("first"), asked("later")], policy="Always", started=True)
        report = await repo.report(lambda report: report["tasks"].get("later", {}).get("runs") == 1)
        assert report["tasks"]["first"]["runs"] == 1
    nursery.cancel_scope.cancel()


@pytest.mark.pidns
async def test_the_port_of_the_metrics_is_left_to_the_containers_until_they_have_started(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    url, page = await serve_repo(repo, nursery), free_port()
    with pod(url, tmp_path / "log"):
        repo.put([metrics(page)], policy="Always")
        report = await repo.report(lambda report: report["tasks"].get("metrics", {}).get("error"))
        assert report["tasks"]["metrics"]["state"] == "running"
        assert (
            report["tasks"]["metrics"]["error"]
            == "listens when all containers have been started; waits for app"
        )
        assert not await listening(page)
        repo.put([metrics(page)], policy="Always", started=True)
        report = await repo.report(lambda report: report["tasks"]["metrics"]["state"] == "listening")
        assert report["tasks"]["metrics"]["error"] == ""
        assert await listening(page)
        repo.put([metrics(page)], policy="Always")  # a container is made anew
        repo.put([metrics(page), probe(9, name="ready")], policy="Always")
        await repo.report(lambda report: report["tasks"].get("ready", {}).get("state") == "unhealthy")
        assert await listening(page)
    nursery.cancel_scope.cancel()


@pytest.mark.pidns
@pytest.mark.parametrize("policy", ["Always", "OnFailure", ""])
async def test_the_application_of_a_pod_that_is_started_again_may_be_gone(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int], policy: str
) -> None:
    url, port, page = await serve_repo(repo, nursery), free_port(), free_port()
    with pod(url, tmp_path / "log", PIDONE_STATUS_PORT=str(port)) as process:
        repo.put([metrics(page)], policy=policy, started=True)
        await repo.report(lambda report: report["tasks"].get("metrics", {}).get("state") == "listening")
        process.end_helper()
        await until(process.childless)
        repo.put([metrics(page), probe(9, name="ready")], policy=policy, started=True)
        await repo.report(lambda report: report["tasks"].get("ready", {}).get("state") == "unhealthy")
        assert not (await ask(port, "/status"))["ending"]
        assert await listening(page)
    nursery.cancel_scope.cancel()


@pytest.mark.pidns
@pytest.mark.skipif(not DOZE.exists(), reason="doze is not built: make doze")
async def test_termination_tasks_run_before_all_is_undone_and_then_the_pod_dozes(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    heard, page = list[bool](), free_port()

    async def application(asked: Request) -> Response:
        heard.append(await listening(page))
        return Response(200)

    url = await serve_repo(repo, nursery)
    where = {"port": await http_server(nursery, application), "host": "127.0.0.1", "path": "/farewell"}
    tasks = [metrics(page), {"name": "bye", "runOn": ["pod.terminating"], "probe": {"httpGet": where}}]
    with pod(url, tmp_path / "log", doze=str(DOZE), PIDONE_LINGER="1", PIDONE_STATUS_PORT="0") as process:
        await running(repo, tasks)
        assert heard == []
        repo.put(tasks, phase=Phase.TERMINATING)
        repo.tasks = False  # to the doorbell of a pod that ends a repo says that there is nothing
        await repo.report(lambda report: report["phase"] == "Terminating" and not report["tasks"])
        assert heard[:1] == [True], "metrics were still served"
        assert not await listening(page)
        with trio.fail_after(PATIENCE_SECONDS):
            while Path(f"/proc/{process.pid}/exe").readlink().name != "doze":
                await trio.sleep(0.02)  # another process's state has no event
        process.signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(process.wait, PATIENCE_SECONDS) == 0
    nursery.cancel_scope.cancel()


@pytest.mark.pidns
async def test_a_hangup_runs_what_runs_on_it_and_is_survived_otherwise(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    url, page, port = await serve_repo(repo, nursery), free_port(), free_port()
    with pod(url, tmp_path / "log", PIDONE_STATUS_PORT=str(port)) as process:
        await running(repo, [metrics(page)])
        process.signal(signal.SIGHUP)
        await ask(port, "/status")  # by then it has come
        await running(repo, [metrics(page), probe(9, name="bell", runOn=["signal.SIGHUP"])])
        await repo.report(lambda report: report["tasks"].get("bell", {}).get("state") == "armed")
        process.signal(signal.SIGHUP)
        await repo.report(lambda report: report["tasks"]["bell"]["runs"] == 1)
        assert process.same()
    nursery.cancel_scope.cancel()


async def test_a_port_that_is_taken_is_told_and_stops_nothing(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    url = await serve_repo(repo, nursery)
    with socket.create_server((ADDRESS, 0)) as taken:
        port = taken.getsockname()[1]
        with pod(url, tmp_path / "log", PIDONE_STATUS_PORT=str(port)):
            await running(repo, [metrics(free_port())])
    (line,) = [line for line in (tmp_path / "log").read_text().splitlines() if "event=status-off" in line]
    assert f'address={ADDRESS}:{port} error="Address already in use" retry=60s' in line
    nursery.cancel_scope.cancel()


async def test_the_first_line_says_what_the_process_is_and_can_see(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    url = await serve_repo(repo, nursery)
    with pod(url, tmp_path / "log", PIDONE_STATUS_PORT="seven"):
        await running(repo, [metrics(free_port())])
    first, *others = (tmp_path / "log").read_text().splitlines()
    assert re.search(
        r" event=start version=\S+ pid1=(True|False) processes=\d+ podUid=u repo=http://127.0.0.1:\d+$", first
    )
    assert any(f"event=plan digest={repo_digest(repo)} tasks=1" in line for line in others)
    assert any("expected PORT, *:PORT or 0, not" in line for line in others)
    nursery.cancel_scope.cancel()


def repo_digest(repo: Repo) -> str:
    found: str = json.loads(repo.body)["digest"]
    return found


@pytest.mark.parametrize(
    ("said", "pod_ip", "address"),
    [
        ("", None, ("127.0.0.1", STATUS_PORT)),
        ("7000", "10.1.2.3", ("127.0.0.1", 7000)),  # to the pod's own containers alone
        ("7000", "127.0.0.5", ("127.0.0.5", 7000)),
        ("*:7000", "10.1.2.3", ("10.1.2.3", 7000)),
        ("*:7000", None, (None, 7000)),
        ("0", None, ("127.0.0.1", 0)),
    ],
)
def test_where_it_listens(said: str, pod_ip: str | None, address: tuple[str | None, int]) -> None:
    assert Settings(status=said, pod_ip=pod_ip).status_address() == address


@pytest.mark.parametrize("said", ["x", "-1", "70000", "10.0.0.1:7000", ":", "*:", "*"])
def test_what_is_no_port_is_refused(said: str) -> None:
    with pytest.raises(Refused, match="expected PORT"):
        Settings(status=said).status_address()


@pytest.mark.pidns
@pytest.mark.parametrize("with_doze", [True, False])
async def test_a_running_pod_takes_back_an_end_that_a_repo_has_begun(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int], *, with_doze: bool
) -> None:
    if with_doze and not DOZE.exists():
        pytest.skip("doze is not built: make doze")
    url, page = await serve_repo(repo, nursery), free_port()
    doze = str(DOZE) if with_doze else "/nowhere"
    with pod(url, tmp_path / "log", doze=doze, PIDONE_LINGER="1") as process:
        await running(repo, [metrics(page)])
        first = repo.reports[-1]["boot"]
        repo.put([], phase=Phase.TERMINATING)
        await repo.report(lambda report: report["phase"] == "Terminating" and not report["tasks"])
        assert not await listening(page)

        repo.put([metrics(page)])
        report = await repo.report(
            lambda report: report["tasks"].get("metrics", {}).get("state") == "listening"
        )
        assert report["boot"] != first
        assert await listening(page)
        assert process.same()
        process.signal(signal.SIGTERM)
        with trio.fail_after(PATIENCE_SECONDS):
            assert await trio.to_thread.run_sync(process.wait, PATIENCE_SECONDS) == 0
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("events", "revoked"),
    [
        (["running", "terminating", "running"], True),
        (["terminating", "running"], True),  # the first bundle of all
        (["running", "terminating", "terminating", "running"], True),
        (["running", "terminating", "running", "terminating"], False),
        (["running", "terminating", "another pod"], False),
        (["running", "terminating", "drain", "running"], False),
        (["running", "drain", "terminating", "running"], False),
        (["running", "terminating", "running", "drain"], False),
        (["running", "drain", "running"], False),
    ],
)
async def test_only_a_repo_takes_back_only_the_end_of_a_repo(
    events: list[str], *, revoked: bool, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    program = PodProgram(Settings(), Journal(lambda line: None))
    await nursery.start(program.engine.run)
    for event in events:
        if event == "drain":
            await program.drain("GET /drain")
            continue
        phase = Phase.TERMINATING if event == "terminating" else Phase.RUNNING
        facts = Pod("web", "shop", "v" if event == "another pod" else "u", ADDRESS)
        program.apply(canonical(encode_bundle([], phase=phase, pod=facts)), trusted=False)
        await trio.sleep(1)
    assert program.end_revoked.is_set() is revoked
    nursery.cancel_scope.cancel()
