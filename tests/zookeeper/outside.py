"""The tree as an operator sees and changes it, by a session of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

from pidone.registries import _zookeeper_wire as wire
from pidone.registries._zookeeper_client import Client
from pidone.registries._zookeeper_names import server
from pidone.registries._zookeeper_wire import Code, Flag, Operation, Permission, Records, Session
from tests.patience import PATIENCE_SECONDS

OPEN = [(wire.ALL, "world", "anyone")]


@dataclass(frozen=True)
class Node:
    data: bytes
    created: int
    version: int
    owner: int


class Outside:
    def __init__(self, servers: str) -> None:
        self._client = Client(
            [server(part) for part in servers.split(",")],
            timeout=PATIENCE_SECONDS,
            user=lambda: None,
            source=None,
            random=Random(1),
        )

    async def get(self, path: str) -> Node | None:
        async def steps() -> Node | None:
            await self._client.call(Operation.SYNC, wire.text(path))
            reply = await self._client.call(
                Operation.GET_DATA, wire.text(path), wire.flag(set_=False), expected=(Code.NO_NODE,)
            )
            if reply.code == Code.NO_NODE:
                return None
            records = Records(reply.rest)
            data, stat = records.buffer(), records.stat()
            return Node(data, stat.created, stat.version, stat.owner)

        return await self._client.run(steps, within=PATIENCE_SECONDS, anew=True)

    async def children(self, path: str) -> list[str]:
        async def steps() -> list[str]:
            await self._client.call(Operation.SYNC, wire.text(path))
            parts = wire.text(path), wire.flag(set_=False)
            reply = await self._client.call(Operation.GET_CHILDREN, *parts, expected=(Code.NO_NODE,))
            return sorted(Records(reply.rest).texts()) if reply.code == Code.OK else []

        return await self._client.run(steps, within=PATIENCE_SECONDS, anew=True)

    async def set(self, path: str, data: bytes) -> None:
        await self._do(Operation.SET_DATA, wire.text(path), wire.buffer(data), wire.integer(wire.ANY_VERSION))

    async def create(
        self, path: str, data: bytes = b"", acl: list[Permission] = OPEN, *, ephemeral: bool = False
    ) -> None:
        flag = Flag.EPHEMERAL if ephemeral else Flag.PERSISTENT
        await self._do(Operation.CREATE, wire.creation(path, data, acl, flag))

    async def delete(self, path: str) -> None:
        await self._do(Operation.DELETE, wire.text(path), wire.integer(wire.ANY_VERSION))

    async def end(self, session: Session | None) -> None:
        """End a session of others, as its expiry does."""
        assert session is not None
        other = Client(self._client._servers, timeout=9, user=lambda: None, source=None, random=Random(1))
        other.session = session

        async def steps() -> None:
            await other.end()

        await other.run(steps, within=PATIENCE_SECONDS, anew=False)

    async def _do(self, operation: int, *parts: bytes) -> None:
        async def steps() -> None:
            await self._client.call(operation, *parts)

        await self._client.run(steps, within=PATIENCE_SECONDS, anew=True)

    async def close(self) -> None:
        await self._client.end()


@asynccontextmanager
async def outside(servers: str) -> AsyncIterator[Outside]:
    operator = Outside(servers)
    try:
        yield operator
    finally:
        await operator.close()
