"""The question whether there is a plan, on sockets of this process."""

import _socket
import socket
from collections.abc import Callable

import pytest

from pidone.pid1 import ask


def test_a_name_with_several_addresses_is_asked_at_the_first_that_answers(
    monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def getaddrinfo(*_given: object) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
            stream = socket.SOCK_STREAM
            return [
                (socket.AF_INET6, stream, 6, "", ("::1", free_port(), 0, 0)),
                (socket.AF_INET, stream, 6, "", ("127.0.0.1", free_port())),
                (socket.AF_INET, stream, 6, "", ("127.0.0.1", port)),
            ]

        monkeypatch.setattr(_socket, "getaddrinfo", getaddrinfo)
        bell = ask._connect("repo.example", port)
        assert bell.getpeername() == ("127.0.0.1", port)
        bell.close()


def test_a_name_without_an_address_that_answers_is_an_error(free_port: Callable[[], int]) -> None:
    with pytest.raises(OSError, match="refused"):
        ask._connect("127.0.0.1", free_port())


@pytest.mark.parametrize(
    ("host", "expected"),
    [("fd00::27", b"[fd00::27]:6060"), ("10.0.0.5", b"10.0.0.5:6060"), ("repo", b"repo:6060")],
)
def test_the_host_header_has_the_port_and_the_brackets_of_an_address(host: str, expected: bytes) -> None:
    bell, repo = socket.socketpair()
    with bell, repo:
        repo.sendall(b"HTTP/1.1 303 See Other\r\n\r\n")
        ask._ask(bell, host, 6060)
        assert b"\r\nHost: " + expected + b"\r\n" in repo.recv(4096)
