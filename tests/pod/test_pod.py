"""A real process 1 and a repo that the test plays: what is taken, what is refused, and what goes on."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pidone.actions import Context, Setting
from pidone.errors import TaskFailed, TransferError
from pidone.http.client import request
from pidone.http.message import Request, Response
from pidone.journal import Journal
from pidone.plan.digest import canonical, digest
from pidone.plan.format import MEDIA_TYPE, decode_plan, encode_bundle
from pidone.plan.model import Container, Phase, Pod, Task
from pidone.plan.report import TaskReport, encode, encode_task
from pidone.pod.program import PodProgram, fitting
from pidone.pod.settings import Settings
from pidone_controller.pods import reports
from tests import pidns
from tests.eureka.fake import FakeEureka
from tests.http.serving import http_server
from tests.patience import PATIENCE_SECONDS

ADDRESS = "127.0.0.5"
DOZE = Path(__file__).parents[2] / "build/doze"


class Repo:
    """Serves one bundle at a time, holds the question until there is another, and keeps the reports."""

    def __init__(self) -> None:
        self.changed = trio.Event()
        self.held = trio.Event()  # a question that knows the bundle
        self.body = b""
        self.tasks = False
        self.last_words: list[str] = []
        self.reports: list[dict[str, Any]] = []
        self._reported = trio.Event()

    def put(
        self, tasks: Any, *, phase: Phase = Phase.RUNNING, policy: str = "", started: bool = False
    ) -> None:
        self.tasks = bool(tasks)
        pod = Pod("web", "shop", "u", ADDRESS, restart_policy=policy)
        containers = {"app": Container("containerd://1", started)} if policy else {}
        self.put_bytes(canonical(encode_bundle(tasks, phase=phase, pod=pod, containers=containers)))

    def put_bytes(self, body: bytes) -> None:
        self.body = body
        self.held = trio.Event()
        self.changed.set()
        self.changed = trio.Event()

    async def handle(self, asked: Request) -> Response:
        if asked.path == "/v1/status":
            self.reports.append(json.loads(asked.body))
            self._reported.set()
            self._reported = trio.Event()
            return Response(204)
        assert asked.peer == ADDRESS, "the pod speaks from its own address"
        if asked.path == "/v1/doorbell":
            self.last_words.append(asked.headers.get("pidone-last-words", ""))
            if self.tasks:
                return Response(303)
            return Response(200, later=self._ring)
        while self._tag() in asked.headers.get("if-none-match", ""):
            self.held.set()
            await self.changed.wait()
        return Response(200, {"content-type": MEDIA_TYPE, "etag": self._tag()}, self.body)

    async def _ring(self) -> bytes:
        while not self.tasks:
            await self.changed.wait()
        return b"!"

    def _tag(self) -> str:
        return f'"{digest(self.body.decode("latin-1"))}"'

    async def report(self, good: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first report from here on, or the last one, that is good."""
        with trio.fail_after(PATIENCE_SECONDS):
            while not (self.reports and good(self.reports[-1])):
                await self._reported.wait()
        return self.reports[-1]

    async def quiet(self, seconds: float) -> None:
        """Wait until no report has come for that long."""
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                with trio.move_on_after(seconds) as silence:
                    await self._reported.wait()
                if silence.cancelled_caught:
                    return


@pytest.fixture
async def repo(nursery: trio.Nursery) -> Repo:
    return Repo()


@contextmanager
def pod(
    url: str, log: Path, *, doze: str = "/nowhere", before: Sequence[str] = (), **env: str
) -> Iterator[pidns.ProcessOne]:
    env |= {"PIDONE_REPO": url, "PIDONE_POD_IP": ADDRESS, "PIDONE_POD_UID": "u", "PIDONE_DOZE": doze}
    with (
        log.open("wb") as output,
        pidns.process_one([*before, sys.executable, "-m", "pidone"], env=env, output=output) as process,
    ):
        yield process


async def serve_repo(repo: Repo, nursery: trio.Nursery) -> str:
    return f"http://127.0.0.1:{await http_server(nursery, repo.handle, body=1 << 16)}"


def metrics(port: int) -> dict[str, Any]:
    return {"name": "metrics", "metrics": {"port": port}}


