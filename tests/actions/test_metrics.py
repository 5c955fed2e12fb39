import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import trio
from prometheus_client.openmetrics import parser
from prometheus_client.parser import text_string_to_metric_families

from pidone.actions import Action, Setting, register
from pidone.actions.metrics import COLLECTORS, Metrics, build
from pidone.containers import Containers
from pidone.counters import Counters
from pidone.engine.core import Stage, TaskState
from pidone.engine.runner import Engine
from pidone.errors import Refused, TaskFailed, TransferError
from pidone.http.client import request
from pidone.http.message import Response
from pidone.journal import Journal
from pidone.metrics.exposition import Family, gauge, render
from pidone.metrics.labels import sees_other_cgroups
from pidone.metrics.sampler import FRESH_SECONDS, Sampler
from pidone.pid1.reaper import Reaper
from pidone.plan.fields import Fields
from pidone.plan.format import decode_plan
from pidone.plan.model import Container, Pod, Task
from pidone.plan.report import TASK_ERROR_WIDTH
from tests.actions.watcher import Watcher
from tests.http.serving import flood_and_ask
from tests.patience import PATIENCE_SECONDS

parse_openmetrics: Any = parser.text_string_to_metric_families  # it has no types

POD = Pod("web-7d9c", "shop", "uid-1", "127.0.0.1", "node-1")

# The default set, as far as there is something to read; pidone_policy_violations has no action yet.
FAMILIES = {
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_start_time_seconds",
    "process_open_fds",
    "process_max_fds",
    "pidone_build_info",
    "pidone_snapshot_info",
    "pidone_pod_info",
    "pidone_scrape_duration_seconds",
    "pidone_collector_success",
    "pidone_series_omitted",
    "pidone_processes",
    "pidone_threads",
    "pidone_cpu_seconds_total",
    "pidone_memory_resident_bytes",
    "pidone_memory_swap_bytes",
    "pidone_major_page_faults_total",
    "pidone_context_switches_total",
    "pidone_open_fds",
    "pidone_fd_worst_ratio",
    "pidone_disk_read_bytes_total",
    "pidone_disk_written_bytes_total",
    "pidone_oldest_process_start_time_seconds",
    "pidone_zombies",
    "pidone_processes_visible",
    "pidone_processes_omitted",
    "pidone_reaped_total",
    "pidone_network_receive_bytes_total",
    "pidone_network_transmit_bytes_total",
    "pidone_network_receive_errs_total",
    "pidone_network_transmit_errs_total",
    "pidone_network_receive_drop_total",
    "pidone_network_transmit_drop_total",
    "pidone_tcp_connections",
    "pidone_tcp_connections_omitted",
    "pidone_tcp_retransmitted_segments_total",
    "pidone_tcp_listen_overflows_total",
    "pidone_task_info",
    "pidone_task_state",
    "pidone_task_runs_total",
    "pidone_task_failures_total",
    "pidone_task_restarts_total",
    "pidone_task_last_duration_seconds",
    "pidone_task_last_success_timestamp_seconds",
    "pidone_probe_success",
    "pidone_registration_up",
    "pidone_registration_status",
    "pidone_registration_endpoint",
    "pidone_registration_heartbeat_age_seconds",
    "pidone_registration_lease_seconds",
    "pidone_registration_backoff_seconds",
    "pidone_registrations_total",
    "pidone_heartbeats_total",
    "pidone_bundle_info",
    "pidone_bundle_applied_timestamp_seconds",
    "pidone_bundle_fetches_total",
    "pidone_bundle_fetch_failures_total",
    "pidone_bundle_rejections_total",
    "pidone_repo_up",
}


def views() -> list[TaskState]:
    def view(name: str, action: str, state: str, **more: Any) -> TaskState:
        every = more.pop("every", None)
        task = Task(name, action, {"eureka": {}, "follow": "ready"}, name, every=every)
        return TaskState(task, 0.0, Stage.RUNNING, state, **more)

    return [
        view("ready", "probe", "unhealthy", runs=3, failures=2),
        view("registration", "register", "registered", runs=1),
        view(
            "beat",
            "heartbeat",
            "failing",
            runs=9,
            failures=4,
            every=30.0,
            last_duration=0.5,
            last_success=1.0,
        ),
        view('odd "name"\n', "exec", "", runs=1),
        view("metrics", "metrics", "listening", runs=1),
        view("push", "report", "reporting", runs=1),
    ]


def setting(*, repo_up: bool | None = True) -> Setting:
    counts = Counters(7, 2, 1, "sha256-abc", 1_700_000_000.5, repo_up)
    return Setting(POD, "127.0.0.1", Reaper(), counts, views, action=action)


