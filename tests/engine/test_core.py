from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from pidone.engine.core import (
    Cancel,
    Command,
    Core,
    Ending,
    HandOver,
    PlanChanged,
    PodEvent,
    RunEnded,
    Stage,
    Start,
    StateReported,
    Undo,
    UndoEnded,
)
from pidone.pacing import Backoff
from pidone.plan.digest import digest
from pidone.plan.model import Edge, Task


def task(
    name: str,
    *needs: str,
    version: int = 1,
    while_: Sequence[str] = (),
    run_on: Sequence[str] = (),
    **fields: Any,
) -> Task:
    return Task(
        name,
        "exec",
        {},
        digest([name, needs, while_, run_on, version]),
        edges(needs),
        edges(while_),
        edges(run_on),
        **fields,
    )


def edges(words: Sequence[str]) -> tuple[Edge, ...]:
    return tuple(Edge(*word.split(".")) for word in words)


def names(commands: list[Command]) -> list[str]:
    """``["start a", "undo b"]``"""
    words: list[str] = []
    for command in commands:
        match command:
            case Start(item):
                words.append(f"start {item.name}")
            case Cancel(name):
                words.append(f"cancel {name}")
            case Undo(item):
                words.append(f"undo {item.name}")
            case HandOver(item, heir):
                words.append(f"hand {item.name} over to {heir.name}")
    return words


@pytest.fixture
def core() -> Core:
    return Core(Random(1))


def test_a_task_starts_when_what_it_needs_holds_whatever_the_order_in_the_file(core: Core) -> None:
    assert names(core.handle(PlanChanged((task("b", "a.healthy"), task("a"))), 0)) == ["start a"]
    assert names(core.handle(StateReported("a", "unhealthy"), 1)) == []
    assert names(core.handle(StateReported("a", "healthy"), 2)) == ["start b"]


def test_needs_guards_only_the_first_start(core: Core) -> None:
    core.handle(PlanChanged((task("a"), task("b", "a.healthy"))), 0)
    core.handle(StateReported("a", "healthy"), 0)
    assert names(core.handle(StateReported("a", "unhealthy"), 1)) == []
    assert core.tasks["b"].stage is Stage.RUNNING


def test_a_failed_run_is_tried_again_with_growing_jitter_under_its_cap(core: Core) -> None:
    backoff = Backoff(initial=1, maximum=30)
    core.handle(PlanChanged((task("a", backoff=backoff),)), 0)
    now, waits = 0.0, []
    for _ in range(40):
        core.handle(RunEnded("a", "no"), now)
        waits.append(core.next_due() - now)
        now = core.next_due()
        assert names(core.handle(None, now)) == ["start a"]
    assert all(1 <= wait <= 30 for wait in waits)
    assert max(waits[:3]) <= 4
    assert max(waits[10:]) > 15
    assert len(set(waits)) > 10, "full jitter, not a fixed ladder"
    assert core.tasks["a"].failures == 40
    assert core.tasks["a"].error == "no"


def test_an_error_that_needs_a_person_waits_for_half_of_the_cap_at_least() -> None:
    waits = []
    for seed in range(200):
        core = Core(Random(seed))
        core.handle(PlanChanged((task("a", backoff=Backoff(1, 30)),)), 0)
        core.handle(RunEnded("a", "403", lasting=True), 1)
        waits.append(core.next_due() - 1)
    assert 15 <= min(waits) < 16
    assert 29 < max(waits) <= 30
    seconds = [round(wait) for wait in waits]
    assert max(map(seconds.count, seconds)) < 30, "what failed together does not come back together"


def test_a_run_may_give_a_shorter_delay_than_the_backoff() -> None:
    for ended, longest in (
        (RunEnded("a", "no", retry=5), 5),
        (RunEnded("a", "no", lasting=True, retry=90), 90),
        (RunEnded("a", "no", lasting=True), 300),
    ):
        waits = []
        for seed in range(200):
            core = Core(Random(seed))
            core.handle(PlanChanged((task("a", backoff=Backoff(300, 300)),)), 0)
            core.handle(ended, 1)
            waits.append(core.next_due() - 1)
        assert longest * 0.9 < max(waits) <= longest


