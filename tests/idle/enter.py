"""``enter.py PID COMMAND...`` runs a command in the namespaces of a process, as a runtime does.

``nsenter`` stops itself as soon as its child is stopped, and nothing lets it run again.
"""

import ctypes
import os
import sys


def main() -> int:
    pid, *command = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    for namespace in [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in ("pid", "net", "mnt")]:
        if libc.setns(namespace, 0):
            raise OSError(ctypes.get_errno(), "setns")
    child = os.fork()
    if child == 0:
        os.execvp(command[0], command)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
