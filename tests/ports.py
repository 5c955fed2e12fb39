"""Ports and addresses for servers that tests start; no two processes get the same one."""

import random
import socket
from collections.abc import Collection


def free_port() -> int:
    """A port that nobody has on any address of this machine, reserved until this process ends.

    Below the range from which the kernel takes ports for clients: one of those could be gone before its use.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        if not _reserve(f"port-{port}"):
            continue
        if _is_free(port):
            return port


def free_ports(offsets: Collection[int]) -> int:
    """A port, where all ports beside it by these offsets are free and reserved too."""
    while True:
        port = random.randrange(20_000, 32_000)
        ports = [port + offset for offset in offsets]
        if all(_reserve(f"port-{number}") for number in ports) and all(map(_is_free, ports)):
            return port


def free_address() -> str:
    """An address of the loopback interface, reserved until this process ends."""
    while True:
        address = f"127.{random.randrange(100, 200)}.{random.randrange(256)}.{random.randrange(1, 255)}"
        if _reserve(f"address-{address}"):
            return address


def free_subnet() -> str:
    """The first three numbers of a subnet for a bridge, reserved until this process ends."""
    while True:
        # podman keeps 10.88.0.0/16 for its default network
        subnet = f"10.{random.randrange(90, 110)}.{random.randrange(256)}"
        if _reserve(f"subnet-{subnet}"):
            return subnet


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("", port), reuse_port=False):
            return True
    except OSError:
        return False


def _reserve(name: str) -> bool:
    """Whether no process of this network namespace had it; each holds an abstract socket of that name."""
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(f"\0pidone-tests-{name}")
    except OSError:
        lock.close()
        return False
    lock.detach()  # open until this process ends
    return True
