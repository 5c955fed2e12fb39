import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidone.errors import Refused
from pidone.plan.digest import canonical, digest
from pidone.plan.format import decode_bundle, decode_plan, encode_bundle, find_cycle
from pidone.plan.model import Container, Edge, Phase, Pod

ACTIONS = ("exec", "probe")
POD = Pod("web", "shop", "u-1", "10.0.0.1", "node-a", "Never")


def bundle(tasks: Any, /, **changes: Any) -> bytes:
    return canonical(encode_bundle(tasks, phase=Phase.RUNNING, pod=POD) | changes)


def test_what_is_encoded_is_decoded() -> None:
    tasks = [
        {"name": "ready", "probe": {"tcpSocket": {"port": 80}}},
        {
            "name": "warm",
            "needs": ["ready.healthy"],
            "every": 2.5,
            "restartPolicy": "OnFailure",
            "exec": {"command": ["/bin/true"]},
        },
    ]
    decoded = decode_bundle(bundle(tasks), ACTIONS)
    assert decoded.pod == POD
    assert decoded.phase is Phase.RUNNING
    assert decoded.plan.digest == digest(tasks)
    ready, warm = decoded.plan.tasks
    assert (ready.action, ready.restart, ready.every) == ("probe", "Always", None)
    assert (warm.action, warm.restart, warm.every) == ("exec", "OnFailure", 2.5)
    assert warm.needs == (Edge("ready", "healthy"),)


@pytest.mark.parametrize(
    ("policy", "started", "once"),
    [
        ("Never", (True, True), True),
        ("Never", (True, False), False),
        ("Never", (), False),
        ("OnFailure", (True,), False),
        ("Always", (True,), False),
        ("", (True,), False),
    ],
)
def test_a_pod_that_runs_once_is_one_whose_containers_have_all_started(
    policy: str, started: tuple[bool, ...], once: bool
) -> None:
    containers = {f"c{number}": Container(f"containerd://{number}", it) for number, it in enumerate(started)}
    pod = replace(POD, restart_policy=policy)
    body = canonical(encode_bundle([], phase=Phase.RUNNING, pod=pod, containers=containers))
    decoded = decode_bundle(body, ACTIONS)
    assert (decoded.pod, decoded.containers) == (pod, containers)
    assert decoded.runs_once is once


def test_a_task_keeps_its_digest_in_another_plan_and_loses_it_with_any_change() -> None:
    task = {"name": "a", "exec": {"command": ["/x"]}}
    alone = decode_plan([task], ACTIONS).tasks[0]
    beside = decode_plan([{"name": "b", "exec": {"command": ["/y"]}}, task], ACTIONS).tasks[1]
    changed = decode_plan([task | {"timeout": 3}], ACTIONS).tasks[0]
    assert alone.digest == beside.digest != changed.digest


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "tasks: expected a list, not an object"),
        ([7], "tasks[0]: expected an object, not the number 7"),
        ([{"exec": {}}], 'tasks[0]: "name" is missing; expected a string'),
        ([{"name": "a"}], 'task "a": expected one of exec, probe, not none'),
        ([{"name": "a", "idle": {}}], 'task "a": expected one of exec, probe, not "idle"'),
        (
            [{"name": "a", "exec": {}, "probe": {}}],
            'task "a": expected one of exec, probe, not "exec", "probe"',
        ),
        ([{"name": "a", "exec": []}], 'task "a".exec: expected an object, not a list'),
        (
            [{"name": "a", "exec": {}, "every": "5s"}],
            'task "a".every: expected a number of seconds, not the string "5s"',
        ),
        (
            [{"name": "a", "exec": {}, "every": True}],
            'task "a".every: expected a number of seconds, not true',
        ),
        ([{"name": "a", "exec": {}, "every": 0}], 'task "a".every: expected 0.1 to 3.1536e+07, not 0'),
        ([{"name": "a", "exec": {}, "needs": ["b"]}], 'task "a".needs: expected "task.state", not "b"'),
        (
            [{"name": "a", "exec": {}, "needs": ["b.x"]}],
            'task "a" needs "b", which is not in the plan',
        ),
        ([{"name": "a", "exec": {}}, {"name": "a", "exec": {}}], 'task "a" is there twice'),
        (
            [
                {"name": "a", "exec": {}, "needs": ["b.succeeded"]},
                {"name": "b", "exec": {}, "needs": ["a.succeeded"]},
            ],
            "these tasks wait for each other: a -> b -> a",
        ),
        (
            [{"name": "a", "exec": {}, "restartPolicy": "Maybe"}],
            'task "a".restartPolicy: expected Always, OnFailure or Never, not "Maybe"',
        ),
    ],
)
def test_a_plan_that_is_not_understood_is_refused_with_place_and_expectation(
    tasks: Any, message: str
) -> None:
    with pytest.raises(Refused) as refused:
        decode_plan(tasks, ACTIONS)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "bundle: expected an object, not a list"),
        (bundle([], format=2), "reads format 1, not 2"),
        (bundle([], digest="sha256-0"), "the bundle was damaged"),
        (bundle([], tasks=None), "tasks: expected a list, not null"),
        (bundle([], pod=None), "bundle.pod: expected an object, not null"),
        (bundle([], containers=[]), "bundle.containers: expected an object, not a list"),
        (bundle([], containers={"a": 1}), "bundle.containers.a: expected an object, not the number 1"),
        (bundle([], containers={"a": {"id": ""}}), 'bundle.containers.a: "started" is missing'),
    ],
)
def test_a_bundle_that_is_not_one_is_refused(data: bytes, part: str) -> None:
    with pytest.raises(Refused, match=part.replace(".", r"\.")):
        decode_bundle(data, ACTIONS)


