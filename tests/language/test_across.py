"""Objects that are checked together are checked against each other, in one file and in several."""

from textwrap import dedent

import pytest

from pidone.language.checking import Checked, Parsed, check_files

SET = """\
apiVersion: pidone.dev/v1alpha1
kind: {kind}
metadata: {{name: {name}{more}}}
spec:
  params: [{params}]
  tasks:
    - {{name: {task}, probe: {{httpGet: {{path: $(params.path), port: 8080}}, periodSeconds: $(params.period)}}}}
"""
PARAMS = '{name: path, default: /, pattern: "^/"}, {name: period, type: integer, default: 5, minimum: 1, maximum: 60}'
BINDING = """\
apiVersion: pidone.dev/v1alpha1
kind: {kind}
metadata: {{name: {name}{more}}}
spec:
  podSelector: {{matchLabels: {labels}}}
  taskSets: [{sets}]
  params: {params}
"""


def task_set(
    name: str, *, namespace: str = "", task: str = "ready", params: str = PARAMS, kind: str = "TaskSet"
) -> str:
    more = f", namespace: {namespace}" if namespace else ""
    return SET.format(name=name, more=more, task=task, params=params, kind=kind)


def binding(
    name: str,
    sets: str,
    *,
    namespace: str = "",
    params: str = "{}",
    labels: str = "{app: web}",
    kind: str = "TaskBinding",
) -> str:
    more = f", namespace: {namespace}" if namespace else ""
    return BINDING.format(name=name, more=more, labels=labels, sets=sets, params=params, kind=kind)


def checked(*texts: str) -> list[Checked]:
    return check_files([Parsed.of(text, f"{index}.yaml") for index, text in enumerate(texts)])


def said(*texts: str) -> list[str]:
    """Each finding as ``file:line rule``."""
    return [f"{one.file}:{one.line} {one.rule}" for file in checked(*texts) for one in file.all]


def messages(*texts: str) -> str:
    return "\n".join(str(one) for file in checked(*texts) for one in file.all)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("first", "second", "line", "rule"),
    [
        (task_set("web"), binding("web", "wbe"), 6, "unknown-set"),
        (task_set("web-base"), binding("web", "base-web"), 6, "unknown-set"),
        (task_set("web", namespace="shop"), binding("web", "web", namespace="infra"), 6, "unknown-set"),
        (task_set("web", namespace="shop"), binding("web", "web"), 6, "absent-set"),
        (task_set("web"), binding("web", "web", kind="ClusterTaskBinding"), 6, "unknown-set"),
        (task_set("web"), binding("web", "web", params="{perod: 5}"), 7, "unknown-param"),
        (task_set("web"), binding("web", "web", params="{colour: red}"), 7, "unknown-param"),
        (task_set("web"), binding("web", "web", params='{period: "5"}'), 7, "param-type"),
        (task_set("web"), binding("web", "web", params="{period: true}"), 7, "param-type"),
        (task_set("web"), binding("web", "web", params="{period: 61}"), 7, "param-type"),
        (task_set("web"), binding("web", "web", params="{path: health}"), 7, "param-type"),
        (task_set("web", params="{name: path}, {name: period, default: 5, type: integer}"),
         binding("web", "web"), 6, "param-value"),
        (task_set("web", params="{name: path}, {name: period, default: 5, type: integer}"),
         binding("web", "web", params="{path: a b}"), 7, "param-type"),
    ],
)  # fmt: skip
def test_a_binding_is_checked_against_its_sets(
    first: str, second: str, line: int, rule: str, together: bool
) -> None:
    if together:
        offset = (first + "---\n").count("\n")
        assert said(f"{first}---\n{second}") == [f"0.yaml:{offset + line} {rule}"]
    else:
        assert said(first, second) == [f"1.yaml:{line} {rule}"]


@pytest.mark.parametrize(
    "texts",
    [
        (task_set("web"), binding("web", "web", params="{path: /health, period: 60}")),
        (task_set("web"), binding("web", "web", namespace="shop")),
        (task_set("web", kind="ClusterTaskSet"), binding("web", "web", namespace="shop")),
        (task_set("web", kind="ClusterTaskSet"), binding("web", "web", kind="ClusterTaskBinding")),
        (task_set("web"), task_set("api", task="open"), binding("web", "web, api")),
        (task_set("web"), binding("one", "web"), binding("two", "web", labels="{app: api}")),
        (task_set("web"), task_set("api"), binding("one", "web"), binding("two", "api", labels="{app: api}")),
        (task_set("web", namespace="shop"), task_set("web", namespace="infra")),
    ],
)
def test_what_fits_together_has_no_findings(texts: tuple[str, ...]) -> None:
    assert said(*texts) == []
    assert [one for file in checked(*texts) for one in file.passed_over] == []


