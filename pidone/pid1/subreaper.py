"""Orphans for a process that is not process 1 (a desk, hostPID): prctl(2), PR_SET_CHILD_SUBREAPER."""

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> bool:
    """Adopt the orphans among our descendants; False where that cannot be: a seccomp filter, no ctypes."""
    try:
        import ctypes
    except ImportError:  # the image has none: there doze is the parent of everything, and has done it
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
