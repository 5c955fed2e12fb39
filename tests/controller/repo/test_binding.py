from dataclasses import replace

import pytest

from pidone.language.binding import PLACES, BindingError, Rollout, Rules, Version, collect, derive, place
from tests.controller.factories import binding, pod, rules, task_set

CHECKED = {"check": "yes"}


def test_labels_choose_the_tasks() -> None:
    found = rules(task_set(), binding())
    (task,) = derive(pod(labels=CHECKED), found)
    assert task["name"] == "ready"
    assert task["probe"]["tcpSocket"]["port"] == 8080
    assert derive(pod(labels={"check": "no"}), found) == []
    assert derive(pod(), found) == []


def test_bindings_come_by_name_and_those_of_all_namespaces_first() -> None:
    found = rules(
        *(task_set(name, task=name) for name in "abc"),
        binding("last", sets="c"),
        binding("db", sets="b", namespace="shop"),
        binding("all", sets="a", namespace="shop"),
    )
    assert [task["name"] for task in derive(pod(labels=CHECKED), found)] == ["c", "a", "b"]
    assert [task["name"] for task in derive(pod(namespace="bank", labels=CHECKED), found)] == ["c"]


def test_the_namespace_s_own_task_set_is_nearer() -> None:
    found = rules(task_set(period=5), task_set(period=9, namespace="shop"), binding())
    assert derive(pod(labels=CHECKED), found)[0]["probe"]["periodSeconds"] == 9
    assert derive(pod(namespace="bank", labels=CHECKED), found)[0]["probe"]["periodSeconds"] == 5


def test_an_explicit_default_namespace_is_only_that_one() -> None:
    found = rules(task_set(), binding(namespace="default"))
    assert derive(pod(labels=CHECKED), found) == []
    assert derive(pod(namespace="default", labels=CHECKED), found)


def test_the_cluster_s_bindings_come_first_and_take_the_cluster_s_sets() -> None:
    found = rules(
        task_set("base", task="theirs", namespace="shop"),
        task_set("base", task="base", cluster=True),
        task_set("a", task="a", namespace="shop"),
        binding("a", sets="a", namespace="shop"),
        binding("z", sets="base", cluster=True),
    )
    assert [task["name"] for task in derive(pod(labels=CHECKED), found)] == ["base", "a"]
    assert [task["name"] for task in derive(pod(namespace="bank", labels=CHECKED), found)] == ["base"]


def test_a_binding_of_a_namespace_takes_its_own_set_and_then_the_cluster_s() -> None:
    cluster = task_set("base", task="all", cluster=True)
    bound = [binding("b", sets="base", namespace="shop"), binding("b", sets="base", namespace="bank")]
    found = rules(cluster, task_set("base", task="own", namespace="shop"), *bound)
    assert [task["name"] for task in derive(pod(labels=CHECKED), found)] == ["own"]
    assert [task["name"] for task in derive(pod(namespace="bank", labels=CHECKED), found)] == ["all"]


def heir(name: str, base: str, *, params: str = "") -> str:
    return f"""\
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {{name: {name}}}
spec:
  extends: [{base}]
  params: [{params}]
  tasks: [{{name: {name}, probe: {{tcpSocket: {{port: 1}}}}}}]
"""


def test_what_two_bound_sets_extend_is_there_once() -> None:
    sets = [task_set("base", cluster=True), heir("a", "base"), heir("b", "base")]
    found = rules(*sets, binding("one", sets="a"), binding("two", sets="b"))
    assert [task["name"] for task in derive(pod(labels=CHECKED), found)] == ["ready", "a", "b"]


def test_a_set_is_flattened_once_for_all_pods() -> None:
    found = rules(task_set("base", cluster=True), heir("a", "base"), binding(sets="a"))
    first = derive(pod(labels=CHECKED), found)
    made = dict(found.flattened)
    assert derive(pod("other", labels=CHECKED), found) == first
    assert made == found.flattened
    assert len(made) == 1


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        ([binding("one", sets="gone")], ["TaskBinding one", '"gone"']),
        (
            [task_set("only", namespace="shop"), binding("one", sets="only", cluster=True)],
            ["ClusterTaskBinding one", 'ClusterTaskSet "only"'],
        ),
        (
            [heir("a", "gone"), binding(sets="a")],
            ["TaskBinding checked", 'TaskSet "a" extends "gone", which is not'],
        ),
        (
            [
                *(task_set("base"), heir("a", "base"), heir("b", "base")),
                *(binding("one", sets="a", params="port: 1"), binding("two", sets="b", params="port: 2")),
            ],
            ["TaskBinding one", "TaskBinding two", "extend the same one", "different params", '"ready"'],
        ),
        (
            [task_set(), binding("one", params="port: 1"), binding("two", params="port: 2")],
            ["TaskBinding one", "TaskBinding two", '"check"', "different params"],
        ),
        (
            [task_set(), task_set("more"), binding("one"), binding("two", sets="more", namespace="shop")],
            ["TaskBinding one", "TaskBinding shop/two", '"ready"'],
        ),
        ([task_set(), binding("one", params="ports: 1")], ["TaskBinding one", "ports", "port"]),
        ([task_set(), binding("one", params="port: many")], ["TaskBinding one", "port", "many"]),
    ],
)
def test_a_conflict_names_both(texts: list[str], named: list[str]) -> None:
    with pytest.raises(BindingError) as raised:
        derive(pod(labels=CHECKED), rules(*texts))
    for name in named:
        assert name in str(raised.value)


def test_one_set_bound_twice_alike_is_one() -> None:
    found = rules(task_set(), binding("one", params="port: 1"), binding("two", params="port: 1"))
    assert len(derive(pod(labels=CHECKED), found)) == 1


