"""A network namespace that is connected with the machine's by a virtual cable, which can be unplugged."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.ports import free_subnet


@dataclass(frozen=True)
class Cable:
    name: str  # of the namespace
    device: str  # the end of the cable in the machine's namespace
    host: str  # the machine's address on the cable

    @property
    def prefix(self) -> list[str]:
        """The beginning of a command that runs in the namespace."""
        return ["nsenter", f"--net=/run/netns/{self.name}"]

    def cut(self) -> None:
        """Unplug the cable: packets are lost, and nobody is told."""
        _ip("link", "set", self.device, "down")

    def heal(self) -> None:
        _ip("link", "set", self.device, "up")


@contextmanager
def plugged_cable() -> Iterator[Cable | None]:
    """Make the namespace and the cable, and remove both with the block. None where that is not allowed."""
    if os.geteuid() != 0 or any(shutil.which(program) is None for program in ("ip", "nsenter")):
        yield None
        return
    subnet = free_subnet()
    number = "-".join(subnet.split(".")[1:])
    cable = Cable(f"pidone-{number}", f"pidone{number}", f"{subnet}.1")
    try:
        _ip("netns", "add", cable.name)
    except subprocess.CalledProcessError:  # root, and no right to it: a container
        yield None
        return
    try:
        _ip("link", "add", cable.device, "type", "veth", "peer", "name", "eth0", "netns", cable.name)
        _ip("address", "add", f"{cable.host}/24", "dev", cable.device)
        _ip("link", "set", cable.device, "up")
        _ip("-n", cable.name, "address", "add", f"{subnet}.2/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", cable.name, "link", "set", device, "up")
        yield cable
    finally:
        subprocess.run(["ip", "link", "delete", cable.device], check=False, capture_output=True)
        _ip("netns", "delete", cable.name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
