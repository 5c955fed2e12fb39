"""A made-up registry, for the test that a registry is one schema file and one module: see ``test_made_up``."""

from pidone.errors import RegistryError
from pidone.http.client import redacted, request
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Entry, Status


class Ledger:
    interval = 30.0

    def __init__(self, server: str, instance: str, address: str, lease: float, source: str | None) -> None:
        self._server, self._source = server.rstrip("/"), source
        self.where = self.endpoint = redacted(server)
        self.places = frozenset({self._server})
        self.instance, self.address, self.lease = instance, address, lease

    async def register(self, status: Status) -> str:
        await self._call("PUT", status.value.encode())
        return status.value

    async def heartbeat(self) -> bool:
        return await self._call("POST") == 200

    async def read(self) -> Entry | None:
        return Entry("UP", self.address) if await self._call("GET") == 200 else None

    async def deregister(self) -> None:
        await self._call("DELETE")

    async def _call(self, method: str, body: bytes = b"") -> int:
        url = f"{self._server}/{self.instance}"
        answer = await request(method, url, timeout=5.0, body=body, source=self._source)
        if answer.status not in {200, 404}:
            raise RegistryError(f"{method} {redacted(url)}: answered {answer.status}")
        return answer.status


def build(fields: Fields, pod: Pod, source: str | None) -> Ledger:
    server, book, line = fields.text("server"), fields.text("book"), fields.text("line", pod.name)
    fields.integer("openPort", least=1, most=65535)
    lease = fields.seconds("validFor", 90.0)
    fields.done()
    return Ledger(server, f"{book}/{line}", pod.ip, lease, source)
