"""``pidone check``: files, folders, standard input, exit codes."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from pidone.cli.check import check
from pidone.cli.formats import github
from pidone.language.findings import Finding
from tests.patience import PATIENCE_SECONDS

HERE = Path(__file__).parent.parent / "language"
BAD = HERE / "bad" / "unknown-action.yaml"
GOOD = HERE / "good" / "everything.yaml"
OTHER_KIND = GOOD.read_text("utf-8").splitlines().index("kind: ConfigMap") + 1
PASSED_OVER = f"{GOOD}:{OTHER_KIND}:1: passed over: a ConfigMap of v1 is no object of pidone\n"


def test_a_good_file_is_0_and_says_nothing_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert check([str(GOOD)]) == 0
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors == f"{PASSED_OVER}1 file with 2 objects of pidone: no findings\n"


def test_findings_are_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert check([str(BAD), str(GOOD)]) == 1
    output, summary = capsys.readouterr()
    assert output.startswith(f'{BAD}:7:7: unknown field "prob"; did you mean "probe"? [unknown-field]\n')
    assert summary == f"{PASSED_OVER}1 finding in 1 file\n"


def test_no_such_file_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert check([str(GOOD), "nowhere.yaml"]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert "pidone check: nowhere.yaml: No such file or directory\n1 file with " in errors


def test_a_folder_is_everything_below_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a" / ".hidden").mkdir(parents=True)
    for name in ("x.yaml", "a/y.yml"):
        text = GOOD.read_text("utf-8").replace("everything", f"all-{name[0]}")
        text = text.replace("namespace: shop", f"namespace: {name[0]}")
        (tmp_path / name).write_text(text, "utf-8")
    for name in ("a/.hidden/z.yaml", "a/notes.txt"):
        (tmp_path / name).write_text("[", "utf-8")
    assert check([str(tmp_path)]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "2 files with 4 objects of pidone: no findings"


def test_nothing_to_check_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check([str(tmp_path)]) == 2
    assert "no .yaml or .yml file in" in capsys.readouterr().err


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(BAD.read_bytes())))
    assert check(["-"]) == 1
    assert capsys.readouterr().out.startswith("<stdin>:7:7: ")


WARNED = HERE / "bad" / "no-stop-timeout.yaml"


def test_warnings_are_0_and_with_strict_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert check([str(WARNED), str(GOOD)]) == 0
    output, summary = capsys.readouterr()
    assert output.startswith(f"{WARNED}:7:7: warning: deregistering ")
    assert summary == f"{PASSED_OVER}1 warning in 1 file\n"
    assert check([str(WARNED), str(GOOD)], strict=True) == 3
    assert check([str(WARNED), str(BAD)], strict=True) == 1
    assert check([str(GOOD)], strict=True) == 0
    assert capsys.readouterr().err.splitlines()[2] == "1 finding and 1 warning in 2 files"


def test_what_can_be_read_is_checked_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "locked").mkdir()
    assert check([str(tmp_path / "none"), str(BAD), str(tmp_path / "locked" / "n\x1b[2J")]) == 2
    output, errors = capsys.readouterr()
    assert output.startswith(f"{BAD}:7:7: ")
    assert f"pidone check: {tmp_path}/none: No such file or directory\n" in errors
    assert "\x1b" not in errors


OTHERS = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: "\\e[2Jweb"}
---
image: {tag: 1}
---
apiVersion: pidone.dev/v1alpha1
kind: TaskBinding
metadata: {name: web}
spec: {podSelector: {matchLabels: {app: web}}, taskSets: [web]}
"""


def test_what_was_passed_over_is_said_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text(OTHERS, "utf-8")
    assert check([str(tmp_path)], strict=True) == 0
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors == (
        f"{tmp_path}/x.yaml:2:1: passed over: a Deployment of apps/v1 is no object of pidone\n"
        f"{tmp_path}/x.yaml:5:1: passed over: a document without apiVersion and kind is no object of pidone\n"
        f'{tmp_path}/x.yaml:10:59: passed over: TaskSet "web" is in none of these files; '
        "check it together with them\n"
        "1 file with 1 object of pidone: no findings\n"
    )


