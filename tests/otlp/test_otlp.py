"""What real receivers make of our messages: the OpenTelemetry collector's receiver, and Prometheus 3."""

from collections.abc import Callable
from pathlib import Path
from time import time

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from pidone.http.client import request
from tests.actions.test_report import Bench, bench
from tests.otlp import program
from tests.otlp.receivers import Json, collector, prometheus
from tests.patience import PATIENCE_SECONDS

__all__ = ["bench"]

pytestmark = pytest.mark.skipif(program.missing() is not None, reason=str(program.missing()))

Ports = Callable[[], int]
POD_ATTRIBUTES = {
    "service.name": "pidone",
    "service.namespace": "shop",
    "service.instance.id": "shop.web-1",
    "k8s.namespace.name": "shop",
    "k8s.pod.name": "web-1",
    "k8s.pod.uid": "u",
    "k8s.node.name": "node-a",
}


def attributes(pairs: list[Json]) -> dict[str, str]:
    return {pair["key"]: pair["value"]["stringValue"] for pair in pairs}


def resource(message: Json) -> dict[str, str]:
    (part,) = message["resourceMetrics"]
    return attributes(part["resource"]["attributes"])


def metrics(message: Json) -> dict[str, Json]:
    """Return the metrics of a message by their names, which are there once."""
    (part,) = message["resourceMetrics"]
    (scope,) = part["scopeMetrics"]
    assert scope["scope"]["name"] == "pidone"
    names = [metric["name"] for metric in scope["metrics"]]
    assert len(names) == len(set(names))
    return {metric["name"]: metric for metric in scope["metrics"]}


def points(metric: Json) -> list[tuple[dict[str, str], float]]:
    data = metric.get("sum") or metric["gauge"]
    return [(attributes(point.get("attributes", [])), point["asDouble"]) for point in data["dataPoints"]]


def states(message: Json) -> dict[str, str]:
    found = metrics(message).get("pidone_task_state")
    return {labels["task"]: labels["state"] for labels, value in points(found) if value == 1} if found else {}


async def wait_for_state(bench: Bench, state: str, *, words: str = "") -> None:
    """Wait until the report has this state and these words in its error."""
    with trio.fail_after(PATIENCE_SECONDS):
        while bench.state("r") != state or words not in bench.error("r"):
            await bench.engine._state_changed.wait()


async def test_the_collector_reads_the_metrics_of_the_page_and_the_states_of_the_tasks(
    nursery: trio.Nursery, bench: Bench, free_port: Ports
) -> None:
    began = time()
    port = free_port()
    async with collector(free_port()) as receiver:
        bench.apply({"otlp": {"url": receiver.url}}, {"name": "m", "metrics": {"port": port}})
        message = await receiver.until(lambda message: states(message).get("m") == "listening")
        assert resource(message) == POD_ATTRIBUTES
        sent = metrics(message)

        page = (await request("GET", f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_SECONDS)).text
        kinds = {
            f"{family.name}_total" if family.type == "counter" else family.name: family.type
            for family in text_string_to_metric_families(page)
        }
        # tasks other than the report itself; none of them has succeeded yet
        assert set(sent) == set(kinds)
        for name, metric in sent.items():
            assert ("sum" in metric) == (kinds[name] == "counter"), name
            unit = "s" if "_seconds" in name else "By" if "_bytes" in name else ""
            assert metric.get("unit", "") == unit, name
            assert metric["description"]
            if "sum" in metric:
                assert metric["sum"]["isMonotonic"]
                assert metric["sum"]["aggregationTemporality"] == 2, "cumulative"
            for point in (metric.get("sum") or metric["gauge"])["dataPoints"]:
                assert began - 1 <= int(point["timeUnixNano"]) / 1e9 <= time() + 1
                assert ("startTimeUnixNano" in point) == ("sum" in metric)

        (started,) = points(sent["process_start_time_seconds"])
        kernel = sent["process_cpu_seconds_total"]["sum"]["dataPoints"][0]
        assert int(kernel["startTimeUnixNano"]) / 1e9 == pytest.approx(started[1], abs=0.01)
        runs = sent["pidone_task_runs_total"]["sum"]["dataPoints"][0]
        assert (attributes(runs["attributes"]), runs["asDouble"]) == ({"task": "m"}, 1)
        assert int(kernel["startTimeUnixNano"]) < int(runs["startTimeUnixNano"]) <= int(runs["timeUnixNano"])
    nursery.cancel_scope.cancel()


async def test_the_fields_choose_attributes_tasks_and_metrics_and_compress(
    nursery: trio.Nursery, bench: Bench, free_port: Ports
) -> None:
    async with collector(free_port()) as receiver:
        otlp = {
            "url": f"{receiver.url}/v1/metrics",
            "attributes": {"service.name": "shop", "team": '\N{SNOWMAN} "a"\\'},
            "headers": {"Authorization": "Bearer t", "Content-Type": "text/plain"},
            "collectors": ["tasks"],
            "compression": "gzip",
        }
        others = [{"name": name, "metrics": {"port": free_port()}} for name in ("a", "b")]
        bench.apply({"otlp": otlp, "of": ["a"]}, *others)
        message = await receiver.until(lambda message: states(message) == {"a": "listening"})
        assert resource(message) == POD_ATTRIBUTES | {"service.name": "shop", "team": '\N{SNOWMAN} "a"\\'}
        assert not any(name.startswith(("process_", "pidone_network")) for name in metrics(message))
    nursery.cancel_scope.cancel()