def test_ten_good_minutes_reset_the_backoff(core: Core) -> None:
    core.handle(PlanChanged((task("a", backoff=Backoff(initial=2, maximum=1000)),)), 0)
    now = 0.0
    for _ in range(8):
        core.handle(RunEnded("a", "no"), now)
        now = core.next_due()
        core.handle(None, now)
    core.handle(RunEnded("a", "no"), now + 601)
    assert core.tasks["a"].streak == 1
    assert core.next_due() <= now + 601 + 2


def test_starts_are_a_second_apart_with_every_backoff(core: Core) -> None:
    core.handle(PlanChanged((task("a", backoff=Backoff(initial=0.1, maximum=1)),)), 5)
    core.handle(RunEnded("a", "no"), 5)
    assert core.next_due() == pytest.approx(6)


@pytest.mark.parametrize(
    ("policy", "error", "again"),
    [
        ("Always", None, True),
        ("Always", "no", True),
        ("OnFailure", None, False),
        ("OnFailure", "no", True),
        ("Never", None, False),
        ("Never", "no", False),
    ],
)
def test_restart_policies(core: Core, policy: str, error: str | None, again: bool) -> None:
    core.handle(PlanChanged((task("a", restart=policy),)), 0)
    core.handle(RunEnded("a", error), 0.5)
    assert core.tasks["a"].stage is (Stage.DUE if again else Stage.FINISHED)


def test_backoff_limit_is_the_number_of_retries(core: Core) -> None:
    core.handle(PlanChanged((task("a", backoff_limit=2),)), 0)
    for _ in range(2):
        core.handle(RunEnded("a", "no"), core.tasks["a"].started)
        core.handle(None, core.next_due())
    core.handle(RunEnded("a", "no"), core.tasks["a"].started)
    assert core.tasks["a"].stage is Stage.FAILED
    assert core.tasks["a"].runs == 3


def test_every_begins_at_a_random_time_of_its_period_and_is_never_late(core: Core) -> None:
    core.handle(PlanChanged((task("a", every=10.0),)), 100)
    first = core.next_due()
    assert 100 < first < 110
    starts = [first]
    for _ in range(50):
        core.handle(None, core.next_due())
        core.handle(RunEnded("a"), starts[-1] + 0.5)
        starts.append(core.next_due())
    gaps = [after - before for before, after in pairwise(starts)]
    assert all(9 <= gap <= 10 for gap in gaps), "jitter shortens, and a lease is behind it"
    assert len({round(gap, 3) for gap in gaps}) > 10


def test_a_failed_periodic_run_is_tried_again_before_its_next_period_at_the_latest_then(core: Core) -> None:
    core.handle(PlanChanged((task("a", every=30.0),)), 0)
    for _ in range(12):
        now = core.next_due()
        core.handle(None, now)
        core.handle(RunEnded("a", "no"), now)
        assert now + 1 <= core.next_due() <= now + 30


@pytest.mark.parametrize("every", [1.0, 10.0])
def test_periods_share_their_wakeups_and_pods_do_not(every: float) -> None:
    looks: list[set[float]] = []
    for seed in (1, 2):
        core, now = Core(Random(seed)), 500.0
        core.handle(PlanChanged(tuple(task(f"t{number}", every=every) for number in range(200))), now)
        looks.append(set())
        while (now := core.next_due()) < 500 + 3 * every:
            looks[-1].add(round(now, 6))
            for command in core.handle(None, now):
                assert isinstance(command, Start)
                core.handle(RunEnded(command.task.name), now)
        assert sum(state.runs for state in core.tasks.values()) >= 400
        assert min(after - before for before, after in pairwise(sorted(looks[-1]))) > 0.049
    assert not looks[0] & looks[1]


def test_periods_missed_by_a_long_run_are_not_made_up_for(core: Core) -> None:
    core.handle(PlanChanged((task("a", every=2.0),)), 0)
    core.handle(None, core.next_due())
    assert names(core.handle(RunEnded("a"), 100)) == ["start a"]
    core.handle(RunEnded("a"), 100.1)
    assert core.next_due() > 101


