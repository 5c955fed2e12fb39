"""Params with values of Secrets and files: rendered into plans, and told in no message."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pidone.errors import LanguageError
from pidone.language.binding import BindingError, derive
from pidone.language.checking import check_files, check_text, parse_bytes
from pidone.language.model import Param, TaskSet
from pidone.language.rendering import render
from pidone.language.secrets import FileSecrets, GivenSecrets, NoSecrets, SecretError, ShownSecrets, salted
from pidone.plan.digest import digest
from pidone.plan.mask import masked_tasks
from tests.controller.factories import binding, pod, rules

PASSWORD = "correct-horse-battery"
SET = """
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: check}
spec:
  params:
    - {name: user, default: guest, valueFrom: {secretKeyRef: {name: eureka, key: user, optional: true}}}
    - {name: password, pattern: "^[a-z-]+$", valueFrom: {secretKeyRef: {name: eureka, key: password}}}
    - {name: port, type: integer, maximum: 9000, valueFrom: {secretKeyRef: {name: eureka, key: port}}}
  tasks:
    - name: registration
      register:
        eureka: {url: "http://$(params.user):$(params.password)@eureka:8761/eureka", app: web, port: 8080}
      stopTimeout: 5s
    - {name: beat, needs: [registration], heartbeat: {of: registration}}
    - {name: open, probe: {tcpSocket: {port: $(params.port)}}}
    - {name: other, probe: {tcpSocket: {port: 80}}}
"""
POD = {"metadata": {"name": "web", "namespace": "shop", "uid": "u"}, "status": {"podIP": "10.0.0.1"}}


class Source(NoSecrets):
    """The Secret eureka of the namespace shop."""

    def __init__(self, **values: str) -> None:
        self.values = {"password": PASSWORD, "port": "8081"} | values

    def text(self, param: Param, namespace: str) -> str | None:
        assert (namespace, param.secret) == ("shop", "eureka")
        if param.key not in self.values and not param.optional:
            raise SecretError("needs a key")
        return self.values.get(param.key)

    def salt(self, namespace: str, values: Any) -> str:
        return salted(b"key", namespace, values)


def rendered(source: Any, arguments: Mapping[str, Any] = {}, text: str = SET) -> dict[str, Any]:
    checked = check_text(text, "set.yaml")
    assert not checked.findings, checked.findings
    sets = [item for item in checked.objects if isinstance(item, TaskSet)]
    return {task["name"]: task for task in render(sets, arguments, POD, source)}


def test_a_task_has_the_values_and_lists_them() -> None:
    tasks = rendered(Source())
    assert tasks["registration"]["register"]["eureka"]["url"] == (
        f"http://guest:{PASSWORD}@eureka:8761/eureka"
    )
    assert tasks["registration"]["secrets"]["values"] == [PASSWORD, "guest"]
    assert tasks["open"]["probe"]["tcpSocket"]["port"] == 8081
    assert tasks["open"]["secrets"]["values"] == ["8081"]
    assert "secrets" not in tasks["other"]


def test_another_value_changes_the_tasks_that_use_it_and_no_other() -> None:
    before, after = rendered(Source()), rendered(Source(password="another"))
    assert digest(before["registration"]) != digest(after["registration"])
    assert (before["open"], before["other"]) == (after["open"], after["other"])
    assert rendered(Source()) == before


def test_a_digest_tells_nothing_of_a_value_that_can_be_guessed() -> None:
    salt = rendered(Source(password="a"))["registration"]["secrets"]["salt"]
    other = salted(b"another key", "shop", ["a", "guest"])
    assert len(salt) == 64
    assert salt != other
    assert salted(b"key", "shop", ["a", "b"]) != salted(b"key", "shop", ["ab"])
    assert salted(b"key", "shop", ["a"]) != salted(b"key", "other", ["a"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"password": "S3CRET!!"},
            'key "password" of Secret "eureka" holds a value that does not match ^[a-z-]+$',
        ),
        ({"password": "abc\n"}, "holds a control character; it begins or ends with a line end"),
        ({"password": "x" * 5000}, "is longer than"),
        ({"port": "http"}, 'key "port" of Secret "eureka" holds a value that is not an integer'),
        ({"port": "9001"}, "is greater than 9000"),
    ],
)
def test_a_value_that_breaks_the_rules_of_its_param_is_not_told(values: dict[str, str], message: str) -> None:
    with pytest.raises(SecretError) as raised:
        rendered(Source(**values))
    assert message in str(raised.value)
    assert not any(value.strip() in str(raised.value) for value in values.values())


def test_a_value_that_does_not_fit_its_place_is_not_told() -> None:
    text = SET.replace('"http://$(params.user):$(params.password)@eureka:8761/eureka"', "$(params.password)")
    with pytest.raises(SecretError) as raised:
        rendered(Source(), text=text)
    assert 'task "registration": register.eureka.url: "***" is not' in str(raised.value)


def test_values_of_a_binding_are_kept_like_those_of_the_secret() -> None:
    tasks = rendered(Source(), {"password": "of-the-binding"})
    assert tasks["registration"]["secrets"]["values"] == ["guest", "of-the-binding"]
    with pytest.raises(LanguageError) as raised:
        rendered(Source(), {"password": "NOT RIGHT"})
    assert "the TaskBinding gives a value, which does not match" in str(raised.value)


def test_without_a_source_the_fault_says_so() -> None:
    found = rules(SET, binding())
    with pytest.raises(BindingError) as raised:
        derive(pod(labels={"check": "yes"}), found)
    (fault,) = raised.value.faults
    assert fault.secret
    assert fault.text.endswith('TaskSet "check": param "user" is not read here; give the param a value')


FILE = """
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: check}
spec:
  params: [{name: token, valueFrom: {file: PATH}}]
  tasks:
    - {name: say, exec: {command: [/opt/pidone/say, $(params.token)]}}
