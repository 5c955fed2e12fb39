import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pidone.actions import Setting, privileged
from pidone.actions.probe import Thresholds, build
from pidone.counters import Counters
from pidone.errors import Refused
from pidone.http.message import Request, Response
from pidone.http.server import serve
from pidone.pid1.reaper import Reaper
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from tests.actions.watcher import Watcher
from tests.http.serving import http_server, raw_server
from tests.http.test_grpc import HealthServer
from tests.patience import PATIENCE_SECONDS

SETTING = Setting(Pod("p", "n", "u", "127.0.0.1"), None, Reaper(), Counters(), lambda: ())


def states(answers: str, *, success: int, failure: int) -> list[str]:
    """The state after each answer, of which ``+`` is good and ``-`` is not."""
    thresholds = Thresholds(success, failure)
    return [thresholds.take(answer == "+") for answer in answers]


H, U = "healthy", "unhealthy"


@pytest.mark.parametrize(
    ("answers", "success", "failure", "expected"),
    [
        ("+", 1, 3, [H]),
        ("--+", 1, 3, ["", "", H]),
        ("---", 1, 3, ["", "", U]),
        ("+--+--", 1, 3, [H, H, H, H, H, H]),
        ("+---+", 1, 3, [H, H, H, U, H]),
        ("+-+-", 1, 1, [H, U, H, U]),
        ("-++-++", 2, 1, [U, U, H, U, U, H]),
    ],
)
def test_as_many_answers_in_a_row_make_a_state_as_in_kubernetes(
    answers: str, success: int, failure: int, expected: list[str]
) -> None:
    assert states(answers, success=success, failure=failure) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "x: expected one of httpGet, tcpSocket, grpc, exec, not 0"),
        (
            {"httpGet": {"port": 1}, "tcpSocket": {"port": 1}},
            "x: expected one of httpGet, tcpSocket, grpc, exec, not 2",
        ),
        ({"httpGet": {}}, 'x.httpGet: "port" is missing; expected an integer'),
        ({"httpGet": {"port": 70000}}, "x.httpGet.port: expected 1 to 65535, not 70000"),
        ({"tcpSocket": {"port": 1}, "timeout": 3}, 'x: pidone 0.1.0 does not know "timeout"'),
        ({"httpGet": {"port": 1, "scheme": "FTP"}}, 'x.httpGet.scheme: expected HTTP or HTTPS, not "FTP"'),
    ],
)
def test_a_probe_that_is_not_understood_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused) as refused:
        build(Fields(config, "x"), SETTING)
    assert str(refused.value) == message


@pytest.mark.parametrize("status", [200, 302, 404, 500])
async def test_http_get_goes_by_the_status_alone(status: int, nursery: trio.Nursery) -> None:
    asked: list[Request] = []

    async def answer(request: Request) -> Response:
        asked.append(request)
        return Response(status, {}, b"x" * 3_000_000)  # a page of any size will do

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(
        lambda task_status: serve(answer, listeners, max_connections=9, task_status=task_status)
    )
    port = listeners[0].socket.getsockname()[1]
    probe = build(
        Fields(
            {
                "httpGet": {"path": "/up", "port": port, "httpHeaders": [{"name": "X-Who", "value": "me"}]},
                "failureThreshold": 1,
            },
            "x",
        ),
        SETTING,
    )
    watcher = Watcher()
    nursery.start_soon(probe.run, watcher)
    assert await watcher.next_state() == ("healthy" if status < 400 else "unhealthy")
    assert asked[0].target == "/up"
    assert asked[0].headers["x-who"] == "me"
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["httpGet", "tcpSocket"])
async def test_a_port_where_nobody_listens_is_unhealthy_until_somebody_does(
    kind: str, nursery: trio.Nursery, free_port: Callable[[], int]
) -> None:
    port = free_port()
    probe = build(Fields({kind: {"port": port}, "periodSeconds": 1, "failureThreshold": 1}, "x"), SETTING)
    watcher = Watcher()
    nursery.start_soon(probe.run, watcher)
    assert await watcher.next_state() == "unhealthy"
    assert "Connection refused" in watcher.reasons[0]

    async def answer(request: Request) -> Response:
        return Response(200)

    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    await nursery.start(
        lambda task_status: serve(answer, listeners, max_connections=9, task_status=task_status)
    )
    assert await watcher.next_state() == "healthy"
    nursery.cancel_scope.cancel()


