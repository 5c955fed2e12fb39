"""``pidone explain`` and ``pidone schema``: every field has a page, and a wrong path says what was meant."""

import json
from typing import Any

import pytest

from pidone.cli.explain import explain
from pidone.cli.fields import NAMES, every_field, kind_field
from pidone.cli.schema import print_schema
from pidone.language.schemas import actions, schema


def page(capsys: pytest.CaptureFixture[str], path: str, *, recursive: bool = False) -> str:
    assert explain(path, recursive=recursive) == 0
    return " ".join(capsys.readouterr().out.split())


def test_a_page_has_kind_field_type_description_and_what_is_below(capsys: pytest.CaptureFixture[str]) -> None:
    text = page(capsys, "TaskSet.spec.tasks.probe")
    assert text.startswith("KIND: TaskSet VERSION: pidone.dev/v1alpha1 FIELD: probe <Object> DESCRIPTION: ")
    periods = "periodSeconds <integer> Seconds between two probes. 0 is the default, as in Kubernetes. "
    assert f"{periods}Range: 0 to 86400. Default: 10." in text


@pytest.mark.parametrize("name", actions())
def test_an_action_s_page_says_its_states_and_which_one_needs_waits_for(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = page(capsys, f"TaskSet.spec.tasks.{name}")
    action = actions()[name]
    assert f"STATES: {', '.join(action.states)}. A plain needs waits for {action.ready}." in text
    assert ("DEFAULTS OF THE TASK" in text) == bool(action.defaults)


def test_a_heartbeat_s_page_says_how_often(capsys: pytest.CaptureFixture[str]) -> None:
    assert "DEFAULTS OF THE TASK: every: 30s" in page(capsys, "TaskSet.spec.tasks.heartbeat")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("TaskSet.spec", "<Object> -required-"),
        ("TaskSet.spec.tasks.needs", "<[]string>"),
        ("TaskSet.spec.tasks.every", "<duration>"),
        ("TaskSet.spec.tasks.name", "<string> -required-"),
        ("taskset.spec.params.default", "<string or integer or boolean>"),
        ("taskbindings.spec.podSelector.matchLabels", "<map[string]string>"),
    ],
)
def test_types_are_written_as_kubectl_writes_them(
    path: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"FIELD: {path.rpartition('.')[2]} {kind} DESCRIPTION" in page(capsys, path)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("TaskSets.spec.task", 'TaskSet.spec has no field "task"; did you mean "tasks"?'),
        ("Deployment", '"Deployment" is not a kind; expected one of TaskSet'),
        ("probe", '"probe" is not a kind; did you mean "TaskSet.spec.tasks.probe"?'),
        ("TaskSet.probe", 'TaskSet has no field "probe"; did you mean "TaskSet.spec.tasks.probe"?'),
        ("TaskSet..spec", 'TaskSet has no field ""; expected one of apiVersion, kind'),
        ("", '"" is not a kind; expected one of TaskSet'),
    ],
)
def test_a_wrong_path_is_2_and_says_what_was_meant(
    path: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(path, recursive=False) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith(f"pidone explain: {said}")


def test_recursive_is_an_outline(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("TaskBinding.spec.podSelector", recursive=True) == 0
    output = capsys.readouterr().out
    assert output.endswith(
        "  matchLabels\t<map[string]string>\n  matchExpressions\t<[]Object>\n"
        "    key\t<string> -required-\n    operator\t<string> -required-\n    values\t<[]string>\n"
    )


def test_every_field_has_a_description_and_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    for path, field in every_field():
        assert field.description, path
        assert explain(path, recursive=False) == 0, path
        assert capsys.readouterr().out.startswith("KIND: "), path


def test_every_property_of_the_schema_is_reached() -> None:
    """Counted without the walk under test: names of all ``properties`` anywhere in the file."""

    def names(part: Any) -> set[str]:
        if isinstance(part, list):
            return set().union(*map(names, part))
        if not isinstance(part, dict):
            return set()
        return set(part.get("properties", ())).union(*(names(inner) for inner in part.values()))

    for kind in NAMES:
        reached = {path.rpartition(".")[2] for path, _ in every_field() if path.startswith(f"{kind}.")}
        assert names(schema(kind)) - {"properties"} <= reached | {"reference"}


@pytest.mark.parametrize("kind", NAMES)
def test_schema_prints_what_the_checker_reads(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_schema(kind.lower()) == 0
    assert json.loads(capsys.readouterr().out) == schema(kind)
    assert kind_field(kind).description


def test_schema_of_something_else_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_schema("TaskSte") == 2
    assert capsys.readouterr().err == 'pidone schema: "TaskSte" is not a kind; did you mean "TaskSet"?\n'
