"""A fake Consul agent as a server of its own, until SIGTERM or SIGINT."""

import argparse
import signal
import sys
from functools import partial

import trio

from pidone.http.server import serve
from tests.consul.agents import Clock, handler
from tests.consul.fake import FakeConsul


async def listen(host: str, port: int) -> None:
    """Serve an empty agent at this address; port 0 takes a free one.

    Raises:
        OSError: the address cannot be listened on.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        listeners = await trio.open_tcp_listeners(port, host=host)
        async with trio.open_nursery() as nursery:
            fake = handler(FakeConsul(), Clock())
            await nursery.start(partial(serve, fake, listeners, max_connections=1000))
            port = listeners[0].socket.getsockname()[1]
            print(f"Fake Consul agent on http://{host}:{port}", flush=True)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                return


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.consul", description=__doc__)
    parser.add_argument("--listen", type=address, default="127.0.0.1:8500", metavar="HOST:PORT")
    trio.run(listen, *parser.parse_args().listen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