async def test_counters_keep_their_start_until_they_begin_again(
    nursery: trio.Nursery, bench: Bench, free_port: Ports
) -> None:
    def fetches(message: Json) -> Json:
        found: Json = metrics(message)["pidone_bundle_fetches_total"]["sum"]["dataPoints"][0]
        return found

    def runs(message: Json) -> Json:
        found = metrics(message).get("pidone_task_runs_total")
        return next(iter(found["sum"]["dataPoints"]), {}) if found else {}

    task = {"name": "e", "every": 0.2, "exec": {"command": ["/opt/pidone/absent"]}}
    async with collector(free_port()) as receiver:
        report = {"otlp": {"url": receiver.url, "collectors": ["tasks"]}}
        bench.apply(report, every=0.3)
        await receiver.until(lambda message: True)
        bench.apply(report, task, every=0.3)
        first = await receiver.until(lambda message: runs(message).get("asDouble", 0) >= 1)
        later = await receiver.until(lambda message: runs(message).get("asDouble", 0) >= 2)
        assert runs(later)["startTimeUnixNano"] == runs(first)["startTimeUnixNano"]
        # the task is new in a later message, so it began after the one before
        before = receiver.messages[receiver.messages.index(first) - 1]
        assert runs(first)["startTimeUnixNano"] == fetches(before)["timeUnixNano"]

        bench.apply(report, task | {"timeout": 3600}, every=0.3)  # a new version of the task counts anew
        again = await receiver.until(
            lambda message: runs(message).get("asDouble") == 1, after=receiver.messages.index(later)
        )
        assert int(runs(again)["startTimeUnixNano"]) >= int(runs(later)["timeUnixNano"])
        assert len({fetches(message)["startTimeUnixNano"] for message in receiver.messages}) == 1
        times = [int(fetches(message)["timeUnixNano"]) for message in receiver.messages]
        assert times == sorted(times)
    nursery.cancel_scope.cancel()


async def test_the_collector_gets_the_last_message_at_the_end_of_the_pod(
    nursery: trio.Nursery, bench: Bench, free_port: Ports
) -> None:
    async with collector(free_port()) as receiver:
        bench.apply({"otlp": {"url": receiver.url}}, {"name": "m", "metrics": {"port": free_port()}})
        await receiver.until(lambda message: states(message).get("m") == "listening")
        await wait_for_state(bench, "reporting")
        sent = len(receiver.messages)
        await bench.engine.drain(8)
        await receiver.until(lambda message: True, after=sent)
        assert not any("report-failed" in line for line in bench.journal.lines)
    nursery.cancel_scope.cancel()


async def test_the_collectors_refusal_is_said_in_its_words_and_not_retried_before_the_period(
    nursery: trio.Nursery, bench: Bench, free_port: Ports
) -> None:
    async with collector(free_port()) as receiver:
        otlp = {"url": receiver.url, "attributes": {"fail": "always"}}
        bench.apply({"otlp": otlp}, {"name": "m", "metrics": {"port": free_port()}})
        await wait_for_state(bench, "failing", words="the pipeline takes no metrics of this service")
        assert bench.error("r").startswith(f"POST {receiver.url}/v1/metrics: answered 400")
        assert not receiver.messages
    nursery.cancel_scope.cancel()


async def test_a_collector_whose_queue_is_full_gets_the_message_after_the_time_that_it_says(
    nursery: trio.Nursery, bench: Bench, free_port: Ports
) -> None:
    async with collector(free_port()) as receiver:
        otlp = {"url": receiver.url, "attributes": {"fail": "first"}}
        bench.apply({"otlp": otlp}, {"name": "m", "metrics": {"port": free_port()}})
        await wait_for_state(bench, "failing", words='answered 429 "the queue is full"')
        await receiver.until(lambda message: states(message).get("m") == "listening")
        await wait_for_state(bench, "reporting")
    nursery.cancel_scope.cancel()


async def test_prometheus_has_the_same_names_as_if_it_scraped_the_page(
    nursery: trio.Nursery, bench: Bench, free_port: Ports, tmp_path: Path
) -> None:
    port = free_port()
    async with prometheus(free_port(), tmp_path) as server:
        bench.apply({"otlp": {"url": server.otlp}}, {"name": "m", "metrics": {"port": port}})
        (state,) = await server.until(__name__="pidone_task_state", task="m", state="listening")
        labels = {"job": "shop/pidone", "instance": "shop.web-1", "k8s_pod_name": "web-1"}
        assert labels.items() <= state["labels"].items()
        assert state["value"] == 1

        page = (await request("GET", f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_SECONDS)).text
        scraped = {
            sample.name for family in text_string_to_metric_families(page) for sample in family.samples
        }
        pushed = {one["labels"]["__name__"] for one in await server.series()}
        assert pushed - {"target_info"} == scraped
        (info,) = await server.series(__name__="target_info")
        expected = {"k8s_pod_uid": "u", "k8s_node_name": "node-a", "k8s_namespace_name": "shop"}
        assert expected.items() <= info["labels"].items()
        await wait_for_state(bench, "reporting")
        assert bench.error("r") == ""
    nursery.cancel_scope.cancel()
