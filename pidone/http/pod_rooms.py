"""The bounds for connections to the servers in a pod: ``/status`` and ``/drain``, and ``/metrics``.

The kubelet of the node and the pod's own containers have rooms of their own. With most network plugins the kubelet's
connections come from the pod's default gateway; elsewhere it is in the common room, where a new connection closes the
longest silent one.
"""

from contextlib import suppress
from socket import AF_INET, AF_INET6, inet_ntop

from pidone.http.admission import LOOPBACK, Assign, Room, network

CONNECTIONS = 48  # of all three rooms

# The kubelet requests /drain once for each container of a pod, all at the same time.
_OWN = Room(16, 16, received=1 << 16)
_NODE = Room(16, 16, received=1 << 16)
_OTHERS = Room(16, 8, received=1 << 16, keeps_held=False)


def assign_in_pod(gateways: frozenset[str]) -> Assign:
    """Return the function that returns the room of an address."""

    def room(address: str) -> tuple[Room, str]:
        group = network(address)
        if group in LOOPBACK:
            return _OWN, group
        plain = address.partition("%")[0]
        if plain in gateways or group in gateways:
            return _NODE, plain
        return _OTHERS, group

    return room


def default_gateways(proc: str = "/proc/net") -> frozenset[str]:
    """Return the default gateways of this network namespace, by the routing tables in ``proc``."""
    gateways = set[str]()
    with suppress(OSError, ValueError, StopIteration), open(f"{proc}/route", encoding="utf-8") as table:
        next(table)
        for line in table:
            _, destination, gateway, *_ = line.split()
            if int(destination, 16) == 0 and int(gateway, 16):
                gateways.add(inet_ntop(AF_INET, bytes.fromhex(gateway)[::-1]))
    with suppress(OSError, ValueError), open(f"{proc}/ipv6_route", encoding="utf-8") as table:
        for line in table:
            destination, length, _, _, gateway, *_ = line.split()
            if int(destination, 16) == int(length, 16) == 0 and int(gateway, 16):
                gateways.add(inet_ntop(AF_INET6, bytes.fromhex(gateway)))
    return frozenset(gateways)