def test_of_two_files_with_the_same_object_the_first_counts() -> None:
    one = rules(task_set(period=1))
    two = rules(task_set(period=2))
    files = [
        ("a.yaml", [one.sets.by_key[False, "", "check"]]),
        ("b.yaml", [two.sets.by_key[False, "", "check"]]),
    ]
    found, complaints = collect(files)
    assert found.sets.find("check", "shop") is one.sets.find("check", "shop")
    assert complaints == ("TaskSet check is in a.yaml and again in b.yaml; the first counts",)


# What two versions of a binding come to


def rolled(current: Rules | None, target: Rules, share: int, *, seed: str = "x") -> Rules:
    """The rules of ``target``, whose bindings are between those of ``current`` and these."""

    def version(of: Rules, index: int) -> Version:
        return Version(of.bindings[index].task_sets, of.bindings[index].params, of.sets)

    rollouts: dict[tuple[bool, str, str], Rollout | str] = {
        found.key: Rollout(version(current, index) if current else None, version(target, index), share, seed)
        for index, found in enumerate(target.bindings)
    }
    return replace(target, rollouts=rollouts, flattened={})


def test_a_share_of_the_pods_has_the_target() -> None:
    found = rolled(rules(task_set(period=5), binding()), rules(task_set(period=9), binding()), PLACES // 4)
    periods = [
        derive(pod(uid=f"uid-{number}", labels=CHECKED), found)[0]["probe"]["periodSeconds"]
        for number in range(400)
    ]
    assert set(periods) == {5, 9}
    assert 60 < periods.count(9) < 140
    # whoever has it by a small share has it by every larger one
    assert all((period == 9) == (place(f"uid-{n}", "x") < PLACES // 4) for n, period in enumerate(periods))


@pytest.mark.parametrize(("share", "names"), [(0, []), (PLACES, ["ready"])])
def test_a_binding_that_was_not_there_before_begins_with_nothing(share: int, names: list[str]) -> None:
    found = rolled(None, rules(task_set(), binding()), share)
    assert [task["name"] for task in derive(pod(labels=CHECKED), found)] == names


def test_a_version_has_its_own_sets_and_params() -> None:
    before = rules(task_set("base"), heir("old", "base"), binding(sets="old", params="port: 1"))
    after = rules(task_set("base", period=9), task_set("new", task="new"), binding(sets="new"))
    assert [
        (task["name"], task["probe"]["tcpSocket"]["port"])
        for task in derive(pod(labels=CHECKED), rolled(before, after, 0))
    ] == [("ready", 1), ("old", 1)]
    (task,) = derive(pod(labels=CHECKED), rolled(before, after, PLACES))
    assert (task["name"], task["probe"]["tcpSocket"]["port"]) == ("new", 8080)


def test_bindings_of_one_set_at_two_versions_agree_where_the_task_is_the_same() -> None:
    old = rules(task_set("base"), heir("a", "base"), binding("one", sets="base"), binding("two", sets="base"))
    new = rules(
        task_set("base", period=9), heir("a", "base"), *(binding(x, sets="base") for x in ("one", "two"))
    )
    same = rules(task_set("base"), heir("a", "base"), *(binding(x, sets="base") for x in ("one", "two")))
    one_of = {False: 0, True: PLACES}

    def between(after: Rules) -> Rules:
        found = rolled(old, after, 0)
        rollouts = {
            key: replace(rollout, share=one_of[key[2] == "two"])
            for key, rollout in found.rollouts.items()
            if isinstance(rollout, Rollout)
        }
        return replace(found, rollouts=rollouts)

    assert len(derive(pod(labels=CHECKED), between(same))) == 1
    with pytest.raises(BindingError, match='bind TaskSet "base" at different versions, and task "ready"'):
        derive(pod(labels=CHECKED), between(new))


def test_what_is_not_known_is_said_and_leaves_the_rest() -> None:
    found = rules(task_set("a", task="a"), binding("a", sets="a"), task_set("b"), binding("b", sets="b"))
    found = replace(found, rollouts={found.bindings[1].key: "its rollout has not begun"})
    with pytest.raises(BindingError, match="TaskBinding b: its rollout has not begun") as raised:
        derive(pod(labels=CHECKED), found)
    assert [task["name"] for task in raised.value.rest] == ["a"]
    assert raised.value.faults[0].bindings == (found.bindings[1],)


def test_of_a_conflict_neither_is_in_the_rest() -> None:
    found = rules(
        *(task_set("a"), task_set("b"), task_set("c", task="other")),
        *(binding("one", sets="a"), binding("three", sets="c"), binding("two", sets="b")),
    )
    with pytest.raises(BindingError) as raised:
        derive(pod(labels=CHECKED), found)
    assert [task["name"] for task in raised.value.rest] == ["other"]
    ((first, second),) = [fault.bindings for fault in raised.value.faults]
    assert (first.name, second.name) == ("one", "two")


def test_two_tasks_that_freeze_one_application_are_refused() -> None:
    sets = [
        f"""
        apiVersion: pidone.dev/v1alpha1
        kind: TaskSet
        metadata: {{name: {name}}}
        spec:
          tasks: [{{name: {name}, idle: {{after: 1m}}}}]
        """
        for name in "ab"
    ]
    found = rules(*sets, binding("a", sets="a"), binding("b", sets="b"))
    container = {"name": "app", "ports": [{"containerPort": 8080}]}
    spec = {"shareProcessNamespace": True, "containers": [container]}
    both = pod(labels=CHECKED, spec=spec)
    with pytest.raises(
        BindingError, match='brings the idle task "a", and TaskBinding b brings "b"; a pod has one'
    ):
        derive(both, found)
