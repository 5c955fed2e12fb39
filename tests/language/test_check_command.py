"""``pidone check``: files, folders, standard input, exit codes."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from pidone.cli.check import check

HERE = Path(__file__).parent
BAD = HERE / "bad" / "unknown-action.yaml"
GOOD = HERE / "good" / "everything.yaml"


def test_a_good_file_is_0_and_says_nothing_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert check([str(GOOD)]) == 0
    assert capsys.readouterr() == ("", "1 file with 2 objects of pidone: no findings\n")


def test_findings_are_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert check([str(BAD), str(GOOD)]) == 1
    output, summary = capsys.readouterr()
    assert output.startswith(f'{BAD}:7:7: unknown field "prob"; did you mean "probe"? [unknown-field]\n')
    assert summary == "1 finding in 1 file\n"


def test_no_such_file_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert check([str(GOOD), "nowhere.yaml"]) == 2
    assert capsys.readouterr() == ("", "pidone check: nowhere.yaml: No such file or directory\n")


def test_a_folder_is_everything_below_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a" / ".hidden").mkdir(parents=True)
    for name in ("x.yaml", "a/y.yml"):
        (tmp_path / name).write_text(GOOD.read_text("utf-8"), "utf-8")
    for name in ("a/.hidden/z.yaml", "a/notes.txt"):
        (tmp_path / name).write_text("[", "utf-8")
    assert check([str(tmp_path)]) == 0
    assert capsys.readouterr().err == "2 files with 4 objects of pidone: no findings\n"


def test_nothing_to_check_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check([str(tmp_path)]) == 2
    assert "no .yaml or .yml file in" in capsys.readouterr().err


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(BAD.read_bytes())))
    assert check(["-"]) == 1
    assert capsys.readouterr().out.startswith("<stdin>:7:7: ")


def test_importing_the_language_loads_neither_yaml_nor_schema_library() -> None:
    code = "import sys, pidone.language.checking, pidone.language.rendering; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"ruamel.yaml", "jsonschema"} & set(loaded)
