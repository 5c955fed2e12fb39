"""A fake Eureka as a server of its own, until SIGTERM or SIGINT."""

import argparse
import signal
import sys
import time
from functools import partial

import trio

from pidone.http.message import Request, Response
from pidone.http.server import serve
from tests.eureka.fake import PREFIX, FakeEureka


async def listen(host: str, port: int) -> None:
    """Serve an empty registry at this address; port 0 takes a free one.

    Raises:
        OSError: the address cannot be listened on.
    """
    registry = FakeEureka()

    async def handler(request: Request) -> Response:
        return Response(*registry.handle(request.method, request.target, request.body, time.time()))

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        listeners = await trio.open_tcp_listeners(port, host=host)
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, handler, listeners, max_connections=1000))
            port = listeners[0].socket.getsockname()[1]
            print(f"Fake Eureka on http://{host}:{port}{PREFIX}", flush=True)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                return


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.eureka", description=__doc__)
    parser.add_argument("--listen", type=address, default="127.0.0.1:8761", metavar="HOST:PORT")
    trio.run(listen, *parser.parse_args().listen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
