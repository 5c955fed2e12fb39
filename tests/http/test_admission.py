"""Which connections a server keeps, decided without sockets."""

from collections import Counter
from random import Random

import pytest

from pidone.http.admission import Admission, Place, Room, network, one_room


class Connections:
    """Connections to one server, by any name; ``closed`` are those that had to leave."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.closed: list[str] = []

    def open(self, name: str, address: str = "10.0.0.1") -> Place | None:
        return self.admission.admit(address, lambda: self.closed.append(name))


def test_one_address_has_its_share_and_its_own_longest_silent_connection_leaves() -> None:
    connections = Connections(Admission(one_room(Room(9, 2))))
    first, second = connections.open("first"), connections.open("second")
    assert first
    assert second
    assert connections.open("other", "10.0.0.2")
    connections.admission.listen(first, 0)
    assert connections.open("third")
    assert connections.closed == ["second"]


def test_a_connection_that_is_answered_stays() -> None:
    connections = Connections(Admission(one_room(Room(2, 2))))
    for name in ("first", "second"):
        place = connections.open(name)
        assert place is not None
        connections.admission.answer(place)
    assert connections.open("third") is None
    assert connections.open("other", "10.0.0.2") is None
    assert place is not None
    connections.admission.listen(place, 0)
    assert connections.open("third")
    assert connections.closed == ["second"]


@pytest.mark.parametrize("keeps_held", [True, False])
def test_held_requests_stay_or_leave_as_the_room_has_it(*, keeps_held: bool) -> None:
    connections = Connections(Admission(one_room(Room(1, 1, keeps_held=keeps_held))))
    place = connections.open("held")
    assert place
    connections.admission.answer(place)
    connections.admission.hold(place)
    assert bool(connections.open("other", "10.0.0.2")) is not keeps_held


@pytest.mark.parametrize("keeps_held", [True, False])
def test_answers_that_are_not_read_stay_or_leave_as_the_room_has_it(*, keeps_held: bool) -> None:
    connections = Connections(Admission(one_room(Room(1, 1, keeps_held=keeps_held))))
    place = connections.open("slow")
    assert place
    connections.admission.answer(place)
    assert not connections.open("early", "10.0.0.2")
    connections.admission.send(place)
    assert bool(connections.open("other", "10.0.0.2")) is not keeps_held


def test_held_requests_take_nothing_of_the_room_for_bytes() -> None:
    """20,000 pods that send a token and wait for a change must not keep out the next one."""
    connections = Connections(Admission(one_room(Room(20_000, 20_000))))
    for number in range(20_000):
        place = connections.open(f"pod {number}")
        assert place
        assert connections.admission.receive(place, 2000)
        connections.admission.answer(place)
        connections.admission.hold(place)
    assert connections.closed == []


def test_a_connection_moves_to_the_room_of_its_pod_before_it_would_have_to_leave() -> None:
    strangers, pods = Room(2, 2, keeps_held=False), Room(9, 9)
    known = set[str]()
    connections = Connections(Admission(lambda address: (pods if address in known else strangers, address)))
    places = [connections.open(name, name) for name in ("10.0.0.1", "10.0.0.2")]
    assert all(places)
    known |= {"10.0.0.1", "10.0.0.2"}
    assert connections.open("new", "10.0.0.3")
    assert connections.open("newer", "10.0.0.4")
    assert connections.closed == []
    assert connections.open("newest", "10.0.0.5")
    assert connections.closed == ["new"]


def test_bytes_of_all_have_one_bound_and_the_longest_silent_that_sent_some_leaves() -> None:
    connections = Connections(Admission(one_room(Room(9, 9, received=100))))
    silent, first, second = (connections.open(name) for name in ("silent", "first", "second"))
    assert silent
    assert first
    assert second
    assert connections.admission.receive(first, 60)
    assert connections.admission.receive(second, 60)
    assert connections.closed == ["first"]
    connections.admission.answer(second)
    third = connections.open("third")
    assert third
    assert not connections.admission.receive(third, 60)  # the others are being answered
    connections.admission.listen(second, 0)
    assert connections.admission.receive(second, 100)
    assert not connections.admission.receive(second, 1)


def test_bytes_that_are_sent_ahead_cost_their_sender_its_place_and_nobody_else() -> None:
    connections = Connections(Admission(one_room(Room(9, 9, received=100))))
    first, second, third = (connections.open(name) for name in ("first", "second", "third"))
    for place in (first, second):
        assert place
        connections.admission.answer(place)
        connections.admission.hold(place)
    assert first
    assert second
    assert third
    assert connections.admission.receive_ahead(first, 60)
    assert not connections.admission.receive_ahead(second, 60)
    assert connections.admission.receive(third, 60)
    assert connections.closed == ["second"]


def test_counts_are_exact_after_any_sequence() -> None:
    random = Random(1)
    rooms = [Room(20, 4, received=500), Room(10, 3, received=300, keeps_held=False)]
    admission = Admission(lambda address: (rooms[random.random() < 0.2], address))
    live = list[Place]()
    for _ in range(20_000):
        place = random.choice(live) if live else None
        match random.randrange(7):
            case 0 | 1:
                new = admission.admit(f"10.0.0.{random.randrange(9)}", lambda: None)
                live += [new] if new else []
            case 2 if place:
                admission.listen(place, random.randrange(9))
            case 3 if place:
                admission.answer(place)
                random.choice((admission.send, admission.hold))(place)
            case 4 if place:
                admission.receive(place, random.randrange(100))
            case 5 if place:
                admission.receive_ahead(place, random.randrange(100))
            case 6 if place:
                admission.leave(place)
        live = [place for place in live if not place.left]
        for room in rooms:
            occupancy = admission._rooms.get(room)
            if occupancy:
                inside = [place for place in live if place.room is room]
                assert occupancy.count == len(inside) <= room.connections
                assert occupancy.received == sum(place.received for place in inside)
                assert occupancy.ahead == sum(place.ahead for place in inside)
                assert occupancy.groups == Counter(place.group for place in inside)
                assert set(occupancy.silent) <= set(inside)


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("::FFFF:0a01:0203", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::1"),
    ],
)
def test_a_machine_is_one_group_however_its_address_is_written(address: str, group: str) -> None:
    assert network(address) == group
