"""Ports for servers that tests start."""

import random
import socket


def free_port() -> int:
    """A port that nobody has on any address of this machine now.

    Below the range from which the kernel takes ports for clients: one of those could be gone before its use.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        try:
            with socket.create_server(("", port), reuse_port=False):
                return port
        except OSError:
            continue
