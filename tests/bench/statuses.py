"""What an edit costs until its status is written: ``python -m tests.bench.statuses``.

Prints processor time for each edit, and ends with 1 where the goal is missed. One replica leads a cluster of 10,000
bindings and 2,000 sets, with a pod for each binding; the API server is a dictionary. An edit is one watch event: the
replica reads and checks the object, updates the rules, derives plans, keeps the set's version and writes every status
that has changed.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import mean
from time import process_time
from typing import Any, cast

import trio
from trio.testing import MockClock

from pidone_controller.kubernetes.client import Client
from pidone_controller.kubernetes.resources import (
    TASK_BINDINGS,
    TASK_SETS,
    ObjectRef,
    Resource,
)
from pidone_controller.objects.written import Written
from pidone_controller.repo.plans import Plans
from pidone_controller.repo.selection import SelectedPod, Selection
from pidone_controller.rollout.catalog import Affected, Catalog
from pidone_controller.rollout.leader import Leader
from pidone_controller.status.changes import Changes
from pidone_controller.status.compose import Composer
from pidone_controller.status.writer import StatusWriter
from tests.controller.factories import binding_spec, pod, set_spec
from tests.controller.fakes import merged

BINDINGS = 10_000
SETS = 2_000
NAMESPACES = 500
EDITS = 20
GOAL_MS = 50.0
HOME = "pidone-system"


def no_log(event: str, **values: object) -> None:
    """A log is not what is measured."""


class FakeApi:
    """The API server: brings writes back as watch events, and notes which statuses were written."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.applied: list[str] = []
        self._version = 0

    async def get(self, resource: Resource, name: str, namespace: str = "") -> dict[str, Any]:
        raise NotImplementedError("nothing is read one by one")

    async def list(self, resource: Resource) -> list[dict[str, Any]]:
        objects = self.catalog.sets if resource is TASK_SETS else self.catalog.bindings
        fields = [{"namespace": one.namespace, "name": one.name, "uid": one.uid} for one in objects]
        return [{"metadata": metadata} for metadata in fields]

    async def apply(self, resource: Resource, body: dict[str, Any], *, subresource: str) -> None:
        await trio.lowlevel.checkpoint()
        self.applied.append(f"{resource.kind} {body['metadata']['name']}")

    async def create(self, resource: Resource, body: dict[str, Any], namespace: str = "") -> None:
        await trio.lowlevel.checkpoint()
        metadata = {**body["metadata"], "creationTimestamp": "2026", "resourceVersion": self._next()}
        self.watch(resource, {**json.loads(json.dumps(body)), "metadata": metadata})

    async def merge(
        self, resource: Resource, name: str, patch: Any, *, namespace: str = "", subresource: str = ""
    ) -> None:
        await trio.lowlevel.checkpoint()
        written = self.catalog.find_binding((False, namespace, name))
        assert written is not None
        rollout = merged(written.rollout, patch["status"]["rollout"])
        after = replace(written, rollout=rollout, resource_version=self._next())
        self.catalog.sinks[resource].changed((namespace, name), after)

    def watch(self, resource: Resource, value: dict[str, Any]) -> None:
        sink = self.catalog.sinks[resource]
        item = sink.project(value)
        assert item is not None
        sink.changed((value["metadata"]["namespace"], value["metadata"]["name"]), item)

    def _next(self) -> str:
        self._version += 1
        return str(self._version)


