"""Rollouts: the next state, what is served meanwhile, and the leader's loop."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pidone.language.binding import PLACES, BindingError, Rollout, Rules, derive, place
from pidone.language.model import Strategy
from pidone.plan.digest import digest
from pidone.plan.report import Report, TaskReport
from pidone_controller.kubernetes.client import Client
from pidone_controller.kubernetes.errors import Forbidden
from pidone_controller.kubernetes.resources import CONTROLLER_REVISIONS, TASK_SETS, Resource
from pidone_controller.objects.written import PIN, Written
from pidone_controller.repo.selection import SelectedPod
from pidone_controller.rollout.catalog import Affected, Catalog
from pidone_controller.rollout.leader import Leader, merge_patch
from pidone_controller.rollout.resolve import pins
from pidone_controller.rollout.state import Phase, RolloutState, VersionRef
from pidone_controller.rollout.step import Health, remember, step
from tests.controller.factories import binding_spec, pod, set_spec
from tests.controller.fakes import HOME, FakeClient, merged
from tests.controller.objects.test_revisions import ANYTHING
from tests.patience import ENDURANCE

CHECKED = {"check": "yes"}
CAREFUL = {"canary": "10%", "step": "40%", "pause": "1m", "maxRejected": 1}
STRATEGY = Strategy(canary=10, step=40, pause=60.0, max_rejected=1)


def version(number: int) -> VersionRef:
    return VersionRef(("check",), {"n": number}, (("TaskSet", "check", f"sha256-{number:064}"),))


OLD, NEW, NEWER = version(1), version(2), version(3)
BEFORE = RolloutState(Phase.COMPLETE, OLD)


def pods(count: int) -> list[SelectedPod]:
    return [
        SelectedPod(f"shop/web-{number}", f"uid-{number}", digest="d", etag="e") for number in range(count)
    ]


def having(state: RolloutState, found: Sequence[SelectedPod]) -> list[SelectedPod]:
    assert state.target
    return [one for one in found if place(one.uid, state.target.digest) < state.share]


def said(
    one: SelectedPod, *, applied: bool = True, task: str = "healthy", error: str = "", digest: str = "d"
) -> SelectedPod:
    tasks = {"ready": TaskReport(task, error=error)}
    if applied:
        return replace(one, report=Report("applied", digest=digest, tasks=tasks))
    return replace(
        one, report=Report("rejected", digest="other", rejected=one.etag, error=error, tasks=tasks)
    )


# The next state


def test_from_the_canary_to_all_of_them() -> None:
    found = pods(20)
    state = step(STRATEGY, BEFORE, NEW, found, {}, 100.0)
    assert (state.phase, state.current, state.target, state.since) == (Phase.PROGRESSING, OLD, NEW, 100.0)
    sizes = [len(having(state, found))]
    for now in (161.0, 222.0, 283.0):
        assert step(STRATEGY, state, NEW, found, {}, now - 2) == state  # the pause
        state = step(STRATEGY, state, NEW, found, {}, now)
        sizes.append(len(having(state, found)))
    assert sizes == [2, 10, 18, 20]
    assert step(STRATEGY, state, NEW, found, {}, 342.9) == state
    assert step(STRATEGY, state, NEW, found, {}, 343.0) == RolloutState(Phase.COMPLETE, NEW, since=343.0)


def test_the_canary_is_one_pod_at_least() -> None:
    found = pods(3)
    state = step(replace(STRATEGY, canary=1), BEFORE, NEW, found, {}, 0.0)
    assert len(having(state, found)) == 1


def test_without_a_strategy_or_without_pods_there_is_nothing_to_wait_for() -> None:
    assert step(None, BEFORE, NEW, pods(3), {}, 5.0) == RolloutState(Phase.COMPLETE, NEW, since=5.0)
    assert step(STRATEGY, BEFORE, NEW, [], {}, 5.0) == RolloutState(Phase.COMPLETE, NEW, since=5.0)
    assert step(STRATEGY, None, NEW, pods(1), {}, 5.0).current is None


def test_pods_that_go_do_not_finish_what_was_begun_or_halted() -> None:
    state = step(STRATEGY, BEFORE, NEW, pods(3), {}, 0.0)
    assert step(STRATEGY, state, NEW, [], {}, 1.0) == state
    halted = replace(state, phase=Phase.HALTED, share=0)
    assert step(STRATEGY, halted, NEW, [], {}, 1e6) == halted


def test_more_refusals_than_are_allowed_halt_it() -> None:
    found = pods(40)
    state = step(STRATEGY, BEFORE, NEW, found, {}, 0.0)
    first, second, *_ = having(state, found)
    one = [said(first, applied=False, error="no such action"), second]
    assert step(STRATEGY, state, NEW, one, {}, 1.0) == state
    halted = step(
        STRATEGY,
        state,
        NEW,
        [said(x, applied=False, error="no such action") for x in (first, second)],
        {},
        1.0,
    )
    assert (halted.phase, halted.share, halted.current, halted.target) == (Phase.HALTED, 0, OLD, NEW)
    for text in ("2 pods refused it", "maxRejected is 1", first.pod, "no such action"):
        assert text in halted.message
    assert step(STRATEGY, halted, NEW, found, {}, 1e6) == halted


@pytest.mark.parametrize("how", ["refuses", "fails"])
@pytest.mark.parametrize(
    ("most", "cohort", "troubled", "halts"),
    [
        (None, 1, 1, True),  # one pod alone has the change
        (None, 4, 1, False),  # its report may be false
        (None, 2, 2, True),
        (None, 4, 2, True),
        (0, 4, 1, True),  # as people have set it
        (0, 1, 1, True),
    ],
)
def test_a_report_of_one_pod_alone_halts_no_rollout_of_others(
    how: str, most: int | None, cohort: int, troubled: int, *, halts: bool
) -> None:
    strategy = replace(STRATEGY, max_rejected=most)
    found = pods(10 * cohort)
    state = step(strategy, BEFORE, NEW, found, {}, 0.0)
    members = having(state, found)
    assert len(members) == cohort
    health: Health = {}
    remember(health, [said(pod) for pod in members])
    bad = [
        said(pod, applied=how == "fails", task="unhealthy", error="it is\x1b[2J")
        for pod in members[:troubled]
    ]
    after = step(strategy, state, NEW, [*bad, *map(said, members[troubled:])], health, 1.0)
    assert (after.phase is Phase.HALTED) is halts
    if halts:
        assert all(pod.pod in after.message for pod in bad)
        assert after.message.isprintable()


def test_many_failing_tasks_of_one_pod_are_one_pod() -> None:
    found = pods(40)
    strategy = replace(STRATEGY, max_rejected=None)
    state = step(strategy, BEFORE, NEW, found, {}, 0.0)
    first, *others = having(state, found)
    tasks = {f"task-{number}": TaskReport("unhealthy") for number in range(9)}
    bad = replace(first, report=Report("applied", digest="d", tasks=tasks))
    health: Health = {first.uid: set(tasks)}
    assert step(strategy, state, NEW, [bad, *map(said, others)], health, 1.0) == state


def test_a_refusal_of_something_else_is_not_one_of_this() -> None:
    found = pods(40)
    state = step(replace(STRATEGY, max_rejected=0), BEFORE, NEW, found, {}, 0.0)
    first = having(state, found)[0]
    refused_before = replace(first, report=Report("applied", digest="old", rejected="earlier"))
    outside = [said(one, applied=False) for one in found if one not in having(state, found)]
    assert step(replace(STRATEGY, max_rejected=0), state, NEW, [refused_before, *outside], {}, 1.0) == state


@pytest.mark.parametrize(
    ("before", "after", "halts"),
    [("healthy", "unhealthy", True), ("unhealthy", "unhealthy", False), ("started", "unhealthy", False),
     ("healthy", "waiting", False), ("registered", "lost", True)],
)  # fmt: skip
def test_a_task_that_was_well_and_fails_halts_it(before: str, after: str, *, halts: bool) -> None:
    found = pods(10)
    health: dict[str, set[str]] = {}
    state = step(STRATEGY, BEFORE, NEW, found, health, 0.0)
    one = having(state, found)[0]
    remember(health, [said(one, digest="old", task=before)])
    late = step(STRATEGY, state, NEW, [said(one, digest="old", task=after)], health, 1.0)
    assert late == state  # still the version before: not this one's doing
    state = step(STRATEGY, state, NEW, [said(one, task=after, error="refused")], health, 1.0)
    assert (state.phase is Phase.HALTED) == halts
    if halts:
        assert f'"ready" of {one.pod}, {after}: refused' in state.message


def test_what_failed_before_the_new_version_came_is_not_its_doing() -> None:
    found = pods(1)
    health: dict[str, set[str]] = {}
    remember(health, [said(found[0], task="healthy")])
    remember(health, [said(found[0], task="unhealthy")])
    state = step(STRATEGY, BEFORE, NEW, found, health, 0.0)
    assert step(STRATEGY, state, NEW, [said(found[0], task="unhealthy")], health, 1.0) == state


def test_it_does_not_go_on_until_somebody_has_it() -> None:
    found = pods(10)
    state = step(STRATEGY, BEFORE, NEW, found, {}, 0.0)
    one = having(state, found)[0]
    older = replace(one, report=Report("applied", digest="old"))
    assert step(STRATEGY, state, NEW, [older], {}, 1e6) == state
    assert step(STRATEGY, state, NEW, [said(one)], {}, 1e6).percent == 50


def test_a_change_under_way_begins_anew_from_the_same_current() -> None:
    found = pods(20)
    state = step(STRATEGY, BEFORE, NEW, found, {}, 0.0)
    state = step(STRATEGY, state, NEW, found, {}, 60.0)
    assert state.percent == 50
    state = step(STRATEGY, state, NEWER, found, {}, 70.0)
    assert (state.current, state.target, state.percent, state.since) == (OLD, NEWER, 10, 70.0)
    assert len(having(state, found)) == 2


def test_a_new_leader_hears_first_what_the_others_were_told() -> None:
    found = pods(20)
    state = step(STRATEGY, BEFORE, NEW, found, {}, 0.0)
    assert step(STRATEGY, state, NEW, found, {}, 70.0, not_before=75.0) == state
    assert step(STRATEGY, state, NEW, found, {}, 75.0, not_before=75.0).percent == 50
    refused = [said(one, applied=False) for one in found]
    assert step(STRATEGY, state, NEW, refused, {}, 70.0, not_before=75.0).phase is Phase.HALTED


@pytest.mark.parametrize("phase", [Phase.PROGRESSING, Phase.HALTED])
def test_what_is_taken_back_is_complete_at_once(phase: Phase) -> None:
    state = replace(step(STRATEGY, BEFORE, NEW, pods(20), {}, 0.0), phase=phase)
    assert step(STRATEGY, state, OLD, pods(20), {}, 3.0) == RolloutState(Phase.COMPLETE, OLD, since=3.0)


def test_a_halted_one_goes_on_with_the_next_change() -> None:
    halted = RolloutState(Phase.HALTED, OLD, NEW, message="why")
    state = step(STRATEGY, halted, NEWER, pods(20), {}, 3.0)
    assert (state.phase, state.current, state.target, state.message) == (Phase.PROGRESSING, OLD, NEWER, "")


def test_a_halted_one_goes_on_when_somebody_says_so_and_halts_again_if_need_be() -> None:
    halted = RolloutState(Phase.HALTED, OLD, NEW, since=3.0, message="why")
    since = halted.value()["since"]
    assert step(STRATEGY, halted, NEW, pods(20), {}, 9.0, "1970-01-01T00:00:02.000Z") == halted
    state = step(STRATEGY, halted, NEW, pods(20), {}, 9.0, since)
    assert (state.phase, state.percent, state.since, state.message) == (Phase.PROGRESSING, 10, 9.0, "")
    again = replace(state, phase=Phase.HALTED, share=0)
    assert step(STRATEGY, again, NEW, pods(20), {}, 10.0, since) == again


@given(
    st.builds(
        RolloutState,
        st.just(Phase.PROGRESSING),
        st.sampled_from([None, OLD]),
        st.sampled_from([NEW, NEWER]),
        st.integers(0, 100),
        st.integers(0, PLACES),
        st.integers(0, 1 << 33).map(lambda number: number / 8),
        st.text(max_size=20),
    )
)
def test_a_state_is_read_as_it_was_written(state: RolloutState) -> None:
    assert RolloutState.of(state.value()) == state


@pytest.mark.parametrize(
    "value",
    [{}, {"phase": "Progressing"}, {"phase": "Gone"}, {"phase": "Complete"}, {"phase": ["Complete"]},
     {"phase": "Complete", "since": 5}, {"phase": "Progressing", "target": {"taskSets": "a", "sets": []}},
     {"phase": "Progressing", "target": {"taskSets": [1], "sets": []}},
     {"phase": "Complete", "current": {"taskSets": ["a"], "sets": [5]}}],
)  # fmt: skip
def test_a_status_that_nobody_wrote_who_knows_how_is_none(value: dict[str, Any]) -> None:
    assert RolloutState.of(value) is None


@given(
    st.fixed_dictionaries(
        {"phase": st.sampled_from(["Complete", "Progressing", "Halted"])},
        optional=dict.fromkeys(("since", "current", "target", "percent", "share", "message"), ANYTHING),
    )
)
def test_a_status_is_a_state_or_none(value: dict[str, Any]) -> None:
    state = RolloutState.of(value)
    assert state is None or RolloutState.of(state.value()) is not None


JSON = st.recursive(
    st.integers(0, 3) | st.sampled_from(["a", "b"]) | st.lists(st.integers(0, 2), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("abcd"), JSON), st.dictionaries(st.sampled_from("abcd"), JSON))
def test_a_patch_makes_the_one_of_the_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert merged(before, merge_patch(before, after)) == after


# What is served


def rules_of(catalog: Catalog) -> Rules:
    """The rules of now."""
    catalog.update()
    return catalog.rules


def served(catalog: Catalog, name: str = "web", **more: Any) -> int | str | None:
    """The period of the one task in a pod; an error's text where there is no plan."""
    try:
        tasks = derive(pod(name, labels=CHECKED, **more), rules_of(catalog))
    except BindingError as error:
        return str(error)
    return tasks[0]["probe"]["periodSeconds"] if tasks else None


