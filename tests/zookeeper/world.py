"""An ensemble of three real servers as a ``World``, read by Curator."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.registries.world import FIRST_PORT, Seen, port
from tests.zookeeper.real import (
    SUPER,
    Ensemble,
    Reader,
    ReaderError,
    digest,
    ensemble,
    missing,
    reader_version,
    version,
)

__all__ = ["missing", "running"]

BASE = "/services"
USER, PASSWORD = "pods", "right"
ALL = "31"


class ZooKeeperWorld:
    name = "zookeeper"
    is_http = False
    unhealthy = ""
    without_meaning: Mapping[str, str] = {}

    def __init__(self, servers: Ensemble, log: Path) -> None:
        self.server = f"ZooKeeper {version()}, an ensemble of three"
        self.reader = f"Curator {reader_version()}"
        self.addresses = [server.address for server in servers.servers]
        self._ensemble = servers
        self._log = log
        self._reader: Reader | None = None
        self._services: list[str] = []
        self._revoked: list[str] = []

    def config(self, service: str, number: int, addresses: Sequence[str], lease: int) -> dict[str, Any]:
        if service not in self._services:
            self._services.append(service)
        return {
            "servers": ",".join(addresses),
            "basePath": BASE,
            "service": service,
            "port": port(number),
            "sessionTimeout": lease,
            "user": USER,
            "password": PASSWORD,
        }

    def lapse_seconds(self, lease: int) -> float:
        return lease + 1.0  # the server looks for ended sessions with each tick

    def mend(self) -> None:
        self._ensemble.mend()
        self._ensemble.leader()
        self.restore_token()

    def kill(self, server: int) -> None:
        self._ensemble.servers[server].kill()

    def restart(self, server: int, *, empty: bool) -> None:
        restarted = self._ensemble.servers[server]
        if empty:
            restarted.wipe()
        restarted.start()
        if not empty:
            restarted.wait_ready()

    def pause(self, server: int) -> None:
        self._ensemble.servers[server].pause()

    def resume(self, server: int) -> None:
        self._ensemble.servers[server].resume()

    def change_leader(self) -> None:
        self._ensemble.leader().kill()

    def revoke_token(self) -> None:
        """Take the permissions on the folders of all services from the pods' user."""
        for service in self._services:
            try:
                self._ask("acl", f"{BASE}/{service}", ALL, "digest", digest("other", PASSWORD))
            except ReaderError:
                continue  # a service of an earlier test, whose folder is gone
            self._revoked.append(service)

    def restore_token(self) -> None:
        while self._revoked:
            try:
                folder = f"{BASE}/{self._revoked[-1]}"
                self._ask("acl", folder, ALL, "digest", digest(USER, PASSWORD))
            except ReaderError:
                pass  # the folder is gone, and with it the ACL
            self._revoked.pop()

    def instances(self, service: str) -> Sequence[Seen] | None:
        try:
            found = self._ask("curator", BASE, service)
        except ReaderError:
            return None
        return sorted(Seen(int(one["port"]) - FIRST_PORT, status(one)) for one in found.values())

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _ask(self, *words: str) -> Any:
        if self._reader is None:
            self._reader = Reader(",".join(self.addresses), self._log, ":".join(SUPER))
        try:
            return self._reader.ask(*words)
        except ReaderError as error:
            if "NoNode" not in str(error):
                # ZooKeeper's own client does not come back to servers that have lost their data: the servers hang up,
                # since it has seen later transactions than they have.
                self._reader.close()
                self._reader = None
            raise


def status(found: Mapping[str, Any]) -> str:
    """Return the status of an instance as the reader has it."""
    payload = found["payload"]
    return str(payload["metadata"]["instance_status"]) if payload is not None else "UP"


@contextmanager
def running(folder: Path) -> Iterator[ZooKeeperWorld]:
    with ensemble(folder, 3) as servers:
        world = ZooKeeperWorld(servers, folder / "reader.log")
        try:
            yield world
        finally:
            world.close()
