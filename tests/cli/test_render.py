"""``pidone render``: the bundle that a pod would get, and why it gets none."""

import io
import json
from pathlib import Path
from textwrap import dedent

import pytest
from ruamel.yaml import YAML

from pidone.cli.render import render_files
from pidone.plan.digest import digest
from pidone.plan.format import decode_bundle

POD = """
    apiVersion: v1
    kind: Pod
    metadata: {name: web-1, namespace: shop, labels: {app: ratings}}
    status: {podIP: 10.1.2.3}
"""
SET = """
    apiVersion: pidone.dev/v1alpha1
    kind: TaskSet
    metadata: {name: check}
    spec:
      params:
        - {name: port, type: integer, default: 8080, maximum: 9000}
      tasks:
        - {name: ready, probe: {tcpSocket: {port: $(params.port)}}}
"""
BINDING = """
    ---
    apiVersion: pidone.dev/v1alpha1
    kind: TaskBinding
    metadata: {name: check, namespace: shop}
    spec:
      podSelector: {matchLabels: {app: ratings}}
      taskSets: [check]
      params: {port: 8081}
"""


class Desk:
    """A folder with files, and what the command says of them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys

    def write(self, name: str, *texts: str) -> str:
        path = self.folder / name
        path.write_text("".join(dedent(text) for text in texts), "utf-8")
        return str(path)

    def render(self, *files: str, pod: str, output: str = "json", **params: str) -> tuple[int, str, str]:
        code = render_files(files, pod, params, output)
        return code, *self._capsys.readouterr()


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, capsys)


def port(output: str) -> int:
    (task,) = json.loads(output)["tasks"]
    found: int = task["probe"]["tcpSocket"]["port"]
    return found


def test_what_a_set_extends_may_be_in_another_file(desk: Desk) -> None:
    heir = """
        apiVersion: pidone.dev/v1alpha1
        kind: TaskSet
        metadata: {name: web}
        spec: {extends: [check], params: [{name: port, type: integer, default: 9}]}
    """
    web, pod = desk.write("web.yaml", heir), desk.write("pod.yaml", POD)
    code, output, _ = desk.render(web, desk.write("check.yaml", SET), pod=pod)
    assert code == 0
    assert port(output) == 9
    code, _, said = desk.render(web, pod=pod)
    assert code == 1
    assert 'TaskSet "web" extends "check", which is not there' in said
    code, output, _ = desk.render(
        web, desk.write("all.yaml", SET, BINDING.replace("[check]", "[web]")), pod=pod
    )
    assert port(output) == 8081


def test_without_a_binding_the_pod_gets_every_set_as_a_pod_would_read_it(desk: Desk) -> None:
    code, output, said = desk.render(desk.write("a.yaml", SET), pod=desk.write("pod.yaml", POD))
    assert (code, said) == (0, "")
    bundle = decode_bundle(output.encode(), ["probe"])
    assert bundle.pod.name == "web-1"
    assert bundle.plan.tasks[0].config["tcpSocket"] == {"port": 8080, "host": "10.1.2.3"}


def test_with_bindings_the_labels_decide(desk: Desk) -> None:
    files = desk.write("a.yaml", SET, BINDING)
    assert port(desk.render(files, pod=desk.write("pod.yaml", POD))[1]) == 8081
    code, output, said = desk.render(files, pod=desk.write("other.yaml", POD.replace("ratings", "web")))
    assert code == 0
    assert json.loads(output)["tasks"] == []
    assert said.startswith(
        "the plan has no tasks: no TaskBinding selects pod shop/web-1, whose labels are: app=web; give it labels"
    )


def test_sets_and_bindings_may_be_in_several_files_and_folders(desk: Desk) -> None:
    (desk.folder / "sets").mkdir()
    desk.write("sets/set.yaml", SET)
    binding = desk.write("binding.yaml", BINDING)
    code, output, _ = desk.render(str(desk.folder / "sets"), binding, pod=desk.write("pod.yaml", POD))
    assert (code, port(output)) == (0, 8081)


def test_the_other_outputs_are_of_the_same_bundle(desk: Desk) -> None:
    from ruamel.yaml import YAML

    files, pod = desk.write("a.yaml", SET), desk.write("pod.yaml", POD)
    bundle = json.loads(desk.render(files, pod=pod)[1])
    assert YAML(typ="safe").load(desk.render(files, pod=pod, output="yaml")[1]) == bundle
    assert desk.render(files, pod=pod, output="digest")[1] == digest(bundle["tasks"]) + "\n"


def test_what_kubectl_prints_is_a_pod_too(desk: Desk) -> None:
    pod = {"kind": "Pod", "metadata": {"name": "web"}, "status": {"podIP": "10.0.0.9"}}
    single = desk.write("pod.json", json.dumps(pod))
    listed = desk.write("list.json", json.dumps({"kind": "List", "items": [pod]}))
    files = desk.write("a.yaml", SET)
    assert desk.render(files, pod=single) == desk.render(files, pod=listed)


def test_a_manifest_has_no_address_and_says_what_stands_for_it(desk: Desk) -> None:
    pod = desk.write("pod.yaml", "{kind: Pod, metadata: {name: web}}")
    code, output, said = desk.render(desk.write("a.yaml", SET), pod=pod)
    assert code == 0
    assert json.loads(output)["tasks"][0]["probe"]["tcpSocket"]["host"] == "192.0.2.1"
    assert said == "pod default/web has no address yet; the plan contains 192.0.2.1 instead\n"


def test_params_are_given_as_a_binding_would(desk: Desk) -> None:
    files, pod = desk.write("a.yaml", SET), desk.write("pod.yaml", POD)
    assert port(desk.render(files, pod=pod, port="81")[1]) == 81


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"prt": "81"}, '--param prt: no TaskSet here has a param "prt"; did you mean "port"?'),
        ({"port": "many"}, '--param port: "many" is not an integer'),
        ({"port": "9001"}, '--param port: "9001" is greater than 9000'),
    ],
)
def test_a_wrong_param_is_1_and_named(desk: Desk, params: dict[str, str], said: str) -> None:
    files, pod = desk.write("a.yaml", SET), desk.write("pod.yaml", POD)
    assert desk.render(files, pod=pod, **params) == (1, "", f"{said}\n")


def test_params_beside_bindings_are_refused(desk: Desk) -> None:
    files = desk.write("a.yaml", SET, BINDING)
    code, _, said = desk.render(files, pod=desk.write("pod.yaml", POD), port="81")
    assert code == 1
    assert said.startswith('param "port": the TaskBindings in the files set the params')


def test_a_param_without_a_value_names_pod_set_and_remedy(desk: Desk) -> None:
    files = desk.write("a.yaml", SET.replace(", default: 8080", ""))
    code, _, said = desk.render(files, pod=desk.write("pod.yaml", POD))
    assert code == 1
    assert said.startswith('pod shop/web-1: TaskSet "check": param "port" has no value: ')


def test_findings_are_1_with_their_carets(desk: Desk) -> None:
    files = desk.write("a.yaml", SET.replace("probe:", "prob:"))
    code, output, said = desk.render(files, pod=desk.write("pod.yaml", POD))
    assert (code, output) == (1, "")
    assert 'a.yaml:9:21: unknown field "prob"; did you mean "probe"? [unknown-field]' in said
    assert "^~~~" in said


@pytest.mark.parametrize(
    ("pod", "said"),
    [
        ("kind: Deployment", "expected a List or Pods, not Deployment"),
        (
            "{kind: Pod, metadata: {name: a}}\n---\n{kind: Pod, metadata: {name: b}}",
            "not 2 (default/a, default/b)",
        ),
        ("{kind: List, items: []}", "not 0 (an empty List)"),
        ("[", "not YAML"),
        ("{kind: Pod, metadata: []}", "metadata of the Pod: expected an object, not a list"),
        ("{kind: Pod, status: 5}", "status of the Pod: expected an object, not 5"),
        (
            "{kind: Pod, metadata: {labels: [a]}}",
            "metadata.labels of the Pod: expected an object, not a list",
        ),
        (
            "{kind: Pod, metadata: {annotations: {port: 80}}}",
            'annotations of the Pod: "port" is 80, and not text; quote it',
        ),
    ],
)
def test_what_is_no_pod_is_1_and_says_so(desk: Desk, pod: str, said: str) -> None:
    path = desk.write("pod.yaml", pod)
    code, _, error = desk.render(desk.write("a.yaml", SET), pod=path)
    assert code == 1
    assert error.startswith(f"{path}: ")
    assert said in error


def test_the_pod_or_the_sets_may_come_from_the_standard_input(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"pod": desk.write("pod.yaml", POD), "set": desk.write("set.yaml", SET)}
    both = desk.render(files["set"], pod=files["pod"])
    for name, arguments in {"pod": (files["set"], "-"), "set": ("-", files["pod"])}.items():
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(Path(files[name]).read_bytes())))
        assert desk.render(arguments[0], pod=arguments[1]) == both
    code, _, error = desk.render("-", pod="-")
    assert code == 1
    assert "can be read once" in error


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_what_a_pod_holds_moves_no_cursor(desk: Desk, output: str) -> None:
    text = "a\N{RIGHT-TO-LEFT OVERRIDE}\x9b2J\N{LINE SEPARATOR}é"
    pod = {
        "kind": "Pod",
        "metadata": {"name": "web", "annotations": {"note": text}},
        "status": {"podIP": "10.1.2.3"},
    }
    fields = "{fieldRef: {fieldPath: \"metadata.annotations['note']\"}}"
    written = f"""
        apiVersion: pidone.dev/v1alpha1
        kind: TaskSet
        metadata: {{name: note}}
        spec:
          tasks:
            - name: tell
              exec: {{command: [/opt/pidone/tell], env: [{{name: NOTE, valueFrom: {fields}}}]}}
        """
    code, printed, _ = desk.render(
        desk.write("set.yaml", written), pod=desk.write("pod.yaml", json.dumps(pod)), output=output
    )
    assert code == 0
    assert all(character.isprintable() or character == "\n" for character in printed)
    value = json.loads(printed) if output == "json" else YAML(typ="safe", pure=True).load(printed)
    assert value["tasks"][0]["exec"]["env"] == [{"name": "NOTE", "value": text}]


def test_labels_and_names_of_files_in_messages_move_no_cursor(desk: Desk) -> None:
    pod = desk.write("pod.yaml", '{kind: Pod, metadata: {name: web, labels: {app: "\\e[2Jx\\n"}}}')
    code, _, error = desk.render(desk.write("set.yaml", SET, BINDING), pod=pod)
    assert code == 0
    assert "no TaskBinding selects" in error
    _, _, other = desk.render("no\x1b[2J.yaml", pod=pod)
    assert "\x1b" not in error + other


def test_no_such_file_is_2(desk: Desk) -> None:
    pod = desk.write("pod.yaml", POD)
    assert desk.render("nowhere.yaml", pod=pod)[0] == 2
    assert desk.render(desk.write("a.yaml", SET), pod="nowhere.yaml")[2] == (
        "pidone render: nowhere.yaml: No such file or directory\n"
    )


def test_a_file_of_other_things_is_1(desk: Desk) -> None:
    files = desk.write("a.yaml", "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}")
    code, _, said = desk.render(files, pod=desk.write("pod.yaml", POD))
    assert (code, said) == (1, f"{files}: there is no TaskSet in it\n")
