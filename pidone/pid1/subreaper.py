"""Orphans for a process that is not process 1 (a desk, hostPID): prctl(2), PR_SET_CHILD_SUBREAPER."""

import ctypes

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> bool:
    """Adopt the orphans among our descendants; False where the kernel or the seccomp filter forbids it."""
    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