def test_an_unchanged_task_does_not_notice_a_new_plan(core: Core) -> None:
    a, b = task("a"), task("b", "a.healthy")
    core.handle(PlanChanged((a, b)), 0)
    core.handle(StateReported("a", "healthy"), 0)
    before = core.tasks["b"]
    assert names(core.handle(PlanChanged((task("a", version=2), b)), 5)) == ["cancel a"]
    core.handle(RunEnded("a", "cancelled"), 5)
    assert names(core.handle(UndoEnded("a"), 6)) == ["start a"]
    assert core.tasks["b"] is before
    assert before.stage is Stage.RUNNING


def test_the_end_undoes_in_reverse_and_each_level_at_once(core: Core) -> None:
    plan = (task("a"), task("b", "a.started"), task("c", "a.started"), task("d", "b.started", "c.started"))
    core.handle(PlanChanged(plan), 0)
    for name in "abc":
        core.handle(StateReported(name, "x"), 0)
    assert {name for name, state in core.tasks.items() if state.runs} == set("abcd")
    assert names(core.handle(PlanChanged(()), 1)) == ["cancel d"]
    assert names(core.handle(RunEnded("d", "cancelled"), 1)) == ["undo d"]
    assert names(core.handle(UndoEnded("d"), 1)) == ["cancel b", "cancel c"]
    core.handle(RunEnded("b", "cancelled"), 1)
    core.handle(RunEnded("c", "cancelled"), 1)
    core.handle(UndoEnded("b"), 1)
    assert names(core.handle(UndoEnded("c"), 1)) == ["cancel a"]
    core.handle(RunEnded("a", "cancelled"), 1)
    assert not core.idle
    core.handle(UndoEnded("a"), 1)
    assert core.idle


def test_nothing_new_starts_before_what_leaves_is_gone(core: Core) -> None:
    core.handle(PlanChanged((task("old"),)), 0)
    assert names(core.handle(PlanChanged((task("new"),)), 1)) == ["cancel old"]
    assert names(core.handle(RunEnded("old", "cancelled"), 2)) == ["undo old"]
    assert names(core.handle(UndoEnded("old"), 3)) == ["start new"]


def test_ten_plans_in_a_second_end_in_the_last(core: Core) -> None:
    core.handle(PlanChanged((task("a", version=0),)), 0)
    for version in range(1, 11):
        core.handle(PlanChanged((task("a", version=version),)), version / 10)
    core.handle(RunEnded("a", "cancelled"), 1)
    assert names(core.handle(UndoEnded("a"), 1)) == ["start a"]
    assert core.tasks["a"].task == task("a", version=10)


def held_by_an_earlier_form(core: Core) -> tuple[Task, Task]:
    """The probe ``a``, and ``b``, which needs it, ran, and has a changed form; the probe is unhealthy by now."""
    a, b = task("a"), task("b", "a.healthy")
    core.handle(PlanChanged((a, b)), 0)
    core.handle(StateReported("a", "healthy"), 0)
    core.handle(StateReported("a", "unhealthy"), 4)
    return a, task("b", "a.healthy", version=2)


def test_what_is_taken_over_is_not_undone_and_goes_on_at_once(core: Core) -> None:
    a, b = held_by_an_earlier_form(core)
    assert names(core.handle(PlanChanged((a, b), {"b": "b"}), 5)) == ["cancel b"]
    commands = core.handle(RunEnded("b", "cancelled"), 5)
    assert names(commands) == ["hand b over to b", "start b"], "what it needed, it had when it began"
    assert core.tasks["b"].task is b
    assert names(core.handle(PlanChanged((a,)), 6)) == ["cancel b"]
    assert names(core.handle(RunEnded("b", "cancelled"), 6)) == ["undo b"]


def test_what_is_taken_over_does_not_wait_for_what_else_leaves(core: Core) -> None:
    a, b = held_by_an_earlier_form(core)
    core.handle(PlanChanged((a, b, task("slow"))), 5)
    core.handle(RunEnded("b", "cancelled"), 5)
    core.handle(UndoEnded("b"), 5)
    core.handle(StateReported("a", "healthy"), 5)
    third = task("b", "a.healthy", version=3)
    assert names(core.handle(PlanChanged((a, third, task("new")), {"b": "b"}), 7)) == [
        "cancel b",
        "cancel slow",
    ]
    assert names(core.handle(RunEnded("b", "cancelled"), 7)) == ["hand b over to b", "start b"]
    assert names(core.handle(RunEnded("slow", "cancelled"), 8)) == ["undo slow"]
    assert names(core.handle(UndoEnded("slow"), 9)) == ["start new"]


