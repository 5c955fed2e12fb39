"""What a task takes from the pod's own containers, and what it is told where that is not there."""

import re
from typing import Any

import pytest

from pidone.actions.probe import build
from pidone.errors import LanguageError
from pidone.language.rendering import render
from pidone.plan.fields import Fields
from tests.actions.test_probe import SETTING
from tests.language.test_rendering import POD, arguments_of, task_set

ENV = "[{{name: a, valueFrom: {{containerEnv: {{{}}}}}}}]"


def changed(container: int, **fields: Any) -> dict[str, Any]:
    """The pod, with other fields in one of its containers."""
    containers = [dict(one) for one in POD["spec"]["containers"]]
    containers[container] |= fields
    return {**POD, "spec": {**POD["spec"], "containers": containers}}


def probe(fields: str, pod: Any = POD) -> Any:
    (task,) = render([task_set("[]", f"[{{name: ready, probe: {{{fields}}}}}]")], {}, pod)
    return task["probe"]


def test_a_variable_is_found_in_whichever_container_has_it() -> None:
    assert arguments_of(ENV.format("name: spring.application.name"), "$(params.a)") == ["ratings"]
    assert arguments_of(ENV.format("name: LEVEL, container: proxy"), "$(params.a)") == ["info"]
    assert arguments_of(ENV.format("name: LEVEL, container: sidecar"), "$(params.a)") == ["debug"]


def test_the_same_value_in_two_containers_is_one() -> None:
    pod = changed(0, env=[{"name": "LEVEL", "value": "debug"}])
    pod["spec"]["containers"][1]["env"] = [
        {"name": "LEVEL", "value": "info"},
        {"name": "LEVEL", "value": "debug"},
    ]
    assert arguments_of(ENV.format("name: LEVEL"), "$(params.a)", pod=pod) == [
        "debug"
    ]  # the last entry counts


def test_a_variable_has_the_type_of_its_param() -> None:
    pod = changed(0, env=[{"name": "PORT", "value": "8081"}])
    one = task_set(
        "[{name: port, type: integer, valueFrom: {containerEnv: {name: PORT}}}]",
        "[{name: ready, probe: {tcpSocket: {port: $(params.port)}}}]",
    )
    assert render([one], {}, pod)[0]["probe"]["tcpSocket"]["port"] == 8081


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            "name: PASSWORD",
            (
                'param "a": container "app" of pod shop/ratings-7d9c takes PASSWORD from a secretKeyRef; '
                "only a plain value can be read: write it as value, or as an annotation of the pod"
            ),
        ),
        (
            "name: URL",
            'container "app" of pod shop/ratings-7d9c has URL="http://$(HOST)/", which refers to other variables',
        ),
        (
            "name: LEVEL",
            (
                'containers "proxy" and "sidecar" of pod shop/ratings-7d9c have different values of LEVEL; '
                "name one of them: container"
            ),
        ),
        (
            "name: LEVEL, container: porxy",
            'pod shop/ratings-7d9c has no container "porxy"; it has app, proxy, sidecar',
        ),
        ("name: GONE", 'param "a" has no value: set the variable GONE in the env of a container, pass it'),
        ("name: LEVEL, container: app", 'set the variable LEVEL in the env of container "app", pass it'),
    ],
)
def test_a_variable_that_is_not_a_plain_value_is_refused(asked: str, message: str) -> None:
    with pytest.raises(LanguageError, match=re.escape(message)):
        arguments_of(ENV.format(asked), "$(params.a)")


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ("httpGet: {port: http}", 9080),
        ("httpGet: {port: admin}, container: proxy", 15000),
        ("tcpSocket: {port: admin}, container: app", 9081),
    ],
)
def test_a_named_port_is_a_number_in_the_plan(fields: str, found: int) -> None:
    rendered = probe(fields)
    (handler,) = rendered.keys() & {"httpGet", "tcpSocket"}
    assert rendered[handler]["port"] == found
    assert "container" not in rendered