class Cluster:
    """A server, a leader and a replica, and time as a number."""

    def __init__(self, *, judging: bool = False) -> None:
        self.catalog = Catalog(HOME, self.changed, judging=judging)
        self.server = FakeClient(self.catalog)
        self.now = 1000.0
        self.pods: list[SelectedPod] = []
        self.log: list[str] = []
        self.begin_term()

    def changed(self, affected: Affected) -> None:
        self.leader.look(affected)

    def begin_term(self) -> None:
        def log(event: str, **values: object) -> None:
            self.log.append(" ".join([event, *(f"{name}={value}" for name, value in values.items())]))

        self.leader = Leader(
            cast("Client", self.server), self.catalog, lambda _: self.pods, log, now=lambda: self.now
        )

    async def settle(self) -> None:
        """Until the leader has nothing to do at this time."""
        for _ in range(20):
            self.server.deliver()
            asked = len(self.server.requests)
            await self.leader.look_once()
            if len(self.server.requests) == asked:
                return
        raise AssertionError(f"the leader does not come to an end: {self.server.requests[-5:]}")

    def state(self, kind: str = "TaskBinding", name: str = "web") -> RolloutState:
        found = RolloutState.of(self.server.status(kind, name))
        assert found is not None
        return found


async def test_without_a_rollout_a_change_is_there_at_once_and_recorded_later() -> None:
    cluster = Cluster()
    cluster.server.put("TaskSet", "check", set_spec(5))
    cluster.server.put("TaskBinding", "web", binding_spec())
    cluster.server.deliver()
    assert served(cluster.catalog) == 5  # nobody leads yet
    await cluster.settle()
    assert cluster.state().phase is Phase.COMPLETE
    cluster.server.put("TaskSet", "check", set_spec(9))
    cluster.server.deliver()
    assert served(cluster.catalog) == 9
    await cluster.settle()
    assert len(cluster.server.revisions()) == 2


