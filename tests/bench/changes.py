"""From a label to the pod, through a real API server: ``python -m tests.bench.changes`` (needs ``make cluster``).

1,000 pods are there, all of them hold a request at one controller, and the labels of some change. The clock begins
when a watch of our own, beside the controller's, has the API server's event, and ends with the answer in the pod.
"""

import json
import sys
import tempfile
from pathlib import Path
from statistics import quantiles
from threading import Thread
from time import monotonic

import httpx

from tests.bench.controller import Asking, address
from tests.cluster.apiserver import ControlPlane, control_plane
from tests.cluster.process import until
from tests.cluster.replicas import SET, replicas, written

PODS = 1000
CHANGES = 300
SHOP = "shop"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, control_plane(Path(folder) / "plane") as plane:
        plane.install_crds()
        plane.make_namespace(SHOP)
        plane.apply(*written(SET, SHOP))
        for index in range(PODS):
            plane.run_pod(SHOP, f"web-{index}", labels={"web": "yes"}, ips=[address(index)])
        with replicas(plane, Path(folder)) as found:
            replica = found.add("a")
            until(lambda: _derived(replica.port), 60)
            asking = [_held(replica.port, index) for index in range(PODS)]
            figures = measure(plane, asking)
    missed = False
    for what, took in figures.items():
        cuts = quantiles(took, n=100)
        for name, figure, goal in (("p50", cuts[49], 5), ("p99", cuts[98], 50)):
            print(f"{figure:10.2f} ms {what}, {name}, {PODS} pods (goal {goal})")
            missed = missed or (what.startswith("event") and figure > goal)
    return missed


def _derived(port: int) -> bool:
    one = Asking(port, PODS - 1)
    try:
        one.first()
    except AssertionError:
        return False
    finally:
        one.socket.close()
    return True


def _held(port: int, index: int) -> Asking:
    first = Asking(port, index)
    first.first()
    first.socket.close()
    one = Asking(port, index)
    one.known = first.known
    one.hold()
    return one


def measure(plane: ControlPlane, asking: list[Asking]) -> dict[str, list[float]]:
    """Milliseconds from the event, and from the answer to the one who changed the label."""
    seen: dict[str, float] = {}
    version = plane.request("GET", f"/api/v1/namespaces/{SHOP}/pods?limit=1")["metadata"]["resourceVersion"]

    def watch() -> None:
        path = f"/api/v1/namespaces/{SHOP}/pods?watch=true&resourceVersion={version}"
        try:
            with plane.http.stream("GET", path, timeout=600) as stream:
                for line in stream.iter_lines():
                    event = json.loads(line)["object"]["metadata"]
                    seen.setdefault(f"{event['name']} {event['labels'].get('web')}", monotonic())
        except httpx.HTTPError:
            pass  # the bench is over

    Thread(target=watch, daemon=True).start()
    from_event, from_change = [], []
    for index in range(CHANGES):
        plane.label(SHOP, f"web-{index}", {"web": "no"})
        changed = monotonic()
        asking[index].answer()
        answered = monotonic()
        until(lambda index=index: f"web-{index} no" in seen)  # type: ignore[misc]
        from_event.append((answered - seen[f"web-{index} no"]) * 1000)
        from_change.append((answered - changed) * 1000)
    return {"event to pod": from_event, "answer of the PATCH to pod": from_change}


if __name__ == "__main__":
    sys.exit(main())