class Replica:
    """A leader."""

    def __init__(self) -> None:
        self.plans = Plans(no_log)
        self.catalog = Catalog(HOME, self._changed)
        self.selection = Selection(self.plans)
        self.changes = Changes(self.catalog, self.plans, self.selection)
        self.api = FakeApi(self.catalog)
        self.composer = Composer(self.catalog, self.plans, self.selection)
        self.composed = 0
        self.statuses = StatusWriter(self.api, self.compose, no_log)
        self.leader = Leader(
            cast("Client", self.api), self.catalog, self.selected, no_log, now=trio.current_time
        )

    def selected(self, written: Written) -> list[SelectedPod]:
        return self.selection.pods(written.binding) if written.binding is not None else []

    def _changed(self, affected: Affected) -> None:
        self.changes.objects_changed(affected)

    def compose(self, ref: ObjectRef, previous: Mapping[str, Any]) -> dict[str, Any] | None:
        self.composed += 1
        return self.composer.compose(ref, previous)

    def fill(self) -> None:
        """Read all objects and pods."""
        for index in range(SETS):
            self.api.watch(TASK_SETS, value_of("TaskSet", f"set-{index}", index, set_spec()))
        for index in range(BINDINGS):
            self.api.watch(TASK_BINDINGS, value_of("TaskBinding", f"binding-{index}", index, spec_of(index)))
        self.plans.replace(
            pod(
                f"web-{index}",
                f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}",
                namespace=f"team-{index % NAMESPACES}",
                labels={"app": f"app-{index}"},
            )
            for index in range(BINDINGS)
        )
        self.changes.apply_all()

    async def settle(self) -> None:
        """Derive plans and write versions, rollouts and statuses until nothing is left to do."""
        while True:
            affected = self.changes.apply()
            if not affected:
                return
            self.leader.look(affected)
            for ref in self.composer.refs(affected):
                self.statuses.mark(ref)
            await self.leader.look_once()
            await trio.testing.wait_all_tasks_blocked()


def value_of(kind: str, name: str, index: int, spec: dict[str, Any], generation: int = 1) -> dict[str, Any]:
    """An object as the API server has it."""
    metadata = {
        "name": name,
        "namespace": f"team-{index % NAMESPACES}",
        "uid": name,
        "generation": generation,
    }
    return {"kind": kind, "metadata": {**metadata, "creationTimestamp": "2026"}, "spec": spec}


def spec_of(index: int, **more: Any) -> dict[str, Any]:
    """The spec of a binding for one pod; each set is named by five bindings of its namespace."""
    spec = binding_spec(f"set-{index % SETS}", **more)
    return {**spec, "podSelector": {"matchLabels": {"app": f"app-{index}"}}}


async def edits(replica: Replica, edit: Callable[[int], None]) -> tuple[float, float, float]:
    """Milliseconds of processor time, composed and written statuses for one edit; the mean of ``EDITS``."""
    milliseconds = []
    replica.composed = 0
    replica.api.applied.clear()
    for number in range(EDITS):
        await trio.sleep(60)  # the clock jumps: statuses are written at a limited rate
        began = process_time()
        edit(number)
        await replica.settle()
        milliseconds.append((process_time() - began) * 1000)
    return mean(milliseconds), replica.composed / EDITS, len(replica.api.applied) / EDITS


async def main() -> bool:
    """Whether the goal was met."""
    replica = Replica()
    began = process_time()
    replica.fill()
    print(f"{BINDINGS} bindings, {SETS} sets and {BINDINGS} pods read in {process_time() - began:.0f} s")

    good = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replica.plans.run)
        nursery.start_soon(replica.statuses.run)
        began = process_time()
        replica.changes.objects_changed(replica.catalog.everything())
        await replica.settle()
        await trio.sleep(60)
        print(f"first statuses: {process_time() - began:.0f} s, {len(replica.api.applied)} written")

        def edit_binding(number: int) -> None:
            spec = spec_of(number, params={"number": str(number)})
            replica.api.watch(
                TASK_BINDINGS, value_of("TaskBinding", f"binding-{number}", number, spec, generation=2)
            )

        def edit_set(number: int) -> None:
            replica.api.watch(
                TASK_SETS, value_of("TaskSet", f"set-{number}", number, set_spec(9), generation=2)
            )

        for title, edit in (("a binding", edit_binding), ("a set of five bindings", edit_set)):
            milliseconds, composed, written = await edits(replica, edit)
            good &= milliseconds <= GOAL_MS
            print(
                f"an edit of {title}: {milliseconds:.1f} ms, {composed:g} statuses composed, {written:g} written"
            )
        nursery.cancel_scope.cancel()
    print(f"goal: {GOAL_MS:g} ms: {'met' if good else 'missed'}")
    return good


if __name__ == "__main__":
    sys.exit(not trio.run(main, clock=MockClock(autojump_threshold=0)))
