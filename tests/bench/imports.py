"""``python [-X ...] imports.py [NAME...]``: prints anonymous memory and CPU after each import of the active form.

The script imports no other module of the tests, so that any interpreter can run it, also one in an image's root. With
names, it imports those instead. Lazy imports are resolved.
"""

import sys

STEPS = (
    "posix os signal _signal",
    "trio",
    "h11",
    "pidone.http.client",
    "pidone.http.server",
    "pidone.engine.runner",
    "pidone.repo.client",
    "pidone.pod.live",
    "pidone.actions.probe",
    "pidone.registries.eureka",
    "pidone.actions.register",
    "pidone.actions.heartbeat",
    "pidone.metrics.process pidone.metrics.network pidone.metrics.tasks pidone.actions.metrics",
)


def anonymous() -> int:
    with open("/proc/self/smaps_rollup", "rb") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith(b"Anonymous:"))


def cpu() -> float:
    with open("/proc/self/schedstat", "rb") as figures:
        return int(figures.read().split()[0]) / 1e6


def main() -> None:
    memory, spent = anonymous(), cpu()
    print("| after | anonymous KiB | increase | CPU ms | modules |\n| --- | --- | --- | --- | --- |")
    print(f"| the interpreter | {memory} | | {spent:.0f} | {len(sys.modules)} |")
    for step in sys.argv[1:] or STEPS:
        for name in step.split():
            __import__(name)
        now = anonymous()
        print(f"| {step} | {now} | {now - memory} | {cpu():.0f} | {len(sys.modules)} |")
        memory = now


if __name__ == "__main__":
    main()
