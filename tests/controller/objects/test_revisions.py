"""Objects as the API server has them, and the versions of them that are kept."""

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pidone.language.model import TaskBinding, TaskSet
from pidone_controller.kubernetes.resources import CONTROLLER_REVISIONS
from pidone_controller.objects import revisions
from pidone_controller.objects.revisions import Create, Delete, Update, changes
from pidone_controller.objects.store import Store
from pidone_controller.objects.written import CAUSE, MAX_FINDINGS, ObjectError, Written, read, version_digest
from pidone_controller.rollout.catalog import Catalog
from tests.controller.factories import binding_spec, set_spec
from tests.controller.fakes import HOME, FakeClient

DEEP: dict[str, Any] = {}
for _ in range(60):
    DEEP = {"a": DEEP}


def given_object(spec: object, kind: str = "TaskSet", **metadata: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "metadata": {"name": "check", "namespace": "shop", "uid": "u", "generation": 1, **metadata},
        "spec": spec,
        "status": {"rollout": {"phase": "Complete"}, "conditions": []},
    }


# Reading


def test_what_the_api_server_adds_is_no_mistake() -> None:
    added: dict[str, Any] = {
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "deletionTimestamp": "2026",
        "selfLink": "x",
        "managedFields": [{}],
    }
    written = read("TaskSet", given_object(set_spec(), **added))
    assert written.findings == ()
    assert isinstance(written.value, TaskSet)
    assert written.value.key == written.key == (False, "shop", "check")
    assert str(written) == "TaskSet shop/check"


def test_a_cluster_s_object_is_in_no_namespace() -> None:
    value = given_object(binding_spec(), "ClusterTaskBinding")
    del value["metadata"]["namespace"]
    written = read("ClusterTaskBinding", value)
    assert isinstance(written.value, TaskBinding)
    assert written.value.key == written.key == (True, "", "check")
    assert written.rollout == {"phase": "Complete"}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"tasks": [{"name": "a", "probe": {"tcpSocket": {"port": 1}, "periodSecond": 1}}]},
         'spec.tasks[0].probe.periodSecond: unknown field "periodSecond"'),
        ({"tasks": [{"name": "a", "needs": ["b"], "probe": {"tcpSocket": {"port": 1}}}]},
         'spec.tasks[0].needs[0]: task "a" needs "b"'),
        ({"tasks": [{"name": "a", "metrics": {}}, {"name": "a", "metrics": {}}]},
         'spec.tasks[1].name: a task "a" is there already, at spec.tasks[0].name; rename one'),
        ({"tasks": [{"name": "a", "register": {"eureka": {"url": "http://e", "app": "a", "port": 1,
                                                          "metadata": {"a.b/c": 5}}}}]},
         "spec.tasks[0].register.eureka.metadata['a.b/c']: expected a string, not 5"),
        ({}, 'spec: "tasks" is missing'),
        (None, "spec: "),
        ([], "spec: expected an object, not a list"),
        ({"tasks": [{"name": "a", "metrics": DEEP}]},
         "nested more than 40 deep"),
    ],
)  # fmt: skip
def test_a_finding_names_the_path(spec: object, said: str) -> None:
    written = read("TaskSet", given_object(spec))
    assert said in "\n".join(written.findings)
    assert written.value is None


def test_a_binding_with_mistakes_keeps_a_sound_selector() -> None:
    spec = binding_spec(params={"a": "$(pod.name)"})
    written = read("TaskBinding", given_object(spec, "TaskBinding"))
    assert written.findings[0].startswith("spec.params.a: ")
    assert written.binding is not None
    assert written.binding.pod_selector.labels == {"check": "yes"}
    assert read("TaskBinding", given_object({**spec, "podSelector": 5}, "TaskBinding")).binding is None


@pytest.mark.parametrize("value", [{}, {"metadata": None}, {"metadata": {"name": 5}}])
def test_what_is_no_object_at_all(value: dict[str, Any]) -> None:
    with pytest.raises(ObjectError, match="without metadata"):
        read("TaskSet", value)


WORDS = [
    *("tasks", "name", "probe", "needs", "ready", "params", "extends", "override", "podSelector", "taskSets"),
    *("rollout", "matchLabels", "operator", "values", "10%", "$(params.x)", "$(", "a\nb", ""),
]
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(WORDS)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=20,
)


@given(
    ANYTHING,
    st.sampled_from(["TaskSet", "ClusterTaskSet", "TaskBinding", "ClusterTaskBinding"]),
    st.sampled_from(["tasks", "params", "podSelector", "rollout", "taskSets", "extends"]),
)
def test_nothing_that_stands_in_an_object_is_more_than_a_finding(part: object, kind: str, where: str) -> None:
    spec = binding_spec() if kind.endswith("Binding") else set_spec()
    for changed in (part, {**spec, where: part}, {**spec, where: [part]}):
        written = read(kind, given_object(changed, kind))
        assert written.findings or written.value is not None
        for finding in written.findings:
            assert "\n" not in finding


