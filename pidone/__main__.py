"""``pidone``: with no arguments process 1 of a pod, with arguments the command line."""

import sys


def main() -> int:
    if len(sys.argv) == 1:
        # Before everything else that takes time: a TERM that comes during the imports must not be lost.
        from pidone.pid1 import signals

        signals.block()
        from pidone import pod

        pod.exit_now(pod.main())
    from pidone.cli.main import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
