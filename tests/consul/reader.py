"""Consul's own client as a child process, which reads registrations: built once for each content of its module."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests import golang

MODULE = Path(__file__).parent / "reader"
VERSION = "1.34.5"  # of github.com/hashicorp/consul/api, as in its go.mod


def program() -> Path:
    """Return where it is, or will be when it is built."""
    return golang.cached(MODULE, "consul-reader")


def build() -> Path:
    """Build it if it is not there. Raises as ``golang.build`` does."""
    return golang.build_cached(MODULE, "consul-reader", "-ldflags=-s -w")


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance as a client of Consul has it."""

    id: str
    address: str
    port: int
    status: str  # passing, warning, critical or maintenance
    tags: list[str] = field(default_factory=list)
    meta: dict[str, str] = field(default_factory=dict)


class Reader:
    """The process, from outside."""

    def __init__(self, address: str, token: str = "") -> None:
        self._process = subprocess.Popen(
            [program(), address, *([token] if token else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self, service: str) -> list[Instance]:
        """Return all instances of a service. Raises ``RuntimeError`` with the error of the client."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{service}\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return [Instance(**found) for found in answer["instances"]]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def reading(address: str, token: str = "") -> Iterator[Reader]:
    """Start the client, and end it with the block."""
    reader = Reader(address, token)
    try:
        yield reader
    finally:
        reader.close()