async def test_an_application_that_accepts_and_says_nothing_is_unhealthy(nursery: trio.Nursery) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        probe = build(Fields({"httpGet": {"port": port}, "failureThreshold": 1}, "x"), SETTING)
        watcher = Watcher()
        nursery.start_soon(probe.run, watcher)
        assert await watcher.next_state() == "unhealthy"
        assert "no answer within 1 s" in watcher.reasons[0]
        nursery.cancel_scope.cancel()


async def test_a_command_is_a_probe(nursery: trio.Nursery) -> None:
    reaper = Reaper()
    await nursery.start(reaper.run)
    given = replace(SETTING, reaper=reaper, programs="/")
    script = "import os, sys; sys.exit('not yet' if not os.path.exists('/proc/self') else 0)"
    for command, expected in (
        ([sys.executable, "-S", "-c", script], "healthy"),
        (["/bin/false"], "unhealthy"),
        (["/no/such"], "unhealthy"),
        (["/bin/sleep", "60"], "unhealthy"),
    ):
        config = {"exec": {"command": command}, "failureThreshold": 1}
        probe, watcher = build(Fields(config, "x"), given), Watcher()
        async with trio.open_nursery() as inner:
            inner.start_soon(probe.run, watcher)
            assert await watcher.next_state() == expected
            inner.cancel_scope.cancel()
    assert watcher.reasons == ["/bin/sleep: not done within 1 s"]
    nursery.cancel_scope.cancel()


def test_a_probe_with_a_command_is_privileged_and_keeps_to_the_folder_of_programs() -> None:
    assert privileged("probe", {"exec": {"command": ["/opt/pidone/x"]}})
    assert not privileged("probe", {"httpGet": {"port": 1}})
    assert privileged("exec")
    with pytest.raises(Refused, match="is not in /opt/pidone/"):
        build(Fields({"exec": {"command": ["/bin/true"]}}, "x"), SETTING)


async def test_grpc_asks_for_the_health_service(nursery: trio.Nursery) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(trio.serve_listeners, HealthServer(b"\x08\x02").serve, listeners)
    port = listeners[0].socket.getsockname()[1]
    probe, watcher = build(Fields({"grpc": {"port": port}, "failureThreshold": 1}, "x"), SETTING), Watcher()
    nursery.start_soon(probe.run, watcher)
    assert await watcher.next_state() == "unhealthy"
    assert watcher.reasons == [f"grpc 127.0.0.1:{port}: answered NOT_SERVING"]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("start", "late"), [(0.9, 0.25), (7.1, 0.25), (20.0, 1.0), (62.0, 2.0)])
async def test_an_application_that_starts_is_found_soon_after_it_answers(
    start: float, late: float, autojump_clock: MockClock
) -> None:
    config = {"tcpSocket": {"port": 1}, "periodSeconds": 10, "failureThreshold": 2}
    probe, watcher = build(Fields(config, "x"), SETTING), Watcher()
    began, asked = trio.current_time(), []

    async def ask(context: object) -> str:
        asked.append(trio.current_time() - began)
        return "" if asked[-1] >= start else "not yet"

    probe.ask = ask
    with trio.move_on_after(start + 60):
        await probe.run(watcher)
    assert next(time for time in asked if time >= start) - start <= late
    assert [round(last - first, 6) for first, last in pairwise(asked) if first >= start] == [10.0] * 5
    # what it says of failures is what it would say if it asked at each period alone
    assert watcher.states == [*(["unhealthy"] if start > 10 else []), "healthy"]


async def test_a_command_is_run_once_a_period(autojump_clock: MockClock) -> None:
    probe = build(Fields({"exec": {"command": ["/bin/no"]}}, "x"), replace(SETTING, programs="/"))
    times = []

    async def ask(context: object) -> str:
        times.append(trio.current_time())
        return "no"

    probe.ask = ask
    with trio.move_on_after(45):
        await probe.run(Watcher())
    assert [last - first for first, last in pairwise(times)] == [10.0] * 4