@pytest.mark.parametrize(
    ("fields", "pod", "message"),
    [
        (
            "httpGet: {port: htpp}",
            POD,
            (
                'task "ready": probe.httpGet.port: no container of pod shop/ratings-7d9c has a port "htpp"; '
                "there is http, admin; name the port in the container's ports, or give its number"
            ),
        ),
        (
            "tcpSocket: {port: admin}",
            POD,
            (
                'containers "app" and "proxy" of pod shop/ratings-7d9c both have a port "admin", with different '
                "numbers; name one of them: container"
            ),
        ),
        (
            "httpGet: {port: gone}",
            POD,
            'no container of pod shop/ratings-7d9c has a port "gone"',
        ),  # setup has ended
        (
            "httpGet: {port: http}, container: proxy",
            POD,
            'container "proxy" of pod shop/ratings-7d9c has no port "http"; there is admin;',
        ),
        (
            "from: readinessProbe",
            {"metadata": {"name": "db"}, "spec": {"containers": [{"name": "app"}]}},
            (
                'TaskSet "web": task "ready": probe.from: no container of pod default/db has a readinessProbe; '
                "give it one, or write the probe in the task instead of from: readinessProbe"
            ),
        ),
        (
            "from: readinessProbe, container: proxy",
            POD,
            'container "proxy" of pod shop/ratings-7d9c has no readinessProbe; give it one',
        ),
        (
            "from: readinessProbe",
            changed(1, readinessProbe={"tcpSocket": {"port": 1}}),
            (
                'containers "app" and "proxy" of pod shop/ratings-7d9c both have a readinessProbe; '
                "name one of them: container"
            ),
        ),
        (
            "from: livenessProbe",
            POD,
            (
                'the livenessProbe of container "app" of pod shop/ratings-7d9c is an exec, which runs in the file '
                "system of that container; from takes httpGet, tcpSocket and grpc"
            ),
        ),
        (
            "from: readinessProbe",
            changed(0, readinessProbe={"httpGet": {"port": 70000}}),
            'the readinessProbe of container "app" of pod shop/ratings-7d9c: httpGet.port: 70000 is not a port',
        ),
        (
            "from: readinessProbe",
            changed(0, readinessProbe={"http": {"port": 80}}),
            'the readinessProbe of container "app" of pod shop/ratings-7d9c: http is not known',
        ),
        (
            "from: readinessProbe",
            changed(0, readinessProbe={"httpGet": {"port": "gone"}}),
            'probe.httpGet.port: container "app" of pod shop/ratings-7d9c has no port "gone"',
        ),
    ],
)
def test_what_the_pod_does_not_have_is_named_with_pod_container_and_remedy(
    fields: str, pod: Any, message: str
) -> None:
    with pytest.raises(LanguageError, match=re.escape(message)):
        probe(fields, pod)


def test_the_pod_s_own_probe_is_taken_with_its_port_and_path() -> None:
    rendered = probe("from: readinessProbe")
    assert rendered["httpGet"]["port"] == 9080
    assert rendered["httpGet"]["path"] == "healthz"  # as the pod has it
    assert rendered["httpGet"]["host"] == "10.42.0.18"
    assert rendered["periodSeconds"] == 7
    assert rendered["failureThreshold"] == 3
    assert rendered.keys().isdisjoint({"from", "container", "terminationGracePeriodSeconds"})


def test_what_the_task_gives_counts_before_the_pod_s_own() -> None:
    assert probe("from: readinessProbe, periodSeconds: 2, initialDelaySeconds: 1")["periodSeconds"] == 2


def test_nothing_in_the_pod_s_own_probe_is_a_reference() -> None:
    header = {"name": "X", "value": "$(params.secret) $$(pod.name)"}
    pod = changed(
        0, readinessProbe={"httpGet": {"port": "http", "path": "/$(pod.uid)", "httpHeaders": [header]}}
    )
    rendered = probe("from: readinessProbe", pod)
    assert rendered["httpGet"]["path"] == "/$(pod.uid)"
    assert rendered["httpGet"]["httpHeaders"] == [header]