"""


def test_a_file_is_read_without_its_line_end(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("t0ken\n")
    text = FILE.replace("PATH", str(file))
    assert rendered(FileSecrets(), text=text)["say"]["exec"]["command"][1] == "t0ken"
    assert rendered(FileSecrets(tmp_path), text=FILE.replace("PATH", "token"))["say"]["secrets"][
        "values"
    ] == ["t0ken"]


@pytest.mark.parametrize("name", ["../outside", "link", "/etc/hostname", "sub/../../outside"])
def test_no_file_outside_of_the_folder_is_read(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "secrets"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside").write_text("no")
    (folder / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(SecretError, match=f"which is not in {folder}"):
        rendered(FileSecrets(folder), text=FILE.replace("PATH", name))


@pytest.mark.parametrize(
    ("data", "message"),
    [(None, "No such file or directory"), (b"\xff\xfe", "is no text"), (b"x" * 9000, "longer")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / "token").write_bytes(data)
    with pytest.raises(SecretError, match=message):
        rendered(FileSecrets(tmp_path), text=FILE.replace("PATH", "token"))


def test_on_a_desk_a_secret_is_given_or_stands_for_itself() -> None:
    with pytest.raises(SecretError, match="give a value by --param user=VALUE"):
        rendered(FileSecrets())
    tasks = rendered(GivenSecrets({"password": "given", "port": 8082}, ShownSecrets("***")))
    assert tasks["registration"]["register"]["eureka"]["url"] == "http://***:given@eureka:8761/eureka"
    assert tasks["open"]["probe"]["tcpSocket"]["port"] == 8082
    assert rendered(ShownSecrets("***"))["open"]["probe"]["tcpSocket"]["port"] == "***"


IN_URL = """
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: check}
spec:
  params: [{name: token, valueFrom: {file: PATH}}, {name: user, valueFrom: {secretKeyRef: {name: a, key: b}}}]
  tasks:
    - name: registration
      register:
        eureka: {url: "http://$(params.user):$(params.token)@eureka:8761/eureka", app: web, port: 8080}
      stopTimeout: 5s
    - {name: other, probe: {tcpSocket: {port: 80}}}
"""


def test_a_file_that_the_pod_reads_is_a_reference_in_its_plan() -> None:
    tasks = rendered(ShownSecrets("***"), text=IN_URL.replace("PATH", "eureka/password"))
    secrets = tasks["registration"]["secrets"]
    ((mark, path),) = secrets["files"].items()
    assert path == "eureka/password"
    assert secrets["values"] == ["***"]
    assert tasks["registration"]["register"]["eureka"]["url"] == f"http://***:{mark}@eureka:8761/eureka"
    assert "secrets" not in tasks["other"]
    (shown, _) = masked_tasks(tasks.values())
    assert shown["register"]["eureka"]["url"] == "http://***:***@eureka:8761/eureka"
    assert shown["secrets"] == {"values": ["***"], "files": ["eureka/password"]}
    # every replica of the controller makes the same plan, and another file is another plan
    assert rendered(ShownSecrets("***"), text=IN_URL.replace("PATH", "eureka/password")) == tasks
    other = rendered(ShownSecrets("***"), text=IN_URL.replace("PATH", "eureka/other"))
    assert digest(other["registration"]) != digest(tasks["registration"])


@pytest.mark.parametrize(
    ("more", "unchecked"),
    [
        ("pattern: ^a, ", "pattern"),
        ("enum: [a], maxLength: 5, ", "enum and maxLength"),
        ("type: integer, ", "type: integer"),
    ],
)
def test_a_rule_that_no_pod_checks_is_named(more: str, unchecked: str) -> None:
    text = FILE.replace("valueFrom: {file: PATH}", more + "valueFrom: {file: a/b}")
    with pytest.raises(SecretError) as raised:
        rendered(ShownSecrets("***"), text=text)
    assert str(raised.value) == (
        'TaskSet "check": param "token" is read from the file a/b by the pod, which checks only that it is one line; '
        f"remove {unchecked}, or use valueFrom: {{secretKeyRef: {{name, key}}}}"
    )


def test_a_path_that_no_pod_follows_is_named() -> None:
    with pytest.raises(SecretError, match=r"is to be read from \.\./a by the pod, which follows no \.\.;"):
        rendered(ShownSecrets("***"), text=FILE.replace("PATH", "../a"))


def test_a_binding_need_not_give_such_a_value_and_is_warned_if_it_does() -> None:
    text = SET + "---\n" + binding()
    checked = check_files([parse_bytes(text.encode(), "a.yaml")])
    assert [one.findings + one.warnings for one in checked] == [()]
    text = SET + "---\n" + binding().replace("params: {}", "params: {user: me, password: secret, port: 1}")
    (one,) = check_files([parse_bytes(text.encode(), "a.yaml")])
    assert not one.findings
    assert [(warning.rule, warning.message.partition(",")[0]) for warning in one.warnings] == [
        ("secret", '"user" of "check" comes from a Secret or a file'),
        ("secret", '"password" looks like a secret'),
        ("secret", '"port" of "check" comes from a Secret or a file'),
    ]
