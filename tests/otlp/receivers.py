"""The receivers as processes, from outside."""

import json
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from pidone.http.client import request
from tests.otlp import program
from tests.patience import PATIENCE_SECONDS

Json = dict[str, Any]


class Collector:
    """The collector's receiver. ``messages`` are the requests that it accepted, as it read them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.messages: list[Json] = []
        self._arrived = trio.Event()

    async def read(self, output: trio.abc.ReceiveStream, *, task_status: trio.TaskStatus[None]) -> None:
        """Read its output, of which the first line says that it listens."""
        rest = b""
        async for data in output:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line == b"listening":
                    task_status.started()
                else:
                    self.messages.append(json.loads(line))
            self._arrived.set()
            self._arrived = trio.Event()

    async def until(self, holds: Callable[[Json], bool], *, after: int = 0) -> Json:
        """Wait for a message, beside the first ``after`` ones, and return it."""
        seen = after
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                for message in self.messages[seen:]:
                    if holds(message):
                        return message
                seen = len(self.messages)
                await self._arrived.wait()


@asynccontextmanager
async def collector(port: int) -> AsyncIterator[Collector]:
    address = f"127.0.0.1:{port}"
    receiver = Collector(f"http://{address}")
    async with trio.open_nursery() as nursery:
        command = [program.find(), "collector", address]
        process = await nursery.start(partial(trio.run_process, command, check=False, stdout=subprocess.PIPE))
        with trio.fail_after(PATIENCE_SECONDS):
            await nursery.start(receiver.read, process.stdout)
        yield receiver
        nursery.cancel_scope.cancel()


class Prometheus:
    """Prometheus' receiver and its database. It scrapes nothing."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.otlp = f"{url}/api/v1/otlp"

    async def series(self, **labels: str) -> list[Json]:
        """Return the series with these labels, each with all its ``labels`` and its last ``value``."""
        answer = await request("GET", f"{self.url}/series", timeout=PATIENCE_SECONDS)
        assert answer.status == 200, answer.text
        return [one for one in json.loads(answer.body) if labels.items() <= one["labels"].items()]

    async def until(self, **labels: str) -> list[Json]:
        """Wait for series with these labels, and return them."""
        with trio.fail_after(PATIENCE_SECONDS):
            while not (series := await self.series(**labels)):
                await trio.sleep(0.1)  # it does not tell when it got something
        return series


@asynccontextmanager
async def prometheus(port: int, folder: Path) -> AsyncIterator[Prometheus]:
    address = f"127.0.0.1:{port}"
    command = [program.find(), "prometheus", address, folder / "data"]
    with (folder / "log").open("wb") as log:
        async with trio.open_nursery() as nursery:
            process = await nursery.start(
                partial(trio.run_process, command, check=False, stdout=subprocess.PIPE, stderr=log)
            )
            with trio.fail_after(PATIENCE_SECONDS):
                assert await process.stdout.receive_some() == b"listening\n", (folder / "log").read_text()
            yield Prometheus(f"http://{address}")
            nursery.cancel_scope.cancel()
