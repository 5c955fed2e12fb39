"""Events: one for each refusal and each conflict, written by one leader."""

from collections.abc import Mapping
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone.plan.report import Report
from pidone_controller.kubernetes.resources import CLUSTER_TASK_BINDINGS, TASK_BINDINGS, ObjectRef
from pidone_controller.status.events import MAX_QUEUE, OVERLAP_SECONDS, EventQueue
from tests.controller.factories import pod

ETAG, OLD = "sha256-e", "sha256-0"
BEGAN = 1_700_000_000.0
WEB = pod("web-0", "10.0.0.5")


class FakeRecorder:
    def __init__(self) -> None:
        self.written: list[tuple[str, str, str, str]] = []
        self.stuck: trio.Event | None = None

    async def record(self, about: Mapping[str, Any], kind: str, reason: str, message: str) -> None:
        if self.stuck is not None:
            await self.stuck.wait()
        self.written.append((f"{about['kind']} {about['metadata']['name']}", kind, reason, message))


@pytest.fixture
async def queue(nursery: trio.Nursery) -> tuple[FakeRecorder, EventQueue]:
    recorder = FakeRecorder()
    queue = EventQueue(recorder, began=BEGAN)
    nursery.start_soon(queue.run)
    return recorder, queue


def refused(etag: str = ETAG, error: str = "no such\nprogram") -> Report:
    return Report("rejected", digest=OLD, rejected=etag, error=error)


async def test_a_refusal_is_told_once_on_the_pod_with_binding_and_text(
    autojump_clock: MockClock, queue: tuple[FakeRecorder, EventQueue]
) -> None:
    recorder, events = queue
    for _ in range(3):
        events.reported(WEB, refused(), BEGAN + 1, ETAG, ["TaskBinding shop/web"])
    await wait_all_tasks_blocked()
    message = "the plan of TaskBinding shop/web was refused: no such program"
    assert recorder.written == [("Pod web-0", "Warning", "PlanRefused", message)]
    events.reported(WEB, refused(OLD), BEGAN + 2, ETAG, [])  # of a plan that it is not served any more
    events.reported(WEB, Report("applied", digest=OLD), BEGAN + 3, ETAG, [])
    await wait_all_tasks_blocked()
    assert len(recorder.written) == 1
    events.reported(
        WEB, refused("sha256-f"), BEGAN + 4, "sha256-f", [f"TaskBinding shop/{n}" for n in range(7)]
    )
    await wait_all_tasks_blocked()
    assert "TaskBinding shop/4 and 2 more was refused" in recorder.written[1][3]
    events.gone(WEB)
    assert not events._refused


async def test_what_the_leader_before_has_told_is_not_told_again(
    autojump_clock: MockClock, queue: tuple[FakeRecorder, EventQueue]
) -> None:
    recorder, events = queue
    events.reported(WEB, refused(), BEGAN - OVERLAP_SECONDS - 1, ETAG, ["TaskBinding shop/web"])
    events.reported(pod("web-1", "10.0.0.6"), refused(), BEGAN - 1, ETAG, ["TaskBinding shop/web"])
    await wait_all_tasks_blocked()
    assert [about for about, *_ in recorder.written] == ["Pod web-1"]


async def test_a_conflict_is_told_when_it_is_new_in_a_status(
    autojump_clock: MockClock, queue: tuple[FakeRecorder, EventQueue]
) -> None:
    recorder, events = queue
    one = {
        "with": "TaskBinding shop/b",
        "task": "ready",
        "pods": 2,
        "pod": "shop/x",
        "message": "both bring ready",
    }
    other = {**one, "task": "live", "message": "both bring live"}
    target = ObjectRef(TASK_BINDINGS, "shop", "a", "uid-a")
    events.status_written(target, {}, {"conflicts": [one]})
    events.status_written(target, {"conflicts": [one]}, {"conflicts": [{**one, "pods": 3}]})
    events.status_written(target, {"conflicts": [one]}, {"conflicts": [one, other]})
    events.status_written(target, {"conflicts": [one, other]}, {"matched": 2})
    events.status_written(ObjectRef(CLUSTER_TASK_BINDINGS, "", "a", "uid"), {}, {"conflicts": [one]})
    await wait_all_tasks_blocked()
    assert [(about, reason, message) for about, _, reason, message in recorder.written] == [
        ("TaskBinding a", "Conflict", "both bring ready"),
        ("TaskBinding a", "Conflict", "both bring live"),
        ("ClusterTaskBinding a", "Conflict", "both bring ready"),
    ]


async def test_an_annotation_without_effect_is_told_once_for_each_value(
    autojump_clock: MockClock, queue: tuple[FakeRecorder, EventQueue]
) -> None:
    recorder, events = queue

    def annotate(value: str | None) -> None:
        annotations = {} if value is None else {"pidone.dev/maintenance": value}
        events.changed(pod("web-0", "10.0.0.5", annotations=annotations))

    for value in ("true", "false", None, "yes", "yes", "True", None, "True", "x" * 1000):
        annotate(value)
    await wait_all_tasks_blocked()
    assert recorder.written[0] == (
        "Pod web-0",
        "Warning",
        "UnknownMaintenance",
        (
            'the annotation pidone.dev/maintenance is "yes", and has no effect: write "true" for out of service, or '
            '"false", as in kubectl annotate --overwrite pod web-0 pidone.dev/maintenance=true'
        ),
    )
    values = [message.split('"')[1] for *_, message in recorder.written]
    assert values == ["yes", "True", "True", f"{'x' * 37}..."]
    events.gone(pod("web-0", "10.0.0.5"))
    assert not events._annotated


async def test_an_instance_that_was_left_is_told_on_its_pod(
    autojump_clock: MockClock, queue: tuple[FakeRecorder, EventQueue]
) -> None:
    recorder, events = queue
    events.left_registered(WEB, "web-0 was not\nderegistered")
    await wait_all_tasks_blocked()
    assert recorder.written == [("Pod web-0", "Warning", "LeftRegistered", "web-0 was not deregistered")]


async def test_a_flood_is_cut_off_and_counted(
    autojump_clock: MockClock, queue: tuple[FakeRecorder, EventQueue]
) -> None:
    recorder, events = queue
    recorder.stuck = trio.Event()
    await wait_all_tasks_blocked()  # whoever writes them waits for the first, which is in no queue then
    for number in range(1 + MAX_QUEUE + 50):
        events.reported(pod(f"web-{number}", "10.0.0.5"), refused(), BEGAN, ETAG, [])
    assert events.dropped == 50
    recorder.stuck.set()
    await wait_all_tasks_blocked()
    assert len(recorder.written) == 1 + MAX_QUEUE