def test_what_an_author_writes_fills_no_memory() -> None:
    needs = [f"gone-{number}" for number in range(90)]
    tasks = [{"name": f"t{number}", "needs": needs, "exec": {"command": ["/x"]}} for number in range(10)]
    written = read("TaskSet", given_object({"tasks": tasks}))
    assert len(written.findings) == MAX_FINDINGS + 1
    assert written.findings[-1] == f"and {450 + 50 - MAX_FINDINGS} more"
    for default in ({"k" * 100_000: [0] * 1000}, [0] * 60_000):
        (finding,) = read(
            "TaskSet", given_object(set_spec() | {"params": [{"name": "a", "default": default}]})
        ).findings
        assert len(finding) < 1000


def test_a_generation_is_checked_once() -> None:
    before = read("TaskSet", given_object(set_spec()))
    again = read("TaskSet", given_object(set_spec(), resourceVersion="9"), before)
    assert again.value is before.value
    assert again == before  # what is not read does not differ
    assert read("TaskSet", given_object(set_spec(9), generation=2), before).value is not before.value
    # another object of the same name
    assert read("TaskSet", given_object(set_spec(9), uid="v"), before).value is not before.value


def test_the_digest_is_of_what_was_written_by_whom() -> None:
    one = version_digest("TaskSet", "check", set_spec())
    assert one == version_digest("TaskSet", "check", dict(reversed(set_spec().items())))
    assert (
        len(
            {
                one,
                version_digest("ClusterTaskSet", "check", set_spec()),
                version_digest("TaskSet", "b", set_spec()),
            }
        )
        == 3
    )


def test_a_store_says_what_changed() -> None:
    said: list[str] = []
    store: Store[Written] = Store(
        lambda value, before: read("TaskSet", value, before), lambda *_: said.append("changed")
    )
    one = store.project(given_object(set_spec()))
    assert one is not None
    store.replaced({("shop", "check"): one})
    store.replaced({("shop", "check"): one})
    store.changed(("shop", "check"), read("TaskSet", given_object(set_spec(), resourceVersion="9"), one))
    store.removed(("shop", "other"))
    assert said == ["changed"]
    store.changed(("shop", "check"), read("TaskSet", given_object(set_spec(9), generation=2), one))
    store.removed(("shop", "check"))
    assert len(said) == 3


# What is kept


class Kept:
    """The revisions that a leader would make of what people write."""

    def __init__(self) -> None:
        self.catalog = Catalog(HOME)
        self.server = FakeClient(self.catalog)

    def changes(self, *, in_use: tuple[str, ...] = (), limit: int = 3) -> list[revisions.Change]:
        self.server.deliver()
        history = self.catalog.history
        return [
            change
            for written in self.catalog.sets
            for change in changes(
                written,
                history.revisions(written.key),
                lambda _, digest: digest in in_use,
                HOME,
                limit,
            )
        ]

    async def settle(self, *, in_use: tuple[str, ...] = (), limit: int = 3) -> None:
        for change in self.changes(in_use=in_use, limit=limit):
            await revisions.apply(self.server, change)  # type: ignore[arg-type] # all that is asked of a client
        self.server.deliver()

    async def write(
        self, *periods: int, kind: str = "TaskSet", in_use: tuple[str, ...] = (), **more: Any
    ) -> str:
        for period in periods:
            self.server.put(kind, "check", set_spec(period), **more)
            await self.settle(in_use=in_use)
            await self.settle(in_use=in_use)
        assert self.changes(in_use=in_use) == []
        return next(one.digest for one in self.catalog.sets if one.kind == kind)

    def numbers(self) -> list[int]:
        return [int(one.split()[1]) for one in self.server.revisions()]