def action(task: str) -> Action | None:
    """The registration, after its first heartbeat."""
    if task != "registration":
        return None
    setting = Setting(POD, None, Reaper(), Counters(), views)
    config = {"eureka": {"url": "http://me:secret@eureka/", "app": "web", "port": 80}}
    registration = register.build(Fields(config, "register"), setting)
    target = registration.targets[0]
    target.registered, target._shown, target._beat_at = True, "UP", 0.0
    return registration


def make(config: dict[str, Any] | None = None, **options: Any) -> Metrics:
    return build(Fields(config or {}, 'task "m".metrics'), setting(**options))


def samples(page: bytes) -> dict[str, float]:
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


async def families(metrics: Metrics) -> list[Family]:
    return await metrics._sampler.families(metrics._collectors)


async def page(**options: Any) -> bytes:
    return render(await families(make(**options)))


async def test_the_page_is_the_same_in_openmetrics() -> None:
    sampled = await families(make())
    text = render(sampled, openmetrics=True).decode()
    read = {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in parse_openmetrics(text)
        for sample in family.samples
    }
    assert read == samples(render(sampled))


async def test_the_page_has_the_whole_default_set() -> None:
    names = [line.split()[2] for line in (await page()).decode().splitlines() if line.startswith("# TYPE")]
    others = {"pidone_processes_unreadable"}  # only while another user has processes here
    hidden = {"pidone_disk_read_bytes_total", "pidone_disk_written_bytes_total"}  # and then these may be
    missing = hidden - {*names} if others & {*names} else set()
    assert sorted({*names} - others) == sorted(FAMILIES - missing)
    assert len({*names}) == len(names)


async def test_the_page_says_what_is() -> None:
    read = samples(await page())
    sharing = "true" if sees_other_cgroups() else "false"
    assert read[f"pidone_pod_info uid-1 node-1 {sharing}"] == 1
    assert read["pidone_probe_success ready"] == 0
    assert read["pidone_registration_up registration eureka http://eureka/"] == 1
    assert read["pidone_registration_status registration eureka http://eureka/ UP"] == 1
    assert read["pidone_task_restarts_total ready"] == 2
    assert "pidone_task_restarts_total beat" not in read
    assert read["pidone_task_last_duration_seconds beat"] == 0.5
    assert "pidone_task_last_duration_seconds ready" not in read
    assert read['pidone_task_state odd "name"\n running'] == 1
    assert read["pidone_bundle_info sha256-abc"] == 1
    assert read["pidone_bundle_applied_timestamp_seconds"] == 1_700_000_000.5
    assert [read[f"pidone_bundle_{what}_total"] for what in ("fetches", "fetch_failures", "rejections")] == [
        7,
        2,
        1,
    ]
    assert all(read[f"pidone_collector_success {name}"] == 1 for name in COLLECTORS)


async def test_without_a_repo_nothing_is_said_of_one() -> None:
    assert "pidone_repo_up" not in samples(await page(repo_up=None))
    assert samples(await page(repo_up=False))["pidone_repo_up"] == 0


@pytest.mark.promtool
@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")
async def test_promtool_has_nothing_to_say() -> None:
    command = ["promtool", "check", "metrics"]
    check = await trio.run_process(
        command, stdin=await page(), capture_stdout=True, capture_stderr=True, check=False
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")


async def test_only_the_collectors_asked_for_are_there() -> None:
    read = samples(render(await families(make({"collectors": ["process"]}))))
    assert "process_open_fds" in read
    assert not any(name.startswith(("pidone_task", "pidone_network")) for name in read)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"collectors": ["cpu"]},
            "collectors: expected some of process, containers, network, tasks, cgroup, not cpu",
        ),
        ({"port": 0}, "port: expected 1 to 65535, not 0"),
        ({"path": "/"}, 'does not know "path"'),
        ({"address": "::"}, 'metrics.address: expected pod or loopback, not "::"'),
    ],
)
def test_what_is_not_understood_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        make(config)


async def test_it_listens_until_it_is_stopped(free_port: Any) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    watcher = Watcher()

    async def ask(path: str, method: str = "GET", **headers: str) -> Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await request(method, url + path, headers=named, timeout=PATIENCE_SECONDS)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(make({"port": port}).run, watcher)
        assert await watcher.next_state() == "listening"
        answer = await ask("/metrics?name=x")
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert samples(answer.body)["pidone_bundle_info sha256-abc"] == 1
        answer = await ask("/metrics", accept="application/openmetrics-text", accept_encoding="gzip")
        assert answer.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert answer.body.endswith(b"\n# EOF\n")
        assert (await ask("/metrics", "HEAD")).body == b""
        assert (await ask("/")).status == 404
        refused = await ask("/metrics", "POST")
        assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
        nursery.cancel_scope.cancel()
    assert watcher.states == ["listening", ""]


