"""What the real API server was heard to say, it says still: the recordings are of the one that tests run with."""

from tests.cluster.apiserver import ControlPlane
from tests.cluster.record import hear
from tests.controller.kubernetes.dialogue import differences, read_all


async def test_the_recordings_are_what_it_says(plane: ControlPlane) -> None:
    recorded = read_all()
    said = await hear(plane, patient=False)
    assert said.keys() == recorded.keys() - {"watch-a-minute"}
    told = [
        line
        for name, real in said.items()
        for one, other in ((recorded[name], real), (real, recorded[name]))
        for line in differences(one["body"], other["body"], name)
    ]
    assert not told, "\n".join(told)