@pytest.mark.parametrize("end", [True, False])
def test_an_heir_that_never_ran_is_undone(core: Core, end: bool) -> None:
    a, b = held_by_an_earlier_form(core)
    waits = task("b", "a.healthy", "a.failed", version=3)  # it needs something new before it begins
    core.handle(PlanChanged((a, waits), {"b": "b"}), 5)
    assert names(core.handle(RunEnded("b", "cancelled"), 5)) == ["hand b over to b"]
    assert (core.tasks["b"].stage, core.tasks["b"].runs) == (Stage.WAITING, 0)
    last = core.handle(Ending(6) if end else PlanChanged((a,)), 6)
    assert names(last) == ["undo b"]
    assert b.name not in [name for name, state in core.tasks.items() if not state.leaving]


def test_without_an_heir_after_all_it_is_undone(core: Core) -> None:
    a, b = held_by_an_earlier_form(core)
    core.handle(PlanChanged((a, b), {"b": "b"}), 5)
    core.handle(PlanChanged((a, task("b", "a.healthy", version=3))), 5)
    assert names(core.handle(RunEnded("b", "cancelled"), 6)) == ["undo b"]
    core.handle(PlanChanged((a, b), {"b": "b"}), 7)  # too late
    assert names(core.handle(UndoEnded("b"), 8)) == []
    assert core.tasks["b"].stage is Stage.WAITING


def test_an_heir_may_have_another_name_unless_that_is_in_use(core: Core) -> None:
    core.handle(PlanChanged((task("old"), task("a"))), 0)
    core.handle(PlanChanged((task("new"), task("a")), {"old": "new"}), 5)
    assert names(core.handle(RunEnded("old", "cancelled"), 5)) == ["hand old over to new", "start new"]
    core.handle(PlanChanged((task("a", version=2),), {"new": "a"}), 7)
    assert names(core.handle(RunEnded("new", "cancelled"), 7)) == ["undo new"]


def test_events_of_a_task_that_is_gone_are_nothing(core: Core) -> None:
    core.handle(PlanChanged((task("a"),)), 0)
    for event in (RunEnded("ghost", "x"), UndoEnded("ghost"), StateReported("ghost", "healthy")):
        assert core.handle(event, 1) == []
    assert list(core.tasks) == ["a"]


def test_unchanged_tasks_go_on_beating_while_another_takes_long_to_leave(core: Core) -> None:
    beat, old = task("beat", every=10.0), task("old")
    core.handle(PlanChanged((beat, old)), 0)
    first = core.next_due()
    assert names(core.handle(PlanChanged((beat,)), 0)) == ["cancel old"]
    assert names(core.handle(None, first)) == ["start beat"]


# while


def test_while_pauses_and_resumes(core: Core) -> None:
    core.handle(PlanChanged((task("up"), task("a", while_=["up.healthy"]))), 0)
    assert core.tasks["a"].stage is Stage.PAUSED, "it guards the first start as well"
    assert names(core.handle(StateReported("up", "healthy"), 1)) == ["start a"]
    assert names(core.handle(StateReported("up", "unhealthy"), 2)) == ["cancel a"]
    assert core.tasks["a"].shown == "paused"
    assert names(core.handle(StateReported("up", "healthy"), 3)) == [], "the old run has not ended yet"
    assert names(core.handle(RunEnded("a", "cancelled"), 4)) == ["start a"]
    assert core.tasks["a"].failures == 0, "paused, not failed"


def test_a_pause_within_a_second_of_the_start_keeps_the_minimum_start_interval(core: Core) -> None:
    core.handle(PlanChanged((task("up"), task("a", while_=["up.healthy"]))), 0)
    core.handle(StateReported("up", "healthy"), 0)
    core.handle(StateReported("up", "unhealthy"), 0.1)
    core.handle(RunEnded("a", "cancelled"), 0.1)
    assert names(core.handle(StateReported("up", "healthy"), 0.2)) == []
    assert core.next_due() == 1


