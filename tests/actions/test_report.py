"""Results to a webhook and a Pushgateway: real servers on loopback, the engine's own view of its tasks."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from pidone import actions
from pidone.actions import Setting
from pidone.actions._webhook import QUEUE, Webhook
from pidone.actions.report import build
from pidone.counters import Counters
from pidone.engine.core import Stage, TaskState
from pidone.engine.runner import Engine
from pidone.errors import Refused, TaskFailed
from pidone.http.message import Request, Response
from pidone.journal import Journal
from pidone.pid1.reaper import Reaper
from pidone.plan.fields import Fields
from pidone.plan.format import decode_plan
from pidone.plan.model import Pod, Task
from tests.http.serving import http_server
from tests.patience import PATIENCE_SECONDS

POD = Pod("web-1", "shop", "u", "127.0.0.1", "node-a")


class Receiver:
    """A monitoring system; ``answers`` are what it says next, then 200."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answers: list[int] = []
        self.arrived = trio.Event()

    async def handle(self, asked: Request) -> Response:
        self.requests.append(asked)
        self.arrived.set()
        self.arrived = trio.Event()
        return Response(self.answers.pop(0) if self.answers else 200)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(asked.body) for asked in self.requests]

    def results(self) -> list[tuple[str, str]]:
        return [(one["task"], one["state"]) for message in self.messages for one in message["results"]]

    async def until(self, good: Any) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while not good():
                await self.arrived.wait()


class Bench:
    """A real engine with a probe of a port that the test opens and closes."""

    def __init__(self) -> None:
        self.journal = Journal(echo=lambda line: None)
        setting = Setting(POD, None, Reaper(), Counters(), lambda: self.engine.tasks)
        self.engine = Engine(setting, self.journal, changed=lambda: None, random=Random(1))

    def apply(self, report: dict[str, Any], *more: dict[str, Any], **common: Any) -> None:
        tasks = [{"name": "r", "report": report, **common}, *more]
        self.engine.apply(decode_plan(tasks, actions.names()))

    def state(self, name: str) -> str:
        return next(state.shown for state in self.engine.tasks if state.task.name == name)

    def error(self, name: str) -> str:
        return next(state.error for state in self.engine.tasks if state.task.name == name)


@pytest.fixture
async def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
async def bench(nursery: trio.Nursery) -> Bench:
    bench = Bench()
    await nursery.start(bench.engine.run)
    return bench


def metrics(port: int) -> dict[str, Any]:
    return {"name": "m", "metrics": {"port": port}}


async def serve(nursery: trio.Nursery, receiver: Receiver) -> str:
    return f"http://127.0.0.1:{await http_server(nursery, receiver.handle, body=1 << 20)}"


async def test_a_webhook_gets_each_change_with_the_pod_and_its_headers(
    nursery: trio.Nursery, receiver: Receiver, bench: Bench, free_port: Any
) -> None:
    url = await serve(nursery, receiver)
    bench.apply({"webhook": {"url": f"{url}/in", "headers": {"X-Team": "shop"}}}, metrics(free_port()))
    await receiver.until(lambda: ("m", "listening") in receiver.results())
    asked, message = receiver.requests[0], receiver.messages[0]
    assert (asked.method, asked.path, asked.headers["x-team"]) == ("POST", "/in", "shop")
    assert message["pod"] == {
        "name": "web-1",
        "namespace": "shop",
        "uid": "u",
        "ip": "127.0.0.1",
        "nodeName": "node-a",
    }
    assert message["dropped"] == 0
    assert "r" not in [task for task, _ in receiver.results()], "it does not report on itself"
    assert bench.state("r") == "reporting"
    numbers = [one["number"] for message in receiver.messages for one in message["results"]]
    assert numbers == sorted(set(numbers))
    nursery.cancel_scope.cancel()


