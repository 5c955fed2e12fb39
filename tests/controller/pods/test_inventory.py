from random import Random

from pidone_controller.pods.identity import Claims, NodeAddress, Unknown
from pidone_controller.pods.inventory import Inventory
from pidone_controller.pods.model import Pod, Pool
from pidone_controller.pods.projection import project
from tests.controller.factories import manifest, pod

CHECKED = {"check": "yes"}


def test_any_history_ends_in_the_index_of_what_is_there() -> None:
    random = Random(7)
    inventory = Inventory()
    there: dict[str, Pod] = {}
    for _ in range(3000):
        name = f"pod-{random.randrange(12)}"
        if random.random() < 0.25:
            inventory.drop("shop", name)
            there.pop(name, None)
        else:
            there[name] = pod(
                name,
                f"10.1.0.{random.randrange(6)}",
                ips=random.sample(["fd00::1", "fd00::2"], random.randrange(2)),
                uid=f"uid-{random.randrange(20)}",
                phase=random.choice(["Running", "Running", "Failed", "Pending"]),
                spec={"hostNetwork": True} if random.random() < 0.1 else {},
            )
            inventory.put(there[name])
        anew = Inventory(there.values())
        assert len(inventory) == len(there)
        for address in [f"10.1.0.{last}" for last in range(6)] + ["fd00::1", "fd00::2", "10.0.0.1"]:
            assert inventory.at(address) == anew.at(address)
            assert inventory.is_node(address) == anew.is_node(address)
    for name in list(there):
        inventory.drop("shop", name)
    assert inventory.identify("10.1.0.1", Claims()) == Unknown("the address 10.1.0.1")
    assert not isinstance(inventory.identify("10.0.0.1", Claims()), NodeAddress)


def test_what_is_shared_stays_shared_when_pods_change() -> None:
    inventory = Inventory()
    pool = Pool()
    for name in "ab":
        inventory.put(project(manifest(name, labels=dict(CHECKED)), pool))
    for phase in ("Pending", "Running"):  # seen by a pool that has forgotten all
        inventory.put(project(manifest("a", labels=dict(CHECKED), phase=phase)))
    one, other = inventory
    assert one.phase == "Running"
    assert one.template is other.template
