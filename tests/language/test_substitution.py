"""``$(...)``: eight rules, each with its test, and what must hold for every text and every value."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidone.errors import LanguageError
from pidone.http.urls import segment
from pidone.language.checking import check_text
from pidone.language.rendering import render
from pidone.language.schemas import actions
from pidone.language.substitution import POD as FACTS
from pidone.language.substitution import escaped, references, substitute
from pidone.plan.fields import Fields
from pidone.plan.format import decode_plan
from pidone.plan.model import Pod
from pidone.registries.eureka import build as build_eureka
from tests.language.test_rendering import POD, arguments_of, run, task_set

HEAD = "apiVersion: pidone.dev/v1alpha1\nkind: TaskSet\nmetadata: {name: web}\nspec:\n"
ANNOTATED = "[{name: a, valueFrom: {fieldRef: {fieldPath: \"metadata.annotations['a']\"}}}]"


def annotated(value: str) -> dict[str, Any]:
    return {**POD, "metadata": {"name": "x", "annotations": {"a": value}}}


def rules_broken(tasks: str, params: str = "[{name: a, default: x}]") -> list[str]:
    return [
        finding.rule
        for finding in check_text(f"{HEAD}  params: {params}\n  tasks: {tasks}\n", "x.yaml").findings
    ]


def test_1_it_is_done_after_parsing_and_the_pod_receives_finished_values() -> None:
    hostile = 'x", "/bin/sh"]}}, {name: y: {'
    assert arguments_of(ANNOTATED, "$(params.a)", pod=annotated(hostile)) == [hostile]
    tasks = render([task_set(ANNOTATED, run("$(params.a)", "$(pod.name)"))], {}, annotated("b"))
    assert "$(" not in json.dumps(tasks)
    assert decode_plan(tasks, actions()).tasks[0].config == tasks[0]["exec"]


def test_2_a_name_is_looked_up_in_a_closed_table() -> None:
    assert {*FACTS} == {
        *("pod.name", "pod.namespace", "pod.uid", "pod.ip", "pod.ips", "pod.nodeName", "pod.ports"),
    }
    values = arguments_of("[]", *(f"$({name})" for name in FACTS))
    assert values == [
        *(
            "ratings-7d9c",
            "shop",
            "0c9e",
            "10.42.0.18",
            "10.42.0.18,fd00::12",
            "node-1",
            "9080,9081,15000,15001",
        )
    ]
    for name in ("pod.labels.app", "pod.annotations", "env.HOME", "HOME", "node.name", "pod", "params", "a"):
        assert rules_broken(run(f"$({name})")) == [
            "unknown-reference" if name != "params" else "unknown-param"
        ]
        with pytest.raises(LanguageError, match="is not known"):
            substitute(f"$({name})", {"params.a": "x", "pod.name": "y"})


def test_3_one_pass_and_two_dollars_are_the_text_itself() -> None:
    pod = annotated("$(pod.name)$$(x)")
    assert arguments_of(ANNOTATED, "x$(params.a)", "$(params.a)", pod=pod) == [
        "x$(pod.name)$$(x)",
        "$(pod.name)$$(x)",
    ]
    assert arguments_of("[]", "$$(pod.name)", '"a $$(x) $(pod.name) $5 $"') == [
        "$(pod.name)",
        "a $(x) ratings-7d9c $5 $",
    ]


def test_4_a_whole_scalar_keeps_its_type_and_text_takes_it_as_text() -> None:
    one = task_set(
        "[{name: port, type: integer, default: 80}]",
        "[{name: ready, probe: {httpGet: {port: $(params.port), path: /at/$(params.port)}}}]",
    )
    (task,) = render([one], {}, POD)
    assert task["probe"]["httpGet"]["port"] == 80
    assert task["probe"]["httpGet"]["path"] == "/at/80"
    assert arguments_of("[{name: on-it, type: boolean, default: true}]", '"$(params.on-it)"') == ["true"]
    every = task_set("[{name: d, type: duration, default: 1m}]", f"[{{every: $(params.d), {run('x')[2:]}")
    assert render([every], {}, POD)[0]["every"] == 60


def test_5_an_unknown_name_is_found_by_the_checker_and_a_missing_value_when_a_pod_is_there() -> None:
    assert rules_broken(run("$(params.b)", "$(pod.nmae)")) == ["unknown-param", "unknown-reference"]
    assert rules_broken(run("$(params.a)"), "[{name: a}]") == []
    with pytest.raises(
        LanguageError, match='TaskSet "web": param "a" has no value: pass it in the TaskBinding'
    ):
        arguments_of("[{name: a}]", "$(params.a)")


APP = "{name: app, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}"


@pytest.mark.parametrize(
    ("params", "given", "pod", "message"),
    [
        (
            f"[{APP}}}]",
            {},
            {},
            'TaskSet "web": param "app" has no value: set the label "app" on the pod, pass it in',
        ),
        (
            "[{name: app}]",
            {},
            {},
            "has no value: pass it in the TaskBinding's params, or give it a default",
        ),
        (
            f'[{APP}, pattern: "^[a-q]+$"}}]',
            {},
            POD,
            'TaskSet "web": param "app": the pod\'s label "app" is "ratings", which does not match ^[a-q]+$',
        ),
        (f"[{APP}, maxLength: 3}}]", {}, POD, "which is longer than 3 characters"),
        (f"[{APP}}}]", {}, {"metadata": {"labels": {"app": "x" * 254}}}, "is longer than 253 characters"),
        (f"[{APP}}}]", {}, {"metadata": {"labels": {"app": "a\r\nX: y"}}}, "which holds a control character"),
        (f"[{APP}, type: integer}}]", {}, POD, 'is "ratings", which is not an integer'),
        (f"[{APP}, type: boolean}}]", {}, POD, 'is "ratings", which is not true or false'),
        (f"[{APP}, type: duration}}]", {}, POD, 'is "ratings", which is not a duration; write it like 10s'),
        (f"[{APP}, enum: [a, b]}}]", {}, POD, 'which is none of "a", "b"'),
        ("[{name: app, type: integer}]", {"app": "1"}, {}, 'gives "1", which is not an integer'),
        ("[{name: app, type: integer, minimum: 2}]", {"app": 1}, {}, "gives 1, which is less than 2"),
        ("[{name: app, type: integer, maximum: 2}]", {"app": 3}, {}, "gives 3, which is greater than 2"),
        ("[{name: app}]", {"app": 5}, {}, "gives 5, which is not a string; quote it"),
        ("[{name: app}]", {"ap": "x"}, {}, 'declared in none of the TaskSets "web"; did you mean "app"?'),
    ],
)  # fmt: skip
def test_6_a_param_has_a_type_and_constraints_and_what_does_not_fit_is_said(
    params: str, given: dict[str, object], pod: dict[str, Any], message: str
) -> None:
    with pytest.raises(LanguageError, match=re.escape(message)):
        render([task_set(params, run("$(params.app)"))], given, pod)


R = "$(params.a)"
X = "exec: {command: [/bin/x]}"
EUREKA = "eureka: {url: http://e:1/e, app: web, port: 80}"


@pytest.mark.parametrize(
    "task",
    [
        f"{{name: {R}, {X}}}",
        f"{{name: x, needs: [{R}], {X}}}",
        f"{{name: x, while: [{R}.healthy], {X}}}",
        f"{{name: x, runOn: [pod.{R}], {X}}}",
        f"{{name: x, exec: {{command: [{R}]}}}}",
        f"{{name: x, exec: {{command: [/opt/{R}/x]}}}}",
        f"{{name: x, exec: {{command: [/bin/x], env: [{{name: {R}, value: v}}]}}}}",
        f"{{name: x, exec: {{command: [/bin/x], runAsUser: {R}}}}}",
        f"{{name: x, probe: {{exec: {{command: [{R}]}}}}}}",
        f"{{name: x, probe: {{tcpSocket: {{port: 1}}, container: {R}}}}}",
        f"{{name: x, probe: {{from: {R}}}}}",
        f"{{name: x, probe: {{httpGet: {{port: 1, scheme: {R}}}}}}}",
        f"{{name: x, probe: {{httpGet: {{port: 1, httpHeaders: [{{name: {R}, value: v}}]}}}}}}",
        f"{{name: x, register: {{{EUREKA}, follow: {R}}}}}",
        f"{{name: x, register: {{eureka: {{url: http://e:1/e, app: web, port: 80, metadata: {{{R}: v}}}}}}}}",
        f"{{name: x, heartbeat: {{of: {R}}}}}",
        f"{{name: x, report: {{webhook: {{url: http://a/}}, of: [{R}]}}}}",
        f"{{name: x, report: {{webhook: {{url: http://a/, headers: {{{R}: v}}}}}}}}",
        f"{{name: x, metrics: {{collectors: [{R}]}}}}",
        f"{{name: x, restartPolicy: {R}, {X}}}",
        f"{{name: x, override: {R}, {X}}}",
        f"{{name: x, podSelector: {{matchLabels: {{app: {R}}}}}, {X}}}",
        f"{{name: x, podSelector: {{matchLabels: {{{R}: x}}}}, {X}}}",
        f"{{name: x, podSelector: {{matchExpressions: [{{key: {R}, operator: Exists}}]}}, {X}}}",
    ],
)
def test_7_no_reference_in_a_key_a_name_an_edge_or_what_decides_what_runs(task: str) -> None:
    found = set(rules_broken(f"[{task}]")) - {"unrenewed"}
    assert len(found) == 1
    assert found <= {"tainted", "tainted-key", "tainted-command"}


def _addressable(value: str) -> bool:
    """False for what the registry refuses: dot segments, separators and blanks alone."""
    try:
        segment(value)
    except ValueError:
        return False
    return True


@given(
    st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=60).filter(
        lambda text: _addressable(text) and _addressable(text.upper())
    )
)
def test_7_a_driver_encodes_a_value_for_where_it_goes(value: str) -> None:
    one = task_set(
        "[{name: a, maxLength: 253}]",
        "[{name: x, register: {eureka: {url: http://e:1/e, app: $(params.a), instanceId: $(params.a), port: 80}}}, "
        "{name: beat, heartbeat: {of: x}}]",
    )
    task, _ = render([one], {"a": value}, POD)
    pod = Pod("ratings", "shop", "u", "10.0.0.1")
    registry = build_eureka(Fields(task["register"]["eureka"], "eureka"), pod, None)
    resource = registry._instance.resource  # the part of the URL that a value gets into
    assert re.fullmatch(r"apps/[-._~%A-Za-z0-9]+/[-._~%A-Za-z0-9]+", resource)


@pytest.mark.parametrize(
    ("command", "rule"),
    [
        ("[run]", "command"),
        ("[./run]", "command"),
        ("[$(params.a)]", "tainted-command"),
        ("/bin/run --now", "type"),
        ("[]", "length"),
    ],
)
def test_8_exec_is_an_argv_with_a_literal_absolute_program(command: str, rule: str) -> None:
    assert rules_broken(f"[{{name: x, exec: {{command: {command}}}}}]") == [rule]
    assert rules_broken(f"[{{name: x, probe: {{exec: {{command: {command}}}}}}}]") == [rule]


def test_8_an_argument_is_one_argument_whatever_is_in_it() -> None:
    hostile = "a b; rm -rf / #'\"`$(x)|&"
    assert arguments_of(ANNOTATED, "--app=$(params.a)", pod=annotated(hostile)) == [f"--app={hostile}"]


# What holds for every text and every value


def structure(value: Any) -> Any:
    """The value without its scalars."""
    match value:
        case dict():
            return {key: structure(inner) for key, inner in value.items()}
        case list():
            return [structure(inner) for inner in value]
        case _:
            return type(value).__name__


PIECES = st.sampled_from(
    ["$(pod.name)", "$$(", "$(params.a)", "$(", ")", '"', "}", "]", ": ", "a", "$", "\\"]
)
HOSTILE = st.one_of(
    st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=40),
    st.lists(PIECES, min_size=1, max_size=40).map("".join),
)
PASSED_ON = task_set(
    "[{name: a, maxLength: 1000}]",
    """
    - name: registration
      register:
        eureka:
          url: http://e:1/e
          app: web
          port: 80
          metadata: {whole: $(params.a), inside: "x$(params.a)y$(params.a)", not: "$$(params.a)"}
    - name: tell
      report: {webhook: {url: http://a/, headers: {X: $(params.a)}}}
    - name: run
      exec: {command: [/bin/run, $(params.a), "$(params.a)"], env: [{name: A, value: "<$(params.a)>"}]}
    - name: beat
      heartbeat: {of: registration}""",
)


@given(HOSTILE)
def test_no_value_changes_structure_or_is_looked_at_again(value: str) -> None:
    tasks = render([PASSED_ON], {"a": value}, POD)
    assert structure(tasks) == structure(render([PASSED_ON], {"a": "a"}, POD))
    eureka = tasks[0]["register"]["eureka"]
    assert eureka["metadata"] == {"whole": value, "inside": f"x{value}y{value}", "not": "$(params.a)"}
    assert tasks[1]["report"]["webhook"]["headers"] == {"X": value}
    assert tasks[2]["exec"]["command"] == ["/bin/run", value, value]
    assert tasks[2]["exec"]["env"] == [{"name": "A", "value": f"<{value}>"}]


PLAIN = st.text(st.characters(exclude_characters="$()"), max_size=10)


@given(
    st.lists(st.one_of(PLAIN, st.sampled_from([("a",), ("b",), ("$$(",), ("$",), (")",)])), max_size=12),
    st.one_of(HOSTILE, st.integers(), st.booleans()),
    HOSTILE,
)
def test_a_text_is_its_pieces_with_each_reference_replaced_once(
    pieces: list[str | tuple[str]], a: object, b: str
) -> None:
    table = {"params.a": a, "params.b": b}
    shown = str(a).lower() if isinstance(a, bool) else str(a)
    written = {("a",): "$(params.a)", ("b",): "$(params.b)", ("$$(",): "$$(", ("$",): "$ ", (")",): ")"}
    meant = {("a",): shown, ("b",): b, ("$$(",): "$(", ("$",): "$ ", (")",): ")"}
    text = "".join(one if isinstance(one, str) else written[one] for one in pieces)
    expected = "".join(one if isinstance(one, str) else meant[one] for one in pieces)
    result = substitute(text, table)
    if text == "$(params.a)":
        assert result is a  # with its type
    else:
        assert result == expected


@given(st.one_of(st.text(), st.integers(), st.booleans()))
def test_a_whole_reference_is_the_value_itself(value: object) -> None:
    assert substitute("$(params.a)", {"params.a": value}) is value


@given(st.text())
def test_text_without_references_is_left_as_it_is(text: str) -> None:
    if "$(" not in text:
        assert substitute(text, {}) == text
        assert not references(text)


@given(st.one_of(st.text(alphabet="ab$() .", max_size=30), HOSTILE))
def test_every_text_can_be_written(text: str) -> None:
    assert substitute(escaped(text), {}) == text


@pytest.mark.parametrize(
    ("text", "ip", "expected"),
    [
        ("http://$(pod.ip):8080/", "fd00::27", "http://[fd00::27]:8080/"),
        ("https://$(pod.ip)", "::1", "https://[::1]"),
        ("http://user:word@$(pod.ip):80", "fd00::27", "http://user:word@[fd00::27]:80"),
        ("http://[$(pod.ip)]:8080/", "fd00::27", "http://[fd00::27]:8080/"),
        ("//$(pod.ip)/a//b and http://$(pod.ip)/", "fd00::27", "//[fd00::27]/a//b and http://[fd00::27]/"),
        ("http://$(pod.ip):8080/", "10.0.0.5", "http://10.0.0.5:8080/"),
        ("http://proxy/$(pod.ip)", "fd00::27", "http://proxy/fd00::27"),
        ("http://proxy/?at=$(pod.ip)", "fd00::27", "http://proxy/?at=fd00::27"),
        ("$(pod.ip)", "fd00::27", "fd00::27"),
        ("http://$(pod.ip)/", "a:b", "http://a:b/"),
    ],
)
def test_an_ipv6_address_as_the_host_of_a_url_gets_brackets(text: str, ip: str, expected: str) -> None:
    assert substitute(text, {"pod.ip": ip}) == expected
