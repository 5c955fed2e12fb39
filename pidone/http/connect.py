"""A TCP connection, and the lookup of the name it goes to.

Trio looks names up in its own threads, and these name themselves by ctypes: 0.7 MiB and a search of the disk for
a library, for a pod whose repo has a name. ``Lookups`` does it in a plain thread.
"""

import _thread
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import outcome
import trio

# At once. The C library's resolver takes as long as /etc/resolv.conf lets it and cannot be stopped: a lookup
# that was cancelled keeps its place until it has ended, so a dead DNS server costs this many threads.
LOOKUPS = 4

Answer = TypeVar("Answer")


async def connect(host: str, port: int, *, source: str | None) -> trio.SocketStream:
    """Connect, from the address ``source`` where one is given. Raises OSError; on cancel nothing is left open."""
    return await trio.open_tcp_stream(encoded(host), port, local_address=source)


def encoded(host: str) -> bytes:
    """The name as it goes into a lookup; a str would load the codec for IDNA, and the image has no IDNA at all."""
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
        """As ``socket.getaddrinfo``. On cancel the lookup is abandoned, and its answer not heard."""
        return await _in_thread(
            self._free, lambda: socket.getaddrinfo(host, port, family, type, proto, flags)
        )

    async def getnameinfo(
        self, sockaddr: tuple[str, int] | tuple[str, int, int, int], flags: int
    ) -> tuple[str, str]:
        """As ``socket.getnameinfo``."""
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