async def test_a_rollout_through_all_its_steps() -> None:
    cluster = Cluster()
    cluster.pods = pods(20)
    cluster.server.put("TaskSet", "check", set_spec(5))
    cluster.server.put("TaskBinding", "web", binding_spec())
    await cluster.settle()
    cluster.server.put("TaskBinding", "web", binding_spec(rollout=CAREFUL))
    await cluster.settle()
    assert served(cluster.catalog) == 5

    cluster.server.put("TaskSet", "check", set_spec(9))
    cluster.server.deliver()
    assert {served(cluster.catalog, uid=one.uid) for one in cluster.pods} == {5}  # until the leader moves it
    counts = []
    for _ in range(5):
        await cluster.settle()
        periods = [served(cluster.catalog, uid=one.uid) for one in cluster.pods]
        assert set(periods) <= {5, 9}
        counts.append(periods.count(9))
        cluster.now += 61
    assert counts == [2, 10, 18, 20, 20]
    assert cluster.state().phase is Phase.COMPLETE
    assert cluster.state().target is None
    assert served(cluster.catalog, uid="a new pod") == 9


async def test_what_is_under_way_is_told_from_the_change_on() -> None:
    cluster = Cluster()
    cluster.pods = pods(20)
    cluster.server.put("TaskSet", "check", set_spec(5))
    cluster.server.put("TaskBinding", "web", binding_spec())

    def told() -> tuple[str, str]:
        cluster.server.deliver()
        return cluster.catalog.progress(next(cluster.catalog.bindings))

    assert told() == ("", "")  # nothing to wait for
    await cluster.settle()
    cluster.server.put("TaskBinding", "web", binding_spec(rollout=CAREFUL))
    assert told() == ("", "")
    cluster.server.put("TaskSet", "check", set_spec(9))
    assert "has not begun yet" in told()[0]
    await cluster.settle()
    assert told()[0].startswith("10% of the pods have version ")
    cluster.pods = [said(one, applied=False, error="no") for one in cluster.pods]
    await cluster.settle()
    moving, halted = told()
    assert not moving
    assert "2 pods refused it" in halted
    annotations = {"pidone.dev/resume": cluster.state().value()["since"]}
    cluster.server.put("TaskBinding", "web", binding_spec(rollout=CAREFUL), annotations=annotations)
    assert "has not begun yet" in told()[0]