def test_no_state_of_a_paused_task_holds(core: Core) -> None:
    plan = (
        task("up"),
        task("web", while_=["up.healthy"]),
        task("beat", while_=["web.registered"]),
        task("late", "web.started"),
    )
    core.handle(PlanChanged(plan), 0)
    core.handle(StateReported("up", "healthy"), 0)
    assert names(core.handle(StateReported("web", "registered"), 0)) == ["start beat"]
    assert names(core.handle(StateReported("up", "unhealthy"), 1)) == ["cancel web", "cancel beat"]
    core.handle(RunEnded("beat", "cancelled"), 1)
    core.handle(RunEnded("web", "cancelled"), 1)
    assert core.tasks["web"].state == ""
    assert core.tasks["beat"].stage is Stage.PAUSED
    assert names(core.handle(StateReported("up", "healthy"), 2)) == ["start web"]
    assert names(core.handle(StateReported("web", "registered"), 3)) == ["start beat"]


def test_a_paused_period_keeps_its_phase_and_makes_up_for_nothing(core: Core) -> None:
    core.handle(PlanChanged((task("up"), task("a", while_=["up.healthy"], every=10.0))), 0)
    slot = core.tasks["a"].slot
    core.handle(StateReported("up", "healthy"), slot + 32)
    assert core.next_due() == pytest.approx(slot + 40)


def test_a_run_that_ends_well_before_its_cancellation_counts(core: Core) -> None:
    plan = (
        task("up"),
        task("a", while_=["up.healthy"], restart="OnFailure"),
        task("b", run_on=["a.succeeded"]),
    )
    core.handle(PlanChanged(plan), 0)
    core.handle(StateReported("up", "healthy"), 0)
    assert names(core.handle(StateReported("up", "unhealthy"), 1)) == ["cancel a"]
    assert names(core.handle(StateReported("a", "succeeded"), 1)) == []
    assert names(core.handle(RunEnded("a"), 1)) == ["start b"]
    assert core.tasks["a"].stage is Stage.FINISHED
    assert names(core.handle(StateReported("up", "healthy"), 2)) == [], "it is done"


# runOn


def test_run_on_runs_each_time_a_state_is_entered(core: Core) -> None:
    core.handle(PlanChanged((task("up"), task("a", run_on=["up.unhealthy"], restart="OnFailure"))), 0)
    for turn in range(3):
        assert names(core.handle(StateReported("up", "healthy"), 10 * turn)) == []
        assert names(core.handle(StateReported("up", "unhealthy"), 10 * turn + 1)) == ["start a"]
        assert names(core.handle(StateReported("up", "unhealthy"), 10 * turn + 2)) == []
        assert names(core.handle(RunEnded("a"), 10 * turn + 3)) == []
        assert core.tasks["a"].stage is Stage.ARMED


def test_events_during_a_run_are_remembered_once(core: Core) -> None:
    core.handle(PlanChanged((task("a", run_on=["signal.SIGHUP"]),)), 0)
    assert names(core.handle(PodEvent("signal.SIGHUP"), 5)) == ["start a"]
    for _ in range(1000):
        assert names(core.handle(PodEvent("signal.SIGHUP"), 6)) == []
    assert names(core.handle(RunEnded("a"), 7)) == ["start a"]
    assert names(core.handle(RunEnded("a"), 9)) == []
    assert core.next_due() == float("inf")


def test_nothing_starts_on_a_state_that_the_same_event_takes_away(core: Core) -> None:
    """``below`` stands before what it depends on: it was started, and cancelled in the same moment."""
    below = task("below", while_=["up.healthy", "middle.started"])
    plan = (below, task("middle", while_=["up.succeeded"]), task("up"))
    core.handle(PlanChanged(plan), 0)
    assert names(core.handle(StateReported("up", "succeeded"), 1)) == ["start middle"]
    assert names(core.handle(StateReported("up", "healthy"), 2)) == ["cancel middle"]
    assert core.tasks["below"].runs == 0


def test_what_is_so_from_then_on_happens_once_for_each_task(core: Core) -> None:
    first, later = (task(name, run_on=["pod.containersStarted"]) for name in ("first", "later"))
    core.handle(PlanChanged((first,)), 0)
    assert names(core.handle(PodEvent("pod.containersStarted"), 1)) == ["start first"]
    core.handle(RunEnded("first"), 2)
    assert names(core.handle(PodEvent("pod.containersStarted"), 9)) == []
    assert names(core.handle(PlanChanged((first, later)), 10)) == ["start later"]
    core.handle(RunEnded("later"), 11)
    assert names(core.handle(PodEvent("pod.containersStarted"), 20)) == []
    assert core.next_due() == float("inf")