def test_a_folder_of_other_kinds_is_passed_over_in_a_few_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text("---\n".join(["{apiVersion: v1, kind: Secret}\n"] * 500), "utf-8")
    assert check([str(tmp_path)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "nothing was checked: no TaskSet and no TaskBinding in 1 file"
    assert lines[-2] == "491 more documents and names were passed over"


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert check([str(BAD), str(WARNED)], form="json") == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert found[0] == {
        "file": str(BAD),
        "line": 7,
        "column": 7,
        "endColumn": 11,
        "severity": "error",
        "rule": "unknown-field",
        "message": 'unknown field "prob"; did you mean "probe"?',
    }
    assert [one["severity"] for one in found] == ["error", "warning"]
    check([str(GOOD)], form="json")
    assert json.loads(capsys.readouterr().out) == {"findings": []}


def test_github_gets_workflow_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert check([str(BAD), str(WARNED)], form="github") == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        f"::error file={BAD},line=7,col=7,endColumn=11,title=pidone unknown-field"
        '::unknown field "prob"; did you mean "probe"?'
    )
    assert second.startswith(f"::warning file={WARNED},line=7,col=7,endColumn=15,title=pidone stop-timeout::")


def test_no_text_of_a_file_ends_a_workflow_command() -> None:
    finding = Finding("a,b:c%.yaml", 1, 2, "100%\r\n::error::no", "kind")
    assert "\x1b" not in github([Finding("\x1b[2J", 1, 2, "\x1b]52;c;eA==\x07", "kind")])
    assert github([finding]) == (
        "::error file=a%2Cb%3Ac%25.yaml,line=1,col=2,endColumn=3,title=pidone kind::100%25  ::error::no\n"
    )


# What GitHub's code scanning asks for, and of SARIF 2.1.0 no more than we write.
TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
POSITIVE = {"type": "integer", "minimum": 1}
SARIF = {
    "required": ["$schema", "version", "runs"],
    "properties": {
        "version": {"const": "2.1.0"},
        "runs": {
            "minItems": 1,
            "items": {
                "additionalProperties": False,
                "required": ["tool", "results", "columnKind"],
                "properties": {
                    "columnKind": {"const": "unicodeCodePoints"},
                    "tool": {
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "additionalProperties": False,
                                "required": ["name", "rules"],
                                "properties": {
                                    "name": {"const": "pidone"},
                                    "semanticVersion": {"pattern": r"^\d+\.\d+\.\d+"},
                                    "rules": {
                                        "uniqueItems": True,
                                        "items": {
                                            "additionalProperties": False,
                                            "required": ["id", "shortDescription", "fullDescription", "help"],
                                            "properties": {
                                                "id": {"pattern": "^[a-z-]+$"},
                                                "shortDescription": TEXT,
                                                "fullDescription": TEXT,
                                                "help": TEXT,
                                            },
                                        },
                                    },
                                },
                            }
                        },
                    },
                    "results": {
                        "items": {
                            "additionalProperties": False,
                            "required": ["ruleId", "level", "message", "locations"],
                            "properties": {
                                "ruleId": {"type": "string"},
                                "ruleIndex": {"type": "integer", "minimum": 0},
                                "level": {"enum": ["error", "warning"]},
                                "message": TEXT,
                                "locations": {
                                    "minItems": 1,
                                    "items": {
                                        "additionalProperties": False,
                                        "required": ["physicalLocation"],
                                        "properties": {
                                            "physicalLocation": {
                                                "additionalProperties": False,
                                                "required": ["artifactLocation", "region"],
                                                "properties": {
                                                    "artifactLocation": {
                                                        "properties": {
                                                            "uri": {
                                                                "pattern": "^(file:///)?[A-Za-z0-9%_.~-]"
                                                                "[A-Za-z0-9%_.~/-]*$"
                                                            }
                                                        }
                                                    },
                                                    "region": {
                                                        "additionalProperties": False,
                                                        "required": ["startLine", "startColumn", "endColumn"],
                                                        "properties": {
                                                            "startLine": POSITIVE,
                                                            "startColumn": POSITIVE,
                                                            "endColumn": POSITIVE,
                                                        },
                                                    },
                                                },
                                            }
                                        },
                                    },
                                },
                            },
                        }
                    },
                },
            },
        },
    },
}


