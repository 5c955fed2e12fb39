"""``podSelector`` of a task: what a pod without it gets of the others."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from pidone.language.pruning import pruned
from pidone.language.rendering import render
from tests.language.test_rendering import POD, task_set

GONE = "{name: gone, podSelector: {matchLabels: {app: other}}, probe: {tcpSocket: {port: 1}}}"
HERE = "{name: here, podSelector: {matchLabels: {app: ratings}}, probe: {tcpSocket: {port: 1}}}"
RUN = "exec: {command: [/bin/run]}"
EUREKA = "eureka: {url: http://e:1/e, app: web, port: 80}"


def rendered(*tasks: str) -> dict[str, Any]:
    """The plan's tasks by name, for a pod without the task "gone"."""
    plan = render([task_set("[]", f"[{', '.join(tasks)}, {GONE}, {HERE}]")], {}, POD)
    found = {task.pop("name"): task for task in plan}
    assert "gone" not in found
    assert found.pop("here")
    return found


def test_the_selector_is_not_in_the_plan() -> None:
    (task,) = render([task_set("[]", f"[{HERE}]")], {}, POD)
    assert "podSelector" not in task


def test_what_waits_for_it_waits_no_longer() -> None:
    tasks = rendered(f"{{name: run, needs: [gone, here], while: [gone.unhealthy], {RUN}}}")
    assert tasks["run"]["needs"] == ["here.healthy"]
    assert tasks["run"]["while"] == []


def test_what_only_it_would_ever_start_is_left_out() -> None:
    tasks = rendered(
        f"{{name: never, runOn: [gone.unhealthy], {RUN}}}",
        f"{{name: sometimes, runOn: [gone.unhealthy, here.unhealthy], {RUN}}}",
        f"{{name: often, runOn: [gone.unhealthy], every: 5s, {RUN}}}",
        f"{{name: after, needs: [never], {RUN}}}",
    )
    assert tasks.keys() == {"sometimes", "often", "after"}
    assert tasks["sometimes"]["runOn"] == ["here.unhealthy"]
    assert "runOn" not in tasks["often"]
    assert tasks["after"]["needs"] == []


def test_what_cannot_be_without_it_goes_too_and_so_on() -> None:
    tasks = rendered(
        f"{{name: registration, podSelector: {{matchLabels: {{app: other}}}}, register: {{{EUREKA}}}}}",
        "{name: beat, heartbeat: {of: registration}}",
        "{name: tell, report: {webhook: {url: http://a/}, of: [beat, registration]}}",
        "{name: tell-some, report: {webhook: {url: http://a/}, of: [beat, here]}}",
    )
    assert tasks.keys() == {"tell-some"}
    assert tasks["tell-some"]["report"]["of"] == ["here"]


def test_what_may_be_missing_is_left_out() -> None:
    tasks = rendered(
        f"{{name: registration, register: {{{EUREKA}, follow: gone}}}}",
        "{name: beat, heartbeat: {of: registration}}",
    )
    assert "follow" not in tasks["registration"]["register"]


@pytest.mark.parametrize(("follow", "left"), [("[gone, here]", ["here"]), ("[gone]", None)])
def test_of_several_probes_those_that_are_there_are_followed(follow: str, left: list[str] | None) -> None:
    tasks = rendered(
        f"{{name: registration, register: {{{EUREKA}, follow: {follow}}}}}",
        "{name: beat, heartbeat: {of: registration}}",
    )
    assert tasks["registration"]["register"].get("follow") == left


def test_a_param_of_a_task_that_is_left_out_needs_no_value() -> None:
    one = task_set(
        "[{name: a}]",
        "[{name: run, podSelector: {matchLabels: {app: other}}, exec: {command: [/bin/run, $(params.a)]}}]",
    )
    assert render([one], {}, POD) == []


@pytest.mark.parametrize(
    ("expression", "there"),
    [
        ("{key: app, operator: In, values: [ratings]}", True),
        ("{key: app, operator: NotIn, values: [ratings]}", False),
        ("{key: app, operator: Exists}", True),
        ("{key: app, operator: DoesNotExist}", False),
    ],
)
def test_expressions_are_those_of_kubernetes(expression: str, there: bool) -> None:
    one = task_set("[]", f"[{{name: run, podSelector: {{matchExpressions: [{expression}]}}, {RUN}}}]")
    assert bool(render([one], {}, POD)) is there


def test_no_task_refers_to_one_that_is_gone() -> None:
    """For any tasks: what is kept is complete, and nothing more than needed is dropped."""
    random = Random(1)
    labels = {"matchLabels": {"never": "there"}}
    for _ in range(500):
        names = [f"t{number}" for number in range(random.randrange(2, 9))]
        tasks: list[dict[str, Any]] = []
        for name in names:
            others = random.sample(names, random.randrange(1, len(names)))
            task: dict[str, Any] = {"name": name, **random.choice(ACTIONS)(others)}
            task |= {
                key: [f"{one}.x" for one in others] for key in ("needs", "runOn") if random.random() < 0.3
            }
            task |= {"every": "5s"} if random.random() < 0.2 else {}
            task |= {"podSelector": labels} if random.random() < 0.2 else {}
            tasks.append(task)
        kept = {task["name"]: task for task in pruned(tasks, {})}
        for left in kept.values():
            edges = [edge.partition(".")[0] for key in ("needs", "runOn") for edge in left.get(key, ())]
            named = [left.get("heartbeat", {}).get("of"), left.get("register", {}).get("follow")]
            named += left.get("report", {}).get("of", [])
            assert {*edges, *(name for name in named if name is not None)} <= kept.keys()
        if not any("podSelector" in task for task in tasks):
            assert list(kept.values()) == tasks


ACTIONS: tuple[Callable[[list[str]], dict[str, Any]], ...] = (
    lambda others: {"exec": {"command": ["/x"]}},
    lambda others: {"heartbeat": {"of": others[0]}},
    lambda others: {"register": {"eureka": {"app": "a"}, "follow": others[0]}},
    lambda others: {"report": {"webhook": {"url": "http://e"}, "of": others}},
)
