"""Sees new connections without the right to packets: looks at the kernel's table of sockets again and again.

It has the interface of ``PacketSocket``. A connection that is new since the last look counts as a packet with SYN, and
one that has ended as a packet with FIN. What comes on an open connection is not seen, nor are datagrams.
"""

from collections.abc import Collection

import trio

from pidone.actions import _traffic
from pidone.actions._packets import FIN, SYN, Flow, Packet


class AcceptQueue:
    """Connections to these ports. ``pause`` is the seconds between two looks."""

    def __init__(self, ports: Collection[int]) -> None:
        self.pause = 1.0
        self._ports = ports
        self._known = set[Flow]()
        self._found: list[Packet] = []

    def open(self) -> None:
        """Begin with the connections that are open. Raises ``OSError`` if the kernel does not tell."""
        self._known = {connection.flow for connection in _traffic.connections(self._ports)}

    def close(self) -> None:
        self._found.clear()

    def take(self) -> Packet | None:
        """Return a connection that is new or gone; None if there is none."""
        if not self._found:
            flows = {connection.flow for connection in _traffic.connections(self._ports)}
            self._found = [
                *(Packet(*flow, SYN, tcp=True, data=b"") for flow in flows - self._known),
                *(Packet(*flow, FIN, tcp=True, data=b"") for flow in self._known - flows),
            ]
            self._known = flows
        return self._found.pop() if self._found else None

    async def wait(self) -> Packet:
        """Wait for the next one. While all is still, a look costs 33 us: at the listening sockets alone."""
        while True:
            if self.pause >= 1 or self._known or _traffic.waiting(self._ports):
                packet = self.take()
                if packet is not None:
                    return packet
            await trio.sleep(self.pause)