@pytest.mark.parametrize(
    "http_get",
    [
        {"path": "/a b"},
        {"path": "/prüfung?a=b c"},
        {"path": "/a\nb"},
        {"path": "a:b"},
        {"path": "/" + "l" * 5000},
        {"path": "/a b $(pod.name) $$(x)"},
        {"httpHeaders": [{"name": "X", "value": ""}]},
        {"httpHeaders": [{"name": "X", "value": " y "}]},
        {"httpHeaders": [{"name": "X", "value": "a\nb"}]},
        {"httpHeaders": [{"name": "X", "value": "l" * 5000}]},
        {"httpHeaders": [{"name": f"X-{number}", "value": "y"} for number in range(60)]},
        {"host": "a_b.example"},
        {"host": "[::1]"},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_whatever_the_api_server_takes_in_a_pod_s_own_probe_is_taken(http_get: dict[str, Any]) -> None:
    rendered = probe("from: readinessProbe", changed(0, readinessProbe={"httpGet": {"port": 80} | http_get}))
    for name, value in http_get.items():
        assert rendered["httpGet"][name] == value
        assert not isinstance(value, str) or type(rendered["httpGet"][name]) is str
    build(Fields(rendered, "probe"), SETTING)


@pytest.mark.parametrize("number", [1, 5, 86_401, (1 << 31) - 1])
def test_any_number_that_the_api_server_takes_is_taken(number: int) -> None:
    names = ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold", "successThreshold")
    fields = dict.fromkeys(names, number)
    rendered = probe("from: readinessProbe", changed(0, readinessProbe={"tcpSocket": {"port": 80}} | fields))
    assert rendered.items() >= fields.items()
    build(Fields(rendered, "probe"), SETTING)


@pytest.mark.parametrize("zero", [0, None])
def test_a_number_that_is_0_has_its_default(zero: int | None) -> None:
    names = {"initialDelaySeconds": 0, "periodSeconds": 10, "timeoutSeconds": 1, "failureThreshold": 3}
    pod = changed(0, readinessProbe={"tcpSocket": {"port": 80}} | dict.fromkeys(names, zero))
    assert probe("from: readinessProbe", pod).items() >= names.items()
    if zero is not None:
        written = ", ".join(f"{name}: 0" for name in names)
        assert probe(f"tcpSocket: {{port: 80}}, {written}").items() >= names.items()


def test_a_header_without_a_value_is_empty() -> None:
    pod = changed(0, readinessProbe={"httpGet": {"port": 80, "httpHeaders": [{"name": "X"}]}})
    assert probe("from: readinessProbe", pod)["httpGet"]["httpHeaders"] == [{"name": "X", "value": ""}]
    assert probe('httpGet: {port: 80, httpHeaders: [{name: Accept, value: ""}]}')["httpGet"]["httpHeaders"]


def test_a_startup_probe_of_a_sidecar_is_found() -> None:
    assert probe("from: startupProbe")["grpc"] == {"port": 5000}


@pytest.mark.parametrize(
    "spec", [None, "x", {"containers": None}, {"containers": ["x", {"env": 5, "ports": {}}]}]
)
def test_a_pod_that_is_none_is_no_traceback(spec: object) -> None:
    pod = {"metadata": {"name": "x"}, "spec": spec if isinstance(spec, dict) else {}}
    for fields in ("from: readinessProbe", "httpGet: {port: http, host: h}"):
        with pytest.raises(LanguageError):
            probe(fields, pod)


def environment(variables: str, pod: Any = POD) -> dict[str, str]:
    one = task_set("[]", f"[{{name: run, exec: {{command: [/bin/run], env: [{variables}]}}}}]")
    (task,) = render([one], {}, pod)
    return {entry["name"]: entry["value"] for entry in task["exec"]["env"]}


def test_variables_of_a_program_have_plain_values_in_the_plan() -> None:
    paths = {
        "NAME": "metadata.name",
        "ACCOUNT": "spec.serviceAccountName",
        "NODE": "spec.nodeName",
        "IPS": "status.podIPs",
        "HOST": "status.hostIP",
        "APP": "metadata.labels['app']",
        "PORT": "metadata.annotations['pidone.dev/port']",
        "NONE": "metadata.labels['none']",
    }
    variables = ", ".join(
        f'{{name: {name}, valueFrom: {{fieldRef: {{fieldPath: "{path}"}}}}}}' for name, path in paths.items()
    )
    assert environment(f"{variables}, {{name: OWN, value: a $(pod.name)}}") == {
        "NAME": "ratings-7d9c",
        "ACCOUNT": "web",
        "NODE": "node-1",
        "IPS": "10.42.0.18,fd00::12",
        "HOST": "10.0.0.1",
        "APP": "ratings",
        "PORT": "9080",
        "NONE": "",  # as in Kubernetes
        "OWN": "a ratings-7d9c",
    }


def test_a_field_that_the_pod_does_not_have_yet_is_said() -> None:
    message = 'task "run": exec.env[0]: the pod has no status.hostIP yet'
    with pytest.raises(LanguageError, match=re.escape(message)):
        environment(
            "{name: HOST, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}", {"metadata": {"name": "x"}}
        )


@pytest.mark.parametrize(
    ("ports", "port"),
    [
        ([{"containerPort": 19100}], ""),
        ([{"containerPort": 8080}, {"containerPort": 9200, "protocol": "TCP"}], "port: 9200"),
    ],
)
def test_a_port_that_a_container_declares_is_refused_to_the_metrics(ports: Any, port: str) -> None:
    number = ports[-1]["containerPort"]
    message = (
        f'task "metrics": metrics.port: container "app" of pod shop/ratings-7d9c declares port {number}; '
        "give metrics.port another one"
    )
    with pytest.raises(LanguageError, match=re.escape(message)):
        render([task_set("[]", f"[{{name: metrics, metrics: {{{port}}}}}]")], {}, changed(0, ports=ports))


@pytest.mark.parametrize(
    "fields",
    [
        {"ports": [{"containerPort": 19100, "protocol": "UDP"}, {"containerPort": 19101}]},
        {"ports": [{"containerPort": 19100}], "env": [{"name": "PIDONE_REPO", "value": "http://repo:6060"}]},
    ],
)
def test_a_port_that_no_other_program_takes_is_free_for_the_metrics(fields: Any) -> None:
    render([task_set("[]", "[{name: metrics, metrics: {}}]")], {}, changed(0, **fields))
