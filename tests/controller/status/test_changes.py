"""A change of one object costs what depends on it, and misses nothing of that."""

import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from pidone.language.binding import Rules, derive
from pidone_controller.kubernetes.resources import ObjectRef
from pidone_controller.objects.revisions import Create
from pidone_controller.objects.written import PIN
from pidone_controller.pods.model import Pod
from pidone_controller.repo.plans import Plans
from pidone_controller.repo.selection import Selection
from pidone_controller.rollout.catalog import Affected, Catalog
from pidone_controller.rollout.resolve import RolloutError
from pidone_controller.rollout.state import Phase, RolloutState
from pidone_controller.status.changes import Changes
from pidone_controller.status.compose import Composer
from pidone_controller.status.conditions import Status
from tests.controller.factories import pod, set_spec
from tests.controller.fakes import HOME, FakeClient

NOW = "2026-01-02T03:04:05Z"


def no_log(event: str, **values: object) -> None:
    """Nothing is logged."""


def without_hints(value: object) -> str:
    """As JSON without the sets that a message suggests: they may be older, since nothing else depends on them."""
    text = json.dumps(value)
    text = re.sub(r': \\"(\w+)\\" is a TaskSet; [\w ]+', r' extends \\"\1\\", which is not there', text)
    return re.sub(r"(, which is not there); expected one of [\w, ]+", r"\1", text)


class Replica:
    """The parts of a replica between the watch and the statuses, with the statuses that it has written."""

    def __init__(self, *pods: Pod) -> None:
        self.derived: list[str] = []
        self.composed: list[str] = []
        self.plans = Plans(no_log, derive=self._derive)
        self.plans.replace(pods)
        self.catalog = Catalog(HOME, self._objects_changed)
        self.selection = Selection(self.plans)
        self.changes = Changes(self.catalog, self.plans, self.selection)
        self.composer = Composer(self.catalog, self.plans, self.selection, now=lambda: NOW)
        self.client = FakeClient(self.catalog)
        self.statuses: dict[ObjectRef, Status] = {}

    def _objects_changed(self, affected: Affected) -> None:
        self.changes.objects_changed(affected)

    def begin(self) -> None:
        self.client.deliver()
        self.changes.apply_all()
        self.write(self.composer.refs(self.catalog.everything()))

    def follow(self) -> None:
        """Read what has changed, and write the statuses that it concerns."""
        self.client.deliver()
        self.write(self.composer.refs(self.changes.apply()))

    def change_pod(self, pod: Pod | None, name: str = "") -> None:
        before = self.plans.inventory.find("shop", pod.name if pod else name)
        if pod is not None:
            self.plans.put(pod)
        else:
            self.plans.drop(("shop", name))
        changed = [one for one in (before, pod) if one is not None]
        self.write(self.composer.refs(Affected(bindings=self.changes.of_pods(changed))))

    def write(self, refs: Any) -> None:
        for ref in refs:
            self.composed.append(str(ref))
            status = self.composer.compose(ref, self.statuses.get(ref, {}))
            assert status is not None
            self.statuses[ref] = status

    def wrong(self) -> list[str]:
        """The objects whose status is not what it should be by now."""
        found = []
        for ref in self.composer.refs(self.catalog.everything()):
            expected = self.composer.compose(ref, self.statuses[ref])
            if without_hints(expected) != without_hints(self.statuses[ref]):
                found.append(str(ref))
        return found

    def _derive(self, pod: Any, rules: Rules) -> list[dict[str, Any]]:
        self.derived.append(f"{pod.namespace}/{pod.name}")
        return derive(pod, rules)


def binding_of(index: int, *sets: str, **more: Any) -> dict[str, Any]:
    return {"podSelector": {"matchLabels": {"app": f"app-{index}"}}, "taskSets": list(sets), **more}


LABELS = [{"app": f"app-{index}"} for index in range(3)]
SETS = [
    ("TaskSet", "base"),
    ("TaskSet", "check"),
    ("TaskSet", "more"),
    ("ClusterTaskSet", "base"),
    ("ClusterTaskSet", "check"),
]


class People:
    """Random changes of objects and pods."""

    def __init__(self, replica: Replica, random: Random) -> None:
        self.replica, self.random = replica, random

    def step(self) -> None:
        actions: list[Callable[[], object]] = [
            self.set, self.set, self.binding, self.binding, self.delete, self.pod, self.revision, self.rollout,
        ]  # fmt: skip
        self.random.choice(actions)()

    def namespace(self) -> str:
        return self.random.choice(["shop", "shop", "bank"])

    def set(self) -> None:
        kind, name = self.random.choice(SETS)
        spec = set_spec(self.random.randint(1, 3), task=name, extends=["base"] if name != "base" else None)
        if self.random.random() < 0.2:
            spec["tasks"][0]["needs"] = ["nothing"]
        self.replica.client.put(kind, name, spec, namespace=self.namespace())

    def binding(self) -> None:
        kind = self.random.choice(["TaskBinding", "TaskBinding", "ClusterTaskBinding"])
        names = self.random.sample(["base", "check", "more"], self.random.randint(1, 2))
        more: dict[str, Any] = {"rollout": {"canary": "50%"}} if self.random.random() < 0.3 else {}
        if self.random.random() < 0.1:
            more = {"params": {"a": "$(pod.name)"}}
        annotations: dict[str, str] = {}
        digests = [written.digest for written in self.replica.catalog.sets]
        if digests and self.random.random() < 0.2:
            annotations[PIN] = self.random.choice(digests)
        spec = binding_of(self.random.randrange(3), *names, **more)
        name = self.random.choice(["one", "two", "three"])
        self.replica.client.put(kind, name, spec, namespace=self.namespace(), annotations=annotations)

    def delete(self) -> None:
        client = self.replica.client
        if client.items:
            client.remove(self.random.choice(list(client.items)))

    def pod(self) -> None:
        name = f"web-{self.random.randrange(6)}"
        if self.random.random() < 0.3:
            self.replica.change_pod(None, name)
        else:
            labels = self.random.choice(LABELS)
            terminating = self.random.random() < 0.2
            self.replica.change_pod(pod(name, f"10.1.0.{name[-1]}", labels=labels, terminating=terminating))

    def revision(self) -> None:
        """Keep present versions of sets as the leader does."""
        catalog = self.replica.catalog
        for written in catalog.sets:
            kept = catalog.history.revision(written.key, written.digest) is not None
            if written.task_set is not None and not kept and self.random.random() < 0.5:
                self.replica.client.put_revision(Create(written, 1, written.namespace or HOME).body())

    def rollout(self) -> None:
        """Begin or complete rollouts as the leader does."""
        for written in self.replica.catalog.bindings:
            if not self.replica.client.has(written.kind, written.name, written.namespace):
                continue
            try:
                wanted = self.replica.catalog.wanted(written)
            except RolloutError:
                continue
            state = RolloutState(Phase.COMPLETE, wanted, since=1.0)
            if self.random.random() < 0.3:
                state = RolloutState(Phase.PROGRESSING, None, wanted, percent=50, share=5000, since=1.0)
            self.replica.client.put_rollout(written.kind, written.name, written.namespace, state.value())


