"""TaskSets and a pod to a plan's tasks."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pidone.actions import Setting, build
from pidone.counters import Counters
from pidone.errors import LanguageError
from pidone.language.checking import check_text
from pidone.language.model import TaskSet
from pidone.language.rendering import render
from pidone.language.resolution import heirs
from pidone.language.schemas import actions
from pidone.pid1.reaper import Reaper
from pidone.plan.format import decode_plan
from pidone.plan.model import Pod

ROOT = Path(__file__).parent.parent.parent
POD: dict[str, Any] = {
    "metadata": {
        "name": "ratings-7d9c",
        "namespace": "shop",
        "uid": "0c9e",
        "labels": {"app": "ratings"},
        "annotations": {"pidone.dev/port": "9080"},
    },
    "spec": {
        "nodeName": "node-1",
        "serviceAccountName": "web",
        "containers": [
            {
                "name": "app",
                "ports": [{"name": "http", "containerPort": 9080}, {"name": "admin", "containerPort": 9081}],
                "env": [
                    {"name": "spring.application.name", "value": "ratings"},
                    {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}},
                    {"name": "URL", "value": "http://$(HOST)/"},
                ],
                "readinessProbe": {
                    "httpGet": {
                        "path": "healthz",
                        "port": "http",
                        "scheme": "HTTP",
                        "httpHeaders": [{"name": "X", "value": "$(pod.name)"}],
                    },
                    "periodSeconds": 7,
                    "terminationGracePeriodSeconds": 30,
                },
                "livenessProbe": {"exec": {"command": ["cat", "/tmp/alive"]}},
            },
            {
                "name": "proxy",
                "ports": [{"name": "admin", "containerPort": 15000}, {"containerPort": 15001}],
                "env": [{"name": "LEVEL", "value": "info"}],
            },
        ],
        "initContainers": [
            {
                "name": "setup",
                "ports": [{"name": "gone", "containerPort": 1}],
                "readinessProbe": {"exec": {}},
            },
            {
                "name": "sidecar",
                "restartPolicy": "Always",
                "env": [{"name": "LEVEL", "value": "debug"}],
                "startupProbe": {"grpc": {"port": 5000, "service": ""}},
            },
        ],
    },
    "status": {
        "podIP": "10.42.0.18",
        "podIPs": [{"ip": "10.42.0.18"}, {"ip": "fd00::12"}],
        "hostIP": "10.0.0.1",
    },
}


def task_sets(text: str) -> list[TaskSet]:
    checked = check_text(text, "x.yaml")
    assert not checked.findings, "\n".join(map(str, checked.findings))
    return [one for one in checked.objects if isinstance(one, TaskSet)]


def from_file(path: str) -> list[TaskSet]:
    return task_sets((ROOT / path).read_text("utf-8"))


def task_set(params: str, tasks: str, name: str = "web") -> TaskSet:
    head = f"apiVersion: pidone.dev/v1alpha1\nkind: TaskSet\nmetadata: {{name: {name}}}\nspec:\n"
    (one,) = task_sets(f"{head}  params: {params}\n  tasks: {tasks}\n")
    return one


def run(*arguments: str) -> str:
    return f"[{{name: run, exec: {{command: [/bin/run, {', '.join(arguments)}]}}}}]"


def arguments_of(
    params: str, *written: str, given: dict[str, object] | None = None, pod: Any = POD
) -> list[Any]:
    (task,) = render([task_set(params, run(*written))], given or {}, pod)
    return list(task["exec"]["command"][1:])


EXPECTED = sorted((Path(__file__).parent / "good").glob("*.json"))


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda file: file.stem)
def test_every_field_is_rendered(expected: Path) -> None:
    tasks = render(heirs(from_file(f"tests/language/good/{expected.stem}.yaml")), {}, POD)
    assert tasks == json.loads(expected.read_text("utf-8"))


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda file: file.stem)
def test_the_pod_knows_every_field_that_is_rendered(expected: Path) -> None:
    plan = decode_plan(json.loads(expected.read_text("utf-8")), actions())
    pod = Pod("ratings-7d9c", "shop", "0c9e", "10.42.0.18")
    setting = Setting(pod, None, Reaper(), Counters(), lambda: (), programs="/")
    for task in plan.tasks:
        build(task, setting)  # or Refused


def test_the_pod_can_decode_it() -> None:
    tasks = render(from_file("tests/language/good/everything.yaml"), {}, POD)
    plan = decode_plan(json.loads(json.dumps(tasks)), actions())
    by_name = {task.name: task for task in plan.tasks}
    assert list(by_name) == [task["name"] for task in tasks]
    assert [str(edge) for edge in by_name["registration"].needs] == ["ready.healthy", "open.started"]
    assert by_name["registration"].backoff.initial == 0.5
    assert by_name["beat"].every == 30
    assert by_name["greet"].restart == "Never"


def test_the_ready_made_sets_work_together_in_one_pod() -> None:
    tasks = render([*from_file("tasks/eureka.yaml"), *from_file("tasks/metrics.yaml")], {}, POD)
    assert [task["name"] for task in tasks] == ["ready", "registration", "metrics"]
    assert tasks[0]["probe"]["httpGet"] == {"path": "/", "port": 9080, "host": "10.42.0.18", "scheme": "HTTP"}
    assert tasks[1]["register"]["eureka"]["app"] == "ratings"
    decode_plan(tasks, actions())


def test_a_period_can_be_given() -> None:
    sets = from_file("tasks/eureka.yaml")
    ready, registration = render(sets, {"period": 1, "renew": "1500ms", "eureka": "http://e:1/e"}, POD)
    assert ready["probe"]["periodSeconds"] == 1
    assert registration["register"]["eureka"]["renewalInterval"] == 1.5


def test_equal_input_gives_equal_digests() -> None:
    first, second = (
        decode_plan(render(from_file("tasks/eureka.yaml"), {}, POD), actions()).digest for _ in range(2)
    )
    assert first == second


def test_a_binding_counts_before_the_pod_and_the_pod_before_the_default() -> None:
    params = "[{name: app, default: c, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}]"
    assert arguments_of(params, "$(params.app)", given={"app": "a"}) == ["a"]
    assert arguments_of(params, "$(params.app)") == ["ratings"]
    assert arguments_of(params, "$(params.app)", pod={"metadata": {"name": "x"}}) == ["c"]


def test_a_fact_that_the_pod_does_not_have_yet_is_said_where_it_is_used() -> None:
    one = task_set("[]", "[{name: ready, probe: {tcpSocket: {port: 80}}}]")
    message = 'task "ready": probe.tcpSocket.host: $(pod.ip) has no value: the pod has no status.podIP yet'
    with pytest.raises(LanguageError, match=re.escape(message)):
        render([one], {}, {"metadata": {"name": "x"}})
    assert arguments_of("[]", "x", pod={}) == ["x"]


def test_a_param_that_no_task_refers_to_needs_no_value() -> None:
    assert arguments_of("[{name: a}, {name: b, default: c}]", "$(params.b)") == ["c"]
    with pytest.raises(LanguageError, match="gives 5, which is not a string"):
        arguments_of("[{name: a}]", "x", given={"a": 5})


def test_lists_of_the_pod_are_text_with_commas() -> None:
    assert arguments_of("[]", "$(pod.ips)", "$(pod.ports)") == [
        "10.42.0.18,fd00::12",
        "9080,9081,15000,15001",
    ]


def test_what_a_value_makes_must_fit_its_position() -> None:
    port = task_set(
        "[{name: port, type: integer}]", "[{name: ready, probe: {tcpSocket: {port: $(params.port)}}}]"
    )
    message = 'task "ready": probe.tcpSocket.port: 70000 is not a port; give 1-65535, the name'
    with pytest.raises(LanguageError, match=re.escape(message)):
        render([port], {"port": 70000}, POD)
    every = task_set(
        "[{name: d, type: duration}]", "[{name: run, every: $(params.d), exec: {command: [/bin/x]}}]"
    )
    with pytest.raises(LanguageError, match=re.escape('every: "1ms" is too short; the least is 100ms')):
        render([every], {"d": "1ms"}, POD)


def test_two_sets_with_a_task_of_one_name_are_a_conflict() -> None:
    one, other = task_set("[]", run("a")), task_set("[]", run("b"), name="other")
    message = 'TaskSet "web" and TaskSet "other" both have a task "run"; rename one'
    with pytest.raises(LanguageError, match=re.escape(message)):
        render([one, other], {}, POD)


if __name__ == "__main__":
    for file in EXPECTED:
        rendered = render(heirs(from_file(f"tests/language/good/{file.stem}.yaml")), {}, POD)
        file.write_text(json.dumps(rendered, indent=2) + "\n", "utf-8")


def test_a_flag_may_be_a_reference() -> None:
    params = "[{name: changes, type: boolean, default: false}]"
    tasks = "[{name: tell, every: 1m, report: {webhook: {url: http://a/}, onChange: $(params.changes)}}]"
    head = "apiVersion: pidone.dev/v1alpha1\nkind: TaskSet\nmetadata: {name: x}\n"
    text = f"{head}spec: {{params: {params}, tasks: {tasks}}}\n"
    (flags,) = check_text(text, "x.yaml").objects
    assert isinstance(flags, TaskSet)
    for arguments, value in (({}, False), ({"changes": True}, True)):
        (task,) = render([flags], arguments, {})
        assert task["report"]["onChange"] is value
