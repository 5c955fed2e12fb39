"""What a status says, and when it is written."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone.language.binding import BindingError, Fault, derive
from pidone.language.model import Param, TaskBinding
from pidone.language.secrets import NoSecrets, SecretError
from pidone.plan.report import Report
from pidone_controller.kubernetes.errors import NotFound, ServerError
from pidone_controller.kubernetes.resources import TASK_BINDINGS, ObjectRef, Resource
from pidone_controller.log import log
from pidone_controller.repo.selection import PlanState, SelectedPod
from pidone_controller.status import compose as module
from pidone_controller.status.compose import (
    MAX_ITEMS,
    binding_status,
    extends_error,
    secrets_error,
    set_status,
    sets_error,
)
from pidone_controller.status.conditions import Status
from pidone_controller.status.writer import StatusWriter
from tests.controller.factories import binding, pod, rules, task_set

NOW, LATER = "2026-01-02T03:04:05Z", "2026-01-02T03:05:00Z"
PLAN, OLD, ETAG = "sha256-1", "sha256-0", "sha256-e"
WEB = "TaskBinding shop/web"


def matched(name: str = "shop/web-0", report: Report | None = None, **more: Any) -> SelectedPod:
    return SelectedPod(name, "", PLAN, ETAG, 1, report, **more)


def applied(name: str = "shop/web-0") -> SelectedPod:
    return matched(name, Report("applied", digest=PLAN))


def rejected(name: str = "shop/web-1", error: str = "no such program") -> SelectedPod:
    return matched(name, Report("rejected", digest=OLD, rejected=ETAG, error=error))


def status(
    *pods: SelectedPod, generation: int = 1, previous: Mapping[str, Any] | None = None, **more: Any
) -> Status:
    return binding_status(WEB, generation, pods, previous=previous or {}, now=more.pop("now", NOW), **more)


def condition(found: Status, kind: str = "Ready") -> dict[str, Any]:
    return next(one for one in found["conditions"] if one["type"] == kind)


def stands(found: Status) -> tuple[str, str]:
    """The condition that holds, and its reason."""
    holding = [one for one in found["conditions"] if one["status"] == "True"]
    assert len(holding) == 1
    return holding[0]["type"], holding[0]["reason"]


@pytest.mark.parametrize(
    ("report", "tasks", "state"),
    [
        (None, 1, PlanState.WAITING),
        (None, 0, PlanState.APPLIED),  # asleep: it has nothing to say
        (Report("applied", digest=PLAN), 1, PlanState.APPLIED),
        (Report("applied", digest=OLD), 1, PlanState.WAITING),
        (Report("applied", digest=OLD), 0, PlanState.WAITING),  # it has yet to take back what it did
        (Report("rejected", digest=OLD, rejected=ETAG), 1, PlanState.REJECTED),
        (Report("rejected", digest=OLD, rejected="sha256-f"), 1, PlanState.WAITING),  # that was another plan
        (
            Report("rejected", digest=PLAN, rejected="sha256-f"),
            1,
            PlanState.APPLIED,
        ),  # served again: a rollback
        (Report("rejected", rejected=ETAG), 0, PlanState.REJECTED),
    ],
)
def test_what_became_of_a_pods_plan(report: Report | None, tasks: int, state: PlanState) -> None:
    assert SelectedPod("shop/web", "", PLAN, ETAG, tasks, report).state is state


def test_all_apply_and_it_is_ready() -> None:
    found = status(applied("shop/a"), applied("shop/b"), generation=7)
    assert stands(found) == ("Ready", "AllApplied")
    assert (found["matched"], found["applied"], found["rejected"]) == (2, 2, 0)
    assert found["digests"] == [{"digest": PLAN, "pods": 2}]
    assert found["observedGeneration"] == 7
    assert {one["observedGeneration"] for one in found["conditions"]} == {7}
    assert not {"rejections", "conflicts", "findings", "rollout"} & found.keys()


def test_the_pods_that_people_have_taken_out_of_service_are_counted_by_their_reports() -> None:
    out = matched("shop/b", Report("applied", digest=PLAN, maintenance=True))
    found = status(applied("shop/a"), out)
    assert found["maintenance"] == 1
    assert stands(found) == ("Ready", "AllApplied"), "it is no fault"
    assert status(applied("shop/a"))["maintenance"] == 0


def test_what_time_mends_is_reconciling_and_names_a_pod() -> None:
    found = status(applied("shop/a"), matched("shop/b"))
    assert stands(found) == ("Reconciling", "Applying")
    assert condition(found)["reason"] == "Applying"
    assert condition(found)["message"].startswith(
        "1 of 2 pods run their plans; shop/b has reported nothing yet"
    )


def test_a_binding_without_pods_is_ready_and_says_so() -> None:
    assert stands(status()) == ("Ready", "NoPods")


def test_a_refusal_is_stalled_with_the_pods_own_words() -> None:
    found = status(
        applied(), *(rejected(f"shop/web-{number}") for number in range(1, 9)), matched("shop/new")
    )
    assert stands(found) == ("Stalled", "PlanRefused")
    assert found["rejected"] == 8
    assert len(found["rejections"]) == MAX_ITEMS
    assert found["rejections"][0] == {"pod": "shop/web-1", "digest": PLAN, "message": "no such program"}
    assert condition(found)["message"] == "pod shop/web-1 and 7 others: no such program"


def test_a_pods_words_cannot_move_a_terminal() -> None:
    message = status(rejected(error="\x1b[2Jwiped\n" + "x" * 5000))["rejections"][0]["message"]
    assert message.startswith("\N{REPLACEMENT CHARACTER}[2Jwiped xxx")
    assert len(message) == 1024
    assert message.isprintable()


def test_a_conflict_is_on_both_with_the_task() -> None:
    found = rules(task_set(), task_set("other"), binding("a"), binding("b", sets="other"))
    with pytest.raises(BindingError) as raised:
        derive(pod(labels={"check": "yes"}), found)
    pods = [
        SelectedPod("shop/x", "", PLAN, error=str(raised.value), faults=raised.value.faults),
        SelectedPod("shop/y", error=str(raised.value), faults=raised.value.faults),
    ]
    for mine, other in (("TaskBinding a", "TaskBinding b"), ("TaskBinding b", "TaskBinding a")):
        made = binding_status(mine, 1, pods, previous={}, now=NOW)
        assert stands(made) == ("Stalled", "Conflict")
        (conflict,) = made["conflicts"]
        assert (conflict["with"], conflict["task"], conflict["pods"]) == (other, "ready", 2)
        assert conflict["pod"] == "shop/x"
        assert "TaskBinding a and TaskBinding b each bring a task" in condition(made)["message"]
        assert "(pod shop/x and 1 other)" in condition(made)["message"]
    # the pods cannot run what a third one gives them either, and it is told whose fault that is
    third = binding_status("TaskBinding c", 1, pods, previous={}, now=NOW)
    assert stands(third) == ("Stalled", "Blocked")
    assert "conflicts" not in third
    assert "TaskBinding a and TaskBinding b" in condition(third)["message"]


def test_a_pod_that_lacks_a_param_is_named() -> None:
    text = "TaskBinding shop/web: port is not given"
    fault = Fault(text, (TaskBinding("web", "shop"),))
    found = status(applied(), matched("shop/b", error=text, faults=(fault,)))
    assert stands(found) == ("Stalled", "NoPlan")
    assert condition(found)["message"] == f"pod shop/b: {text}"
    found = status(matched("shop/b", error="the plan has 300000 bytes"))
    assert stands(found) == ("Stalled", "NoPlan")


def test_a_pod_that_asks_over_http_for_what_needs_https_is_named() -> None:
    text = 'task "backup": exec is served over https only, and shop/b asks over http'
    found = status(applied(), matched("shop/b", withheld=text), matched("shop/c", withheld=text))
    assert stands(found) == ("Stalled", "NeedsHTTPS")
    assert condition(found)["message"] == f"pod shop/b and 1 other: {text}"


def test_what_no_pod_could_run_is_said_without_pods_too() -> None:
    command = task_set("runs").replace(
        "probe:\n        tcpSocket: {port: $(params.port)}", "probe:\n        exec: {command: [/bin/true]}"
    )
    found = rules(task_set(), command, binding(), binding("runs", sets="runs"), binding("lost", sets="gone"))
    plain, runs, lost = sorted(found.bindings, key=lambda one: ("checked", "runs", "lost").index(one.name))
    assert sets_error(plain, found, https=False) is None
    assert sets_error(runs, found, https=True) is None
    made = status(error=sets_error(runs, found, https=False))
    assert stands(made) == ("Stalled", "NeedsHTTPS")
    assert 'task "ready": probe needs the https repo' in condition(made)["message"]
    made = status(error=sets_error(lost, found, https=True))
    assert stands(made) == ("Stalled", "TaskSetUnusable")
    assert 'names TaskSet "gone", which is not there' in condition(made)["message"]


def test_what_the_checker_refuses_goes_before_everything() -> None:
    found = status(rejected(), refused=["spec.podSelector: no", "spec.params.x: no"])
    assert stands(found) == ("Stalled", "Refused")
    assert condition(found)["message"] == "spec.podSelector: no (and 1 more)"
    assert found["findings"] == ["spec.podSelector: no", "spec.params.x: no"]


def test_a_rollout_is_reconciling_until_it_is_over() -> None:
    assert stands(status(applied(), progress="50 % have version 2")) == ("Reconciling", "RollingOut")
    assert stands(status(applied(), halt_reason="2 pods refused")) == ("Stalled", "RolloutHalted")


def test_a_transition_is_a_change_of_status_alone() -> None:
    first = status(applied())
    same = status(applied("shop/a"), applied("shop/b"), generation=2, previous=first, now=LATER)
    assert condition(same)["lastTransitionTime"] == NOW
    assert condition(same)["message"] != condition(first)["message"]
    turned = status(matched(), previous=same, now=LATER)
    assert condition(turned)["lastTransitionTime"] == LATER
    assert condition(turned, "Stalled")["lastTransitionTime"] == NOW


def test_the_same_is_made_of_the_same_so_nothing_is_written() -> None:
    first = status(rejected())
    assert status(rejected(), previous={**first, "rollout": {"current": "x"}}, now=LATER) == first


def test_a_new_leader_that_has_heard_nothing_yet_keeps_what_is_there() -> None:
    before = {**status(applied(), generation=3), "rollout": {"current": "x"}}
    kept = status(matched(), generation=3, previous=before, now=LATER, collecting_reports=True)
    assert stands(kept) == ("Ready", "AllApplied")
    assert "rollout" not in kept
    assert stands(status(matched(), generation=3, previous=before, now=LATER)) == ("Reconciling", "Applying")
    assert stands(status(matched(), generation=4, previous=before, collecting_reports=True)) == (
        "Reconciling",
        "Applying",
    )
    changed = SelectedPod("shop/web-0", "", OLD, ETAG, 1)
    assert stands(status(changed, generation=3, previous=before, collecting_reports=True)) == (
        "Reconciling",
        "Applying",
    )
    assert stands(status(rejected(), generation=3, previous=before, collecting_reports=True)) == (
        "Stalled",
        "PlanRefused",
    )


def test_a_set_is_ready_when_it_is_whole() -> None:
    found = rules(
        task_set("base"),
        task_set().replace("spec:", "spec:\n  extends: [base, gone]").replace("ready", "two"),
    )
    whole, half = (found.sets.by_key[False, "", name] for name in ("base", "check"))
    error, tasks = extends_error(whole, found)
    made = set_status(1, previous={}, now=NOW, error=error, tasks=tasks, bindings=2)
    assert stands(made) == ("Ready", "Accepted")
    assert (made["tasks"], made["bindings"]) == (1, 2)
    error, tasks = extends_error(half, found)
    made = set_status(1, previous={}, now=NOW, error=error, tasks=tasks)
    assert stands(made) == ("Stalled", "ExtendsUnresolved")
    assert 'extends "gone", which is not there' in condition(made)["message"]
    made = set_status(1, previous=made, now=NOW, findings=["spec.tasks[0].needs[0]: no such task"])
    assert stands(made) == ("Stalled", "Refused")
    assert made["findings"] == ["spec.tasks[0].needs[0]: no such task"]


# The writer


class World:
    """Two bindings, a client that takes half a second, and what was written when."""

    def __init__(self) -> None:
        self.targets = [ObjectRef(TASK_BINDINGS, "shop", name, f"uid-{name}") for name in "ab"]
        self.pods: dict[str, list[SelectedPod]] = {"a": [], "b": []}
        self.stored: dict[str, dict[str, Any]] = {name: {"metadata": {"uid": f"uid-{name}"}} for name in "ab"}
        self.writes: list[tuple[float, str, str]] = []
        self.fails = 0
        self.looks = 0
        self.gets = 0
        self.unlisted: ServerError | None = None
        self.worked = 0.0  # seconds of processor time
        self.costs = 0.0  # of them one look

    def meter(self) -> float:
        return self.worked

    def compose(self, target: ObjectRef, previous: Mapping[str, Any]) -> Status | None:
        self.looks += 1
        self.worked += self.costs
        pods = self.pods.get(target.name)
        return None if pods is None else binding_status(str(target), 1, pods, previous=previous, now=NOW)

    async def get(self, resource: Resource, name: str, namespace: str) -> dict[str, Any]:
        assert (resource, namespace) == (TASK_BINDINGS, "shop")
        self.gets += 1
        if name not in self.stored:
            raise NotFound(f"{name} is not there")
        return self.stored[name]

    async def list(self, resource: Resource) -> list[dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        if self.unlisted is not None:
            raise self.unlisted
        return [
            {**one, "metadata": {**one["metadata"], "namespace": "shop", "name": name}}
            for name, one in self.stored.items()
        ]

    async def apply(self, resource: Resource, body: dict[str, Any], *, subresource: str) -> None:
        assert (resource, subresource) == (TASK_BINDINGS, "status")
        assert body["metadata"].keys() == {"name", "namespace"}
        await trio.sleep(0.01)
        if self.fails:
            self.fails -= 1
            raise ServerError("etcd is slow")
        self.stored[body["metadata"]["name"]]["status"] = body["status"]
        said = f"{stands(body['status'])[1]} {body['status']['applied']}/{body['status']['matched']}"
        self.writes.append((round(trio.current_time(), 2), body["metadata"]["name"], said))


@pytest.fixture
async def world(nursery: trio.Nursery) -> tuple[World, StatusWriter]:
    world = World()
    writer = StatusWriter(world, world.compose, log, meter=world.meter)
    nursery.start_soon(writer.run)
    await wait_all_tasks_blocked()
    return world, writer


async def test_a_gate_opens_at_once_and_numbers_take_their_time(
    autojump_clock: MockClock, world: tuple[World, StatusWriter]
) -> None:
    there, writer = world
    began = trio.current_time()
    target = there.targets[0]
    there.pods["a"] = [matched()]
    writer.mark(target)
    await trio.sleep(0.05)
    there.pods["a"] = [applied()]
    writer.mark(target)  # the pod has reported: Ready, at the next look
    await trio.sleep(1)
    for number in range(2, 6):  # a deployment grows: numbers alone
        there.pods["a"] = [applied(f"shop/{pod}") for pod in range(number)]
        writer.mark(target)
        await trio.sleep(1)
    await trio.sleep(20)
    assert [(round(at - began, 1), said) for at, _, said in there.writes] == [
        (0.0, "Applying 0/1"),
        (0.2, "AllApplied 1/1"),
        (5.2, "AllApplied 5/5"),
    ]


async def test_what_comes_and_goes_is_written_once_in_five_seconds(
    autojump_clock: MockClock, world: tuple[World, StatusWriter]
) -> None:
    there, writer = world
    for number in range(600):
        there.pods["a"] = [applied()] if number // 7 % 2 else [matched()]
        writer.mark(there.targets[0])
        await trio.sleep(0.1)
    assert 8 <= len(there.writes) <= 3 + 60 / 5 + 1
    assert there.looks <= 301


async def test_looks_take_a_tenth_of_the_time_however_many_pods_there_are(
    autojump_clock: MockClock, world: tuple[World, StatusWriter]
) -> None:
    there, writer = world
    there.costs = 0.1
    for _ in range(200):
        writer.mark(there.targets[0])
        await trio.sleep(0.1)
    assert 0.09 <= there.worked / 20 <= 0.11


async def test_one_that_nobody_marks_costs_nothing_and_the_same_is_not_written_again(
    autojump_clock: MockClock, world: tuple[World, StatusWriter]
) -> None:
    there, writer = world
    for _ in range(3):
        writer.mark(there.targets[1])
        await trio.sleep(60)
    assert [name for _, name, _ in there.writes] == ["b"]
    del there.pods["b"]  # deleted
    writer.mark(there.targets[1])
    await trio.sleep(60)
    assert there.looks == 4
    assert not writer._entries


async def test_an_object_made_anew_is_not_told_what_was_true_of_the_old_one(
    autojump_clock: MockClock, world: tuple[World, StatusWriter]
) -> None:
    there, writer = world
    there.stored["a"]["metadata"]["uid"] = "uid-of-another"
    del there.stored["b"]
    for target in there.targets:
        writer.mark(target)
    await trio.sleep(60)
    assert there.writes == []


async def test_a_write_that_fails_is_made_again_and_the_other_does_not_wait(
    autojump_clock: MockClock, world: tuple[World, StatusWriter]
) -> None:
    there, writer = world
    there.fails = 2
    writer.mark(there.targets[0])
    for _ in range(5):
        await trio.sleep(0.3)
        writer.mark(there.targets[0])  # its pods go on reporting: no reason to hurry
    assert there.fails == 1
    there.fails = 0
    writer.mark(there.targets[1])
    await trio.sleep(30)
    assert [name for _, name, _ in there.writes] == ["b", "a"]


async def test_who_leads_again_writes_over_what_another_wrote(autojump_clock: MockClock) -> None:
    there = World()
    writer = StatusWriter(there, there.compose, log, meter=there.meter)
    for _ in range(2):
        writer.mark(there.targets[0])
        with trio.move_on_after(10):
            await writer.run()
        there.stored["a"]["status"] = {"observedGeneration": 0}
    assert len(there.writes) == 2


def test_every_reason_is_explained_and_no_other() -> None:
    reason = re.compile(
        r'Verdict\(\s*"(?:Ready|Reconciling|Stalled)", "(\w+)"|_named\("(\w+)"|reason = "(\w+)" if .* else "(\w+)"'
    )
    code = {
        word for found in reason.findall(Path(module.__file__).read_text("utf-8")) for word in found if word
    }
    document = (Path(__file__).parents[3] / "docs/status.md").read_text("utf-8")
    table = set(re.findall(r"^\|[^|]*\| `(\w+)` \|", document, re.MULTILINE))
    assert table == code


@pytest.mark.parametrize("unlisted", [None, ServerError("etcd is slow")])
async def test_a_new_leader_reads_all_statuses_in_one_list_or_one_by_one(
    autojump_clock: MockClock, unlisted: ServerError | None
) -> None:
    there = World()
    there.unlisted = unlisted
    for name in "ab":
        there.stored[name]["status"] = binding_status(f"TaskBinding shop/{name}", 1, [], previous={}, now=NOW)
    writer = StatusWriter(there, there.compose, log, meter=there.meter)
    for target in there.targets:
        writer.mark(target)
    with trio.move_on_after(10):
        await writer.run()
    assert there.writes == [], "it says what there is to say"
    assert (there.looks, there.gets) == (2, 0 if unlisted is None else 2)


class Ungranted(NoSecrets):
    """No Secret is granted; one is being read."""

    def text(self, param: Param, namespace: str) -> str:
        raise SecretError(f"needs {namespace}/{param.secret}", pending=param.secret == "slow")


SECRET_SET = """\
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: check, namespace: shop}
spec:
  params: [{name: token, valueFrom: {secretKeyRef: {name: hook, key: token}}}]
  tasks: [{name: tell, report: {webhook: {url: "http://hook", headers: {X-Token: $(params.token)}}}}]
