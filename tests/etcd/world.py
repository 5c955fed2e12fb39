"""Three members of etcd 3.6 with authentication as a ``World``, read by etcd's own Go client and its naming."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.etcd import real
from tests.etcd.real import MODULE, Cluster, Reader
from tests.registries.world import FIRST_PORT, Seen, port

POD_USER = "pods"
PASSWORD, OTHER_PASSWORD = "right", "changed"


def missing() -> str | None:
    return real.missing(MODULE)


class EtcdWorld:
    name = "etcd"
    is_http = True
    unhealthy = ""
    without_meaning: Mapping[str, str] = {}

    def __init__(self, cluster: Cluster, log: Path) -> None:
        self.server = f"etcd {real.version(MODULE)}, three members"
        self.reader = f"etcd's Go client {real.version(MODULE)}"
        self.addresses = [f"127.0.0.1:{member.port}" for member in cluster.members]
        self._cluster, self._log = cluster, log
        self._empty = set[int]()  # members that have started without data, as long as not all have
        self._open_reader: Reader | None = None
        self._secure()

    def config(self, service: str, number: int, addresses: Sequence[str], lease: int) -> dict[str, Any]:
        return {
            "endpoints": ",".join(f"http://{address}" for address in addresses),
            "layout": "grpc",
            "service": service,
            "port": port(number),
            "ttl": lease,
            "user": POD_USER,
            "password": PASSWORD,
        }

    def lapse_seconds(self, lease: int) -> float:
        return lease + 1.0  # a leader looks for ended leases twice a second

    def mend(self) -> None:
        for member in self._cluster.members:
            if member.running:
                member.resume()
            else:
                member.start()
        self._cluster.wait_ready()
        self.restore_token()

    def kill(self, server: int) -> None:
        self._cluster.members[server].kill()

    def restart(self, server: int, *, empty: bool) -> None:
        """Without data all members have to start: one without data alone is no member any more."""
        member = self._cluster.members[server]
        if empty:
            member.wipe()
            self._empty.add(server)
            self._cluster.password = ""
        member.start()
        if len(self._empty) == len(self._cluster.members):
            self._empty.clear()
            self._cluster.wait_ready()
            self._secure()

    def pause(self, server: int) -> None:
        self._cluster.members[server].pause()

    def resume(self, server: int) -> None:
        self._cluster.members[server].resume()

    def change_leader(self) -> None:
        self._cluster.members[self._cluster.leader()].kill()

    def revoke_token(self) -> None:
        """Change the password, which ends the tokens too."""
        self._cluster.ask("auth/user/changepw", {"name": POD_USER, "password": OTHER_PASSWORD})

    def restore_token(self) -> None:
        self._cluster.ask("auth/user/changepw", {"name": POD_USER, "password": PASSWORD})

    def instances(self, service: str) -> Sequence[Seen] | None:
        try:
            found = self._reader.read("grpc", service)
        except (RuntimeError, OSError):
            self.close()
            return None
        ports = (int(instance["address"].rpartition(":")[2]) for instance in found)
        return [Seen(number - FIRST_PORT, "UP") for number in ports]

    @property
    def _reader(self) -> Reader:
        if self._open_reader is None:
            endpoints, password = self._cluster.endpoints, self._cluster.password
            self._open_reader = Reader(endpoints, self._log, "root", password)
        return self._open_reader

    def close(self) -> None:
        if self._open_reader is not None:
            self._open_reader.close()
            self._open_reader = None

    def _secure(self) -> None:
        self.close()  # its token is one of before
        self._cluster.enable_authentication(POD_USER, PASSWORD, "")


@contextmanager
def running(folder: Path) -> Iterator[EtcdWorld]:
    with real.running(MODULE, folder, size=3) as cluster:
        world = EtcdWorld(cluster, folder / "reader.log")
        try:
            yield world
        finally:
            world.close()