async def test_a_new_binding_is_careful_too() -> None:
    cluster = Cluster()
    cluster.pods = pods(10)
    cluster.server.put("TaskSet", "check", set_spec())
    cluster.server.put("TaskBinding", "web", binding_spec(rollout=CAREFUL))
    cluster.server.deliver()
    assert "its rollout has not begun" in str(served(cluster.catalog))
    await cluster.settle()
    assert [served(cluster.catalog, uid=one.uid) for one in cluster.pods].count(5) == 1


async def test_params_and_the_choice_of_sets_are_rolled_out_too() -> None:
    cluster = Cluster()
    cluster.pods = pods(10)
    spec = set_spec()
    spec["params"] = [{"name": "period", "type": "integer", "default": 5}]
    spec["tasks"][0]["probe"]["periodSeconds"] = "$(params.period)"
    cluster.server.put("TaskSet", "check", spec)
    cluster.server.put("TaskSet", "more", set_spec(task="more"))
    cluster.server.put("TaskBinding", "web", binding_spec())
    await cluster.settle()
    cluster.server.put(
        "TaskBinding", "web", binding_spec("check more", params={"period": 9}, rollout=CAREFUL)
    )
    await cluster.settle()
    plans = [derive(pod(uid=one.uid, labels=CHECKED), rules_of(cluster.catalog)) for one in cluster.pods]
    assert sorted((len(plan), plan[0]["probe"]["periodSeconds"]) for plan in plans) == [(1, 5)] * 9 + [(2, 9)]


