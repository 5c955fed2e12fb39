"""Heartbeats of many instances by one process: the drivers of pidone beside the registry's own client.

As a program it is the process with the drivers. Its input is a line of JSON with the registry's name and the fields of
each instance; it registers them and answers with their identities. Each further line is a number of seconds, and is
answered with the heartbeats sent in that time and their cost. Clients answer the same lines, see their Bench or bench.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import unquote

import trio

from pidone import registries
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Registry, Status
from tests.registries.world import World, pod_ip

ROOT = Path(__file__).parents[2]
INSTANCES, IN_FLIGHT = 100, 10
LEASE_SECONDS = 30
REPEATS, TURN_SECONDS = 3, 1.0
WARM_UP_SECONDS = 3.0  # for compilers that compile what runs often
PIDONE = "pidone"
JAVA = ("java", "-XX:+UseSerialGC", "-Xmx256m")
CORE = max(os.sched_getaffinity(0))  # on which both run


@dataclass(frozen=True, slots=True)
class Turn:
    """What one process has sent in some seconds."""

    beats: int
    cpu: float  # seconds of processor time
    wall: float

    @property
    def rate(self) -> float:
        """Heartbeats for each second of processor time."""
        return self.beats / self.cpu


class Sender:
    """A process that sends heartbeats when it is told to. ``prefix`` begins each of its orders."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                ["taskset", "-c", str(CORE), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
            )
        self._log = log

    def ask(self, line: str) -> Any:
        """Return the answer to an order. Raises ``RuntimeError`` with the end of the log."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        for answer in self._process.stdout:  # a client may log between the answers
            if answer.startswith("= "):
                return json.loads(answer[2:])
        raise RuntimeError(f"it has ended: {self._log.read_text(errors='replace')[-600:]}")

    def send(self, seconds: float, way: str = "") -> Turn:
        return Turn(**self.ask(f"{way} {seconds}".strip()))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


@contextmanager
def sending(command: Sequence[str], log: Path) -> Iterator[Sender]:
    sender = Sender(command, log)
    try:
        yield sender
    finally:
        sender.close()


def _eureka(world: World, config: Mapping[str, Any], instances: Sequence[str]) -> list[str]:
    from tests.eureka.peers import BUILT, NO_CLIENT

    del world
    quiet = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
    quiet += [f"-Deureka.{name}={value}" for name, value in NO_CLIENT.items()]
    opens = [f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in ("lang", "util")]
    classes = ["-cp", f"{BUILT}/peers-1.jar:{BUILT}/lib/*", "dev.pidone.peers.Bench"]
    ids = [unquote(instance.rpartition("/")[2]) for instance in instances]
    url = str(config["url"]).partition(",")[0]
    return [*JAVA, *quiet, *opens, *classes, url, str(config["app"]).upper(), *ids]


def _consul(world: World, config: Mapping[str, Any], instances: Sequence[str]) -> list[str]:
    from tests.consul.reader import program

    checks = [f"service:{unquote(instance.rpartition('/')[2])}" for instance in instances]
    return [str(program()), "bench", world.addresses[0], str(config["token"]), *checks]


def _etcd(world: World, config: Mapping[str, Any], instances: Sequence[str]) -> list[str]:
    from tests.etcd.program import find

    user = [str(config.get("user", "")), str(config.get("password", ""))]
    return [str(find()), "bench", str(world.addresses[0]), *user, str(len(instances))]


def _zookeeper(world: World, config: Mapping[str, Any], instances: Sequence[str]) -> list[str]:
    from tests.zookeeper.real import BUILT

    del world
    user = f"{config['user']}:{config['password']}"
    classes = ["-cp", f"{BUILT}/zookeeper-1.jar:{BUILT}/lib/*", "dev.pidone.zookeeper.Bench"]
    return [*JAVA, *classes, str(config["servers"]), user, str(LEASE_SECONDS * 1000), *instances]


def _nacos(world: World, config: Mapping[str, Any], instances: Sequence[str]) -> list[str]:
    from tests.nacos.real import JAVA as MODULES

    logs = "-DJM.LOG.PATH=/tmp"
    classes = ["-cp", f"{MODULES}/reader/target/classes:{MODULES}/reader/target/lib/*"]
    user = [str(config["username"]), str(config["password"])]
    service = instances[0].split("/")[1]
    addresses = [instance.rpartition("/")[2] for instance in instances]
    return [
        *JAVA, logs, *classes, "dev.pidone.nacos.Bench", world.addresses[0], *user, service, *addresses,
    ]  # fmt: skip


Command = Callable[[World, Mapping[str, Any], Sequence[str]], list[str]]
# By registry: the command of its own client, and the ways in which it sends heartbeats, by name
CLIENTS: Mapping[str, tuple[Command, Mapping[str, str]]] = {
    "eureka": (_eureka, {"Netflix' Java client, sendHeartBeat": ""}),
    "consul": (_consul, {"Consul's Go client, UpdateTTL": ""}),
    "etcd": (
        _etcd,
        {"etcd's Go client, KeepAliveOnce": "once", "etcd's Go client, KeepAlive's stream": "stream"},
    ),
    "zookeeper": (_zookeeper, {"ZooKeeper's Java client, exists": ""}),
    "nacos": (_nacos, {"nacos-client 2.5.1, its HTTP part": ""}),
}


def measure(world: World, folder: Path) -> dict[str, list[Turn]]:
    """Return the turns of pidone and of each way of the registry's own client, which alternate."""
    configs = [
        world.config("heartbeats", number, world.addresses, LEASE_SECONDS) for number in range(INSTANCES)
    ]
    command, ways = CLIENTS[world.name]
    with ExitStack() as stack:
        log = folder / "heartbeats.log"
        ours = stack.enter_context(sending([sys.executable, "-m", __name__], log))
        instances = ours.ask(json.dumps({"name": world.name, "configs": configs}))
        client = stack.enter_context(sending(command(world, configs[0], instances), log))
        turns: dict[str, list[Turn]] = {PIDONE: [], **{words: [] for words in ways}}
        for repeat in range(REPEATS + 1):
            seconds = TURN_SECONDS if repeat else WARM_UP_SECONDS
            found = {PIDONE: ours.send(seconds)}
            found |= {words: client.send(seconds, way) for words, way in ways.items()}
            if repeat:
                for words, turn in found.items():
                    turns[words].append(turn)
        return turns


