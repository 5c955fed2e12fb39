"""Maintenance by people: what registries are told, and what people are answered at the status port."""

import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone.errors import TransferError
from pidone.http.message import Request, Response
from pidone.maintenance import ANNOTATION, LOCAL
from pidone.pod import local
from pidone.pod.local import MAINTENANCE_SECONDS
from tests.actions.test_register import Bench, bench

__all__ = ["bench"]


async def ask(bench: Bench, method: str, path: str = "/maintenance") -> Response:
    """Send a request to the status port of a program with the engine of this bench."""

    class Program:
        engine, maintenance, journal = bench.engine, bench.maintenance, bench.journal

    return await local.answer(Program(), Request(method, path, {}, b"", "127.0.0.1"))  # type: ignore[arg-type]


def document(answer: Response) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(answer.body)
    return value


def registrations(status: str, error: str = "") -> dict[str, Any]:
    return {"web": {"http://registry/": {"status": status, "error": error}}}


async def registered(bench: Bench, *, period: int = 1000) -> None:
    bench.apply(period=period)
    await bench.when(lambda: bench.state("web") == "registered")
    bench.forget_calls()


async def test_in_a_maintenance_the_instance_is_out_of_service_whatever_its_health(
    bench: Bench, autojump_clock: MockClock
) -> None:
    await registered(bench, period=10)
    bench.maintenance.set(LOCAL, on=True)
    await trio.sleep(1)
    assert bench.registry.calls == ["OUT_OF_SERVICE"]
    bench.ready.say("unhealthy")
    await trio.sleep(30)
    assert set(bench.registry.calls[1:]) == {"heartbeat"}, "the lease goes on"
    bench.registry.known = False
    bench.forget_calls()
    await bench.when(lambda: len(bench.registry.calls) == 2)
    assert bench.registry.calls == ["heartbeat", "OUT_OF_SERVICE"]
    bench.forget_calls()
    bench.maintenance.set(LOCAL, on=False)
    await trio.sleep(1)
    assert bench.registry.calls == ["DOWN"], "the health of then"
    bench.ready.say("healthy")
    await trio.sleep(1)
    assert bench.registry.calls[-1] == "UP"


async def test_both_sources_have_to_end(bench: Bench, autojump_clock: MockClock) -> None:
    await registered(bench)
    for source, on in ((LOCAL, True), (ANNOTATION, True), (LOCAL, False), (LOCAL, False)):
        bench.maintenance.set(source, on=on)
        await trio.sleep(1)
        assert bench.maintenance.on
    assert bench.registry.calls == ["OUT_OF_SERVICE"]
    bench.maintenance.set(ANNOTATION, on=False)
    await trio.sleep(1)
    assert bench.registry.calls == ["OUT_OF_SERVICE", "UP"]


async def test_a_pod_that_starts_in_a_maintenance_is_never_up(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.maintenance.set(ANNOTATION, on=True)
    bench.apply()
    await trio.sleep(30)
    assert bench.registry.calls[0] == "OUT_OF_SERVICE"
    assert set(bench.registry.calls[1:]) == {"heartbeat"}
    await bench.engine.drain(8)
    assert bench.registry.calls[-1] == "deregister"


async def test_a_changed_registration_stays_out_of_service(bench: Bench, autojump_clock: MockClock) -> None:
    await registered(bench)
    bench.maintenance.set(LOCAL, on=True)
    await trio.sleep(1)
    bench.forget_calls()
    bench.apply(stop=3)
    await trio.sleep(1)
    assert bench.registry.calls == ["OUT_OF_SERVICE"]
    bench.maintenance.set(LOCAL, on=False)
    await trio.sleep(1)
    assert bench.registry.calls == ["OUT_OF_SERVICE", "UP"]


async def test_people_are_answered_when_the_registry_has_taken_it(
    bench: Bench, autojump_clock: MockClock
) -> None:
    await registered(bench)
    bench.registry.takes = 3
    began = trio.current_time()
    for method, status in (("POST", "OUT_OF_SERVICE"), ("DELETE", "UP")):
        for _ in range(2):
            answer = await ask(bench, method)
            assert answer.status == 200
            on = method == "POST"
            assert document(answer) == {
                "maintenance": on,
                "by": [LOCAL] if on else [],
                "done": True,
                "registrations": registrations(status),
            }
            assert document(await ask(bench, "GET")) == document(answer)
    assert trio.current_time() - began >= 6
    assert [call for call in bench.registry.calls if call != "heartbeat"] == ["OUT_OF_SERVICE", "UP"]


async def test_people_are_told_which_registry_has_not_taken_it(
    bench: Bench, autojump_clock: MockClock
) -> None:
    await registered(bench)
    bench.registry.trouble["register"] = TransferError("PUT: Connection refused")
    began = trio.current_time()
    answer = await ask(bench, "POST")
    assert trio.current_time() - began == pytest.approx(MAINTENANCE_SECONDS)
    assert answer.status == 202
    assert document(answer)["registrations"] == registrations("UP", "PUT: Connection refused")
    assert (await ask(bench, "GET")).status == 200
    bench.registry.trouble.clear()
    await trio.sleep(bench.registry.interval)
    assert document(await ask(bench, "GET"))["registrations"] == registrations("OUT_OF_SERVICE")


async def test_people_are_told_at_once_that_somebody_else_has_overridden_the_status(
    bench: Bench, autojump_clock: MockClock
) -> None:
    await registered(bench)
    bench.registry.shown = "DOWN"
    began = trio.current_time()
    answer = await ask(bench, "POST")
    assert (answer.status, trio.current_time()) == (202, began)
    told = document(answer)["registrations"]["web"]["http://registry/"]
    assert told["status"] == "DOWN"
    assert "operator" in told["error"]


async def test_without_a_registration_nothing_has_to_take_it(bench: Bench, autojump_clock: MockClock) -> None:
    bench.ready.say("unhealthy")
    bench.apply()
    await wait_all_tasks_blocked()
    answer = await ask(bench, "POST")
    assert (answer.status, document(answer)["registrations"]) == (200, {"web": {}})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/drain"),
        ("DELETE", "/drain"),
        ("PUT", "/drain"),
        ("PUT", "/maintenance"),
        ("POST", "/status"),
        ("POST", "/"),
        ("POST", "/maintenance/"),
        ("GET", "/drain/maintenance"),
    ],
)
async def test_no_other_request_changes_anything(method: str, path: str, bench: Bench) -> None:
    assert (await ask(bench, method, path)).status in {404, 405}
    assert not bench.maintenance.on
    assert not bench.engine.ending
