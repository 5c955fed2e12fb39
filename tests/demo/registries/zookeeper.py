"""ZooKeeper: Debian's server, read by a session of our own."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import trio

from pidone.errors import PidoneError
from tests.demo.registries import APP, BEAT_SECONDS, Instance
from tests.demo.service import Service
from tests.ports import free_port
from tests.zookeeper import real
from tests.zookeeper.outside import Node, outside

FOLDER = f"/services/{APP}"


def missing() -> str | None:
    return real.server_missing()


class ZooKeeper:
    title = "ZooKeeper"
    unhealthy = "not registered"

    def __init__(self, folder: Path) -> None:
        self._server = real.Server(folder / "zookeeper", free_port())
        self.kind = f"ZooKeeper {real.version()}"
        self.url = self._server.address
        self.params: Mapping[str, str] = {"zookeeper": self.url, "timeout": f"{3 * BEAT_SECONDS}s"}
        self.service = Service("ZooKeeper", self._server.prepare(), {}, folder / "zookeeper.log")

    def empty(self) -> None:
        self._server.wipe()

    def answers(self) -> bool:
        return bool(self._server.mode())

    def instance(self) -> Instance | None:
        found = trio.run(self._read) if self.answers() else None
        if found is None:
            return None
        name, node = found
        document = json.loads(node.data)
        return Instance(
            name=f"{FOLDER}/{name}",
            address=document["address"],
            port=document["port"],
            status=document["payload"]["metadata"]["instance_status"],
            registered=str(node.created),
            renewed=self._requests(node.owner),
        )

    async def _read(self) -> tuple[str, Node] | None:
        try:
            async with outside(self.url) as operator:
                for name in await operator.children(FOLDER):
                    node = await operator.get(f"{FOLDER}/{name}")
                    if node is not None:
                        return name, node
        except PidoneError:
            pass  # it has just ended
        return None

    def _requests(self, session: int) -> int:
        """Return the number of requests of a session on its connection."""
        found = re.search(rf"recved=(\d+),[^)]*sid=0x{session:x},", self._server.ask("cons"))
        return int(found[1]) if found else 0


def build(folder: Path) -> ZooKeeper:
    return ZooKeeper(folder)
