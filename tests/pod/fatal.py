"""pidone as process 1, whose metrics task makes SIGUSR1 read from address 0: a fatal signal, as from a bug in C."""

import ctypes
import signal

import trio

from pidone import __main__
from pidone.actions.metrics import Metrics


async def run(self, context):  # type: ignore[no-untyped-def]
    signal.signal(signal.SIGUSR1, die)
    context.report("listening")
    await trio.sleep_forever()


def die(*_given: object) -> None:
    ctypes.string_at(0)


Metrics.run = run  # type: ignore[method-assign]
__main__.process_one()