def test_edges_events_and_jitter_are_read() -> None:
    tasks = [
        {"name": "ready", "exec": {}, "backoff": {"jitter": 0.2}},
        {"name": "b", "exec": {}, "while": ["ready.started"], "runOn": ["pod.terminating", "ready.failed"]},
        {
            "name": "signal",
            "exec": {},
            "runOn": ["signal.SIGHUP", "pod.terminating", "signal.succeeded"],
        },
    ]
    ready, b, self_made = decode_plan(tasks, ACTIONS).tasks
    assert ready.backoff.jitter == 0.2
    assert b.while_ == b.gates == (Edge("ready", "started"),)
    assert b.run_on == (Edge("pod", "terminating"), Edge("ready", "failed"))
    assert [str(edge) for edge in self_made.run_on] == tasks[2]["runOn"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"while": ["b.x"]}, 'task "a" runs while "b.x", and "b" is not in the plan'),
        ({"while": ["b"]}, 'task "a".while: expected "task.state", not "b"'),
        ({"while": ["a.x"]}, "these tasks wait for each other: a -> a"),
        (
            {"runOn": ["pod.started"]},
            'task "a" runs on "pod.started", and "pod" is not in the plan; events of the pod are pod.containersStarted, pod.terminating, signal.SIGHUP',  # noqa: E501 - one message
        ),
        ({"needs": ["pod.terminating"]}, 'task "a" needs "pod", which is not in the plan'),
        ({"backoff": {"jitter": 1.5}}, 'task "a".backoff.jitter: expected 0 to 1, not 1.5'),
    ],
)
def test_an_edge_that_leads_nowhere_is_refused(task: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused) as refused:
        decode_plan([{"name": "a", "exec": {}} | task], ACTIONS)
    assert str(refused.value) == message


def test_the_end_of_the_pod_is_understood_whatever_its_plan_has_become() -> None:
    """An old pod that cannot read its newest plan still runs the one before, and has that to undo."""
    tasks = [{"name": "a", "hologram": {}}]
    body = canonical(encode_bundle(tasks, phase=Phase.TERMINATING, pod=POD))
    assert decode_bundle(body, ACTIONS).phase is Phase.TERMINATING
    with pytest.raises(Refused):
        decode_bundle(bundle(tasks), ACTIONS)


@pytest.mark.parametrize(
    "text", ["", "x" * 100_000, "sha256-" + "g" * 64, "sha256-" + "0" * 65, "caf\u00e9", "\n"]
)
def test_what_is_no_digest_does_not_go_back_to_the_repo(text: str) -> None:
    body = canonical(encode_bundle([], phase=Phase.TERMINATING, pod=POD) | {"digest": text})
    assert decode_bundle(body, ACTIONS).plan.digest == ""
    good = "sha256-" + "0" * 64
    body = canonical(encode_bundle([], phase=Phase.TERMINATING, pod=POD) | {"digest": good})
    assert decode_bundle(body, ACTIONS).plan.digest == good


def test_a_name_has_a_bound() -> None:
    with pytest.raises(Refused, match="a name has at most 253 characters") as refused:
        decode_plan([{"name": "a" * 254, "exec": {}}], ACTIONS)
    assert len(str(refused.value)) < 200


def test_maintenance_is_beside_the_plan_and_changes_nothing_of_it() -> None:
    tasks = [{"name": "ready", "probe": {}}]
    plain = encode_bundle(tasks, phase=Phase.RUNNING, pod=POD)
    maintained = encode_bundle(tasks, phase=Phase.RUNNING, pod=POD, maintenance=True)
    assert maintained == plain | {"maintenance": True}
    on, off = (decode_bundle(canonical(value), ACTIONS) for value in (maintained, plain))
    assert (on.maintenance, off.maintenance) == (True, False)
    assert on.plan == off.plan


def test_more_facts_in_the_envelope_do_not_matter_to_an_older_pod() -> None:
    assert (
        decode_bundle(
            bundle([], containers={"a": {"started": True, "image": "x"}}, revision=7), ACTIONS
        ).plan.tasks
        == ()
    )


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_json | st.dictionaries(st.sampled_from(["format", "digest", "phase", "pod", "tasks"]), _json))
def test_any_json_is_decoded_or_refused(value: Any) -> None:
    try:
        decode_bundle(json.dumps(value).encode(), ACTIONS)
    except Refused:
        pass


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"))))
def test_a_cycle_is_found_exactly_where_there_is_one(needs: dict[str, list[str]]) -> None:
    cycle = find_cycle(needs)
    if cycle:
        assert cycle[0] == cycle[-1]
        assert all(after in needs[before] for before, after in pairwise(cycle))
    else:
        remaining = dict(
            needs
        )  # without a cycle, what needs nothing that remains can be taken away, to the end
        while free := [name for name in remaining if not set(remaining[name]) & remaining.keys()]:
            for name in free:
                del remaining[name]
        assert not remaining


def test_a_deep_graph_is_no_deeper_than_python() -> None:
    assert find_cycle({str(n): [str(n + 1)] for n in range(50_000)}) == []


@pytest.mark.parametrize(
    "period",
    ["NaN", "Infinity", "-Infinity", "1e999", '"\\ud800"', "1" * 5000, "[" * 900 + "]" * 900, "[" * 90_000],
    ids=lambda text: text[:12],
)
def test_a_number_or_text_that_json_has_not_is_refused_in_words(period: str) -> None:
    good = bundle([{"name": "ready", "probe": {"periodSeconds": 7777}}]).decode()
    with pytest.raises(Refused):
        decode_bundle(good.replace("7777", period).encode(), ACTIONS)