def test_a_flood_of_events_is_a_run_a_second(core: Core) -> None:
    core.handle(PlanChanged((task("a", run_on=["signal.SIGHUP"]),)), 0)
    starts, now = [], 0.0
    for _ in range(1000):
        now += 0.01
        commands = names(core.handle(PodEvent("signal.SIGHUP"), now)) + names(core.handle(None, now))
        if commands:
            starts.append(now)
            core.handle(RunEnded("a"), now)
    assert len(starts) == 10
    assert all(after - before >= 1 for before, after in pairwise(starts))


def test_an_event_before_needs_hold_or_in_a_pause_is_remembered(core: Core) -> None:
    plan = (task("up"), task("a", "up.started", while_=["up.healthy"], run_on=["signal.SIGHUP"]))
    core.handle(PlanChanged(plan), 0)
    core.handle(PodEvent("signal.SIGHUP"), 1)
    assert names(core.handle(StateReported("up", "healthy"), 2)) == ["start a"]
    core.handle(StateReported("up", "unhealthy"), 4)
    core.handle(RunEnded("a", "cancelled"), 4)
    core.handle(PodEvent("signal.SIGHUP"), 5)
    assert names(core.handle(StateReported("up", "healthy"), 6)) == ["start a"]


def test_run_on_and_every_together_run_on_both(core: Core) -> None:
    core.handle(PlanChanged((task("a", run_on=["signal.SIGHUP"], every=100.0),)), 0)
    slot = core.next_due()
    assert names(core.handle(PodEvent("signal.SIGHUP"), 0)) == ["start a"]
    core.handle(RunEnded("a"), 0)
    assert core.next_due() == max(slot, 1), "the event leaves the period where it is"
    assert names(core.handle(None, core.next_due())) == ["start a"]


def test_started_and_completed_are_events_of_each_run(core: Core) -> None:
    plan = (task("a", every=5.0), task("b", run_on=["a.started"]), task("c", run_on=["a.completed"]))
    core.handle(PlanChanged(plan), 0)
    for turn in range(3):
        now = core.next_due()
        assert sorted(names(core.handle(None, now))) == ["start a", "start b"]
        core.handle(StateReported("a", "started"), now)
        word = "failed" if turn == 1 else "succeeded"
        assert names(core.handle(StateReported("a", word), now + 1)) == ["start c"]
        for name in "abc":
            core.handle(RunEnded(name), now + 2)


def test_a_failed_run_on_an_event_is_tried_again_by_its_restart_policy() -> None:
    for policy, again in (("OnFailure", True), ("Always", True), ("Never", False)):
        core = Core(Random(1))
        core.handle(PlanChanged((task("a", run_on=["signal.SIGHUP"], restart=policy),)), 0)
        core.handle(PodEvent("signal.SIGHUP"), 100)
        core.handle(RunEnded("a", "no"), 100)
        assert (core.next_due() < 110) is again


# Failing for good, and how waits grow


def test_a_task_at_its_backoff_limit_is_failed_for_good(core: Core) -> None:
    plan = (task("a", run_on=["signal.SIGHUP"], every=5.0, backoff_limit=0), task("b", "a.failed"))
    core.handle(PlanChanged(plan), 0)
    core.handle(PodEvent("signal.SIGHUP"), 0)
    core.handle(StateReported("a", "registered"), 0)
    assert names(core.handle(RunEnded("a", "no"), 1)) == ["start b"]
    assert core.tasks["a"].shown == "failed"
    assert names(core.handle(PodEvent("signal.SIGHUP"), 50)) == []
    assert core.next_due() == float("inf")
    core.handle(PlanChanged((task("a", version=2),)), 60)
    core.handle(RunEnded("b", "cancelled"), 60)
    assert names(core.handle(UndoEnded("b"), 60)) == ["undo a"]
    assert names(core.handle(UndoEnded("a"), 60)) == ["start a"], "another plan, another chance"


