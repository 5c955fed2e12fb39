"""``bad/*.yaml`` beside what is printed about each; about ``good/*.yaml`` and the ready-made sets nothing is.

After a change of a message ``python -m tests.language.test_checking`` writes the golden files anew; read what
differs.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pidone.language.checking import check_bytes, check_text
from pidone.language.lint import END_SECONDS, FAREWELL_SECONDS
from pidone.language.model import TaskBinding, TaskSet
from pidone.language.reading import read
from pidone.language.schemas import API_VERSION, schema
from pidone.pod.program import TEARDOWN_SECONDS
from tests.patience import ENDURANCE

HERE = Path(__file__).parent
BAD = sorted((HERE / "bad").glob("*.yaml"))
SETS = [
    file
    for folder in ("tasks", "examples")
    for file in (HERE.parent.parent / folder).glob("*.yaml")
    if ".test" not in file.suffixes
]
GOOD = sorted([*(HERE / "good").glob("*.yaml"), *SETS])


def printed(file: Path) -> str:
    return "".join(f"{finding}\n" for finding in check_bytes(file.read_bytes(), file.name).all)


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_every_mistake_is_printed_as_a_person_would_want_it(file: Path) -> None:
    assert printed(file) == file.with_suffix(".txt").read_text("utf-8")


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_nothing_is_said_about_what_is_right(file: Path) -> None:
    checked = check_text(file.read_text("utf-8"), file.name)
    assert not checked.findings
    assert {one.rule for one in checked.warnings} <= {"probe-exec"}  # which there is no other way to write
    assert checked.objects


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_findings_are_in_order_none_twice_and_short(file: Path) -> None:
    checked = check_bytes(file.read_bytes(), file.name)
    places = [(finding.line, finding.column) for finding in checked.all]
    assert places == sorted(places)
    assert len(set(checked.all)) == len(checked.all)
    assert all(finding.file == file.name and len(finding.message) < 250 for finding in checked.all)
    assert not any("{'" in finding.message or ", '" in finding.message for finding in checked.all)
    assert bool(checked.objects) == (not checked.findings)  # never half a file


def test_objects_come_typed_and_in_order() -> None:
    checked = check_text((HERE / "good" / "everything.yaml").read_text("utf-8"), "everything.yaml")
    kinds = [type(one) for one in checked.objects]
    assert kinds == [TaskSet, TaskBinding]
    task_set, binding = checked.objects
    assert (task_set.name, task_set.namespace) == ("everything", "")
    assert (binding.name, binding.namespace) == ("everything", "shop")
    assert isinstance(binding, TaskBinding)
    assert binding.task_sets == ("everything",)
    assert binding.params == {"app": "ratings"}


def test_documents_of_other_kinds_are_passed_over() -> None:
    text = "apiVersion: apps/v1\nkind: Deployment\nspec: {a: on, a: !x 0123}\n---\n---\nimage: {tag: 1}\n"
    checked = check_text(text, "x.yaml")
    assert not checked.findings
    assert not checked.objects


def test_a_large_file_is_one_finding() -> None:
    (finding,) = check_text("a: b\n" * 300_000, "x.yaml").findings
    assert finding.rule == "too-large"


@pytest.mark.parametrize(
    ("tasks", "least"),
    [
        ("".join(f"\n      k{number}: 1" for number in range(2000)), 400),
        ("\n      needs: [" + ", ".join(f"b{number}" for number in range(2000)) + "]", 400),
        ("\n      timeout: " + "$(x)" * 2000, 1),
    ],
)
def test_a_file_of_mistakes_has_an_end(tasks: str, least: int) -> None:
    head = (
        "apiVersion: pidone.dev/v1alpha1\nkind: TaskSet\nmetadata: {name: x}\nspec:\n  tasks:\n    - name: a"
    )
    findings = check_text(f"{head}{tasks}\n", "x.yaml").findings
    assert least <= len(findings) <= 500


def test_a_wrong_kind_is_said_whatever_else_is_wrong() -> None:
    text = "apiVersion: pidone.dev/v1alpha1\nkind: TaskSat\n" + "a: b\n" * 1000
    (finding,) = check_text(text, "x.yaml").findings
    assert finding.rule == "kind"


def test_a_file_of_documents_is_one_finding() -> None:
    (finding,) = check_text("--- {}\n" * 2100, "x.yaml").findings
    assert (finding.line, finding.rule) == (2001, "too-large")


def test_an_anchor_bomb_is_one_finding() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 11)}]" for n in range(1, 9)]
    (finding,) = check_text("\n".join(lines), "x.yaml").findings
    assert finding.rule == "too-large"


def test_what_is_not_utf8_is_found_where_it_stands() -> None:
    (finding,) = check_bytes(b"a: b\nname: caf\xe9\n", "x.yaml").findings
    assert (finding.line, finding.column, finding.rule) == (2, 10, "encoding")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_is_read_as_kubectl_reads_it(encoding: str) -> None:
    text = "\ufeff" + (HERE / "good" / "everything.yaml").read_text("utf-8")
    assert not check_bytes(text.encode(encoding), "x.yaml").findings
    half = "\ufeffa: b\nname: x".encode(encoding) + ("\ud800" + "y").encode(encoding, "surrogatepass")
    (finding,) = check_bytes(half, "x.yaml").findings
    assert (finding.line, finding.column, finding.rule) == (2, 8, "encoding")


def test_a_byte_order_mark_and_windows_line_ends_are_no_mistake() -> None:
    text = (HERE / "good" / "everything.yaml").read_text("utf-8").replace("\n", "\r\n")
    assert not check_bytes(b"\xef\xbb\xbf" + text.encode(), "x.yaml").findings


def test_a_file_cannot_move_the_cursor_of_a_terminal() -> None:
    checked = check_text('apiVersion: pidone.dev/v1alpha1\nkind: "\\e[2J"\n', "x.yaml")
    assert "\x1b" not in str(checked.findings[0])


def test_the_caret_of_a_long_line_is_under_its_token() -> None:
    line = "metadata: {name: " + "a" * 300 + ", nam: x}"
    checked = check_text(f"apiVersion: pidone.dev/v1alpha1\nkind: TaskSet\n{line}\n", "x.yaml")
    (finding,) = [one for one in checked.findings if one.rule == "unknown-field"]
    _, source, caret = str(finding).split("\n")
    assert source[caret.index("^") :].startswith("nam: x")
    assert len(source) < 180


def test_a_farewell_has_half_of_the_time_at_the_end() -> None:
    assert FAREWELL_SECONDS == TEARDOWN_SECONDS / 2
    assert END_SECONDS == TEARDOWN_SECONDS


PIECES = [
    *(
        "apiVersion: pidone.dev/v1alpha1\n",
        "kind: TaskSet\n",
        "kind: TaskBinding\n",
        "metadata:",
        "spec:",
        "tasks:",
    ),
    *(
        "params:",
        "needs:",
        "name:",
        "probe:",
        "exec:",
        "command:",
        "register:",
        "eureka:",
        "follow:",
        "every:",
        "of:",
    ),
    *(
        "podSelector:",
        "matchExpressions:",
        "taskSets:",
        "type:",
        "default:",
        "pattern:",
        "enum:",
        "minimum:",
        "backoff:",
    ),
    *(
        " ",
        "  ",
        "\n",
        "\n  ",
        "\n    ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        ": ",
        "\t",
        "#",
        "---\n",
        "...\n",
        "? ",
        "| ",
        ">",
    ),
    *(
        "a",
        "ready",
        "1",
        "-1",
        "1.5",
        "30s",
        "on",
        "0123",
        "null",
        "true",
        "~",
        ".inf",
        "'",
        '"',
        "\\",
        "&a ",
        "*a",
        "!!str ",
    ),
    *(
        "$(params.a)",
        "$(pod.name)",
        "$$(x)",
        "$(",
        "$()",
        "%YAML 1.1\n",
        "%",
        "<<",
        "=",
        "\u2028",
        "\x85",
        "\ufeff",
        "é",
        "\0",
    ),
]


@settings(max_examples=150 * ENDURANCE, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
@example("%YAML\n---\na")
@example("? " * 3000)
@example("[" * 5000)
@example("a: &a [*a]")
def test_no_text_is_a_traceback(text: str) -> None:
    for finding in check_text(text, "x.yaml").findings:
        assert str(finding).startswith("x.yaml:")


VALID = (HERE / "good" / "everything.yaml").read_text("utf-8")
MUTATIONS = st.lists(
    st.tuples(st.integers(0, len(VALID)), st.integers(0, 12), st.sampled_from([*PIECES, ""])),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60 * ENDURANCE, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MUTATIONS)
def test_no_damaged_file_is_a_traceback(mutations: list[tuple[int, int, str]]) -> None:
    text = VALID
    for start, length, piece in mutations:
        text = text[:start] + piece + text[start + length :]
    checked = check_text(text, "x.yaml")
    assert not (checked.findings and checked.objects)
    if not checked.findings:  # then an editor, which has the bare schema, finds nothing either
        for document in read(text, "x.yaml")[0]:
            value = document.root.value
            if isinstance(value, dict) and value.get("apiVersion") == API_VERSION:
                Draft202012Validator(schema(value["kind"])).validate(value)


if __name__ == "__main__":
    for bad in BAD:
        bad.with_suffix(".txt").write_text(printed(bad), "utf-8")