async def verdict(config: dict[str, Any], ip: str = "127.0.0.1") -> str:
    """Return why one request of the probe fails, or an empty string."""
    setting = replace(SETTING, pod=replace(SETTING.pod, ip=ip))
    return await build(Fields(config, "x"), setting).ask(Watcher())


@pytest.mark.parametrize(
    ("location", "failure"),
    [
        ("/end", ""),
        ("/missing", "answered 404"),
        ("/loop", "more than 10 redirects"),
        ("http://other.example/", ""),
        ("/a b", ""),
        ("http://[::1/", "no host or user"),
    ],
)
async def test_redirects_on_the_host_are_followed(location: str, failure: str, nursery: trio.Nursery) -> None:
    async def answer(request: Request) -> Response:
        if request.path == "/":
            return Response(302, {"location": location})
        return Response({"/missing": 404, "/loop": 307}.get(request.path, 200), {"location": "/loop"})

    port = await http_server(nursery, answer)
    why = await verdict({"httpGet": {"port": port}})
    assert (failure in why) if failure else not why
    nursery.cancel_scope.cancel()


async def test_a_big_head_in_segments_and_a_body_are_read(nursery: trio.Nursery) -> None:
    received: list[bytes] = []

    async def talk(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n")
        for number in range(40):
            await stream.send_all(b"X-%d: %s\r\n" % (number, b"x" * 1000))
            await trio.sleep(0.001)  # so that it comes in segments
        await stream.send_all(b"Content-Length: 9000\r\n\r\n" + b"x" * 9000)
        received.append(await stream.receive_some())  # not a reset, as nothing was left unread

    port = await raw_server(nursery, talk)
    assert await verdict({"httpGet": {"port": port}, "timeoutSeconds": 60}) == ""
    with trio.fail_after(PATIENCE_SECONDS):
        while not received:
            await trio.sleep(0.001)
    assert received == [b""]
    nursery.cancel_scope.cancel()


async def test_the_request_is_the_kubelet_s(nursery: trio.Nursery) -> None:
    heads: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        heads.append(bytes(await stream.receive_some()))
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        await stream.aclose()

    listeners = await trio.open_tcp_listeners(0, host="::1")
    await nursery.start(trio.serve_listeners, serve, listeners)
    port = listeners[0].socket.getsockname()[1]
    pairs = [("host", "first"), ("Host", "second"), ("b", ""), ("a", "1"), ("A", " 2 "), ("accept", "")]
    headers = [{"name": name, "value": value} for name, value in pairs]
    config = {"httpGet": {"port": port, "path": "/a b?c d", "httpHeaders": headers}, "timeoutSeconds": 0}
    assert await verdict(config, "::1") == ""
    agent = b"User-Agent: kube-probe/0.1.0 (pidone)"
    lines = [
        b"GET /a%20b?c d HTTP/1.1",
        b"Host: first",
        agent,
        b"A: 1",
        b"A: 2",
        b"B: ",
        b"Connection: close",
    ]
    assert heads == [b"\r\n".join([*lines, b"", b""])]
    assert await verdict({"httpGet": {"port": port}}, "::1") == ""
    assert f"Host: [::1]:{port}".encode() in heads[1]
    nursery.cancel_scope.cancel()


async def test_a_body_that_breaks_off_is_requested_three_times(nursery: trio.Nursery) -> None:
    requests = 0

    async def talk(stream: trio.SocketStream) -> None:
        nonlocal requests
        requests += 1
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx")
        await stream.aclose()

    port = await raw_server(nursery, talk)
    assert "ended before the answer did" in await verdict({"httpGet": {"port": port}})
    assert requests == 3
    nursery.cancel_scope.cancel()


async def test_the_authority_of_an_ipv6_address_has_brackets(nursery: trio.Nursery) -> None:
    server = HealthServer(b"\x08\x01")
    listeners = await trio.open_tcp_listeners(0, host="::1")
    await nursery.start(trio.serve_listeners, server.serve, listeners)
    port = listeners[0].socket.getsockname()[1]
    assert await verdict({"grpc": {"port": port}}, "::1") == ""
    assert server.headers[b":authority"] == f"[::1]:{port}".encode()
    nursery.cancel_scope.cancel()
