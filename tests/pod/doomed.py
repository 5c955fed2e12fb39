"""pidone as process 1, whose program fails as a whole with many lines untold, and is well when it is begun anew."""

import os

from pidone import __main__
from pidone.pod import live


async def doomed(program, **given):  # type: ignore[no-untyped-def]
    for number in range(150):
        program.journal.write("said", number=number, padding="x" * 100)
    raise RuntimeError("as if")


if "PIDONE_FAILURES" not in os.environ:
    live.live = doomed
__main__.process_one()
