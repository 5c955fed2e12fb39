"""A fake Eureka as a server of its own, until SIGTERM or SIGINT."""

import time

from pidone.http.message import Request, Response
from tests.eureka.fake import PREFIX, FakeEureka
from tests.registries import fakes

registry = FakeEureka()


async def handle(request: Request) -> Response:
    return Response(*registry.handle(request.method, request.target, request.body, time.time()))


if __name__ == "__main__":
    fakes.run(
        handle,
        "Fake Eureka",
        path=PREFIX,
        default="127.0.0.1:8761",
        prog="python -m tests.eureka",
        description=__doc__,
    )
