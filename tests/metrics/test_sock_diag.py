import errno
import socket
from collections.abc import Callable, Iterator

import pytest
import trio

from pidone.metrics import sock_diag
from pidone.metrics.sock_diag import CLOSE_WAIT, ESTABLISHED, FIN_WAIT2, LISTEN, TIME_WAIT, Socket, sockets
from tests.patience import PATIENCE_SECONDS


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    try:
        with socket.create_server((request.param, 0), family=family, backlog=7) as server:
            yield server
    except OSError:
        pytest.skip("no IPv6 on this machine: sysctl net.ipv6.conf.lo.disable_ipv6=0")


def find(address: tuple[str, int], *states: int, info: bool = False) -> list[Socket]:
    """Return the sockets with this address, in these states or in any."""
    return [
        each
        for piece in sockets(states or sock_diag.STATES, info=info)
        for each in piece
        if each.local == address
    ]


async def wait_until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while not condition():
            await trio.sleep(0.01)


async def test_a_listener_shows_its_queue_and_no_other_state_is_sent(listener: socket.socket) -> None:
    address = listener.getsockname()[:2]
    (found,) = find(address, LISTEN, info=True)
    assert (found.state, found.receive_queue, found.send_queue) == (LISTEN, 0, 7)
    with socket.create_connection(address), socket.create_connection(address):
        await wait_until(lambda: find(address, LISTEN)[0].receive_queue == 2)
        assert {each.state for piece in sockets([LISTEN]) for each in piece} == {LISTEN}


async def test_a_connection_has_both_ends_and_the_ages_of_its_data(listener: socket.socket) -> None:
    address = listener.getsockname()[:2]
    with socket.create_connection(address) as client, listener.accept()[0]:
        client.send(b"hello")
        await wait_until(lambda: find(address, ESTABLISHED)[0].receive_queue == 5)
        (theirs,) = find(address, ESTABLISHED, info=True)
        # another test's connection may have the same port, to another address
        (ours,) = [
            each for each in find(client.getsockname()[:2], ESTABLISHED, info=True) if each.remote == address
        ]
    assert theirs.remote == ours.local
    assert ours.inode
    assert ours.sent_ms is not None
    assert theirs.received_ms is not None
    assert max(ours.sent_ms, theirs.received_ms) <= PATIENCE_SECONDS * 1000


def test_ages_come_only_if_they_are_requested(listener: socket.socket) -> None:
    with socket.create_connection(listener.getsockname()[:2]) as client:
        found = find(client.getsockname()[:2], ESTABLISHED)
    assert {(each.sent_ms, each.received_ms) for each in found} == {(None, None)}


async def test_closed_sockets_are_told_from_those_of_processes(listener: socket.socket) -> None:
    address = listener.getsockname()[:2]
    client = socket.create_connection(address)
    server = listener.accept()[0]
    local = client.getsockname()[:2]
    client.shutdown(socket.SHUT_WR)
    await wait_until(lambda: find(local, FIN_WAIT2))
    assert [each.state for each in find(address, ESTABLISHED, CLOSE_WAIT)] == [CLOSE_WAIT]

    def closed(state: int) -> int:
        return sum(gone for piece in sock_diag.pieces([state]) for _, gone in sock_diag.counts(piece))

    server.close()
    client.close()
    await wait_until(lambda: find(local, TIME_WAIT))
    assert closed(TIME_WAIT) >= 1
    assert closed(LISTEN) == 0


def test_many_sockets_come_in_several_pieces(listener: socket.socket) -> None:
    address = listener.getsockname()[:2]
    listener.listen(700)
    clients = [socket.create_connection(address) for _ in range(350)]
    try:
        sizes = [len(piece) for piece in sockets([ESTABLISHED]) if piece]
        assert len(find(address, ESTABLISHED)) == 350
        assert len(sizes) > 1
        assert max(sizes) < 700
    finally:
        for client in clients:
            client.close()


def test_an_error_of_the_kernel_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sock_diag, "_TCPDIAG_GETSOCK", 99)
    with pytest.raises(OSError, match="sock_diag") as caught:
        list(sock_diag.pieces([LISTEN]))
    assert caught.value.errno == errno.EINVAL
