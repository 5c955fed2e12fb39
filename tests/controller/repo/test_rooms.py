"""Who has room at the repo; a flood over real sockets."""

from contextlib import AsyncExitStack, suppress
from ipaddress import ip_network

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pidone.http.admission import Assign
from pidone_controller.pods.inventory import Inventory
from pidone_controller.repo import listeners
from pidone_controller.repo.rooms import STRANGER_CONNECTIONS, Rooms, assign
from tests.controller.factories import pod
from tests.controller.repo.requests import CHECKED, repo_of
from tests.patience import PATIENCE_SECONDS

ROOMS = Rooms.of(20_000, secure=False)


@pytest.mark.parametrize(
    ("address", "room", "group"),
    [
        ("10.1.0.2", ROOMS.pods, "10.1.0.2"),
        ("::ffff:10.1.0.2", ROOMS.pods, "10.1.0.2"),
        ("fd00:1::2", ROOMS.pods, "fd00:1::2"),  # known pods are told apart within their node's /64
        ("10.0.0.1", ROOMS.nodes, "10.0.0.1"),
        ("::1", ROOMS.nodes, "::1"),
        ("127.0.0.1", ROOMS.nodes, "127.0.0.1"),
        ("10.9.9.7", ROOMS.nodes, "10.9.9.7"),
        ("10.1.0.9", ROOMS.strangers, "10.1.0.9"),
        ("fd00:1::9", ROOMS.strangers, "fd00:1::/64"),
        ("fe80::9%eth0", ROOMS.strangers, "fe80::/64"),
    ],
)
def test_each_kind_of_client_has_a_room_of_its_own(address: str, room: object, group: str) -> None:
    inventory = Inventory([pod("web", ips=["10.1.0.2", "fd00:1::2"])])
    assert assign(inventory, [ip_network("10.9.9.0/24")], ROOMS)(address) == (room, group)


@pytest.mark.parametrize("connections", [1, 2, 7, 100, 1000, 25_000])
def test_the_rooms_together_have_the_connections_that_the_open_files_allow(connections: int) -> None:
    for secure in (False, True):
        rooms = Rooms.of(connections, secure=secure)
        total = sum(room.connections for room in (rooms.pods, rooms.nodes, rooms.strangers))
        assert total <= max(3, connections)


SILENT = b""
ENDLESS = b"GET /v1/bundle HTTP/1.1\r\nX: "
BODY = b"POST /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
AHEAD = b"GET /v1/doorbell HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(60_000)
HELD = b"GET /v1/doorbell HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("sent", [SILENT, ENDLESS, BODY, HELD, AHEAD])
@pytest.mark.parametrize("sources", ["127.9.0.1", "127.9.0.{}", "127.0.0.1"])
async def test_a_flood_of_strangers_keeps_nobody_out(
    sent: bytes, sources: str, nursery: trio.Nursery
) -> None:
    repo = repo_of(pod(labels=CHECKED))
    plain = await trio.open_tcp_listeners(0, host="127.0.0.1")

    def bounds(connections: int, *, secure: bool) -> Assign:
        return repo.bounds(min(200, connections), secure=secure)  # a quarter for strangers

    await nursery.start(lambda task_status: listeners.serve(
        repo.begin, plain, max_body=9, bounds=bounds, refuse=repo.refuse, task_status=task_status
    ))  # fmt: skip
    port = plain[0].socket.getsockname()[1]

    async def ask(path: str, source: str) -> bytes:
        async with await trio.open_tcp_stream("127.0.0.1", port, local_address=source) as stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            with trio.fail_after(PATIENCE_SECONDS):
                return bytes(await stream.receive_some(12))

    async with AsyncExitStack() as stack:
        for number in range(4 * STRANGER_CONNECTIONS):
            source = sources.format(number % 40)
            stream = await trio.open_tcp_stream("127.0.0.1", port, local_address=source)
            await stack.enter_async_context(stream)
            with suppress(trio.BrokenResourceError):
                await stream.send_all(sent)
        for _ in range(STRANGER_CONNECTIONS // 4):
            for path, source in {
                "/livez": "127.0.0.1",
                "/readyz": "127.7.0.1",  # a kubelet may have any address
                "/v1/bundle": "127.0.0.2",  # the pod
                "/metrics": "127.9.0.1",  # the flood's own address
            }.items():
                assert await ask(path, source) == b"HTTP/1.1 200"
        await wait_all_tasks_blocked()
    nursery.cancel_scope.cancel()


async def test_a_stranger_is_answered_on_the_head_of_its_request(nursery: trio.Nursery) -> None:
    repo = repo_of(pod(labels=CHECKED))
    plain = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(lambda task_status: listeners.serve(
        repo.begin, plain, max_body=65536, bounds=repo.bounds, refuse=repo.refuse, task_status=task_status
    ))  # fmt: skip
    port = plain[0].socket.getsockname()[1]
    for path in ("/v1/status", "/v1/bundle", "/v9"):
        async with await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.9") as stream:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 65536\r\n\r\n"
            await stream.send_all(head.encode())
            with trio.fail_after(PATIENCE_SECONDS):
                answer = bytes(await stream.receive_some())
            assert answer.startswith(b"HTTP/1.1 40")
    nursery.cancel_scope.cancel()