def test_sarif_has_what_code_scanning_asks_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(HERE)
    assert check(["bad", str(HERE / "bad" / "cycle.yaml"), "./bad/../good"], form="sarif") == 1
    sarif = json.loads(capsys.readouterr().out)
    Draft202012Validator(SARIF).validate(sarif)
    (run,) = sarif["runs"]
    assert len(run["results"]) > 100
    uris = set()
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        place = result["locations"][0]["physicalLocation"]
        assert place["region"]["startColumn"] < place["region"]["endColumn"]
        uris.add(place["artifactLocation"]["uri"])
    assert "bad/cycle.yaml" in uris  # relative, however it was given
    assert all(uri.startswith(("bad/", "good/")) for uri in uris)


def test_a_file_elsewhere_has_an_absolute_uri(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # the tests' own folder may be below the one they run in
    file = tmp_path / "ä b.yaml"
    file.write_text("[")
    check([str(file)], form="sarif")
    (result,) = json.loads(capsys.readouterr().out)["runs"][0]["results"]
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == f"file://{tmp_path}/%C3%A4%20b.yaml"


def run(
    *arguments: str, terminal: bool = False, name: bytes | None = None, **env: str
) -> tuple[int, str, str]:
    """The command as a person runs it; on a terminal its output is what the terminal gets."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    argv: list[str | bytes] = [sys.executable, "-m", "pidone", "check", *arguments]
    with subprocess.Popen(
        argv if name is None else [*argv, name],
        stdout=theirs if terminal else subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "TERM": "xterm", **env},
    ) as process:
        os.close(theirs)
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
        if terminal:
            output = os.read(ours, 1 << 16)
    os.close(ours)
    return process.returncode, (output or b"").decode(), errors.decode()


def test_colours_on_a_terminal_only_and_not_where_somebody_said_no() -> None:
    assert "\x1b[" in run(str(BAD), terminal=True)[1]
    assert "\x1b[" not in run(str(BAD))[1]
    assert "\x1b[" not in run(str(BAD), terminal=True, NO_COLOR="1")[1]
    assert "\x1b[" not in run(str(BAD), terminal=True, TERM="dumb")[1]
    assert "\x1b[" not in run(str(BAD), "--format", "json", terminal=True)[1]


def test_without_its_colours_a_terminal_shows_the_same() -> None:
    shown = re.sub(r"\x1b\[[0-9;]*m", "", run(str(WARNED), str(BAD), terminal=True)[1])
    assert shown.replace("\r\n", "\n") == run(str(WARNED), str(BAD))[1]


def test_a_reader_may_leave() -> None:
    script = f"{sys.executable} -m pidone check {HERE}/bad | head -1"
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    )
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_any_name_and_any_locale(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.yaml"
    Path(os.fsdecode(name)).write_text('apiVersion: pidone.dev/v1alpha1\nkind: "ä"\n', "utf-8")
    for form in ("text", "json", "github", "sarif"):
        code, output, errors = run("--format", form, name=name, PYTHONIOENCODING="ascii")
        assert (code, "Traceback" in errors) == (1, False), errors
        assert output
        if form in {"json", "sarif"}:
            json.loads(output)


def test_unknown_options_and_formats_are_2() -> None:
    for arguments in (["--format", "xml", str(GOOD)], ["--frmat", "json", str(GOOD)], []):
        code, output, errors = run(*arguments)
        assert (code, output) == (2, "")
        assert errors.startswith("usage: pidone ")


def test_importing_the_language_loads_neither_yaml_nor_schema_library() -> None:
    code = "import sys, pidone.language.checking, pidone.language.rendering; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"ruamel.yaml", "jsonschema"} & set(loaded)
