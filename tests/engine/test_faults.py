"""A real process 1 whose tasks do all that a task must not, while plans, orphans and the clock give it no rest.

The faults of the program itself are
those of ``tests/pod/test_faults.py``.
"""

import random
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from pidone import actions
from pidone.http.client import request
from pidone.http.message import Request, Response
from tests import pidns
from tests.eureka.fake import FakeEureka
from tests.http.serving import http_server
from tests.patience import ENDURANCE, PATIENCE_SECONDS
from tests.pod.test_pod import ADDRESS, Repo

FAULTS = 30 * ENDURANCE
JUMPS = 3 * ENDURANCE  # of the clock
STEADY = 5 * ENDURANCE  # probes
PLAN_SECONDS = 0.05  # between two plans
ORPHANS = 25  # in each of these pauses
NAMES = re.compile("fault[0-9a-f]{10}")


class World:
    """The application, the registry and the monitoring systems; ``hits`` counts by path."""

    def __init__(self) -> None:
        self.eureka = FakeEureka()
        self.hits: Counter[str] = Counter()

    async def handle(self, asked: Request) -> Response:
        self.hits[asked.path.partition("/")[2].partition("/")[0]] += 1
        if asked.path.startswith("/eureka/"):
            return Response(*self.eureka.handle(asked.method, asked.target, asked.body, time.time()))
        return Response(200)


def plan(chosen: random.Random, url: str, metrics: int) -> list[dict[str, Any]]:
    """``steady`` is in all of them, the others in most, and some of these are changed."""
    port = int(url.rpartition(":")[2])
    often: dict[str, Any] = {"every": 1, "timeout": 3, "backoff": {"max": 2}}
    always: dict[str, Any] = {"timeout": 4, "backoff": {"max": 2}}

    def get(path: str) -> dict[str, Any]:
        return {"httpGet": {"host": "127.0.0.1", "port": port, "path": path}, "periodSeconds": 1}

    say = {"command": ["/bin/sh", "-c", "echo said; sleep 0.05"]}
    eureka = {"url": f"{url}/eureka", "app": "web", "port": port, "renewalInterval": 1}
    tasks: list[dict[str, Any]] = [
        {"name": "ready", "probe": get("/ready"), **always},
        {"name": "registration", "register": {"eureka": eureka}, **always},
        {"name": "beat", "heartbeat": {"of": "registration"}, "needs": ["registration.registered"], **often},
        {"name": "page", "metrics": {"port": metrics}, **always},
        *({"name": f"say-{number}", "exec": say, **often} for number in range(3)),
        *({"name": f"check-{number}", "probe": get("/check"), "timeout": 2} for number in range(5)),
        {"name": "long", "exec": {"command": ["/bin/sleep", "2"]}, "while": ["ready.healthy"], **always},
        {"name": "hook", "report": {"webhook": {"url": f"{url}/hook"}}, **always},
        {"name": "push", "report": {"pushgateway": {"url": f"{url}/push"}}, **always},
        {"name": "bye", "exec": {"command": ["/bin/true"]}, "runOn": ["pod.terminating", "ready.unhealthy"]},
    ]
    kept = [task for task in tasks if task["name"] in {"ready", "registration"} or chosen.random() < 0.9]
    for task in kept:
        if chosen.random() < 0.02:
            task["stopTimeout"] = chosen.randrange(1, 4)
    return [{"name": "steady", "probe": get("/steady")}, *kept]


def faults(record: Path) -> dict[str, str]:
    """Number and kind of all so far."""
    pairs = [line.split() for line in record.read_text().splitlines()]
    return {number: what for what, number in pairs if number != "jump"}


def enough(record: Path, world: World) -> bool:
    """Whether all that is to happen has happened often enough; in a long run, to every action."""
    kinds = faults(record).values()
    parts = {what.partition(".")[0] for what in kinds}
    return (
        len(kinds) >= FAULTS
        and record.read_text().count(" jump") >= JUMPS
        and world.hits["steady"] >= STEADY
        and (ENDURANCE < 4 or parts == {*actions.names(), "build"})
    )


