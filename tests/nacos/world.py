"""One Nacos 2.3.2 as a ``World``: instances are in its memory alone, users on its disk."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.nacos.real import OFFSETS, USER, USER_PASSWORD, Reader, RealNacos, missing, nacos
from tests.ports import free_ports
from tests.registries.world import FIRST_PORT, Seen, port

__all__ = ["missing", "running"]

VERSION, CLIENT = "2.3.2", "2.5.1"


class NacosWorld:
    name = "nacos"
    server = f"Nacos {VERSION}"
    reader = f"nacos-client {CLIENT}"
    is_http = True
    unhealthy = ""
    without_meaning: Mapping[str, str] = {"leader or peer change": "one server"}

    def __init__(self, server: RealNacos, folder: Path) -> None:
        self._server = server
        self._log = folder / "reader.log"
        self._reader: Reader | None = None
        self.addresses = [f"127.0.0.1:{server.port}"]

    def config(self, service: str, number: int, addresses: Sequence[str], lease: int) -> dict[str, Any]:
        return {
            "url": ",".join(f"http://{address}/nacos" for address in addresses),
            "serviceName": service,
            "port": port(number),
            "username": USER,
            "password": USER_PASSWORD,
            "heartBeatInterval": lease / 3,
            "heartBeatTimeout": lease,
            "ipDeleteTimeout": lease * 2,
        }

    def lapse_seconds(self, lease: int) -> float:
        return lease + 6.0  # the server looks every 5 s

    def mend(self) -> None:
        self.resume(0)
        if self._server.process is None:
            self.restart(0, empty=True)
        self._server.wait_ready()
        self.restore_token()

    def kill(self, server: int) -> None:
        del server
        self._server.end()

    def restart(self, server: int, *, empty: bool) -> None:
        del server, empty
        self._server.start()

    def pause(self, server: int) -> None:
        del server
        self._server.signal(signal.SIGSTOP)

    def resume(self, server: int) -> None:
        del server
        self._server.signal(signal.SIGCONT)

    def change_leader(self) -> None:
        raise NotImplementedError

    def revoke_token(self) -> None:
        self._server.revoke()

    def restore_token(self) -> None:
        self._server.grant()

    def instances(self, service: str) -> Sequence[Seen] | None:
        if self._reader is None:
            self._reader = Reader(self._server, CLIENT, self._log, user=(USER, USER_PASSWORD))
        found = self._reader.instances(service)
        return (
            None
            if found is None
            else [
                Seen(int(one["port"]) - FIRST_PORT, "UP" if one["healthy"] else "unhealthy") for one in found
            ]
        )

    def end(self) -> None:
        if self._reader is not None:
            self._reader.end()


@contextmanager
def running(folder: Path) -> Iterator[NacosWorld]:
    with nacos(VERSION, free_ports(OFFSETS), folder / "nacos", auth=True) as server:
        server.wait_ready()
        server.add_user()
        world = NacosWorld(server, folder)
        try:
            yield world
        finally:
            world.end()
