"""Questions about the children of a process, which may end at any moment. The process itself must be there."""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from platform import machine
from typing import TypeVar

import psutil

T = TypeVar("T")

# System calls that wait, by number, and the unit of their third argument, the time limit. NULL means none.
WAITING = {
    "x86_64": {7: "ms", 271: "timespec", 128: "timespec"},  # poll, ppoll, rt_sigtimedwait
    "aarch64": {73: "timespec", 137: "timespec"},  # ppoll, rt_sigtimedwait
}.get(machine(), {})


def zombies(pid: int) -> int:
    """How many children have ended and are not reaped."""
    return sum(_answer(child.status) == psutil.STATUS_ZOMBIE for child in psutil.Process(pid).children())


def named(pid: int, name: str) -> list[psutil.Process]:
    """The living children of this name."""
    return [child for child in psutil.Process(pid).children() if _answer(child.name) == name]


def command(process: psutil.Process) -> list[str]:
    """The words of its command line; none if it has ended."""
    return _answer(process.cmdline) or []


def waiting_seconds(pid: int) -> float | None:
    """The time limit with which the process waits for descriptors or signals; ``inf`` if it has none.

    None if it does not wait so. A process that waits without a limit is idle until something happens.
    """
    words = Path(f"/proc/{pid}/syscall").read_text().split()  # "running", or a number and six arguments
    unit = WAITING.get(int(words[0])) if words[0].isdigit() else None
    if unit is None:
        return None
    limit = int(words[3], 16)
    if unit == "ms":
        return math.inf if limit & 1 << 31 else (limit & 0x7FFFFFFF) / 1000
    if not limit:
        return math.inf
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(limit)
        seconds, nanoseconds = struct.unpack("qq", memory.read(16))
    return float(seconds + nanoseconds / 1e9)


def _answer(question: Callable[[], T]) -> T | None:
    try:
        return question()
    except psutil.NoSuchProcess:  # a zombie has no command line, and raises a kind of this
        return None