async def listening(port: int) -> bool:
    try:
        answer = await request("GET", f"http://{ADDRESS}:{port}/metrics", timeout=PATIENCE_SECONDS)
    except TransferError:
        return False
    return answer.status == 200


async def test_what_is_refused_is_reported_and_the_old_plan_goes_on(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    url = await serve_repo(repo, nursery)
    port, other = free_port(), free_port()
    repo.put([metrics(port)])
    with pod(url, tmp_path / "log") as process:
        first = await repo.report(
            lambda report: report["tasks"].get("metrics", {}).get("state") == "listening"
        )
        assert first["state"] == "applied"
        assert await listening(port)

        for body, reason in (
            (
                [{"name": "x", "exec": {"command": ["/bin/true"]}}],
                "exec is accepted from an https repo or a local file",
            ),
            ([{"name": "x", "fly": {}}], "expected one of exec, heartbeat, idle, metrics, probe, register"),
            (
                [{"name": "x", "metrics": {"port": "eighty"}}],
                'metrics.port: expected an integer, not the string "eighty"',
            ),
            ([metrics(other), {"name": "x", "probe": {}}], "expected one of httpGet, tcpSocket"),
            (b"{not json", "not JSON"),
        ):
            if isinstance(body, bytes):
                repo.put_bytes(body)
            else:
                repo.put(body)
            report = await repo.report(lambda report: reason in report["error"])  # noqa: B023
            assert report["state"] == "rejected"
            assert report["digest"] == digest([metrics(port)])
            assert await listening(port), "the plan before still runs"
            assert not await listening(other), "nothing of the refused plan does"

        repo.put([metrics(other)])
        await repo.report(
            lambda report: report["state"] == "applied" and report["digest"] == digest([metrics(other)])
        )
        await repo.report(lambda report: report["tasks"]["metrics"]["state"] == "listening")
        assert await listening(other)
        assert not await listening(port)

        repo.put([metrics(other)], phase=Phase.TERMINATING)
        await repo.report(lambda report: report["phase"] == "Terminating" and not report["tasks"])
        assert not await listening(other)
        assert process.same(), "the end of the pod is the runtime's to make"
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("policy", ["", "Never"])
async def test_a_pod_without_tasks_costs_no_processor_time(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, policy: str
) -> None:
    url = await serve_repo(repo, nursery)
    repo.put(
        [], policy=policy, started=True
    )  # the last application process is waited for, and not looked for
    with pod(url, tmp_path / "log") as process:
        await repo.report(lambda report: report["digest"] == digest([]))
        status = Path(f"/proc/{process.pid}/status")

        def switches() -> int:
            line = next(line for line in status.read_text().splitlines() if line.startswith("voluntary"))
            return int(line.split()[1])

        await repo.quiet(2.5)  # the last report may still be on its way
        before, used = switches(), sum(psutil.Process(process.pid).cpu_times()[:2])
        await trio.sleep(2)  # nothing is to happen in this time: that is what is asserted
        assert switches() - before <= 1
        assert sum(psutil.Process(process.pid).cpu_times()[:2]) - used <= 0.01
    nursery.cancel_scope.cancel()


@pytest.mark.pidns
@pytest.mark.skipif(not DOZE.exists(), reason="doze is not built: make doze")
async def test_a_plan_wakes_the_pod_and_its_withdrawal_lets_it_doze_again(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    url = await serve_repo(repo, nursery)
    port = free_port()

    async def until(name: str) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while Path(f"/proc/{process.pid}/exe").readlink().name != name:
                await trio.sleep(0.02)  # another process's state has no event

    with pod(url, tmp_path / "log", doze=str(DOZE), PIDONE_LINGER="1") as process:
        await until("doze")
        for _ in range(3):
            process.make_orphans(20)
            repo.put([metrics(port)])
            await repo.report(lambda report: report["tasks"].get("metrics", {}).get("state") == "listening")
            assert await listening(port)
            assert Path(f"/proc/{process.pid}/exe").readlink().name.startswith("python")
            process.make_orphans(20)
            repo.put([])
            await until("doze")
            assert not await listening(port)
            assert repo.reports[-1]["digest"] == digest([]), "the withdrawal was reported before it dozed"
        assert process.same()
        with trio.fail_after(PATIENCE_SECONDS):
            while process.zombies():
                await trio.sleep(0.02)
        private = sum(
            int(line.split()[1])
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            if line.startswith("Private_")
        )
        assert private < 1000, "KiB; nothing of Python is left"
    nursery.cancel_scope.cancel()


@pytest.mark.pidns
@pytest.mark.skipif(not DOZE.exists(), reason="doze is not built: make doze")
async def test_the_last_words_of_a_failed_program_reach_the_repo(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path
) -> None:
    url = await serve_repo(repo, nursery)
    words = "MemoryError: as if (at core.py:1 handle)"
    with pod(url, tmp_path / "log", doze=str(DOZE), PIDONE_LAST_WORDS=words):
        with trio.fail_after(PATIENCE_SECONDS):
            while not repo.last_words:
                await trio.sleep(0.02)
        assert repo.last_words[0] == words, "with the doorbell, where there is no plan"
        repo.put([{"name": "ready", "probe": {"tcpSocket": {"port": 9, "host": ADDRESS}}}])
        report = await repo.report(lambda report: report["tasks"])
        assert report["after"] == words, "and with the first report, where there is one"
    nursery.cancel_scope.cancel()


@pytest.mark.pidns
@pytest.mark.skipif(not DOZE.exists(), reason="doze is not built: make doze")
async def test_a_pod_whose_plan_was_refused_does_not_start_python_again_and_again(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path
) -> None:
    url = await serve_repo(repo, nursery)
    repo.put([{"name": "x", "fly": {}}])
    with pod(url, tmp_path / "log", doze=str(DOZE), PIDONE_LINGER="1"):
        said = await repo.report(lambda report: report["state"] == "rejected")
        assert reports.of(said).digest is None, "a controller takes what a pod without a plan says"
        with trio.fail_after(PATIENCE_SECONDS):
            while not repo.last_words:
                await trio.sleep(0.02)
        await trio.sleep(3)  # that it does not leave is what is asserted
        assert len(repo.last_words) == 1, "the doorbell was asked for once"
        assert len({report["boot"] for report in repo.reports}) == 1
    nursery.cancel_scope.cancel()


@pytest.mark.pidns
async def test_the_words_of_a_fatal_signal_leave_by_the_network(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    told, heard = list[tuple[str, str]](), trio.Event()

    def fatal(peer: str, words: str) -> None:
        told.append((peer, words))
        heard.set()

    url = f"http://127.0.0.1:{await http_server(nursery, repo.handle, body=1 << 16, fatal=fatal)}"
    repo.put([metrics(free_port())])
    env = {"PIDONE_REPO": url, "PIDONE_POD_IP": ADDRESS, "PIDONE_POD_UID": "u", "PIDONE_DOZE": "/nowhere"}
    program = [sys.executable, str(Path(__file__).with_name("fatal.py"))]
    with (
        (tmp_path / "log").open("wb") as output,
        pidns.process_one(program, env=env, output=output) as process,
    ):
        await repo.report(lambda report: report["tasks"].get("metrics", {}).get("state") == "listening")
        with trio.fail_after(PATIENCE_SECONDS):
            await repo.held.wait()
            process.signal(signal.SIGUSR1)
            await heard.wait()
    assert [peer for peer, _ in told] == [ADDRESS]
    assert told[0][1].startswith("Fatal Python error: Segmentation fault")
    assert "in die" in told[0][1]
    nursery.cancel_scope.cancel()


@pytest.mark.pidns
async def test_what_was_untold_when_the_program_failed_is_told_by_the_next(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    url = await serve_repo(repo, nursery)
    repo.put([metrics(free_port())])
    env = {"PIDONE_REPO": url, "PIDONE_POD_IP": ADDRESS, "PIDONE_POD_UID": "u", "PIDONE_DOZE": "/nowhere"}
    program = [sys.executable, str(Path(__file__).with_name("doomed.py"))]
    with (tmp_path / "log").open("wb") as output, pidns.process_one(program, env=env, output=output):
        await repo.report(lambda report: any("state=listening" in line for line in report["logs"]))
    lines = [line for report in repo.reports for line in report["logs"]]
    said = [line.split()[2] for line in lines if "event=said" in line]
    assert said == [f"number={number}" for number in range(150)]
    assert repo.reports[0]["after"].startswith("RuntimeError: as if")
    nursery.cancel_scope.cancel()


async def test_what_a_report_has_no_room_for_is_left_out_and_who_fails_is_told_first() -> None:
    async def fail(context: Context) -> None:
        raise TaskFailed("\N{SNOWMAN}" * 1000)

    async def stay(context: Context) -> None:
        await trio.sleep_forever()

    def build(task: Task, setting: Setting) -> Any:
        return SimpleNamespace(run=fail if task.name.endswith("7") else stay, undo=stay)

    program = PodProgram(Settings(), Journal(echo=lambda line: None), build=build)

    async with trio.open_nursery() as nursery:
        await nursery.start(program.engine.run)
        for count, untold in ((20, 0), (150, 0), (1000, 700)):
            tasks = [{"name": f"task-number-{number}", "probe": {}} for number in range(count)]
            program.engine.apply(decode_plan(tasks, ["probe"]))
            await wait_all_tasks_blocked()
            status = program.status()
            assert len(json.dumps(encode(status))) < 30_000
            assert len(status.tasks) + status.omitted == count
            assert status.omitted >= untold
            failing = {name for name, task in status.tasks.items() if task.failures}
            assert len(failing) == count / 10
        nursery.cancel_scope.cancel()


async def test_a_healthy_registration_is_reported_beside_300_failing_probes() -> None:
    """The controller takes a task that is missing for one that was undone, and would forget the registration."""

    async def fail(context: Context) -> None:
        raise TaskFailed("connection refused")

    async def register(context: Context) -> None:
        context.report("registered")
        await trio.sleep_forever()

    def build(task: Task, setting: Setting) -> Any:
        return SimpleNamespace(run=register if task.action == "register" else fail, undo=trio.sleep)

    program = PodProgram(Settings(), Journal(echo=lambda line: None), build=build)
    probes = [{"name": f"probe-number-{number}", "probe": {}} for number in range(300)]
    plan = decode_plan([*probes, {"name": "registration", "register": {}}], ["probe", "register"])

    async with trio.open_nursery() as nursery:
        await nursery.start(program.engine.run)
        program.engine.apply(plan)
        await wait_all_tasks_blocked()
        report = reports.read(json.dumps(encode(program.status())).encode())
        assert report.tasks["registration"].state == "registered"
        assert len(report.tasks) + report.omitted == 301
        assert report.omitted > 0
        nursery.cancel_scope.cancel()


def test_failed_tasks_do_not_take_the_room_of_those_that_hold_something_outside_the_pod() -> None:
    tasks = {f"task-{number}": TaskReport("", failures=1) for number in range(1000)}
    outside = {f"task-{number}" for number in range(600, 850)}
    fit = fitting(tasks, outside)
    assert outside < fit.keys(), "they alone have more room than the others together"
    assert len(json.dumps({name: encode_task(task) for name, task in fit.items()})) < 40_000


async def test_a_beat_is_not_worth_a_report(
    repo: Repo, nursery: trio.Nursery, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    registry, beats = FakeEureka(), 0

    async def eureka(asked: Request) -> Response:
        nonlocal beats
        beats += asked.method == "PUT"
        return Response(*registry.handle(asked.method, asked.target, asked.body, time.time()))

    url = await serve_repo(repo, nursery)
    eureka_url = f"http://127.0.0.1:{await http_server(nursery, eureka, body=1 << 16)}/eureka"
    register = {"eureka": {"url": eureka_url, "app": "web", "port": free_port()}}
    tasks = [
        {"name": "registration", "register": register},
        {
            "name": "beat",
            "needs": ["registration.registered"],
            "every": 1,
            "heartbeat": {"of": "registration"},
        },
    ]
    repo.put(tasks)
    with pod(url, tmp_path / "log"):
        report = await repo.report(lambda report: report["tasks"].get("beat", {}).get("state") == "started")
        await repo.quiet(3)  # what was on its way by then
        before, beats_before = len(repo.reports), beats
        with trio.fail_after(PATIENCE_SECONDS):
            while beats < beats_before + 4:
                await trio.sleep(0.05)
        assert len(repo.reports) == before
        assert report["tasks"]["beat"]["runs"] < beats
    nursery.cancel_scope.cancel()
