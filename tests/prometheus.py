"""A real Prometheus, Debian's package, for tests."""

import json
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import trio

from pidone.errors import TransferError
from pidone.http.client import request
from tests.cluster.process import Process
from tests.patience import PATIENCE_SECONDS

PROGRAM = "prometheus"
NEEDED = [
    pytest.mark.promtool,
    pytest.mark.skipif(not shutil.which(PROGRAM), reason="no prometheus: apt-get install prometheus"),
]
LOOK_SECONDS = 0.2  # between two looks: it tells nobody that it has scraped


class Prometheus:
    """One that runs."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API."""
        url = f"{self.url}/api/v1/{path}?{urlencode(parameters)}"
        answer = await request("GET", url, timeout=PATIENCE_SECONDS, limit=1 << 24)
        assert answer.status == 200, answer.text
        return json.loads(answer.body)["data"]

    async def query(self, text: str, *names: str) -> dict[tuple[str, ...], float]:
        """The values of a query now, by the values of these labels."""
        found = await self.ask("query", query=text)
        return {
            tuple(series["metric"].get(name, "") for name in names): float(series["value"][1])
            for series in found["result"]
        }

    async def samples(self, text: str, name: str) -> dict[str, list[tuple[float, float]]]:
        """The samples of a query for a range of time, each with its time, by the value of a label."""
        found = await self.ask("query", query=text)
        return {
            series["metric"].get(name, ""): [(float(at), float(value)) for at, value in series["values"]]
            for series in found["result"]
        }

    async def until(
        self, good: Callable[[dict[tuple[str, ...], float]], object], text: str, *names: str
    ) -> Any:
        """The values of a query as soon as they are good."""
        values: dict[tuple[str, ...], float] = {}
        with trio.move_on_after(PATIENCE_SECONDS):
            while not good(values):
                await trio.sleep(LOOK_SECONDS)
                values = await self.query(text, *names)
            return values
        errors = {
            target["scrapeUrl"]: target["lastError"]
            for target in (await self.ask("targets"))["activeTargets"]
        }
        raise AssertionError(f"{text} is {values}; targets: {errors}")


@asynccontextmanager
async def prometheus(
    folder: Path, port: int, config: Mapping[str, Any], host: str = "127.0.0.1"
) -> AsyncIterator[Prometheus]:
    """Run it with this configuration and its data in ``folder``, in the network of the calling thread."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yml").write_text(json.dumps(config))
    words = [
        PROGRAM,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={host}:{port}",
    ]
    server = Prometheus(f"http://{host}:{port}")
    process = Process(words, folder / "prometheus.log", lambda: True)
    process.start(wait=False)  # not by Trio, whose threads may be in another network
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            while not await _is_ready(server):
                process.wait_ready()  # raises if it has ended
                await trio.sleep(LOOK_SECONDS)
        yield server
    finally:
        process.kill()


async def _is_ready(server: Prometheus) -> bool:
    try:
        return (await request("GET", f"{server.url}/-/ready", timeout=PATIENCE_SECONDS)).status == 200
    except TransferError:
        return False
