"""TCP connections, and lookups of names.

Trio's threads for lookups import ctypes, which costs 0.7 MiB and a search of the disk for a library. ``Lookups`` uses a
plain thread.
"""

import _thread
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import outcome
import trio

# Lookups at the same time. The C library's resolver takes as long as /etc/resolv.conf allows and cannot be stopped. A
# cancelled lookup keeps its place until it has ended, so a dead DNS server costs this many threads.
LOOKUPS = 4

Answer = TypeVar("Answer")


async def connect(host: str, port: int, *, source: str | None) -> trio.SocketStream:
    """Connect from the address ``source``, if there is one. Raises OSError. On cancel nothing is left open."""
    return await trio.open_tcp_stream(encoded(host), port, local_address=source)


def encoded(host: str) -> bytes:
    """Return the name for a lookup. With a str Python would load the codec for IDNA, which the image does not have."""
    try:
        return host.encode("ascii")
    except UnicodeEncodeError:
        raise OSError(f'the name "{host}" is not ASCII; write it as it stands in DNS, xn--...') from None


class Lookups(trio.abc.HostnameResolver):
    """For ``trio.socket.set_custom_hostname_resolver``."""

    def __init__(self) -> None:
        self._free = trio.Semaphore(LOOKUPS)

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002 - the names are socket.getaddrinfo's
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """Look up a name as ``socket.getaddrinfo`` does. On cancel the lookup continues, and its result is dropped."""
        return await _in_thread(
            self._free, lambda: socket.getaddrinfo(host, port, family, type, proto, flags)
        )

    async def getnameinfo(
        self, sockaddr: tuple[str, int] | tuple[str, int, int, int], flags: int
    ) -> tuple[str, str]:
        """Look up an address as ``socket.getnameinfo`` does."""
        return await _in_thread(self._free, lambda: socket.getnameinfo(sockaddr, flags))


async def _in_thread(free: trio.Semaphore, look_up: Callable[[], Answer]) -> Answer:
    await free.acquire()
    token, answered, answers = (
        trio.lowlevel.current_trio_token(),
        trio.Event(),
        list[outcome.Outcome[Answer]](),
    )

    def deliver() -> None:
        free.release()
        answered.set()

    def thread() -> None:
        answers.append(outcome.capture(look_up))
        try:
            token.run_sync_soon(deliver)
        except trio.RunFinishedError:
            pass

    try:
        _thread.start_new_thread(thread, ())
    except RuntimeError as error:  # no memory, or the pod's limit of processes
        free.release()
        raise OSError(f"a name cannot be looked up: {error}") from error
    await answered.wait()
    return answers[0].unwrap()
