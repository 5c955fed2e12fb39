"""``python -m tests.bench.changes``: the time from a changed label to the pod's new plan (needs ``make cluster``).

The API server is a real one. 1,000 pods hold a request at one controller, and the labels of some pods change. The time
begins when a second watch, beside the controller's, receives the event, and ends when the pod has the answer.
"""

import json
import sys
import tempfile
from pathlib import Path
from statistics import quantiles
from threading import Thread
from time import monotonic

import httpx

from tests.bench.controller import FakePod, address
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
        with replicas(plane, Path(folder)) as controllers:
            replica = controllers.add("a")
            until(lambda: _derived(replica.port), 60)
            pods = [_held(replica.port, index) for index in range(PODS)]
            figures = measure(plane, pods)

    missed = False
    for what, times in figures.items():
        cuts = quantiles(times, n=100)
        for name, figure, goal in (("p50", cuts[49], 5), ("p99", cuts[98], 50)):
            print(f"{figure:10.2f} ms {what}, {name}, {PODS} pods (goal {goal})")
            missed = missed or (what.startswith("event") and figure > goal)
    return missed


def _derived(port: int) -> bool:
    pod = FakePod(port, PODS - 1)
    try:
        pod.fetch()
    except AssertionError:
        return False
    finally:
        pod.socket.close()
    return True


def _held(port: int, index: int) -> FakePod:
    first = FakePod(port, index)
    first.fetch()
    first.socket.close()
    pod = FakePod(port, index)
    pod.etag = first.etag
    pod.hold()
    return pod


def measure(plane: ControlPlane, pods: list[FakePod]) -> dict[str, list[float]]:
    """Return the milliseconds from the event, and from the answer to the PATCH, until the pod has its plan."""
    received: dict[str, float] = {}
    version = plane.request("GET", f"/api/v1/namespaces/{SHOP}/pods?limit=1")["metadata"]["resourceVersion"]

    def watch() -> None:
        path = f"/api/v1/namespaces/{SHOP}/pods?watch=true&resourceVersion={version}"
        try:
            with plane.http.stream("GET", path, timeout=600) as stream:
                for line in stream.iter_lines():
                    event = json.loads(line)["object"]["metadata"]
                    received.setdefault(f"{event['name']} {event['labels'].get('web')}", monotonic())
        except httpx.HTTPError:
            pass  # the bench has ended

    Thread(target=watch, daemon=True).start()
    from_event, from_change = [], []
    for index in range(CHANGES):
        plane.label(SHOP, f"web-{index}", {"web": "no"})
        changed = monotonic()
        pods[index].receive()
        answered = monotonic()
        until(lambda index=index: f"web-{index} no" in received)  # type: ignore[misc]
        from_event.append((answered - received[f"web-{index} no"]) * 1000)
        from_change.append((answered - changed) * 1000)
    return {"event to pod": from_event, "answer of the PATCH to pod": from_change}


if __name__ == "__main__":
    sys.exit(main())
