"""What a real Pushgateway makes of our pages: Debian's package, started for these tests."""

import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from pidone.errors import TransferError
from pidone.http.client import request
from tests.actions.test_report import Bench, bench, metrics
from tests.patience import PATIENCE_SECONDS

__all__ = ["bench"]

PROGRAM = "prometheus-pushgateway"
pytestmark = [
    pytest.mark.pushgateway,
    pytest.mark.skipif(
        not shutil.which(PROGRAM),
        reason=f"no {PROGRAM}: apt-get install -y --no-install-recommends {PROGRAM}",
    ),
]

Samples = dict[str, list[tuple[dict[str, str], float]]]


class Gateway:
    """One that runs; ``url`` is its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def samples(self) -> Samples:
        """What Prometheus would scrape of it, by name."""
        answer = await request("GET", f"{self.url}/metrics", timeout=PATIENCE_SECONDS, limit=1 << 20)
        assert answer.status == 200
        found: Samples = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found

    async def until(self, good: Any) -> Samples:
        with trio.fail_after(PATIENCE_SECONDS):
            while not good(found := await self.samples()):
                await trio.sleep(0.1)  # it tells nobody what it was told
        return found


@asynccontextmanager
async def gateway(port: int) -> AsyncIterator[Gateway]:
    where = f"127.0.0.1:{port}"
    command = [PROGRAM, f"--web.listen-address={where}", "--persistence.file="]
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, command, check=False, stderr=subprocess.DEVNULL)
        await nursery.start(run)
        found = Gateway(f"http://{where}")
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                try:
                    await found.samples()
                    break
                except TransferError:
                    await trio.sleep(0.05)
        yield found
        nursery.cancel_scope.cancel()


def states(found: Samples) -> dict[str, str]:
    return {
        labels["task"]: labels["state"] for labels, value in found.get("pidone_task_state", []) if value == 1
    }


@pytest.mark.parametrize(
    ("job", "instance"),
    [("pidone", "web-1"), ("pods/web", "a b/\N{SNOWMAN}"), (".", ".."), ("a\\b", "%2e%2e")],
)
async def test_a_real_pushgateway_takes_our_page_and_gives_it_up_at_the_end(
    nursery: trio.Nursery, bench: Bench, free_port: Any, job: str, instance: str
) -> None:
    async with gateway(free_port()) as server:
        bench.apply(
            {"pushgateway": {"url": server.url, "job": job, "instance": instance}}, metrics(free_port())
        )
        found = await server.until(lambda found: states(found).get("m") == "listening")
        group = {"job": job, "instance": instance, "namespace": "shop"}
        for name, samples in found.items():
            if name.startswith("pidone_"):
                assert all(labels | group == labels for labels, _ in samples), "in one group, the pod's own"
        assert found["push_failure_time_seconds"] == [(group, 0)], "no page was inconsistent"

        # a task that goes is on no later page, for a PUT replaces the group
        bench.apply({"pushgateway": {"url": server.url, "job": job, "instance": instance}})
        await server.until(lambda found: "m" not in states(found))
        await bench.engine.drain(8)
        # it answers a DELETE with 202 before it carries it out
        await server.until(lambda found: not any(name.startswith(("pidone_", "push_time")) for name in found))
        assert not any("report-failed" in line for line in bench.journal.lines)
    nursery.cancel_scope.cancel()


async def test_a_pushgateway_that_was_away_has_the_page_when_it_is_there_again(
    nursery: trio.Nursery, bench: Bench, free_port: Any
) -> None:
    port = free_port()
    bench.apply({"pushgateway": {"url": f"http://127.0.0.1:{port}"}}, metrics(free_port()))
    with trio.fail_after(PATIENCE_SECONDS):
        while bench.state("r") != "failing":
            await bench.engine._state_changed.wait()
    async with gateway(port) as server:
        await server.until(lambda found: states(found) == {"m": "listening"})
        while bench.state("r") != "reporting":
            await bench.engine._state_changed.wait()
    nursery.cancel_scope.cancel()