async def test_halted_undone_and_on_again() -> None:
    cluster = Cluster()
    cluster.pods = pods(20)
    cluster.server.put("TaskSet", "check", set_spec(5))
    cluster.server.put("TaskBinding", "web", binding_spec())
    await cluster.settle()
    cluster.server.put("TaskBinding", "web", binding_spec(rollout={**CAREFUL, "maxRejected": 0}))
    cluster.server.put("TaskSet", "check", set_spec(9))
    await cluster.settle()
    cluster.pods = [said(one, applied=False, error="too new") for one in cluster.pods]
    await cluster.settle()
    assert cluster.state().phase is Phase.HALTED
    assert "too new" in cluster.state().halt_reason
    assert {served(cluster.catalog, uid=one.uid) for one in cluster.pods} == {5}
    assert any("phase=Halted" in line for line in cluster.log)

    cluster.server.put("TaskSet", "check", set_spec(5))
    await cluster.settle()
    assert cluster.state() == RolloutState(Phase.COMPLETE, cluster.state().current, since=cluster.now)
    assert [one.split()[1] for one in cluster.server.revisions()] == ["2", "3"]


async def test_the_next_leader_goes_on_where_the_last_one_stopped() -> None:
    cluster = Cluster()
    cluster.pods = pods(20)
    cluster.server.put("TaskSet", "check", set_spec(5))
    cluster.server.put("TaskBinding", "web", binding_spec())
    await cluster.settle()
    cluster.server.put("TaskBinding", "web", binding_spec(rollout=CAREFUL))
    cluster.server.put("TaskSet", "check", set_spec(9))
    await cluster.settle()
    cluster.now += 30
    cluster.begin_term()
    await cluster.settle()
    assert cluster.state().percent == 10
    cluster.now += 31
    await cluster.settle()
    assert cluster.state().percent == 50


async def test_a_slow_watch_makes_nothing_twice() -> None:
    cluster = Cluster()
    cluster.server.put("TaskSet", "check", set_spec())
    cluster.server.put("TaskBinding", "web", binding_spec())
    await cluster.settle()
    cluster.server.put("TaskSet", "check", set_spec(9))
    cluster.server.deliver()
    await cluster.leader.look_once()
    cluster.server.deliver()
    asked = len(cluster.server.requests)
    for _ in range(3):
        await cluster.leader.look_once()
    assert cluster.server.requests[asked:] == ["merge web"]


async def test_somebody_who_was_faster_is_looked_at_again() -> None:
    cluster = Cluster()
    cluster.server.put("TaskSet", "check", set_spec())
    cluster.server.put("TaskBinding", "web", binding_spec())
    cluster.server.deliver()
    await cluster.leader.look_once()
    cluster.server.deliver()
    cluster.server.put("TaskBinding", "web", binding_spec(params={}))  # not heard of
    due = await cluster.leader.look_once()
    assert due == cluster.now + 1.0
    assert not cluster.server.status("TaskBinding", "web")
    await cluster.settle()
    assert cluster.state().phase is Phase.COMPLETE


async def test_what_is_forbidden_is_tried_more_and_more_seldom_and_holds_up_nothing_else(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    cluster = Cluster()
    create = cluster.server.create
    tried: list[str] = []

    async def refusing(resource: Resource, body: dict[str, Any], namespace: str = "") -> dict[str, Any]:
        tried.append(body["metadata"]["name"].partition("-")[0])
        if tried[-1] == "check":
            raise Forbidden("the namespace is being deleted", status=403)
        return await create(resource, body, namespace)

    monkeypatch.setattr(cluster.server, "create", refusing)
    cluster.server.put("TaskSet", "check", set_spec())
    async with trio.open_nursery() as nursery:
        cluster.leader._now = trio.current_time
        nursery.start_soon(cluster.leader.run)
        for number in range(600):
            if number == 300:
                cluster.server.put("TaskSet", "other", set_spec())
            cluster.server.deliver()
            cluster.leader.look()
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert 5 <= tried.count("check") <= 8
    assert tried.count("other") == 1


async def test_the_loop_wakes_for_a_look_and_when_the_pause_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster()
    cluster.pods = pods(20)
    cluster.leader = Leader(
        cast("Client", cluster.server),
        cluster.catalog,
        lambda _: cluster.pods,
        lambda *_, **__: None,
        now=trio.current_time,
    )
    cluster.server.put("TaskSet", "check", set_spec(5))
    cluster.server.put("TaskBinding", "web", binding_spec(rollout=CAREFUL))
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cluster.leader.run)
        while not cluster.server.status("TaskBinding", "web") or cluster.state().phase is not Phase.COMPLETE:
            cluster.server.deliver()
            cluster.leader.look()
            await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
    assert 240 <= trio.current_time() - began < 250
    assert len([one for one in cluster.server.requests if one == "merge web"]) == 5


# Pins, mistakes, what is not kept


