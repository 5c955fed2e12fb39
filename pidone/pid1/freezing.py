"""Stops and continues all other processes of the pod, in one system call each. Imports built-in modules only.

``kill(-1)`` reaches every process of the PID namespace except this one, and none escapes it by a fork: 200 rounds
against two processes that fork all the time. On a machine, or in a namespace that belongs to others, it would stop what
is not the application. So it is used by process 1 of a namespace of its own alone.
"""

import _signal
import posix

MACHINE = "pid:[4026531836]"  # the machine's own PID namespace: PROC_PID_INIT_INO of include/linux/proc_ns.h


def refusal() -> str:
    """Return why this process must not stop all others; empty if it may."""
    pid = posix.getpid()
    if pid != 1:
        return f"it is process {pid}, and only process 1 of the pod can stop the pod's processes"
    try:
        namespace, itself = posix.readlink("/proc/self/ns/pid"), posix.readlink("/proc/self")
    except OSError:
        return "it cannot read /proc"
    if namespace == MACHINE:
        return "its PID namespace is the machine's"
    return "" if itself == "1" else "/proc is that of another PID namespace"


def stop_all() -> None:
    """Stop all other processes. Raises ``PermissionError`` if this process may do that, and may signal none of them."""
    _send(_signal.SIGSTOP)


def continue_all() -> None:
    """Let all other processes run again; do nothing if this process may not stop them either."""
    try:
        _send(_signal.SIGCONT)
    except OSError:
        pass  # a filter of system calls


def _send(number: int) -> None:
    if refusal():
        return
    try:
        posix.kill(-1, number)
    except ProcessLookupError:
        pass  # there is no other process