@pytest.mark.pidns
async def test_whatever_its_tasks_do_process_one_stays_and_tells_each_fault_once(
    nursery: trio.Nursery, tmp_path: Path, free_port: Any
) -> None:
    repo, world, record = Repo(), World(), tmp_path / "faults"
    record.touch()
    calm = Path(f"{record}.calm")
    calm.touch()  # a first plan that is refused would leave nothing to wait for
    url = f"http://127.0.0.1:{await http_server(nursery, world.handle, connections=40, body=1 << 17)}"
    port, page = free_port(), free_port()
    env = {
        "PIDONE_REPO": f"http://127.0.0.1:{await http_server(nursery, repo.handle, body=1 << 17)}",
        "PIDONE_POD_IP": ADDRESS,
        "PIDONE_POD_UID": "u",
        "PIDONE_DOZE": "/nowhere",
        "PIDONE_PROGRAMS": "/",
        "PIDONE_STATUS_PORT": str(port),
    }
    program = [sys.executable, str(Path(__file__).with_name("faulty.py")), str(record)]
    chosen, made, plans, looks, slowest = random.Random(9), 0, 0, 0, 0.0
    with (
        (tmp_path / "log").open("wb") as output,
        pidns.process_one(program, env=env, output=output) as process,
    ):
        began = due = trio.current_time()
        over = trio.Event()

        async def orphans() -> None:
            nonlocal made
            due = trio.current_time()
            while not over.is_set():
                await trio.to_thread.run_sync(process.make_orphans, ORPHANS)
                made, due = made + ORPHANS, max(due + PLAN_SECONDS, trio.current_time() - 1)
                await trio.sleep_until(due)

        async def look() -> None:
            """/status is answered all the while."""
            nonlocal looks, slowest
            while not over.is_set():
                asked = trio.current_time()
                answer = await request("GET", f"http://{ADDRESS}:{port}/status", timeout=PATIENCE_SECONDS)
                assert answer.status == 200
                looks, slowest = looks + 1, max(slowest, trio.current_time() - asked)
                await trio.sleep(0.5)

        repo.put(plan(chosen, url, page))
        await repo.report(lambda report: report["tasks"].get("steady", {}).get("state") == "healthy")
        calm.unlink()
        async with trio.open_nursery() as busy:
            busy.start_soon(orphans)
            busy.start_soon(look)
            with trio.fail_after(FAULTS * PATIENCE_SECONDS):
                while not enough(record, world):
                    for _ in range(20):
                        due = max(due + PLAN_SECONDS, trio.current_time())
                        await trio.sleep_until(due)
                        repo.put(plan(chosen, url, page))
                        plans += 1
                        assert process.same()
            over.set()
        took = trio.current_time() - began

        calm.touch()
        last = plan(chosen, url, page)
        repo.put(last)
        told: Counter[str] = Counter()
        with trio.move_on_after(5 * PATIENCE_SECONDS):
            while missing := faults(record).keys() - told.keys() or len(repo.reports[-1]["tasks"]) != len(
                last
            ):
                lines = [line for report in repo.reports for line in report["logs"]]
                told = Counter(number for line in lines for number in set(NAMES.findall(line)))
                await trio.sleep(0.2)
        assert not missing, (tmp_path / "log").read_text()[-3000:]
        report = await repo.report(lambda report: report["tasks"]["steady"]["state"] == "healthy")
        memory = psutil.Process(process.pid).memory_full_info().uss
        assert process.same()
        with trio.fail_after(PATIENCE_SECONDS):
            while process.zombies():
                await trio.sleep(0.02)  # another process's state has no event
        # one program all the time: none of it reached the engine, whose end would have begun another
        assert {(report["boot"], report["after"]) for report in repo.reports} == {(report["boot"], "")}
        assert report["tasks"]["steady"]["runs"] == 1
        assert report["tasks"]["steady"]["failures"] == 0
        process.signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(process.wait, PATIENCE_SECONDS) == 0
        assert repo.reports[-1]["reaped"] >= made
    found = Counter(faults(record).values())
    jumps = record.read_text().count(" jump")
    stalls = sum("event=stalled" in line for line in lines)
    by_deed = Counter(what.partition(":")[2] or what for what in found.elements())
    by_place = Counter(what.partition(":")[0] for what in found.elements())
    print(
        f"\n{took:.0f} s: {sum(found.values())} faults {dict(by_deed)} {dict(by_place)}, {plans} plans of which "
        f"{sum('event=plan ' in line for line in lines)} were applied, {made} orphans, {jumps} jumps of the clock, "
        f"{stalls} stalls told, {world.hits['steady']} steady probes, {looks} looks (the slowest took "
        f"{slowest:.1f} s), {memory >> 10} KiB at the end"
    )
    assert {number: count for number, count in told.items() if count != 1} == {}
    assert not any("event=lines-lost" in line for line in lines)
    gone = world.eureka.handle("GET", "/eureka/apps/WEB", b"", time.time())
    assert gone[0] == 404, "deregistered at the end"
    nursery.cancel_scope.cancel()
