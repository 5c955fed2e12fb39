"""Bounds the connections of the repo by kind of client: pods, nodes and people, and strangers.

A stranger is an address that is not known to be one of these. It may be a pod whose address the API server has not
reported yet, so it is served, but it can only displace other strangers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from pidone.http.admission import LOOPBACK, Assign, Room, network
from pidone_controller.pods.identity import normalise
from pidone_controller.pods.inventory import Inventory

MIB = 1 << 20

# A pod holds up to 16 requests (``held.MAX_HELD``), and sends reports beside them.
POD_CONNECTIONS = 32
# A node has the kubelet with its probes, and sidecars of up to some hundred pods on its network.
NODE_CONNECTIONS = 512

# A silent connection of a stranger takes 8 KiB, and 60 KiB over TLS (``python -m tests.bench.flood``).
STRANGERS, STRANGERS_SECURE = 512, 128
STRANGER_CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class Rooms:
    """The rooms of one server with at most this many connections."""

    pods: Room
    nodes: Room
    strangers: Room

    @classmethod
    def of(cls, connections: int, *, secure: bool) -> "Rooms":
        strangers = max(1, min(STRANGERS_SECURE if secure else STRANGERS, connections // 4))
        nodes = max(1, connections // 4)
        return cls(
            Room(max(1, connections - strangers - nodes), POD_CONNECTIONS, received=8 * MIB),
            Room(nodes, NODE_CONNECTIONS, received=MIB),
            Room(strangers, STRANGER_CONNECTIONS, received=2 * MIB, keeps_held=False),
        )


def assign(inventory: Inventory, people: Sequence[IPv4Network | IPv6Network], rooms: Rooms) -> Assign:
    """Return the function that returns the room of an address. Loopback and ``people`` are with the nodes."""

    def room(address: str) -> tuple[Room, str]:
        normalised = normalise(address)
        if inventory.is_node(normalised):
            return rooms.nodes, normalised
        if inventory.at(normalised):
            return rooms.pods, normalised
        if normalised in LOOPBACK or any(ip_address(normalised) in net for net in people):
            return rooms.nodes, normalised
        return rooms.strangers, network(normalised)

    return room
