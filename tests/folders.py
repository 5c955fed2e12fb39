"""Folders in ``build`` that two test runs in one clone do not share."""

import fcntl
import os
from itertools import count
from pathlib import Path


def reserve(path: Path) -> Path:
    """Return ``path``, or the first of ``path-2``, ``path-3``... that no other process has reserved.

    It may exist, with what a killed run left. The reservation lasts until this process ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folders = (path if number == 1 else path.with_name(f"{path.name}-{number}") for number in count(1))
    return next(folder for folder in folders if _locked(folder.with_name(f".{folder.name}.lock")))


def _locked(file: Path) -> bool:
    """Lock the file until this process ends. False if another process, or another call here, has locked it."""
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    return True