async def test_a_webhook_gets_the_reason_of_each_bad_state_with_it(
    receiver: Receiver, bench: Bench, nursery: trio.Nursery, free_port: Callable[[], int]
) -> None:
    url, dead = await serve(nursery, receiver), free_port()
    bench.apply(
        {"webhook": {"url": url}},
        {"name": "ready", "probe": {"tcpSocket": {"port": dead}, "failureThreshold": 1}},
        {"name": "run", "exec": {"command": ["/opt/pidone/absent"]}, "restartPolicy": "Never"},
        {"name": "beat", "every": 0.2, "heartbeat": {"of": "ready"}},
    )

    def reasons() -> dict[tuple[str, str], str]:
        results = [result for message in receiver.messages for result in message["results"]]
        return {(result["task"], result["state"]): result["error"] for result in reversed(results)}

    bad = {("ready", "unhealthy"), ("run", "failed"), ("beat", "failing")}
    await receiver.until(lambda: bad <= set(reasons()))
    told = reasons()
    assert told["ready", "unhealthy"] == f"127.0.0.1:{dead}: Connection refused"
    assert "/opt/pidone/absent" in told["run", "failed"]
    assert "no registration" in told["beat", "failing"]

    async with trio.open_nursery() as serving:
        listeners = await trio.open_tcp_listeners(dead, host="127.0.0.1")
        serving.start_soon(trio.serve_listeners, drop, listeners)
        await receiver.until(lambda: ("ready", "healthy") in reasons())
        assert reasons()["ready", "healthy"] == ""
        serving.cancel_scope.cancel()
    nursery.cancel_scope.cancel()


async def drop(stream: trio.SocketStream) -> None:
    await stream.aclose()


async def test_of_chooses_the_tasks_and_every_tells_them_again_and_again(
    nursery: trio.Nursery, receiver: Receiver, bench: Bench, free_port: Any
) -> None:
    url = await serve(nursery, receiver)
    bench.apply(
        {"webhook": {"url": url}, "of": ["m"], "onChange": False},
        metrics(free_port()),
        {"name": "other", "metrics": {"port": free_port()}},
        every=0.2,
    )
    await receiver.until(lambda: len(receiver.requests) >= 4)
    assert {task for task, _ in receiver.results()} == {"m"}
    assert receiver.results()[-1] == ("m", "listening")
    nursery.cancel_scope.cancel()


async def test_what_a_webhook_did_not_take_comes_again(
    nursery: trio.Nursery, receiver: Receiver, bench: Bench, free_port: Any
) -> None:
    receiver.answers = [500, 429]
    url = await serve(nursery, receiver)
    bench.apply({"webhook": {"url": url}}, metrics(free_port()))
    await receiver.until(lambda: len(receiver.requests) == 2)
    assert bench.state("r") == "failing"
    await receiver.until(lambda: len(receiver.requests) == 3)
    first, last = receiver.messages[0]["results"], receiver.messages[-1]["results"]
    assert last[: len(first)] == first
    assert sum("report-failed" in line for line in bench.journal.lines) == 1, "said once"
    nursery.cancel_scope.cancel()


async def test_a_webhook_is_told_that_a_task_is_in_the_plan_no_more(
    nursery: trio.Nursery, receiver: Receiver, bench: Bench, free_port: Any
) -> None:
    report = {"webhook": {"url": await serve(nursery, receiver)}}
    bench.apply(report, metrics(free_port()))
    await receiver.until(lambda: receiver.results()[-1:] == [("m", "listening")])
    bench.apply(report)
    await receiver.until(lambda: receiver.results()[-1:] == [("m", "gone")])
    first, last = receiver.messages[0]["results"][0], receiver.messages[-1]["results"][-1]
    assert last["since"] >= first["since"]
    assert last["action"] == "metrics"
    nursery.cancel_scope.cancel()


def view(number: int) -> TaskState:
    return TaskState(Task(f"t{number}", "exec", {}, "d"), 0.0, Stage.RUNNING, "succeeded")


def webhook(url: str) -> Webhook:
    setting = Setting(POD, None, Reaper(), Counters(), lambda: ())
    return Webhook(Fields({"url": url}, "x"), setting)


