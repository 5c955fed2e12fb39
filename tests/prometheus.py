"""A real Prometheus, Debian's package, for tests."""

import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import trio

from pidone.errors import TransferError
from pidone.http.client import request
from tests.patience import PATIENCE_SECONDS

PROGRAM = "prometheus"
NEEDED = [
    pytest.mark.promtool,
    pytest.mark.skipif(not shutil.which(PROGRAM), reason="no prometheus: apt-get install prometheus"),
]
LOOK_SECONDS = 0.2  # between two looks: it tells nobody that it has scraped

Samples = dict[tuple[tuple[str, str], ...], float]


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
    folder: Path, port: int, config: Mapping[str, Any], prefix: Sequence[str] = (), host: str = "127.0.0.1"
) -> AsyncIterator[Prometheus]:
    """Run it with this configuration and its data in ``folder``. ``prefix``: a command that starts it elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yml").write_text(json.dumps(config))
    command = [
        PROGRAM,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={host}:{port}",
    ]
    server = Prometheus(f"http://{host}:{port}")
    with (folder / "log").open("wb") as log:
        process = await trio.lowlevel.open_process([*prefix, *command], stdout=log, stderr=subprocess.STDOUT)
        try:
            await _wait(server, process, folder / "log")
            yield server
        finally:
            process.kill()
            await process.wait()


async def _wait(server: Prometheus, process: trio.Process, log: Path) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while process.poll() is None:
            try:
                if (await request("GET", f"{server.url}/-/ready", timeout=PATIENCE_SECONDS)).status == 200:
                    return
            except TransferError:
                pass
            await trio.sleep(LOOK_SECONDS)
    raise AssertionError(log.read_text())