@pytest.mark.parametrize("seed", range(8))
def test_after_any_changes_every_status_and_plan_is_as_if_all_were_made_anew(seed: int) -> None:
    random = Random(seed)
    replica = Replica(
        *(pod(f"web-{index}", f"10.1.0.{index}", labels=LABELS[index % 3]) for index in range(6))
    )
    replica.begin()
    people = People(replica, random)
    for number in range(50):
        for _ in range(random.randint(1, 3)):
            people.step()
        replica.follow()
        assert replica.wrong() == []
        if number % 7:
            continue

        fresh = Replica(*replica.plans.inventory)
        fresh.client = replica.client.replica(fresh.catalog, random)
        fresh.begin()
        assert list(fresh.catalog.bindings) == list(replica.catalog.bindings)
        assert fresh.plans.rules.bindings == replica.plans.rules.bindings
        for one in replica.plans.inventory:
            assert fresh.plans.is_bound(one) == replica.plans.is_bound(one)
            expected, found = fresh.plans.entry(one), replica.plans.entry(one)
            assert without_hints(found.error) == without_hints(expected.error)
            assert found.error or found.bundle == expected.bundle  # with an error it keeps what it had


COUNT = 50


@pytest.fixture
def replica() -> Replica:
    """50 pods with a binding and a set each, in one namespace, and a set that ten of them extend."""
    replica = Replica(
        *(
            pod(f"web-{index}", f"10.1.{index >> 8}.{index & 255}", labels={"app": f"app-{index}"})
            for index in range(COUNT)
        )
    )
    replica.client.put("TaskSet", "base", set_spec(task="base"))
    for index in range(COUNT):
        extends = ["base"] if index < 10 else None
        replica.client.put("TaskSet", f"set-{index}", set_spec(extends=extends))
        replica.client.put("TaskBinding", f"bind-{index}", binding_of(index, f"set-{index}"))
    replica.begin()
    assert len(replica.derived) == COUNT
    assert len(replica.composed) == 2 * COUNT + 1
    replica.derived.clear()
    replica.composed.clear()
    return replica


def test_an_edited_set_composes_itself_and_its_binding(replica: Replica) -> None:
    replica.client.put("TaskSet", "set-37", set_spec(9))
    replica.follow()
    assert replica.composed == ["TaskBinding shop/bind-37", "TaskSet shop/set-37"]
    assert replica.derived == ["shop/web-37"]


def test_an_edited_binding_composes_itself_and_the_sets_that_it_names_or_named(replica: Replica) -> None:
    replica.client.put("TaskBinding", "bind-37", binding_of(37, "set-38"))
    replica.follow()
    assert replica.composed == ["TaskBinding shop/bind-37", "TaskSet shop/set-37", "TaskSet shop/set-38"]
    assert replica.derived == ["shop/web-37"]


def test_a_binding_that_takes_another_one_s_pods_composes_both(replica: Replica) -> None:
    replica.client.put("TaskBinding", "bind-37", binding_of(38, "set-37"))
    replica.follow()
    assert replica.composed == ["TaskBinding shop/bind-37", "TaskBinding shop/bind-38"]
    assert sorted(replica.derived) == ["shop/web-38"]


def test_an_edited_base_composes_those_that_extend_it(replica: Replica) -> None:
    replica.client.put("TaskSet", "base", set_spec(9, task="base"))
    replica.follow()
    assert replica.composed == [
        *(f"TaskBinding shop/bind-{index}" for index in range(10)),
        "TaskSet shop/base",
        *(f"TaskSet shop/set-{index}" for index in range(10)),
    ]
    assert replica.derived == [f"shop/web-{index}" for index in range(10)]


def test_a_changed_pod_composes_its_bindings(replica: Replica) -> None:
    replica.change_pod(pod("web-37", "10.1.0.37", labels={"app": "app-37"}, terminating=True))
    assert replica.composed == ["TaskBinding shop/bind-37"]


def test_an_annotation_that_nothing_reads_composes_nothing(replica: Replica) -> None:
    replica.client.put("TaskBinding", "bind-37", binding_of(37, "set-37"), annotations={"note": "x"})
    replica.follow()
    assert replica.composed == []
    assert replica.derived == []