async def test_the_queue_has_a_bound_and_what_it_loses_is_told(
    nursery: trio.Nursery, receiver: Receiver
) -> None:
    target = webhook(await serve(nursery, receiver))
    target.add(map(view, range(QUEUE + 40)))
    while target.waiting:
        await target.send()
    assert [message["dropped"] for message in receiver.messages] == [40, 0, 0, 0, 0]
    assert receiver.results()[0][0] == "t40", "the oldest went"
    assert len(receiver.results()) == QUEUE
    nursery.cancel_scope.cancel()


async def test_results_that_are_refused_do_not_keep_back_those_behind_them(
    nursery: trio.Nursery, receiver: Receiver
) -> None:
    receiver.answers = [413]
    target = webhook(await serve(nursery, receiver))
    target.add(map(view, range(3)))
    with pytest.raises(TaskFailed, match="answered 413"):
        await target.send()
    target.add([view(3)])
    await target.send()
    assert not target.waiting
    assert receiver.messages[-1]["dropped"] == 3
    assert [one["task"] for one in receiver.messages[-1]["results"]] == ["t3"]
    nursery.cancel_scope.cancel()


async def test_a_webhook_is_told_the_last_changes_at_the_end(
    nursery: trio.Nursery, receiver: Receiver
) -> None:
    target = webhook(await serve(nursery, receiver))
    target.add([view(1)])
    await target.close()
    assert receiver.results() == [("t1", "succeeded")]
    nursery.cancel_scope.cancel()


async def test_a_pushgateway_has_the_page_of_this_pod_until_it_ends(
    nursery: trio.Nursery, receiver: Receiver, bench: Bench, free_port: Any
) -> None:
    url = await serve(nursery, receiver)
    bench.apply({"pushgateway": {"url": f"{url}/", "job": "pods/web"}}, metrics(free_port()))
    await receiver.until(
        lambda: any(b'task_state{task="m",state="listening"} 1' in asked.body for asked in receiver.requests)
    )
    asked = receiver.requests[-1]
    group = "/metrics/job@base64/cG9kcy93ZWI=/instance/web-1/namespace/shop"
    assert (asked.method, asked.path) == ("PUT", group)
    assert asked.body.endswith(b"\n")
    await bench.engine.drain(8)
    assert (receiver.requests[-1].method, receiver.requests[-1].path) == ("DELETE", group)
    nursery.cancel_scope.cancel()


async def test_a_changed_report_keeps_its_group_in_the_pushgateway(
    nursery: trio.Nursery, receiver: Receiver, bench: Bench, free_port: Any
) -> None:
    url, port = await serve(nursery, receiver), free_port()
    target = {"pushgateway": {"url": url}}
    bench.apply(target, metrics(port))
    await receiver.until(lambda: receiver.requests)
    for change in ({"timeout": 3600}, {"stopTimeout": 3}):
        pages = len(receiver.requests)
        bench.apply(target, metrics(port), **change)
        await receiver.until(lambda pages=pages: len(receiver.requests) > pages)
    assert {asked.method for asked in receiver.requests} == {"PUT"}
    bench.apply({"pushgateway": {"url": url, "instance": "other"}}, metrics(port))
    await receiver.until(lambda: receiver.requests[-1].path.endswith("/instance/other/namespace/shop"))
    deleted = [asked.path for asked in receiver.requests if asked.method == "DELETE"]
    assert deleted == ["/metrics/job/pidone/instance/web-1/namespace/shop"]
    nursery.cancel_scope.cancel()


