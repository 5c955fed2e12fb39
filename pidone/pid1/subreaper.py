"""Adopts orphans in a process that is not process 1 (a desk, hostPID): prctl(2), PR_SET_CHILD_SUBREAPER."""

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> bool:
    """Adopt the orphans among our descendants; False if that is impossible: a seccomp filter, or no ctypes."""
    try:
        import ctypes
    except ImportError:  # the image has no ctypes, but there doze has made this call
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