async def versions(
    cluster: Cluster,
    *periods: int,
    kind: str = "TaskSet",
    name: str = "check",
    make: Callable[[int], dict[str, Any]] = set_spec,
) -> list[str]:
    """The digests of a set's versions, the last one is there."""
    found = []
    for period in periods:
        cluster.server.put(kind, name, make(period))
        await cluster.settle()
        found.append(next(one.digest for one in cluster.catalog.sets if one.name == name))
    return found


async def test_a_pin_counts_at_once_and_whatever_comes() -> None:
    cluster = Cluster()
    cluster.pods = pods(10)
    cluster.server.put("TaskBinding", "web", binding_spec(rollout=CAREFUL))
    first, _ = await versions(cluster, 5, 7)
    for text in (first, first.removeprefix("sha256-")[:8], f" sha256:{first[7:30].upper()} "):
        cluster.server.put("TaskBinding", "web", binding_spec(rollout=CAREFUL), annotations={PIN: text})
        cluster.server.deliver()
        assert {served(cluster.catalog, uid=one.uid) for one in cluster.pods} == {5}
    await versions(cluster, *range(10, 25))
    assert served(cluster.catalog) == 5  # kept beyond the limit
    assert cluster.state().current == cluster.catalog.wanted(next(cluster.catalog.bindings))
    # without it, the present version is rolled out from the one that was pinned
    cluster.server.put("TaskBinding", "web", binding_spec(rollout=CAREFUL))
    await cluster.settle()
    assert sorted({served(cluster.catalog, uid=one.uid) for one in cluster.pods}, key=str) == [24, 5]


async def test_a_pin_of_a_set_that_is_extended() -> None:
    cluster = Cluster()
    first, _ = await versions(cluster, 5, 7, kind="ClusterTaskSet", name="base")
    cluster.server.put("TaskSet", "heir", set_spec(1, task="own", extends=["base"]))
    cluster.server.put("TaskBinding", "web", binding_spec("heir"), annotations={PIN: first})
    await cluster.settle()
    assert [
        task["probe"]["periodSeconds"] for task in derive(pod(labels=CHECKED), rules_of(cluster.catalog))
    ] == [5, 1]


@pytest.mark.parametrize(
    ("annotation", "named"),
    [
        ("abc", ['"abc" is no digest', "rollout history"]),
        ("", ['"" is no digest']),
        ("0123456789xyz", ["is no digest"]),
        ("0000000000", ['"0000000000" is no version that is kept']),
        ("{first},{second}", ['two versions of TaskSet "check"']),
        ("{other}", ['does not reach TaskSet "other"']),
        ("{foreign}", ["is no version that is kept"]),
    ],
)
async def test_a_pin_that_means_nothing_leaves_the_pods_as_they_are(
    annotation: str, named: list[str]
) -> None:
    cluster = Cluster()
    first, second = await versions(cluster, 5, 7)
    (other,) = await versions(cluster, 6, name="other")
    cluster.server.put("TaskSet", "foreign", set_spec(8), namespace="bank")
    await cluster.settle()
    foreign = next(one.digest for one in cluster.catalog.sets if one.name == "foreign")
    annotation = annotation.format(first=first, second=second, other=other, foreign=foreign)
    cluster.server.put("TaskBinding", "web", binding_spec(), annotations={PIN: annotation})
    await cluster.settle()
    said = str(served(cluster.catalog))
    for text in ("TaskBinding shop/web", *named):
        assert text in said
    assert not cluster.server.status("TaskBinding", "web")


def exec_spec(period: int = 5, *, probe: bool = False) -> dict[str, Any]:
    """The spec of a TaskSet that runs a program, and has a probe with this period first."""
    spec = set_spec(period)
    program = {"command": ["/opt/pidone/x"]}
    spec["tasks"].append({"name": "run", **({"probe": {"exec": program}} if probe else {"exec": program})})
    return spec


@pytest.mark.parametrize("probe", [False, True])
@pytest.mark.parametrize("back", ["pin", "halt"])
async def test_a_kept_version_is_judged_by_the_present_policy(back: str, *, probe: bool) -> None:
    cluster = Cluster(judging=True)
    cluster.pods = pods(10)
    careful = binding_spec(rollout=CAREFUL) if back == "halt" else binding_spec()
    namespaces = cluster.catalog.exec_namespaces
    namespaces.changed(("", "shop"), "shop")
    cluster.server.put("TaskBinding", "web", careful)
    cluster.server.put("TaskSet", "check", exec_spec(5, probe=probe))
    await cluster.settle()
    for _ in range(4):  # the rollout of the first version
        cluster.now += 61
        await cluster.settle()
    first = next(cluster.catalog.sets).digest
    assert served(cluster.catalog) == 5

    cluster.server.put("TaskSet", "check", set_spec(7))
    await cluster.settle()
    namespaces.removed(("", "shop"))
    await cluster.settle()
    if back == "pin":
        cluster.server.put("TaskBinding", "web", careful, annotations={PIN: first})
    cluster.server.deliver()
    plans = [served(cluster.catalog, uid=each.uid) for each in cluster.pods]
    assert 5 not in plans
    assert any("does not allow any more" in str(plan) for plan in plans)
    namespaces.changed(("", "shop"), "shop")
    cluster.server.deliver()
    assert 5 in [served(cluster.catalog, uid=each.uid) for each in cluster.pods]