def test_two_sets_of_a_binding_have_a_task_of_one_name() -> None:
    assert said(task_set("web"), task_set("api"), binding("web", "web, api")) == ["2.yaml:6 bound-task"]


def test_a_task_that_two_sets_inherit_is_one_task() -> None:
    heirs = [
        dedent(f"""\
            apiVersion: pidone.dev/v1alpha1
            kind: TaskSet
            metadata: {{name: {name}}}
            spec: {{extends: [base], tasks: [{{name: {name}, probe: {{tcpSocket: {{port: 1}}}}}}]}}
            """)
        for name in ("one", "two")
    ]
    assert said(task_set("base"), *heirs, binding("web", "one, two")) == []


@pytest.mark.parametrize("labels", ["{app: web}", "{app: web, tier: front}"])
def test_two_bindings_bring_a_task_of_one_name_to_the_same_pods(labels: str) -> None:
    sets = task_set("web"), task_set("api")
    assert said(*sets, binding("one", "web"), binding("two", "api", labels=labels)) == ["3.yaml:6 bound-task"]


def test_sets_of_a_binding_use_one_port() -> None:
    metrics = dedent("""\
        apiVersion: pidone.dev/v1alpha1
        kind: TaskSet
        metadata: {name: metrics}
        spec: {tasks: [{name: metrics, metrics: {port: 8080}}]}
        """)
    texts = task_set("web"), metrics, binding("web", "web, metrics")
    assert said(*texts) == ["0.yaml:7 port-clash"]
    assert 'TaskBinding "web" in 2.yaml:3 brings both to its pods: port 8080' in messages(*texts)


def test_sets_of_a_binding_register_one_instance_each_in_its_form() -> None:
    eureka = "{eureka: {url: http://eureka/, app: web, port: 80}}"
    other = "{eureka: {url: http://other/, app: web, port: 80}}"
    texts = [
        dedent(f"""\
            apiVersion: pidone.dev/v1alpha1
            kind: TaskSet
            metadata: {{name: {name}}}
            spec: {{tasks: [{{name: {name}, stopTimeout: 5s, register: {registration}}}]}}
            """)
        for name, registration in (("one", f"{{to: [{other}, {eureka}]}}"), ("two", eureka))
    ]
    assert said(*texts, binding("web", "one, two")) == ["1.yaml:4 instance-clash"]
    assert '"two" keeps the same instance as "one"' in messages(*texts, binding("web", "one, two"))


def test_an_object_in_two_files_is_a_warning_at_the_second() -> None:
    assert said(task_set("web"), task_set("web")) == ["1.yaml:3 object-twice"]
    assert said(binding("web", "web"), binding("web", "web")) == ["1.yaml:3 object-twice"]


def test_a_copy_counts_in_its_own_file() -> None:
    """As of one application for two environments, each in a folder of its own."""
    other = task_set(
        "web", params="{name: path, default: /}, {name: period, type: integer, default: 5, maximum: 9}"
    )
    texts = [f"{one}---\n{binding(name, 'web', params='{period: 60}', labels=f'{{app: {name}}}')}"
             for one, name in ((task_set("web"), "web"), (other, "api"))]  # fmt: skip
    assert said(*texts) == ["1.yaml:3 object-twice", "1.yaml:15 param-type"]


@pytest.mark.parametrize("name", ["web-2", "other"])
def test_a_set_that_may_be_elsewhere_is_passed_over_or_a_warning(name: str) -> None:
    """Other sets in the file of the binding make it likely that this one was to be there too."""
    assert said(task_set("web"), binding("web", name)) == []
    assert [one.line for one in checked(task_set("web"), binding("web", name))[1].passed_over] == [6]
    assert said(f"{task_set('web')}---\n{binding('web', name)}") == ["0.yaml:14 absent-set"]


def test_a_set_with_mistakes_is_there() -> None:
    broken = task_set("web").replace("port: 8080", "port: x y")
    assert said(broken, binding("web", "web, api")) == ["0.yaml:7 port"]


def test_a_param_that_not_all_pods_need_may_have_no_value() -> None:
    selected = task_set("web", params="{name: path}, {name: period, type: integer, default: 5}").replace(
        "probe:", "podSelector: {matchLabels: {a: b}}, probe:"
    )
    assert said(selected, binding("web", "web")) == []
