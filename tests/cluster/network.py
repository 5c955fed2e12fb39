"""A network namespace for a node: its addresses, its routes and kube-proxy's rules are not the machine's."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)  # os.unshare and os.setns are there from Python 3.12 on


@contextmanager
def private() -> Iterator[None]:
    """This thread, and what it starts, is in the node's network in the block: the same one for each block."""
    before = _here()
    try:
        _enter(_namespace())
        yield
    finally:
        _enter(before)
        os.close(before)


@cache
def _namespace() -> int:
    """A descriptor of the namespace, which lasts as long as this process and what runs in it."""
    before = _here()
    _check(_libc.unshare(CLONE_NEWNET))
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return _here()
    finally:
        _enter(before)
        os.close(before)


def _here() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _enter(namespace: int) -> None:
    _check(_libc.setns(namespace, CLONE_NEWNET))


def _check(result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
