"""``podlet.py FD COMMAND...``: become COMMAND, with a helper beside it that makes orphans on demand.

The helper is what an application with a careless worker is in a pod with a shared PID namespace. It reads a
number from the descriptor, makes that many orphans, and answers ``made``.
"""

import os
import sys

TOGETHER = 50  # orphans of one parent, which are zombies of its until it ends


def main() -> None:
    number, *command = sys.argv[1:]
    if os.fork() == 0:
        serve(int(number))
    os.close(int(number))
    os.execv(command[0], command)


def serve(descriptor: int) -> None:
    with os.fdopen(os.dup(descriptor), "rb", buffering=0) as orders:
        while order := orders.readline():
            left = int(order)
            while left:
                count = min(left, TOGETHER)
                parent = os.fork()
                if parent == 0:
                    for _ in range(count):  # all end at once, and the inner ones have nobody left
                        if os.fork() == 0:
                            os._exit(0)
                    os._exit(0)
                os.waitpid(parent, 0)
                left -= count
            os.write(descriptor, b"made\n")
    os._exit(0)


if __name__ == "__main__":
    main()
