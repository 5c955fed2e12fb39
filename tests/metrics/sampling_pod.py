"""``python -m tests.metrics.sampling_pod CONTAINERS``: a process 1 that prints a page of its containers for each line.

CONTAINERS are the IDs of containers by name, as JSON. A page ends with a line ``# EOF``.
"""

import json
import os
import sys

import trio

from pidone.metrics.containers import ContainerProcesses
from pidone.metrics.exposition import render
from pidone.metrics.labels import Facts
from pidone.pid1.reaper import Reaper
from pidone.plan.model import Container


async def main(containers: dict[str, Container]) -> None:
    reaper = Reaper()
    processes = ContainerProcesses(reaper, Facts("", lambda: containers))
    requests, pages = trio.lowlevel.FdStream(os.dup(0)), trio.lowlevel.FdStream(os.dup(1))
    async with trio.open_nursery() as nursery:
        await nursery.start(reaper.run)
        async for _ in requests:
            families = []
            for family in processes.collect():
                await trio.lowlevel.checkpoint()
                if family is not None:
                    families.append(family)
            await pages.send_all(render(families) + b"# EOF\n")
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(
        main,
        {name: Container(f"test://{ID}", started=True) for name, ID in json.loads(sys.argv[1]).items()},
    )
