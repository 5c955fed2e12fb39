"""``faulty.py FILE``: pidone as process 1, with faults put into every part of it at random.

Each fault has a number; it is written to FILE when it is raised, and stands in the error, so that the test
can see that every one of them reached the repo.
"""

import os
import random
import resource
import sys

RECORD = sys.argv.pop()
CHANCES = {"action": 0.3, "undo": 0.3, "engine": 0.004, "decoder": 0.2, "client": 0.03, "memory": 0.3}
KINDS = (ValueError, OSError, KeyError, RuntimeError, ZeroDivisionError, UnicodeError, RecursionError)


def fault(part: str) -> None:
    if random.random() > CHANCES[part]:
        return
    number = f"fault{os.urandom(4).hex()}"
    with open(RECORD, "a") as record:
        record.write(f"{part} {number}\n")
    if part == "memory":
        try:
            bytearray(1 << 30)  # beyond the limit on data: a real MemoryError
        except MemoryError as error:
            raise MemoryError(number) from error
    raise random.choice(KINDS)(number)


def sabotage() -> None:
    from pidone.actions.metrics import Metrics
    from pidone.actions.probe import Probe
    from pidone.engine.core import Core
    from pidone.plan.format import decode_bundle
    from pidone.pod import program
    from pidone.repo.client import RepoClient

    for kind in (Metrics, Probe):
        run, undo = kind.run, kind.undo

        async def faulty_run(self, context, run=run):  # type: ignore[no-untyped-def]
            fault("action")
            fault("memory")
            await run(self, context)

        async def faulty_undo(self, context, undo=undo):  # type: ignore[no-untyped-def]
            fault("undo")
            await undo(self, context)

        kind.run, kind.undo = faulty_run, faulty_undo  # type: ignore[method-assign]
    handle, decode, poll_once = Core.handle, decode_bundle, RepoClient._poll_once

    def faulty_handle(self, event, now):  # type: ignore[no-untyped-def]
        fault("engine")
        return handle(self, event, now)

    def faulty_decode(*arguments):  # type: ignore[no-untyped-def]
        fault("decoder")
        return decode(*arguments)

    async def faulty_poll(self):  # type: ignore[no-untyped-def]
        fault("client")
        return await poll_once(self)

    Core.handle = faulty_handle  # type: ignore[method-assign]
    setattr(program, "decode_bundle", faulty_decode)  # noqa: B010 - imported there, and not exported
    RepoClient._poll_once = faulty_poll  # type: ignore[method-assign]


if __name__ == "__main__":
    from pidone import __main__

    resource.setrlimit(resource.RLIMIT_DATA, (32 << 20, 32 << 20))
    if os.environ.get("PIDONE_STAGE") != "ask":
        sabotage()
    sys.argv = [sys.argv[0]]
    __main__.process_one()
