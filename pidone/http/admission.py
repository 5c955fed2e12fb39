"""Bounds for the connections of a server, by address and in all, so that no client keeps the others out.

A connection is in one room, together with those of its kind, and in the group of its address. It is silent while the
server waits for it to send a request. If a group or a room is full, its connection that has been silent for the longest
time is closed, and the new one is admitted. Connections whose requests are being answered stay; if there are no others,
the new one is refused. A room decides whether a client that does not read its answer counts as silent.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

_MAPPED = bytes(10) + b"\xff\xff"  # the first bytes of an IPv4 address that is mapped into IPv6
_IPV6_LOOPBACK = bytes(15) + b"\x01"
LOOPBACK = frozenset({"127.0.0.1", "::1"})  # the other addresses of 127.0.0.0/8 are those of pods in tests
_NETWORK_BYTES = 8  # of an IPv6 address: one machine may have all addresses of a /64


@dataclass(frozen=True, slots=True)
class Room:
    """Bounds for connections of one kind."""

    connections: int  # at once
    by_address: int  # of them in one group
    # bytes of requests that are neither answered nor held yet, in all; and as many that were sent ahead
    received: int = 1 << 20
    # a held request, and an answer that its client does not read, stays if another connection needs its place
    keeps_held: bool = True


Assign = Callable[[str], tuple[Room, str]]  # the room of an address and its group, by the address of the peer


@dataclass(slots=True, eq=False)
class Place:
    """The place of one connection. ``close`` is called if it has to leave; it returns at once."""

    address: str
    room: Room
    group: str
    close: Callable[[], object]
    received: int = 0  # bytes of the present request
    ahead: int = 0  # bytes that came while it was being answered
    left: bool = False


class _Occupancy:
    """The places of one room."""

    def __init__(self) -> None:
        self.count = 0
        self.received = 0
        self.ahead = 0
        # The number in each group. A set of the places in each would be 200 bytes more for each connection.
        self.groups: dict[str, int] = {}
        self.silent: dict[Place, None] = {}  # the longest silent first

    def add(self, place: Place) -> None:
        self.count += 1
        self.received += place.received
        self.ahead += place.ahead
        self.groups[place.group] = self.groups.get(place.group, 0) + 1

    def remove(self, place: Place) -> None:
        self.count -= 1
        self.received -= place.received
        self.ahead -= place.ahead
        self.silent.pop(place, None)
        self.groups[place.group] -= 1
        if not self.groups[place.group]:
            del self.groups[place.group]


class Admission:
    """The connections of one server. ``assign`` is called for each new one, and again before one has to leave."""

    def __init__(self, assign: Assign) -> None:
        self._assign = assign
        self._rooms: dict[Room, _Occupancy] = {}
        self.refused = 0
        self.closed = 0  # to admit others, or because all together had sent too much

    def admit(self, address: str, close: Callable[[], object]) -> Place | None:
        """Return the place of a new connection, which is silent at first; None if there is none."""
        room, group = self._assign(address)
        occupancy = self._rooms.setdefault(room, _Occupancy())
        fits = occupancy.groups.get(group, 0) < room.by_address or self._close_silent(group, occupancy)
        if not (fits and (occupancy.count < room.connections or self._make_room(room, occupancy))):
            self.refused += 1
            return None
        place = Place(address, room, group, close)
        occupancy.add(place)
        occupancy.silent[place] = None
        return place

    def listen(self, place: Place, received: int) -> None:
        """Note that the server waits for the next request, of which it has received this number of bytes."""
        if not place.left:
            occupancy = self._rooms[place.room]
            self._count(place, received - place.received)
            occupancy.ahead -= place.ahead
            place.ahead = 0
            occupancy.silent.pop(place, None)
            occupancy.silent[place] = None

    def answer(self, place: Place) -> None:
        """Note that a request of the connection is being answered."""
        if not place.left:
            self._rooms[place.room].silent.pop(place, None)

    def send(self, place: Place) -> None:
        """Note that the answer is being sent, which takes long only if the client does not read it."""
        if not (place.left or place.room.keeps_held):
            self._rooms[place.room].silent[place] = None

    def hold(self, place: Place) -> None:
        """Note that a request of the connection is held.

        Its bytes no longer count: the answer needs few of them, and held requests are bounded by the connections. If
        they counted, a room would keep some thousand pods with their tokens, and close those that come later.
        """
        if not place.left:
            self._count(place, -place.received)
            if not place.room.keeps_held:
                self._rooms[place.room].silent[place] = None

    def receive(self, place: Place, size: int) -> bool:
        """Count bytes of a request until the next ``listen``. False if the connection has to leave.

        If all have sent too much, those that have been silent for the longest time leave.
        """
        if place.left:
            return False
        self._count(place, size)
        occupancy, most = self._rooms[place.room], place.room.received
        if occupancy.received <= most:
            return True
        for other in [other for other in occupancy.silent if other.received]:
            self._close(other)
            if other is place or occupancy.received <= most:
                return other is not place
        self._close(place)  # all others are being answered
        return False

    def receive_ahead(self, place: Place, size: int) -> bool:
        """Count bytes that came while a request was being answered. False if the connection has to leave."""
        if place.left:
            return False
        occupancy = self._rooms[place.room]
        place.ahead += size
        occupancy.ahead += size
        if occupancy.ahead <= place.room.received:
            return True
        self._close(place)  # no client has to send ahead
        return False

    def leave(self, place: Place) -> None:
        """Note that the connection is closed."""
        if not place.left:
            place.left = True
            self._rooms[place.room].remove(place)

    def _count(self, place: Place, size: int) -> None:
        place.received += size
        self._rooms[place.room].received += size

    def _close(self, place: Place) -> None:
        self.leave(place)
        self.closed += 1
        place.close()

    def _close_silent(self, group: str, occupancy: _Occupancy) -> bool:
        """Close the place of the group that has been silent for the longest time. False if none is silent."""
        place = next((place for place in occupancy.silent if place.group == group), None)
        if place is not None:
            self._close(place)
        return place is not None

    def _make_room(self, room: Room, occupancy: _Occupancy) -> bool:
        """Close the connection that has been silent for the longest time, or move one to its present room."""
        for place in self._settled(room, occupancy):
            self._close(place)
            break
        return occupancy.count < room.connections

    def _settled(self, room: Room, occupancy: _Occupancy) -> Iterator[Place]:
        """Yield silent places that still belong into this room, until there is space. Move the others.

        The pod at an address may have become known since its connection was admitted.
        """
        while occupancy.silent and occupancy.count >= room.connections:
            place = next(iter(occupancy.silent))
            other, group = self._assign(place.address)
            destination = self._rooms.setdefault(other, _Occupancy())
            if other is room or destination.count >= other.connections:
                yield place
                continue
            occupancy.remove(place)
            place.room, place.group = other, group
            destination.add(place)


def one_room(room: Room) -> Assign:
    """Put all connections into this room, in groups by address and, for IPv6, by network."""
    return lambda address: (room, network(address))


def network(address: str) -> str:
    """Return an IPv4 address, also one that is mapped into IPv6, or the /64 of an IPv6 address."""
    text = address.partition("%")[0]
    if ":" not in text:
        return text
    packed = inet_pton(AF_INET6, text)
    if packed.startswith(_MAPPED):
        return inet_ntop(AF_INET, packed[len(_MAPPED) :])
    if packed == _IPV6_LOOPBACK:
        return text
    return f"{inet_ntop(AF_INET6, packed[:_NETWORK_BYTES] + bytes(16 - _NETWORK_BYTES))}/64"
