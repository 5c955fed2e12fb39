"""A pod with values of Secrets: from whom it takes them, and what it says of them."""

import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pidone.actions import Context, Setting, Shown
from pidone.errors import Refused, TaskFailed
from pidone.http.message import Request
from pidone.journal import Journal
from pidone.plan.digest import canonical
from pidone.plan.format import encode_bundle
from pidone.plan.model import Phase, Pod, Task
from pidone.pod.local import answer, document
from pidone.pod.program import PodProgram
from pidone.pod.settings import Settings

SECRET = "correct-horse-battery"
FACTS = Pod("web", "shop", "u", "127.0.0.1")


class Leak:
    """An action that fails with all that it knows."""

    def __init__(self, task: Task) -> None:
        self._config = task.config

    async def run(self, context: Context) -> None:
        text = json.dumps(self._config)
        context.log("asked", answer=text)
        context.report("", f"answered 500 to {text}")
        context.explain(f"answered 503 to {text}")
        await context.changed()
        raise TaskFailed(f"answered 401 to {text}")

    def shown(self) -> dict[str, Shown]:
        text = json.dumps(self._config)
        return {f"http://{text}": Shown("DOWN", f"answered 401 to {text}")}

    async def undo(self, context: Context) -> None:
        raise TaskFailed(f"answered 403 to {self._config['env']}")


def bundle(*values: str, **changes: Any) -> bytes:
    tasks = [
        {
            "name": "hook",
            "exec": {"command": ["/opt/pidone/hook"], "env": [{"name": "TOKEN", "value": values[0]}]},
            "secrets": {"salt": "0" * 64, "values": list(values)},
        }
        | changes
    ]
    return canonical(encode_bundle(tasks, phase=Phase.RUNNING, pod=FACTS))


def made(lines: list[str]) -> PodProgram:
    return PodProgram(Settings(), Journal(lines.append), build=lambda task, _setting: Leak(task))


async def test_a_failure_and_what_is_undone_tell_no_value(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    lines: list[str] = []
    program = made(lines)
    await nursery.start(program.engine.run)
    program.apply(bundle(SECRET), trusted=True)
    await trio.sleep(0.1)
    assert "answered 503" in program.tasks()["hook"].error
    assert SECRET not in program.tasks()["hook"].error
    program.engine.wake_tasks()
    await trio.sleep(0.1)
    assert "answered 401" in program.tasks()["hook"].error
    maintenance = await answer(program, Request("GET", "/maintenance", {}, b"", "127.0.0.1"))
    assert "answered 401" in maintenance.text
    assert SECRET not in maintenance.text
    program.apply(bundle("another-value"), trusted=True)
    await trio.sleep(30)
    program.apply(canonical(encode_bundle([], phase=Phase.RUNNING, pod=FACTS)), trusted=True)
    await trio.sleep(30)
    assert "answered 403" in program.engine.left["hook"]
    told = json.dumps([document(program), lines, program.status().tasks and 1])
    assert "***" in told
    assert SECRET not in told
    assert "another-value" not in told
    nursery.cancel_scope.cancel()


def test_values_do_not_come_over_plain_http() -> None:
    program = made([])
    with pytest.raises(Refused) as raised:
        program.apply(bundle(SECRET), trusted=False)
    assert str(raised.value) == (
        'task "hook": a value of a Secret is accepted from an https repo or a local file only, '
        "and this plan came over plain http"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"every": SECRET},
        {"restartPolicy": SECRET},
        {"timeout": SECRET + "x" * 60},
        {SECRET: {}},
        {"needs": [SECRET]},
    ],
)
def test_a_refusal_tells_no_value(changes: dict[str, Any]) -> None:
    lines: list[str] = []
    program = made(lines)
    with pytest.raises(Refused) as raised:
        program.apply(bundle(SECRET, **changes), trusted=True)
    assert "***" in str(raised.value)
    assert SECRET[:3] not in str(raised.value)


def test_a_bug_that_a_plan_causes_tells_no_value() -> None:
    def build(task: Task, setting: Setting) -> Leak:
        raise ValueError(f"no {task.config['env']} for {setting.pod.name}")

    program = PodProgram(Settings(), Journal(lambda _: None), build=build)
    with pytest.raises(Refused) as raised:
        program.apply(bundle(SECRET), trusted=True)
    assert str(raised.value).startswith("internal error: ValueError: no")
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "secrets", [1, {}, {"values": [1], "salt": ""}, {"values": [], "salt": "", "more": 1}]
)
def test_a_form_that_is_not_known_is_refused(secrets: object) -> None:
    with pytest.raises(Refused, match='task "hook"'):
        made([]).apply(bundle(SECRET, secrets=secrets), trusted=True)
