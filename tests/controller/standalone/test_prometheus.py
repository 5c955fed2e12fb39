"""A real Prometheus finds the pods of a repo and scrapes them."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from tests.controller.factories import binding, manifest
from tests.controller.standalone.test_standalone import CHECKED, Controller, running
from tests.ports import free_address
from tests.prometheus import NEEDED, prometheus

pytestmark = NEEDED


SCRAPED = """\
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {{name: scraped}}
spec:
  tasks: [{{name: metrics, metrics: {{port: {port}}}}}]
"""


async def run_pod(url: str, address: str) -> None:
    env = {**os.environ, "PIDONE_REPO": url, "PIDONE_POD_IP": address, "PIDONE_STATUS_PORT": "0"}
    await trio.run_process([sys.executable, "-m", "pidone"], env=env, stdin=b"", check=False)


async def test_prometheus_finds_and_scrapes_the_pods_of_a_repo(
    tmp_path: Path, free_port: Callable[[], int], nursery: trio.Nursery
) -> None:
    (tmp_path / "tasks").mkdir()
    desk = Controller(tmp_path)
    port = free_port()
    desk.write("tasks/scraped.yaml", SCRAPED.format(port=port))
    desk.write("tasks/binding.yaml", binding(sets="scraped"))
    pods = {
        (namespace, name): free_address() for namespace, name in [("shop", "a"), ("shop", "b"), ("bank", "a")]
    }
    desk.pods(
        *(
            manifest(name, address, namespace=namespace, uid=f"{namespace}-{name}", labels=CHECKED)
            for (namespace, name), address in pods.items()
        ),
        manifest("other", free_address()),
    )

    async with running(desk.folder) as controller:
        for address in pods.values():
            nursery.start_soon(run_pod, controller.url, address)
        async with prometheus(tmp_path / "prometheus", free_port(), config(controller.url)) as server:
            every = {("pods", *pod, f"{address}:{port}", "yes") for pod, address in pods.items()}
            shop = {
                ("shop", *pod, f"{address}:{port}", "") for pod, address in pods.items() if pod[0] == "shop"
            }
            await server.until(
                lambda up: up == dict.fromkeys(every | shop, 1),
                "up",
                "job",
                "namespace",
                "pod",
                "instance",
                "check",
            )
            found = await server.until(
                lambda uids: len(uids) == 3, 'pidone_task_state{job="pods"}', "namespace", "pod", "state"
            )
            assert found == {(*pod, "listening"): 1.0 for pod in pods}
            # in OpenMetrics the name of a counter's family has no _total
            metadata = await server.ask("targets/metadata", metric="pidone_reaped")
            assert {entry["type"] for entry in metadata} == {"counter"}

            desk.pods(manifest("a", pods["shop", "a"], uid="shop-a", labels=CHECKED, terminating=True))
            await server.until(lambda up: not up, "up", "job")
    nursery.cancel_scope.cancel()


def config(url: str) -> dict[str, Any]:
    def job(name: str, path: str, **more: Any) -> dict[str, Any]:
        return {
            "job_name": name, "http_sd_configs": [{"url": url + path, "refresh_interval": "1s"}], **more,
        }  # fmt: skip

    relabel = [{"action": "labelmap", "regex": "__meta_pidone_pod_label_(check)"}]
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            job("pods", "/v1/prometheus/targets", relabel_configs=relabel),
            job("shop", "/v1/prometheus/targets/shop"),
        ],
    }