async def test_every_version_is_kept_with_its_number() -> None:
    kept = Kept()
    digest = await kept.write(1, 2, annotations={CAUSE: "faster"})
    (first, second) = sorted(kept.catalog.revisions, key=lambda one: one.number)
    assert (first.number, second.number) == (1, 2)
    assert second.digest == digest
    assert second.name == f"check-{digest[7:17]}"
    assert second.cause == "faster"
    assert second.task_set == next(kept.catalog.sets).value
    value = kept.server.items[CONTROLLER_REVISIONS, "shop", second.name]
    assert value["metadata"]["labels"] == {"pidone.dev/task-set": "check"}
    owner = value["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("TaskSet", "check", next(kept.catalog.sets).uid)


async def test_what_comes_back_gets_the_next_number() -> None:
    kept = Kept()
    await kept.write(1, 2, 1)
    assert kept.numbers() == [2, 3]
    await kept.write(3)
    assert kept.numbers() == [2, 3, 4]


async def test_a_change_cause_that_is_written_later() -> None:
    kept = Kept()
    await kept.write(1)
    await kept.write(1, annotations={CAUSE: "why"})
    assert [(one.number, one.cause) for one in kept.catalog.revisions] == [(1, "why")]


async def test_the_oldest_go_but_those_in_use_stay() -> None:
    kept = Kept()
    first = await kept.write(1)
    await kept.write(2, 3, 4, 5, 6, in_use=(first,))
    assert kept.numbers() == [1, 4, 5, 6]
    await kept.write(6)
    assert kept.numbers() == [1, 4, 5, 6]  # three beside the present one: within the limit
    await kept.write(7)
    assert kept.numbers() == [4, 5, 6, 7]


async def test_the_cluster_s_are_kept_in_the_controller_s_namespace_and_count_nowhere_else() -> None:
    kept = Kept()
    await kept.write(1, kind="ClusterTaskSet")
    ((_, namespace, name),) = [where for where in kept.server.items if where[0] is CONTROLLER_REVISIONS]
    assert namespace == HOME
    value = kept.server.items[CONTROLLER_REVISIONS, HOME, name]
    forged = {**value, "metadata": {**value["metadata"], "namespace": "shop"}}
    assert revisions.read(value, HOME) is not None
    assert revisions.read(forged, HOME) is None


async def test_sets_of_one_name_and_spec_do_not_meet() -> None:
    kept = Kept()
    await kept.write(1, kind="ClusterTaskSet")
    await kept.write(1, namespace=HOME)
    assert kept.numbers() == [1, 1]


async def test_those_of_a_set_that_is_no_more_go() -> None:
    kept = Kept()
    await kept.write(1)
    ((where, value),) = [one for one in kept.server.items.items() if one[0][0] is not CONTROLLER_REVISIONS]
    value["metadata"] |= {"uid": "another"}
    kept.server._put(where, value)
    await kept.settle()
    assert kept.numbers() == [1]
    assert [one.owner for one in kept.catalog.revisions] == ["another"]


async def test_those_of_a_set_that_was_not_heard_of_yet_stay() -> None:
    kept = Kept()
    await kept.write(1)
    (revision,) = kept.catalog.revisions
    value = kept.server.items[CONTROLLER_REVISIONS, "shop", revision.name]
    value["metadata"]["ownerReferences"][0]["uid"] = "next"
    value["metadata"]["creationTimestamp"] = "2027"
    kept.server._put((CONTROLLER_REVISIONS, "shop", revision.name), value)
    assert [type(one) for one in kept.changes()] == [Create]


@pytest.mark.parametrize(
    "change",
    [
        {"data": None},
        {"data": {"spec": "x"}},
        {"metadata": {"name": "x", "namespace": "shop"}},
        {"metadata": {"name": "x", "namespace": "shop", "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "x", "uid": "u"}]}},
    ],
)  # fmt: skip
async def test_those_of_others_are_none_of_ours(change: dict[str, Any]) -> None:
    kept = Kept()
    await kept.write(1)
    value = next(value for where, value in kept.server.items.items() if where[0] is CONTROLLER_REVISIONS)
    assert revisions.read({**value, **change}, HOME) is None


async def test_one_that_was_tampered_with_is_no_version_of_a_set() -> None:
    kept = Kept()
    await kept.write(1)
    value = next(value for where, value in kept.server.items.items() if where[0] is CONTROLLER_REVISIONS)
    before = revisions.read(value, HOME)
    forged = revisions.read({**value, "data": {"spec": {"tasks": [{"name": "x"}]}}}, HOME)
    assert before is not None
    assert forged is not None
    assert forged.task_set is None
    assert forged.digest != before.digest


async def test_a_set_with_mistakes_is_not_kept() -> None:
    kept = Kept()
    kept.server.put("TaskSet", "check", {"tasks": []})
    assert kept.changes() == []


@given(st.lists(st.integers(1, 6), min_size=1, max_size=15), st.sets(st.integers(1, 6)))
def test_whatever_is_written_the_history_is_right(periods: list[int], used: set[int]) -> None:
    """Numbers are unique and the present one's is the greatest; what is in use is there; nothing is left to do."""

    async def write() -> None:
        kept = Kept()
        digests = {period: version_digest("TaskSet", "check", set_spec(period)) for period in range(1, 7)}
        in_use = tuple(digests[period] for period in used)
        present = await kept.write(*periods, in_use=in_use)
        found = sorted(kept.catalog.revisions, key=lambda one: one.number)
        assert len({one.number for one in found}) == len(found)
        assert found[-1].digest == present
        there = {one.digest for one in found}
        assert there >= {digests[period] for period in used & set(periods)}
        assert len(there - {present} - set(in_use)) <= 3

    trio.run(write)


def test_the_changes_are_told_apart_by_their_object() -> None:
    written = read("TaskSet", given_object(set_spec()))
    create = Create(written, 1, "shop")
    revision = revisions.read(create.body() | {"metadata": {**create.body()["metadata"]}}, HOME)
    assert revision is not None
    assert create.name == Update(revision, 2, "").name == Delete(revision).name