async def test_a_changed_report_goes_on_with_what_a_webhook_did_not_take(
    nursery: trio.Nursery, receiver: Receiver, bench: Bench, free_port: Any
) -> None:
    url, port = await serve(nursery, receiver), free_port()
    receiver.answers = [503] * 3
    bench.apply({"webhook": {"url": url}}, metrics(port))
    await receiver.until(lambda: receiver.requests)
    bench.apply({"webhook": {"url": url, "headers": {"X-Team": "shop"}}}, metrics(port))
    await receiver.until(lambda: len(receiver.requests) > 3)
    assert receiver.requests[-1].headers["x-team"] == "shop"
    first, last = receiver.messages[0]["results"], receiver.messages[-1]["results"]
    assert first[0] in last, "with its number, so that a receiver can tell that it is the same"
    numbers = [one["number"] for one in last]
    assert numbers == sorted(set(numbers))
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "x: expected exactly one variant, not none"),
        ({"webhook": {"url": "http://a"}, "pushgateway": {}}, "expected exactly one variant"),
        ({"mail": {}}, 'x: expected one of webhook, pushgateway, otlp, not "mail"'),
        (
            {"webhook": {"url": "ftp://a"}},
            'x.webhook.url: "ftp://a" is no URL; begin it with http:// or https://',
        ),
        ({"webhook": {"url": "http://a", "method": "PUT"}}, 'does not know "method"'),
        ({"pushgateway": {"url": "http://a", "job": ""}}, "x.pushgateway.job: it is empty"),
        ({"webhook": {"url": "http://a"}, "of": "m"}, "x.of: expected a list"),
        ({"webhook": {"url": "http://:80/"}}, "x.webhook.url: a URL needs a host"),
        (
            {"webhook": {"url": "http://u:p/w@a/"}},
            "x.webhook.url: this is no URL; are / ? # @ in its password",
        ),
        (
            {"webhook": {"url": "http://a", "headers": {"A B": "c"}}},
            'x.webhook.headers.A B: "A B" is no name',
        ),
        (
            {"webhook": {"url": "http://a", "headers": {"A": "c\n"}}},
            "x.webhook.headers.A: the value begins or ends",
        ),
        (
            {"webhook": {"url": "http://a", "headers": {"A": "b\nc"}}},
            "x.webhook.headers.A: the value has characters",
        ),
        (
            {"pushgateway": {"url": "http://a/metrics/job/b"}},
            '"/metrics/job/b" is a group, which pidone adds itself',
        ),
        ({"pushgateway": {"url": "http://a", "instance": ""}}, "x.pushgateway.instance: it is empty"),
        (
            {"pushgateway": {"url": "http://a?b"}},
            'x.pushgateway.url: a URL to which pidone adds a path has no "?"',
        ),
        ({"otlp": {"url": "http://a:4317"}}, "x.otlp.url: 4317 is the port of OTLP over gRPC"),
        ({"otlp": {"url": "http://a:4318/v1/traces"}}, '"/v1/traces" is the path of traces'),
        (
            {"otlp": {"url": "http://a:9090/api/v1/write"}},
            "its receiver of OTLP is http://a:9090/api/v1/otlp",
        ),
        (
            {"otlp": {"url": "http://a", "compression": "zstd"}},
            'x.otlp.compression: expected none or gzip, not "zstd"',
        ),
        ({"otlp": {"url": "http://a", "collectors": ["cpu"]}}, "x.otlp.collectors: expected some of process"),
    ],
)
def test_what_is_not_understood_is_refused(config: dict[str, Any], message: str) -> None:
    setting = Setting(POD, None, Reaper(), Counters(), lambda: ())
    with pytest.raises(Refused) as refused:
        build(Fields(config, "x"), setting)
    assert message in str(refused.value)


def test_only_the_destination_in_use_is_loaded() -> None:
    code = (
        "import sys; from pidone.actions import report; "
        "print([name for name in sys.modules if name.startswith('pidone.actions._')])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded == "['pidone.actions._report_checks', 'pidone.actions._destination']\n"


def test_otlp_has_the_collectors_of_the_page() -> None:
    actions_folder = Path(__file__).parents[2] / "schema/actions"
    report, page = (
        json.loads((actions_folder / f"{name}.json").read_text())["properties"]
        for name in ("report", "metrics")
    )
    for key in ("items", "maxItems"):
        assert report["otlp"]["properties"]["collectors"][key] == page["collectors"][key]