def lines(turns: Mapping[str, Sequence[Turn]]) -> Iterator[str]:
    """Return the figures for people: medians, and how many times as many a client sends."""
    ours = median(turn.rate for turn in turns[PIDONE])
    for words, repeats in turns.items():
        rates = sorted(turn.rate for turn in repeats)
        wall = median(turn.beats / turn.wall for turn in repeats)
        ratio = "" if words == PIDONE else f", {median(rates) / ours:.2f} times as many as pidone"
        yield (
            f"{words}: {median(rates):.0f} for a second of processor time "
            f"({rates[0]:.0f}-{rates[-1]:.0f}), {wall:.0f} for a second{ratio}"
        )


async def _serve() -> None:
    orders = _lines()
    first = json.loads(await anext(orders))
    drivers: list[Registry] = []
    for number, config in enumerate(first["configs"]):
        pod = Pod(f"web-{number}", "shop", f"uid-{number}", pod_ip(number))
        drivers.append(registries.build(Fields({first["name"]: config}, "register"), pod, None))
    limit = trio.CapacityLimiter(IN_FLIGHT)

    async def register(driver: Registry) -> None:
        async with limit:
            await driver.register(Status.UP)

    async with trio.open_nursery() as nursery:
        for driver in drivers:
            nursery.start_soon(register, driver)
    print("=", json.dumps([driver.instance for driver in drivers]), flush=True)
    async for line in orders:
        began, before, beats = time.monotonic(), time.process_time(), 0
        until = began + float(line)

        async def beat(some: Sequence[Registry], until: float = until) -> None:
            nonlocal beats
            at = 0
            while time.monotonic() < until:
                if not await some[at % len(some)].heartbeat():
                    raise RuntimeError("the registry does not have an instance")
                at += 1
                beats += 1

        async with trio.open_nursery() as nursery:
            for first_one in range(IN_FLIGHT):
                nursery.start_soon(beat, drivers[first_one::IN_FLIGHT])
        cost = {"cpu": time.process_time() - before, "wall": time.monotonic() - began}
        print("=", json.dumps({"beats": beats, **cost}), flush=True)


async def _lines() -> Any:
    received = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        async for part in stream:
            *whole, received = (received + part).split(b"\n")
            for line in whole:
                yield line


if __name__ == "__main__":
    trio.run(_serve)