async def test_it_listens_on_loopback_alone_if_the_plan_says_so(
    nursery: trio.Nursery, free_port: Callable[[], int]
) -> None:
    port, watcher = free_port(), Watcher()
    elsewhere = replace(setting(), source="127.7.0.1")
    nursery.start_soon(
        build(Fields({"port": port, "address": "loopback"}, "metrics"), elsewhere).run, watcher
    )
    assert await watcher.next_state() == "listening"
    assert (await request("GET", f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_SECONDS)).status == 200
    with pytest.raises(TransferError):
        await request("GET", f"http://127.7.0.1:{port}/metrics", timeout=PATIENCE_SECONDS)
    nursery.cancel_scope.cancel()


async def test_it_listens_when_the_containers_have_been_started(
    nursery: trio.Nursery, autojump_clock: Any, free_port: Callable[[], int]
) -> None:
    port, watcher = free_port(), Watcher()
    containers = Containers()
    containers.set({"init": Container("a", started=True), "app": Container("", started=False)})
    metrics = build(Fields({"port": port}, "metrics"), replace(setting(), containers=containers))
    nursery.start_soon(metrics.run, watcher)
    await trio.sleep(1000)
    assert watcher.reasons == ["listens when all containers have been started; waits for app"]
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")  # the application's own
    await listeners[0].aclose()
    containers.set({"app": Container("b", started=True)})
    watcher.change.set()
    assert await watcher.next_state() == "listening"
    nursery.cancel_scope.cancel()


async def test_a_pod_whose_containers_are_not_visible_says_the_remedy(
    nursery: trio.Nursery, free_port: Callable[[], int], autojump_clock: Any
) -> None:
    port, watcher, visible = free_port(), Watcher(), 0
    sampler = Sampler({"containers": lambda: [gauge("pidone_processes_visible", "V.", visible)]})
    containers = Containers()
    metrics = Metrics(port, "127.0.0.1", sampler, ("containers",), containers)

    async def scrape() -> None:
        url = f"http://127.0.0.1:{port}/metrics"
        assert (await request("GET", url, timeout=PATIENCE_SECONDS)).status == 200
        await trio.sleep(FRESH_SECONDS)

    nursery.start_soon(metrics.run, watcher)
    assert await watcher.next_state() == "listening"
    await scrape()
    assert watcher.reasons == [], "without a repo the containers are unknown"
    containers.set({"app": Container("a", started=True)})
    await scrape()
    await scrape()
    (reason,) = watcher.reasons
    assert "shareProcessNamespace: true" in reason
    assert 'pidone.dev/processes: "true"' in reason
    assert len(reason) <= TASK_ERROR_WIDTH
    visible = 1
    await scrape()
    assert watcher.reasons == [reason, ""]
    nursery.cancel_scope.cancel()


async def test_a_port_that_is_taken_fails_the_run_by_name_and_is_tried_again(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(
        TaskFailed, match=rf"^cannot listen on 127\.0\.0\.1:{port}: Address already in use; a container"
    ):
        await make({"port": port}).run(Watcher())

    heard = trio.Event()
    journal = Journal(echo=lambda line: heard.set() if "state=listening" in line else None)
    engine = Engine(setting(), journal, changed=lambda: None, random=Random(1))
    await nursery.start(engine.run)
    engine.apply(decode_plan([{"name": "m", "metrics": {"port": port}}], ["metrics"]))
    await trio.sleep(100)
    (state,) = engine.tasks
    assert f"cannot listen on 127.0.0.1:{port}" in state.error
    assert state.shown == "due"
    await listeners[0].aclose()  # the application let it go
    await heard.wait()
    nursery.cancel_scope.cancel()


# The third is answered with 404: a scrape reads all TCP sockets of the network namespace, thousands after other tests.
@pytest.mark.parametrize("sent", [b"", b"GET /metr", b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_many_connections_keep_no_scraper_out(
    sent: bytes, nursery: trio.Nursery, free_port: Callable[[], int]
) -> None:
    port, watcher = free_port(), Watcher()
    nursery.start_soon(make({"port": port}).run, watcher)
    assert await watcher.next_state() == "listening"
    await flood_and_ask(port, "/metrics", sent, "127.9.0.1", ["127.0.0.1", "127.8.0.1", "127.9.0.1"])
    nursery.cancel_scope.cancel()


async def test_clients_that_do_not_read_their_answers_keep_no_scraper_out(
    nursery: trio.Nursery, free_port: Callable[[], int]
) -> None:
    def large() -> Iterable[Family]:
        return [gauge("large", "x" * (8 << 20), 1)]  # more than the kernel keeps of a connection

    port, watcher = free_port(), Watcher()
    nursery.start_soon(Metrics(port, "127.0.0.1", Sampler({"large": large}), ("large",)).run, watcher)
    assert await watcher.next_state() == "listening"
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    await flood_and_ask(port, "/metrics", request, "127.9.0.{}", ["127.0.0.1", "127.8.0.1", "127.9.0.1"])
    nursery.cancel_scope.cancel()
