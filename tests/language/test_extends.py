"""``extends``, ``override``, ``disable``: what a set comes to, and what is refused."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidone.errors import LanguageError
from pidone.language.checking import check_text
from pidone.language.extends import MAX_DEPTH, Flat, Sets, flat, merge
from pidone.language.model import Param, TaskSet
from pidone.language.rendering import render
from pidone.language.resolution import flatten, heirs
from tests.language.test_rendering import POD

HEAD = "apiVersion: pidone.dev/v1alpha1\nkind: {}\nmetadata: {{name: {}{}}}\nspec:\n"


def written(name: str, spec: str, *, kind: str = "TaskSet", namespace: str = "") -> str:
    return HEAD.format(kind, name, f", namespace: {namespace}" if namespace else "") + spec


def run(name: str, *, more: str = "", argument: str = "x") -> str:
    return f"    - {{name: {name}, exec: {{command: [/bin/run, {argument}]}}{more}}}\n"


BASE = "  tasks:\n" + run("one", more=", timeout: 5s, backoff: {initial: 2s, max: 9s}") + run("two")


def objects(*texts: str) -> list[TaskSet]:
    checked = check_text("---\n".join(texts), "x.yaml")
    assert not checked.findings, "\n".join(map(str, checked.findings))
    return [one for one in checked.objects if isinstance(one, TaskSet)]


def plan(*texts: str) -> dict[str, dict[str, Any]]:
    return {task["name"]: task for task in render(heirs(objects(*texts)), {}, POD)}


def rules(*texts: str) -> list[str]:
    return [one.rule for one in check_text("---\n".join(texts), "x.yaml").findings]


def test_inherited_tasks_come_first_and_what_nobody_extends_is_run() -> None:
    tasks = plan(
        written("base", BASE),
        written("web", "  extends: [base, more]\n  tasks:\n" + run("three", more=", needs: [one, own]")),
        written("more", "  tasks:\n" + run("own")),
        written("alone", "  tasks:\n" + run("alone")),
    )
    assert list(tasks) == ["one", "two", "own", "three", "alone"]
    assert tasks["three"]["needs"] == ["one.succeeded", "own.succeeded"]


def test_a_task_can_be_replaced_merged_or_disabled() -> None:
    own = (
        run("one", more=", override: replace", argument="z")
        + "    - {name: two, override: merge, every: 1m}\n"
    )
    tasks = plan(
        written("base", BASE + run("three")),
        written("web", f"  extends: [base]\n  disable: [three]\n  tasks:\n{own}"),
    )
    assert list(tasks) == ["one", "two"]
    assert tasks["one"]["exec"]["command"] == ["/bin/run", "z"]
    assert "timeout" not in tasks["one"]
    assert tasks["two"]["exec"]["command"] == ["/bin/run", "x"]
    assert tasks["two"]["every"] == 60
    assert not any("override" in task for task in tasks.values())


def test_objects_are_merged_field_by_field_and_lists_as_a_whole() -> None:
    part = "    - {name: one, override: merge, backoff: {max: 1m}, exec: {command: [/bin/run, a, b]}}\n"
    one = plan(written("base", BASE), written("web", f"  extends: [base]\n  tasks:\n{part}"))["one"]
    assert one["backoff"] == {"initial": 2, "max": 60, "factor": 2}
    assert one["exec"]["command"] == ["/bin/run", "a", "b"]
    assert one["timeout"] == 5


def test_a_set_with_extends_needs_no_tasks_of_its_own() -> None:
    assert list(plan(written("base", BASE), written("web", "  extends: [base]\n  disable: [one]\n"))) == [
        "two"
    ]


def test_what_is_inherited_on_two_ways_is_there_once() -> None:
    texts = [
        written("base", BASE),
        written("a", "  extends: [base]\n  tasks:\n" + run("a")),
        written("b", "  extends: [base]\n  tasks:\n" + run("b")),
    ]
    assert list(plan(*texts)) == ["one", "two", "a", "b"]  # two sets in one pod
    assert list(plan(*texts, written("web", "  extends: [a, b]\n"))) == ["one", "two", "a", "b"]


def test_a_param_is_inherited_and_can_be_declared_anew() -> None:
    base = written(
        "base", "  params: [{name: a, default: x}]\n  tasks:\n" + run("one", argument="$(params.a)")
    )
    own = "  tasks:\n" + run("own", argument="$(params.a)")
    assert plan(base, written("web", f"  extends: [base]\n{own}"))["own"]["exec"]["command"][1] == "x"
    tasks = plan(base, written("web", f"  extends: [base]\n  params: [{{name: a, default: z}}]\n{own}"))
    assert tasks["one"]["exec"]["command"][1] == "z"


def test_the_set_of_the_namespace_is_nearer_than_the_cluster_s() -> None:
    cluster = written("base", "  tasks:\n" + run("cluster"), kind="ClusterTaskSet")
    shop = written("base", "  tasks:\n" + run("shop"), namespace="shop")
    sets = objects(
        *(cluster, shop),
        written("web", "  extends: [base]\n", namespace="shop"),
        written("web", "  extends: [base]\n", namespace="bank"),
        written("all", "  extends: [base]\n", kind="ClusterTaskSet"),
    )
    names = [[task["name"] for task in flatten(one, Sets.of(sets)).tasks] for one in sets[2:]]
    assert names == [["shop"], ["cluster"], ["cluster"]]


LEVELS = [written("s0", "  tasks:\n" + run("zero"))] + [
    written(f"s{n}", f"  extends: [s{n - 1}]\n") for n in range(1, MAX_DEPTH + 2)
]


def test_four_levels_are_read_and_five_are_not() -> None:
    assert list(plan(*LEVELS[:-1])) == ["zero"]
    assert rules(*LEVELS) == ["extends-depth"]


def test_what_is_not_there_may_be_elsewhere() -> None:
    text = written(
        "web", "  extends: [baseline]\n  disable: [x]\n  tasks:\n" + run("own", more=", needs: [y.healthy]")
    )
    assert not rules(text)
    (one,) = objects(text)
    with pytest.raises(LanguageError, match='TaskSet "web" extends "baseline", which is not there'):
        flatten(one, Sets.of([one]))


def test_where_all_is_there_the_same_is_refused_as_by_the_checker() -> None:
    web = objects(written("web", "  extends: [base]\n  disable: [two]\n"))
    base = objects(written("base", BASE + run("after", more=", needs: [two]")))
    with pytest.raises(
        LanguageError, match='TaskSet "web" with all that it extends: task "after" needs "two"'
    ):
        flatten(web[0], Sets.of([*web, *base]))


# For any sets


TASKS = st.sampled_from("abcdef")


@st.composite
def families(draw: st.DrawFn) -> list[TaskSet]:
    """Sets that extend any others, themselves too, and those that are not there."""
    count = draw(st.integers(1, 7))
    names = [f"s{number}" for number in range(count)]
    found = []
    for name in names:
        tasks: dict[str, Mapping[str, Any]] = {}
        for task in draw(st.lists(TASKS, max_size=3, unique=True)):
            override = draw(st.sampled_from([None, None, "replace", "merge"]))
            given: dict[str, Any] = {"name": task} | ({"override": override} if override else {})
            if override != "merge":
                given["exec"] = {"command": [f"/bin/{name}"]}
            given |= draw(st.sampled_from([{}, {"timeout": "1s"}, {"every": "1m"}]))
            tasks[task] = given
        found.append(
            TaskSet(
                name,
                extends=tuple(draw(st.lists(st.sampled_from([*names, "gone"]), max_size=3, unique=True))),
                disable=tuple(draw(st.lists(TASKS, max_size=1))),
                tasks=tuple(tasks.values()),
                params=(Param("p", default=draw(st.sampled_from(["x", "y"]))),)
                if draw(st.booleans())
                else (),
            )
        )
    return found


def good(found: Flat) -> bool:
    return not found.problems and not found.missing


@given(families())
def test_it_ends_and_what_is_good_is_complete_and_unambiguous(family: list[TaskSet]) -> None:
    sets = Sets.of(family)
    for one in family:
        found = flat(one, sets)
        if not good(found):
            continue
        assert not found.task_set.extends
        assert not found.task_set.disable
        names = [task["name"] for task in found.task_set.tasks]
        assert len(set(names)) == len(names)
        for name in one.extends:
            base = sets.base(name, one)
            assert base is not None
            inherited = flat(base, sets)
            assert good(inherited)  # nothing good is made of what is not
            kept = {task["name"] for task in inherited.task_set.tasks} - set(one.disable)
            assert kept <= set(names)
        own = {task["name"] for task in one.tasks}
        assert own <= set(names)
        for task in found.task_set.tasks:
            assert "override" not in task
            assert "exec" in task  # no part of a task is left by itself


@given(families())
def test_flattening_again_changes_nothing_and_order_of_the_files_is_no_matter(family: list[TaskSet]) -> None:
    for one in family:
        found = flat(one, Sets.of(family))
        again = flat(found.task_set, Sets.of(family))
        assert flat(one, Sets.of(family[::-1])) == found
        if good(found):
            assert again.task_set == found.task_set
            assert all(a is b for a, b in zip(again.task_set.tasks, found.task_set.tasks, strict=True))


@given(families())
def test_what_is_untouched_is_what_was_written(family: list[TaskSet]) -> None:
    everything = [task for one in family for task in one.tasks]
    for one in family:
        for task in flat(one, Sets.of(family)).task_set.tasks:
            touched = any(own["name"] == task["name"] and "override" in own for own in everything)
            assert touched or any(task is own for own in everything)


JSON = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("xyz"), JSON, max_size=3)


@given(OBJECTS, OBJECTS, OBJECTS)
def test_merging_is_associative_and_with_nothing_changes_nothing(a: Any, b: Any, c: Any) -> None:
    assert merge(a, {}) == a
    assert merge({}, a) == a
    assert merge(a, a) == a
    if all(type(x.get(k)) is type(y.get(k)) for x, y in [(a, b), (b, c)] for k in x.keys() & y.keys()):
        assert merge(merge(a, b), c).keys() == merge(a, merge(b, c)).keys()


def test_many_ways_to_the_same_set_cost_little() -> None:
    rows = [
        [
            TaskSet(f"s{row}-{column}", extends=tuple(f"s{row - 1}-{n}" for n in range(16)) if row else ())
            for column in range(16)
        ]
        for row in range(12)
    ]
    sets = Sets.of(one for row in rows for one in row)
    assert flat(rows[MAX_DEPTH][0], sets).chain == tuple(f"s{row}-0" for row in range(MAX_DEPTH, -1, -1))
    assert any(one.rule == "extends-depth" for one in flat(rows[11][0], sets).problems)
