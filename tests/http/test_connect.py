"""Names are looked up in threads of our own: few at once, abandoned on cancel, without anything else loaded."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from pidone.errors import ConnectError
from pidone.http.client import request
from pidone.http.connect import LOOKUPS, Lookups
from pidone.http.message import Request, Response
from tests.http.serving import http_server
from tests.patience import PATIENCE_SECONDS


class Resolver:
    """In place of the C library's: holds every lookup until told to answer."""

    def __init__(self, answer: threading.Event) -> None:
        self.answer = answer
        self.at_once = self.most = self.ended = 0
        self.full = threading.Event()
        self._lock = threading.Lock()

    def getaddrinfo(self, host: bytes | str, port: int, *rest: int) -> list[Any]:
        if rest and rest[-1] & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "no number")
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            if self.at_once == LOOKUPS:
                self.full.set()
        self.answer.wait(PATIENCE_SECONDS)
        with self._lock:
            self.at_once -= 1
            self.ended += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    found = Resolver(threading.Event())
    monkeypatch.setattr(socket, "getaddrinfo", found.getaddrinfo)
    yield found
    found.answer.set()


@contextmanager
def lookups() -> Iterator[None]:
    before = trio.socket.set_custom_hostname_resolver(Lookups())
    try:
        yield
    finally:
        trio.socket.set_custom_hostname_resolver(before)


async def test_a_server_is_reached_by_its_name(nursery: trio.Nursery) -> None:
    async def handle(asked: Request) -> Response:
        return Response(200, body=asked.headers["host"].encode())

    port = await http_server(nursery, handle)
    with lookups():
        answer = await request("GET", f"http://localhost:{port}/", timeout=PATIENCE_SECONDS)
    assert answer.text == f"localhost:{port}"
    nursery.cancel_scope.cancel()


async def test_a_name_that_is_not_there_is_said_in_words() -> None:
    with lookups(), pytest.raises(ConnectError, match="the name does not resolve"):
        await request("GET", "http://no-such-name.invalid/", timeout=PATIENCE_SECONDS)


async def test_a_name_that_is_not_ascii_is_refused_with_the_remedy() -> None:
    with lookups(), pytest.raises(ConnectError, match=r'"b\u00fccher.example" is not ASCII; .* xn--'):
        await request("GET", "http://b\u00fccher.example/", timeout=PATIENCE_SECONDS)


async def test_few_lookups_at_once_and_a_cancelled_one_keeps_its_place_until_it_ends(
    resolver: Resolver, nursery: trio.Nursery
) -> None:
    done = []

    async def look_up(number: int) -> None:
        await trio.socket.getaddrinfo("name", number)
        done.append(number)

    with lookups():
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as first:
                for number in range(LOOKUPS):
                    first.start_soon(look_up, number)
                assert await trio.to_thread.run_sync(resolver.full.wait, PATIENCE_SECONDS)
                scope.cancel()
        assert not done, "a cancelled lookup is not waited for"
        async with trio.open_nursery() as second:
            second.start_soon(look_up, 99)
            await trio.testing.wait_all_tasks_blocked()
            assert not done, "the abandoned threads are still there"
            resolver.answer.set()
        assert done == [99]
    with trio.fail_after(PATIENCE_SECONDS):
        while resolver.ended < LOOKUPS + 1:
            await trio.sleep(0.01)  # the threads of the cancelled ones have no event
    assert resolver.most == LOOKUPS
    nursery.cancel_scope.cancel()


async def test_without_a_thread_the_request_fails_and_the_place_is_free_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_thread(*given: object) -> None:
        raise RuntimeError("can't start new thread")

    with lookups():
        with monkeypatch.context() as patched:
            patched.setattr("_thread.start_new_thread", no_thread)
            for _ in range(LOOKUPS + 1):
                with pytest.raises(ConnectError, match="cannot be looked up"):
                    await request("GET", "http://localhost:1/", timeout=PATIENCE_SECONDS)
        with pytest.raises(ConnectError, match="refused"):
            await request("GET", "http://localhost:1/", timeout=PATIENCE_SECONDS)


def test_a_lookup_of_the_pod_s_loads_no_codec_for_names() -> None:
    script = """
import sys, trio
from pidone.http.client import request
from pidone.http.connect import Lookups
async def main():
    trio.socket.set_custom_hostname_resolver(Lookups())
    for host in ("localhost", "127.0.0.1"):
        try:
            await request("GET", f"http://{host}:1/", timeout=PATIENCE_SECONDS, source="127.0.0.1")
        except Exception:
            pass
trio.run(main)
sys.exit("encodings.idna" in sys.modules)
"""
    assert (
        subprocess.run([sys.executable, "-c", script], check=False, timeout=PATIENCE_SECONDS).returncode == 0
    )
