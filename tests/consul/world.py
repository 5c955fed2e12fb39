"""A Consul server with ACLs, which is the agent of all pods too, as a ``World``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.consul import real
from tests.consul.reader import VERSION, Reader, program, reading
from tests.consul.real import MANAGEMENT, RealConsul, real_consul
from tests.registries.world import FIRST_PORT, Seen, port

POD_TOKEN = "1d6e8a40-6f27-4c0c-9d5a-7a4c53c1b1e2"


def missing() -> str | None:
    """Return why the server cannot be started here, with the remedy; None if it can."""
    return real.missing() or (None if program().exists() else f"no client of Consul: {real.FETCH}")


class ConsulWorld:
    name = "consul"
    server = ""
    reader = f"Consul's Go client {VERSION}, passing instances alone"
    is_http = True
    unhealthy = ""  # clients get what passes
    without_meaning: Mapping[str, str] = {
        "leader or peer change": "an instance belongs to one agent, and pods ask no other",
    }

    def __init__(self, consul: RealConsul, client: Reader) -> None:
        self.server = f"Consul {real.version()}, one server"
        self.addresses = [consul.url.removeprefix("http://")]
        self._consul = consul
        self._client = client
        self.restore_token()

    def config(self, service: str, number: int, addresses: Sequence[str], lease: int) -> dict[str, Any]:
        return {
            "url": f"http://{addresses[0]}",
            "name": service,
            "port": port(number),
            "ttl": lease,
            "deregisterCriticalServiceAfter": 60,
            "token": POD_TOKEN,
        }

    def lapse_seconds(self, lease: int) -> float:
        return lease + 1.0

    def mend(self) -> None:
        self._consul.resume()
        if self._consul.process is None:
            self._consul.start()
        self.restore_token()

    def kill(self, server: int) -> None:
        del server
        self._consul.stop()

    def restart(self, server: int, *, empty: bool) -> None:
        del server
        self._consul.stop(empty=empty)
        self._consul.start()
        self.restore_token()

    def pause(self, server: int) -> None:
        del server
        self._consul.pause()

    def resume(self, server: int) -> None:
        del server
        self._consul.resume()

    def change_leader(self) -> None:
        raise NotImplementedError

    def revoke_token(self) -> None:
        self._consul.revoke(POD_TOKEN)

    def restore_token(self) -> None:
        self._consul.grant(POD_TOKEN, "", anew=False)

    def instances(self, service: str) -> Sequence[Seen] | None:
        try:
            found = self._client.read(service)
        except RuntimeError:
            return None
        return [Seen(one.port - FIRST_PORT, "UP") for one in found if one.status == "passing"]


@contextmanager
def running(folder: Path) -> Iterator[ConsulWorld]:
    with (
        real_consul(folder, acls=True) as consul,
        reading(consul.url.removeprefix("http://"), MANAGEMENT) as client,
    ):
        yield ConsulWorld(consul, client)