async def test_a_mistake_brings_back_the_last_version_that_the_present_policy_allows() -> None:
    cluster = Cluster(judging=True)
    namespaces = cluster.catalog.exec_namespaces
    namespaces.changed(("", "shop"), "shop")
    cluster.server.put("TaskBinding", "web", binding_spec())
    await versions(cluster, 7)
    await versions(cluster, 5, make=exec_spec)
    cluster.server.put("TaskSet", "check", {"tasks": [{"name": "ready"}]})
    await cluster.settle()
    assert served(cluster.catalog) == 5
    namespaces.removed(("", "shop"))
    assert served(cluster.catalog) == 7
    namespaces.changed(("", "shop"), "shop")
    assert served(cluster.catalog) == 5


async def test_the_present_version_and_those_of_the_cluster_stay_as_they_were_admitted() -> None:
    cluster = Cluster(judging=True)
    cluster.server.put("TaskSet", "check", exec_spec(5))
    cluster.server.put("TaskBinding", "web", binding_spec())
    await cluster.settle()
    assert served(cluster.catalog) == 5

    cluster = Cluster(judging=True)
    first, _ = await versions(cluster, 5, 7, kind="ClusterTaskSet", name="base", make=exec_spec)
    cluster.server.put("TaskSet", "heir", set_spec(1, task="own", extends=["base"]))
    cluster.server.put("TaskBinding", "web", binding_spec("heir"), annotations={PIN: first})
    await cluster.settle()
    assert served(cluster.catalog) == 5


def test_a_pin_s_digests() -> None:
    assert pins(" 01234567 , sha256-ABCDEF01 ") == ["01234567", "abcdef01"]


async def test_a_set_with_mistakes_is_what_it_was_before() -> None:
    cluster = Cluster()
    cluster.server.put("TaskBinding", "web", binding_spec())
    await versions(cluster, 5)
    broken = set_spec(9)
    broken["tasks"][0]["needs"] = ["redy"]
    cluster.server.put("TaskSet", "check", broken)
    await cluster.settle()
    assert served(cluster.catalog) == 5
    # the same in a replica that begins now
    other = Catalog(HOME)
    fresh = FakeClient(other)
    fresh.items = cluster.server.items
    fresh._undelivered = list(fresh.items)
    fresh.deliver()
    assert served(other) == 5
    (written,) = other.sets
    assert 'spec.tasks[0].needs[0]: task "ready" needs "redy"' in written.findings[0]
    assert len(cluster.server.revisions()) == 1


async def test_a_set_that_was_never_good_is_named_with_its_mistake() -> None:
    cluster = Cluster()
    cluster.server.put("TaskSet", "check", {"tasks": [{"name": "ready", "prob": {}}]})
    cluster.server.put("TaskBinding", "web", binding_spec())
    await cluster.settle()
    said = str(served(cluster.catalog))
    for text in ("TaskBinding shop/web", '"check" has mistakes', "spec.tasks[0].prob"):
        assert text in said


@pytest.mark.parametrize("rollout", [None, CAREFUL])
async def test_a_binding_with_mistakes_leaves_its_pods_as_they_are(rollout: dict[str, Any] | None) -> None:
    cluster = Cluster()
    cluster.server.put("TaskBinding", "web", binding_spec())
    await versions(cluster, 5)
    cluster.server.put("TaskBinding", "web", binding_spec(params={"a": "$(pod.name)"}, rollout=rollout))
    await cluster.settle()
    assert "TaskBinding shop/web: it has mistakes, and its pods keep what they have: spec.params.a" in str(
        served(cluster.catalog)
    )
    assert derive(pod(), rules_of(cluster.catalog)) == []  # whom it does not choose


async def test_a_version_that_is_not_kept_any_more_is_said_so() -> None:
    cluster = Cluster()
    cluster.pods = pods(4)
    cluster.server.put("TaskBinding", "web", binding_spec(rollout=CAREFUL))
    await versions(cluster, 5)
    cluster.now += 1000
    for _ in range(5):
        await cluster.settle()
        cluster.now += 1000
    assert cluster.state().phase is Phase.COMPLETE
    await versions(cluster, 9)
    victim = cluster.catalog.history.kept((False, "shop", "check"))[0]
    await cluster.server.delete(CONTROLLER_REVISIONS, victim.name, victim.namespace)
    cluster.server.deliver()
    fresh = Catalog(HOME)
    replica = FakeClient(fresh)
    replica.items = cluster.server.items
    replica._undelivered = list(replica.items)
    replica.deliver()
    plans = {str(served(fresh, uid=one.uid)) for one in cluster.pods}
    assert any('of TaskSet "check" is not kept any more' in plan for plan in plans)


