"""pidone as process 1, whose program fails as a whole in a maintenance, and is well when it is begun anew."""

import os

import trio

from pidone import __main__
from pidone.pod import live

whole = live.live


async def failing(program, **given):  # type: ignore[no-untyped-def]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(whole, program)
        while not program.maintenance.on:
            await program.maintenance.news()
        raise RuntimeError("as if")


if "PIDONE_FAILURES" not in os.environ:
    live.live = failing
__main__.process_one()
