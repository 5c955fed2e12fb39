"""Questions about the children of a process, which may end at any moment. The process itself must be there."""

from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")


def zombies(pid: int) -> int:
    """How many children have ended and are not reaped."""
    return sum(_answer(child.status) == psutil.STATUS_ZOMBIE for child in psutil.Process(pid).children())


def named(pid: int, name: str) -> list[psutil.Process]:
    """The living children of this name."""
    return [child for child in psutil.Process(pid).children() if _answer(child.name) == name]


def command(process: psutil.Process) -> list[str]:
    """The words of its command line; none if it has ended."""
    return _answer(process.cmdline) or []


def _answer(question: Callable[[], T]) -> T | None:
    try:
        return question()
    except psutil.NoSuchProcess:  # a zombie has no command line, and raises a kind of this
        return None
