"""``python controller_side.py URL``: a rollout and a deregistration with the made-up action and registry.

Run in the copy of the source. Prints the state of the rollout and the result of the deregistration as JSON.
"""

import json
import sys
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from pidone.language.model import Strategy
from pidone.plan.digest import digest
from pidone.plan.report import Report, TaskReport
from pidone_controller.deregistration import Deregistration
from pidone_controller.pods.projection import project
from pidone_controller.repo.selection import SelectedPod
from pidone_controller.rollout.state import Phase, RolloutState, VersionRef
from pidone_controller.rollout.step import Health, remember, step

POD = {
    "metadata": {"name": "web", "namespace": "shop", "uid": "uid-web"},
    "spec": {"nodeName": "node-1"},
    "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]},
}


def rollout() -> RolloutState:
    """The state after the task ``count``, which had landed with the version before, has exploded."""
    old, new = (VersionRef(("made-up",), {"n": number}, ()) for number in (1, 2))
    health: Health = {}
    landed = SelectedPod(
        "shop/web", "uid-web", "d", "e", 1, Report(digest="d", tasks={"count": TaskReport("landed")})
    )
    exploded = SelectedPod(
        "shop/web", "uid-web", "d", "e", 1, Report(digest="d", tasks={"count": TaskReport("exploded")})
    )
    remember(health, [landed])
    strategy = Strategy(canary=100)
    state = step(strategy, RolloutState(Phase.COMPLETE, old), new, [landed], health, 100.0)
    return step(strategy, state, new, [exploded], health, 101.0)


async def deregister(url: str) -> dict[str, int]:
    """The counts of results after a pod that had registered was deleted."""
    register = {"ledger": {"server": url, "book": "web", "line": "web", "openPort": 8080}}
    plan: list[dict[str, Any]] = [{"name": "registration", "register": register}]
    report = Report(digest=digest(plan), tasks={"registration": TaskReport("registered", runs=1)})
    deregistration = Deregistration(lambda event, **fields: None)
    pod = project(POD)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deregistration.run)
        await wait_all_tasks_blocked()  # it leads: what is due then is done at once
        deregistration.reported(pod, report, digest(plan), lambda: plan)
        deregistration.gone(pod.key)
        with trio.move_on_after(120):
            while deregistration.pending:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    return dict(deregistration.results)


if __name__ == "__main__":
    state = rollout()
    results = trio.run(deregister, sys.argv[1])
    print(json.dumps({"phase": state.phase, "message": state.message, "results": results}))
