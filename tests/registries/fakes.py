"""Parts of the fakes of registries: a log of requests, refusals, and a program that serves a fake."""

import argparse
import signal
from dataclasses import dataclass
from functools import partial

import trio

from pidone.http.server import Handler, serve


@dataclass(frozen=True, slots=True)
class Request:
    """One request that was answered, in the order of arrival."""

    method: str
    target: str
    body: bytes
    status: int
    now: float


class RefusalError(Exception):
    """The request is answered with an error; the reason becomes the body."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def run(handler: Handler, what: str, *, path: str, default: str, prog: str, description: str | None) -> None:
    """Serve a fake until SIGTERM or SIGINT, at the address of the option --listen; port 0 takes a free one."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--listen", type=_address, default=default, metavar="HOST:PORT")
    host, port = parser.parse_args().listen
    trio.run(_listen, handler, host, port, f"{what} on http://{host}:{{port}}{path}")


async def _listen(handler: Handler, host: str, port: int, words: str) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        listeners = await trio.open_tcp_listeners(port, host=host)
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, handler, listeners, max_connections=1000))
            print(words.format(port=listeners[0].socket.getsockname()[1]), flush=True)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                return


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)
