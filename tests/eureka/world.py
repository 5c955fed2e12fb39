"""Two stock Netflix servers as a ``World``: they keep nothing on disk, and a new one copies from its peer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.eureka.peers import Peers, missing, running_peers, version
from tests.registries.world import FIRST_PORT, Seen, port

__all__ = ["missing", "running"]

POD_USER = "pods"
PASSWORD, OTHER_PASSWORD = "right", "changed"


class EurekaWorld:
    name = "eureka"
    server = ""
    reader = ""
    is_http = True
    unhealthy = "DOWN"
    without_meaning: Mapping[str, str] = {}

    def __init__(self, peers: Peers) -> None:
        self.server = f"Netflix Eureka {version()}, two peers"
        self.reader = f"Netflix' client {version()}"
        self.addresses = [f"127.0.0.1:{peer.port}" for peer in peers.all]
        self._peers = peers

    def config(self, service: str, number: int, addresses: Sequence[str], lease: int) -> dict[str, Any]:
        urls = (f"http://{POD_USER}:{PASSWORD}@{address}/eureka/v2/" for address in addresses)
        return {
            "url": ",".join(urls),
            "app": service,
            "port": port(number),
            "renewalInterval": max(1, lease // 3),
            "leaseDuration": lease,
        }

    def lapse_seconds(self, lease: int) -> float:
        return (
            2 * lease + 1.0
        )  # a renewed lease lasts twice as long; the server looks for ended ones twice a second

    def mend(self) -> None:
        self._peers.mend()
        self.restore_token()

    def kill(self, server: int) -> None:
        self._peers.all[server].kill()

    def restart(self, server: int, *, empty: bool) -> None:
        peer = self._peers.all[server]
        peer.start()
        if not empty:
            peer.wait_ready()

    def pause(self, server: int) -> None:
        self._peers.all[server].pause()

    def resume(self, server: int) -> None:
        self._peers.all[server].resume()

    def change_leader(self) -> None:
        """End the server that pods with a list of both ask first."""
        self._peers.all[0].kill()

    def revoke_token(self) -> None:
        for peer in self._peers.all:
            peer.set_password(POD_USER, OTHER_PASSWORD)

    def restore_token(self) -> None:
        for peer in self._peers.all:
            peer.set_password(POD_USER, PASSWORD)

    def instances(self, service: str) -> Sequence[Seen] | None:
        """Return what both servers show; None if one does not answer, or they do not agree yet."""
        shown = [self._peers.read(number, service.upper()) for number in range(len(self.addresses))]
        if None in shown:
            return None
        lists = [
            sorted(Seen(int(found["port"]) - FIRST_PORT, str(found["status"])) for found in one.values())
            for one in shown
            if one is not None
        ]
        return lists[0] if lists[0] == lists[1] else None


@contextmanager
def running(folder: Path) -> Iterator[EurekaWorld]:
    with running_peers(folder, {"peer": "replication", POD_USER: PASSWORD}) as peers:
        yield EurekaWorld(peers)