"""


def test_a_secret_that_is_missing_is_told_before_there_are_pods() -> None:
    own = binding().replace("name: checked", "name: checked, namespace: shop")
    found = replace(rules(SECRET_SET, own), secrets=Ungranted())
    (one,) = found.bindings
    made = status(error=secrets_error(one, found))
    assert stands(made) == ("Stalled", "NoSecret")
    assert condition(made)["message"] == 'TaskSet "check": param "token" needs shop/hook'
    slow = replace(rules(SECRET_SET.replace("hook, key", "slow, key"), own), secrets=Ungranted())
    assert secrets_error(slow.bindings[0], slow) is None
    given = replace(rules(SECRET_SET, own.replace("params: {}", "params: {token: x}")), secrets=Ungranted())
    assert secrets_error(given.bindings[0], given) is None


def test_a_pod_without_a_secret_is_told_and_one_whose_secret_is_being_read_is_waited_for() -> None:
    fault = Fault("needs a grant", (TaskBinding("web", "shop"),), secret=True)
    made = status(SelectedPod("shop/web-0", error="needs a grant", faults=(fault,)))
    assert stands(made) == ("Stalled", "NoSecret")
    assert condition(made)["message"] == "pod shop/web-0: needs a grant"
    slow = (replace(fault, pending=True),)
    made = status(SelectedPod("shop/web-0", error="is being read", faults=slow, pending=True))
    assert stands(made) == ("Reconciling", "Applying")
