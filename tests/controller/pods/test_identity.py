"""Who is at an address."""

from typing import Any

import pytest

from pidone_controller.pods.identity import Claims, Contradiction, NodeAddress, Unknown, normalise
from pidone_controller.pods.inventory import Inventory
from tests.controller.factories import pod


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
    ],
)
def test_an_address_has_one_spelling(given: str, expected: str) -> None:
    assert normalise(given) == expected


PODS = Inventory(
    [
        pod("web", "10.1.0.2", ips=["fd00::2"]),
        pod("done", "10.1.0.3", phase="Succeeded"),
        pod("failed", "10.1.0.3", phase="Failed"),
        pod("old", "10.1.0.4", phase="Failed"),
        pod("new", "10.1.0.4"),
        pod("one", "10.1.0.5"),
        pod("other", "10.1.0.5"),
        pod("proxy", "10.0.0.1", spec={"hostNetwork": True}),
        pod("agent", "10.0.0.9", spec={"hostNetwork": True}),
        pod("static", "10.1.0.6", annotations={"kubernetes.io/config.hash": "ab12cd"}),
        pod("desk", "10.1.0.7", uid=""),
        pod("named", "10.1.0.8", spec={"hostname": "db-0"}),
    ]
)


@pytest.mark.parametrize(
    ("address", "claims", "expected"),
    [
        ("10.1.0.2", Claims(), "web"),
        ("fd00::2", Claims(), "web"),
        ("10.1.0.2", Claims(uid="uid-web"), "web"),
        ("10.1.0.2", Claims(uid="UID_WEB"), "web"),  # as systemd writes it in a cgroup's name
        ("10.1.0.2", Claims(uid="uid-one"), Contradiction),
        ("10.1.0.2", Claims(uid="uid-web", hostname="lies", namespace="shop"), "web"),  # the uid says it all
        ("10.1.0.2", Claims(hostname="web", namespace="shop"), "web"),
        ("10.1.0.2", Claims(hostname="web.sub.shop.svc.cluster.local", namespace="shop"), "web"),
        ("10.1.0.2", Claims(hostname="one", namespace="shop"), Contradiction),
        ("10.1.0.2", Claims(hostname="web", namespace="bank"), Contradiction),
        ("10.1.0.2", Claims(hostname="my-laptop"), "web"),  # alone it says nothing
        ("10.1.0.2", Claims(namespace="bank"), "web"),
        ("10.1.0.3", Claims(), Unknown),  # finished pods keep their address in status
        ("10.1.0.3", Claims(uid="uid-done"), Unknown),
        ("10.1.0.4", Claims(), "new"),
        ("10.1.0.4", Claims(uid="uid-old"), Contradiction),  # a late request of the pod before
        ("10.1.0.5", Claims(), Contradiction),
        ("10.1.0.5", Claims(hostname="one", namespace="shop"), Contradiction),
        ("10.1.0.5", Claims(uid="uid-other"), "other"),
        ("10.1.0.5", Claims(uid="uid-web"), Contradiction),
        ("10.0.0.1", Claims(), NodeAddress),
        ("10.0.0.1", Claims(uid="uid-proxy"), NodeAddress),
        ("10.0.0.9", Claims(uid="uid-agent"), Unknown),  # on the host's network, whatever its address says
        ("10.9.9.9", Claims(uid="uid-web", hostname="web", namespace="shop"), Unknown),  # claims never grant
        ("10.1.0.6", Claims(uid="ab12cd"), "static"),
        ("10.1.0.6", Claims(uid="uid-static"), "static"),
        ("10.1.0.6", Claims(uid="ef34"), Contradiction),
        ("10.1.0.7", Claims(uid="anything"), "desk"),  # a hand-written inventory has nothing to compare
        ("10.1.0.8", Claims(hostname="db-0", namespace="shop"), "named"),
        ("10.1.0.8", Claims(hostname="named", namespace="shop"), Contradiction),
    ],
)
def test_who_is_at_an_address(address: str, claims: Claims, expected: Any) -> None:
    found = PODS.identify(address, claims)
    if isinstance(expected, str):
        assert getattr(found, "name", found) == expected
    else:
        assert isinstance(found, expected)


@pytest.mark.parametrize(
    ("address", "claims", "said"),
    [
        ("10.1.0.2", Claims(uid="uid-one"), "uid-one"),
        ("10.1.0.2", Claims(hostname="bank", namespace="vault"), "vault/bank"),
        ("10.1.0.2", Claims(uid="\x1b[2J" + "x" * 9000), "\N{REPLACEMENT CHARACTER}[2Jxxx"),
    ],
)
def test_a_contradiction_names_the_claim_and_not_the_pods(address: str, claims: Claims, said: str) -> None:
    found = PODS.identify(address, claims)
    assert isinstance(found, Contradiction)
    assert said in found.reason
    assert "uid-web" not in found.reason
    assert "shop" not in found.reason
    assert len(found.reason) < 300


def test_an_address_of_several_pods_names_none_of_them() -> None:
    pods = Inventory([pod("one", "10.1.0.2"), pod("two", "10.1.0.2")])
    for claims in (Claims(), Claims(uid="uid-three")):
        found = pods.identify("10.1.0.2", claims)
        assert isinstance(found, Contradiction)
        assert "uid-one" not in found.reason
        assert "uid-two" not in found.reason
        assert "shop" not in found.reason
