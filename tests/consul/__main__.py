"""A fake Consul agent as a server of its own, until SIGTERM or SIGINT."""

from tests.consul.agents import Clock, handler
from tests.consul.fake import FakeConsul
from tests.registries import fakes

if __name__ == "__main__":
    fakes.run(
        handler(FakeConsul(), Clock()),
        "Fake Consul agent",
        path="",
        default="127.0.0.1:8500",
        prog="python -m tests.consul",
        description=__doc__,
    )