async def test_a_set_that_is_gone_is_gone_for_every_replica() -> None:
    cluster = Cluster()
    cluster.server.put("TaskBinding", "web", binding_spec(rollout=CAREFUL))
    await versions(cluster, 5)
    assert served(cluster.catalog) == 5
    await cluster.server.delete(TASK_SETS, "check", "shop")
    cluster.server.deliver()
    assert 'TaskSet "check" is not there any more' in str(served(cluster.catalog))
    await cluster.settle()
    assert cluster.state().phase is Phase.COMPLETE


async def test_rules_stay_the_same_object_where_nothing_counts() -> None:
    cluster = Cluster()
    cluster.pods = pods(4)
    cluster.server.put("TaskBinding", "web", binding_spec(rollout=CAREFUL))
    await versions(cluster, 5)
    before = rules_of(cluster.catalog)
    cluster.server.put("TaskBinding", "web", binding_spec(rollout=CAREFUL), annotations={"note": "x"})
    cluster.server.put("TaskSet", "check", set_spec(5), annotations={"kubernetes.io/change-cause": "why not"})
    await cluster.settle()
    assert rules_of(cluster.catalog) is before
    cluster.server.put("TaskSet", "check", set_spec(6))
    await cluster.settle()
    assert rules_of(cluster.catalog) is not before


# Whatever happens


class AnyOrder(RuleBasedStateMachine):
    """People, pods and time in any order, with leaders that change: what must hold at every moment."""

    @initialize()
    def begin(self) -> None:
        self.cluster = Cluster()
        self.cluster.pods = pods(8)
        self.cluster.server.put("TaskSet", "base", set_spec(1, task="base"))
        self.cluster.server.put("TaskSet", "check", set_spec(5, extends=["base"]))
        self.cluster.server.put("TaskBinding", "web", binding_spec(rollout=CAREFUL))
        self.settle()
        self.share: tuple[object, int] = (None, 0)

    def settle(self) -> None:
        async def settle() -> None:
            await self.cluster.settle()

        trio.run(settle)

    @rule(period=st.integers(1, 4), name=st.sampled_from(["base", "check"]))
    def change(self, period: int, name: str) -> None:
        extends = ["base"] if name == "check" else None
        self.cluster.server.put("TaskSet", name, set_spec(period, task=name, extends=extends))

    @rule(careful=st.booleans(), given=st.booleans())
    def rebind(self, *, careful: bool, given: bool) -> None:
        sets = "check base" if given else "check"
        self.cluster.server.put(
            "TaskBinding", "web", binding_spec(sets, rollout=CAREFUL if careful else None)
        )

    @rule(seconds=st.sampled_from([1, 30, 61]))
    def wait(self, seconds: int) -> None:
        self.cluster.now += seconds

    @rule(index=st.integers(0, 7), applied=st.booleans(), task=st.sampled_from(["healthy", "unhealthy"]))
    def report(self, index: int, task: str, *, applied: bool) -> None:
        self.cluster.pods[index] = said(self.cluster.pods[index], applied=applied, task=task)

    @rule()
    def lead(self) -> None:
        self.settle()

    @rule()
    def another_leader(self) -> None:
        self.cluster.begin_term()

    @precondition(lambda self: hasattr(self, "cluster"))
    @invariant()
    def everything_that_a_status_names_is_kept(self) -> None:
        self.cluster.server.deliver()
        state = RolloutState.of(self.cluster.server.status("TaskBinding", "web"))
        assert state is not None
        history = self.cluster.catalog.history
        for recorded in (state.current, state.target):
            for key, made in recorded.keys("shop") if recorded else ():
                assert history.revision(key, made), f"{key} {made}"

    @precondition(lambda self: hasattr(self, "cluster"))
    @invariant()
    def every_replica_serves_the_same(self) -> None:
        self.cluster.server.deliver()
        other = Catalog(HOME)
        replica = FakeClient(other)
        replica.items = self.cluster.server.items
        replica._undelivered = list(replica.items)
        random.Random(1).shuffle(replica._undelivered)
        replica.deliver()
        for one in self.cluster.pods:
            found = pod(uid=one.uid, labels=CHECKED)
            assert digest(derive(found, rules_of(other))) == digest(
                derive(found, rules_of(self.cluster.catalog))
            )

    @precondition(lambda self: hasattr(self, "cluster"))
    @invariant()
    def a_share_grows_within_one_rollout_and_halted_is_none_of_it(self) -> None:
        state = RolloutState.of(self.cluster.server.status("TaskBinding", "web"))
        assert state is not None
        assert 0 <= state.share <= PLACES
        if state.phase is Phase.HALTED:
            assert state.share == 0
            assert state.message
        if state.phase is Phase.PROGRESSING:
            assert state.share > 0
            target, before = self.share
            began = (state.target, state.current)
            assert target != began or state.share >= before or state.percent == 10
            self.share = began, state.share
        rollout = rules_of(self.cluster.catalog).rollouts.get((False, "shop", "web"))
        written: Written = next(self.cluster.catalog.bindings)
        assert (rollout is not None) == (written.binding is not None and written.binding.rollout is not None)
        assert rollout is None or isinstance(rollout, Rollout)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=12 * ENDURANCE, stateful_step_count=25, deadline=None)
