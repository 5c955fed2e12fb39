"""The command line as a whole: help, exit codes, what goes wrong without a traceback, completion."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pidone.cli import main
from pidone.cli.completion import script

COMMANDS = ["check", "explain", "schema", "graph", "render", "test", "run", "status", "completion"]
BAD = sorted((Path(__file__).parents[1] / "language" / "bad").glob("*.yaml"))
POD = "{kind: Pod, metadata: {name: web, labels: {app: web}}}"


def pidone(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pidone", *arguments], capture_output=True, text=True, check=False
    )


def test_help_names_every_command_with_examples() -> None:
    helped = pidone("--help")
    assert helped.returncode == 0
    for command in COMMANDS:
        assert f"  {command} " in helped.stdout or f"  {command}\n" in helped.stdout
    assert "examples:" in helped.stdout


def test_help_is_quick_since_it_imports_no_command_and_no_library() -> None:
    helped = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pidone", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in helped.stderr.splitlines()}
    ours = {name for name in imported if name.partition(".")[0] == "pidone"}
    assert ours == {"pidone", "pidone.cli", "pidone.cli.arguments", "pidone.cli.main"}
    assert not imported & {"trio", "h11", "ruamel.yaml", "jsonschema", "asyncio"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.run([command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: pidone {command} ")


@pytest.mark.parametrize(
    "arguments", [["chekc", "x"], ["check"], ["run", "a.yaml", "--param", "x"], ["explain", "--nope", "x"]]
)
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.run(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def raising(error: BaseException) -> Callable[..., int]:
    def command(*_: object, **__: object) -> int:
        raise error

    return command


def test_a_mistake_of_ours_is_one_line_and_where_to_report_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pidone.cli.explain.explain", raising(KeyError("spec")))
    assert main.run(["explain", "TaskSet"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "KeyError: 'spec' (at test_main.py:" in error
    assert "Please report this line" in error


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_no_command_trips_over_a_bad_file(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad set is that in every command, and so it is as a pod and as a case file."""
    pod = tmp_path / "pod.yaml"
    pod.write_text(POD, "utf-8")
    for arguments in (
        ["graph", str(file)],
        ["render", str(file), "--pod", str(pod)],
        ["render", str(file), "--pod", str(file)],
        ["test", str(file)],
    ):
        assert main.run(arguments) in {0, 1}  # 0 for those with warnings alone
        assert "should not have" not in capsys.readouterr().err


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pidone.cli.explain.explain", raising(KeyboardInterrupt()))
    assert main.run(["explain", "TaskSet"]) == 130


def test_a_reader_that_leaves_is_no_error() -> None:
    ended = subprocess.run(
        ["bash", "-c", f'{sys.executable} -m pidone schema | head -1; echo "${{PIPESTATUS[0]}}"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout in {"{\n141\n", "{\n0\n"}  # 0 where the pipe took it all before the reader left
    assert ended.stderr == ""


@pytest.mark.parametrize(
    "command", ["test tasks", "check tests/language/bad", "graph tasks", "explain TaskSet"]
)
def test_no_command_complains_of_a_reader_that_leaves(command: str, pytestconfig: pytest.Config) -> None:
    """The reader leaves before the first line, so that every command meets the end of the pipe."""
    program = (
        f'set -o pipefail; {sys.executable} -m pidone {command} 2>err | true; echo "$?"; cat err; rm err'
    )
    program = f"cd {pytestconfig.rootpath} && err=$(mktemp) && {program.replace('err', '$err')}"
    ended = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[0] in {"141", "0", "1"}  # 0 and 1 where the pipe took it all first
    assert "roken pipe" not in ended.stdout


def test_a_full_disk_is_said_not_traced() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "pidone", "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 2
    assert ended.stderr == "pidone: No space left on device\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_has_every_command_and_option(shell: str) -> None:
    text = script(shell, main.parser())
    for word in (*COMMANDS, "recursive", "param", "TaskSet.spec.tasks.probe"):
        assert word in text


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("ex", ["explain"]),
        ("explain TaskBinding.spec.podSelector.matchL", ["TaskBinding.spec.podSelector.matchLabels"]),
        ("run --pa", ["--param"]),
        ("run --pod pyproject.t", ["pyproject.toml"]),
        ("check pyproject.t", ["pyproject.toml"]),
        ("completion ", ["bash", "fish", "zsh"]),
        ("schema Te", ["Test"]),
    ],
)
def test_bash_completes(line: str, completed: list[str], pytestconfig: pytest.Config) -> None:
    program = f"""
        source <({sys.executable} -m pidone completion bash)
        compopt() {{ :; }}
        COMP_LINE='pidone {line}'; read -ra COMP_WORDS <<<"$COMP_LINE"
        [[ $COMP_LINE == *' ' ]] && COMP_WORDS+=('')
        COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); _pidone; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    ended = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, check=True, cwd=pytestconfig.rootpath
    )
    assert sorted(ended.stdout.split()) == completed
    assert ended.stderr == ""