def test_what_should_run_for_ever_and_ends_well_backs_off_as_in_a_pod(core: Core) -> None:
    core.handle(PlanChanged((task("a", backoff=Backoff(1, 300, jitter=0)),)), 0)
    now, waits = 0.0, []
    for _ in range(5):
        core.handle(RunEnded("a"), now)
        waits.append(core.next_due() - now)
        now = core.next_due()
        core.handle(None, now)
    assert waits == [1, 2, 4, 8, 16]
    core.handle(RunEnded("a"), now + 600)
    assert core.next_due() == now + 601


@pytest.mark.parametrize(("jitter", "least"), [(0, 8), (0.25, 6), (1, 1)])
def test_jitter_is_the_part_of_a_wait_that_is_left_to_chance(jitter: float, least: float) -> None:
    waits = []
    for seed in range(200):
        core = Core(Random(seed))
        core.handle(PlanChanged((task("a", backoff=Backoff(8, 300, jitter=jitter)),)), 0)
        core.handle(RunEnded("a", "no"), 0)
        waits.append(core.next_due())
    assert least <= min(waits) <= least + 0.1
    assert max(waits) <= 8


def test_the_minimum_start_interval_holds_across_plans(core: Core) -> None:
    core.handle(PlanChanged((task("a", version=1),)), 0)
    core.handle(PlanChanged((task("a", version=2),)), 0.1)
    core.handle(RunEnded("a", "cancelled"), 0.1)
    assert names(core.handle(UndoEnded("a"), 0.1)) == []
    assert core.next_due() == 1


# The end


def test_the_end_runs_termination_tasks_and_then_undoes_in_reverse(core: Core) -> None:
    plan = (
        task("web"),
        task("beat", while_=["web.registered"], every=10.0),
        task("bye", "web.registered", run_on=["pod.terminating"]),
        task("last", "bye.succeeded", run_on=["pod.terminating"]),
        task("held", "web.lost", run_on=["pod.terminating"]),
    )
    core.handle(PlanChanged(plan), 0)
    core.handle(StateReported("web", "registered"), 0)
    assert names(core.handle(Ending(undo_at=20), 10)) == ["start bye"]
    assert names(core.handle(None, 15)) == [], "triggers are silent: no beat"
    assert names(core.handle(StateReported("bye", "succeeded"), 15)) == ["start last"]
    assert names(core.handle(RunEnded("bye"), 15)) == []
    assert names(core.handle(RunEnded("last", "no"), 16)) == ["undo last"], (
        "not tried again; and held is not waited for"
    )
    assert names(core.handle(UndoEnded("last"), 16)) == ["undo bye"]
    assert core.tasks["web"].stage is Stage.RUNNING
    assert names(core.handle(UndoEnded("bye"), 17)) == ["cancel web"]
    assert core.next_due() == float("inf")


def test_the_end_comes_once_and_no_plan_comes_after_it(core: Core) -> None:
    core.handle(PlanChanged((task("a"), task("bye", run_on=["pod.terminating"]))), 0)
    assert names(core.handle(Ending(undo_at=9), 5)) == ["start bye"]
    assert names(core.handle(Ending(undo_at=9), 6)) == []
    assert names(core.handle(PlanChanged((task("b"),)), 6)) == []
    assert names(core.handle(RunEnded("bye"), 7)) == ["cancel a", "undo bye"]
    core.handle(UndoEnded("bye"), 7)
    core.handle(RunEnded("a", "cancelled"), 7)
    assert names(core.handle(UndoEnded("a"), 7)) == []
    assert core.idle


def test_a_termination_task_that_hangs_leaves_time_to_undo(core: Core) -> None:
    core.handle(PlanChanged((task("a"), task("bye", run_on=["pod.terminating"]))), 0)
    core.handle(Ending(undo_at=9), 5)
    assert core.next_due() == 9
    assert names(core.handle(None, 9)) == ["cancel a", "cancel bye"]


def test_a_termination_task_that_is_running_runs_once_more(core: Core) -> None:
    core.handle(PlanChanged((task("bye", run_on=["pod.terminating", "signal.SIGHUP"]),)), 0)
    core.handle(PodEvent("signal.SIGHUP"), 4)
    assert names(core.handle(Ending(undo_at=9), 5)) == []
    assert names(core.handle(RunEnded("bye"), 6)) == ["start bye"]
    assert names(core.handle(RunEnded("bye"), 7)) == ["undo bye"]
