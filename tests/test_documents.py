"""What documents show is true: YAML blocks pass the checker, and commands are commands."""

import re
import shlex
from pathlib import Path

import pytest

from pidone.cli.cases import read_cases
from pidone.cli.main import parser
from pidone.cli.test import test as run_cases
from pidone.language.checking import check_text

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    file
    for file in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("k3d/**/*.md"),
        *ROOT.glob("examples/**/*.md"),
    ]
)


def blocks(language: str) -> list[tuple[str, str]]:
    """Every fenced block in a language, with its document and line."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 2
            found.append((f"{document.relative_to(ROOT)}:{line}", match[1]))
    return found


@pytest.mark.parametrize(("place", "text"), blocks("yaml"), ids=lambda value: value.split("\n")[0])
def test_every_yaml_block_passes_the_checker(place: str, text: str) -> None:
    if re.search(r"^cases:", text, re.MULTILINE):
        _, findings = read_cases(text, place)
    else:
        checked = check_text(text, place)
        findings = checked.findings
        if re.search(r"^apiVersion: pidone\.dev/", text, re.MULTILINE):
            assert checked.objects or findings, "not one object of ours in a block that has some"
    assert not findings, "\n".join(map(str, findings))


COMMANDS = [
    (place, command)
    for place, text in blocks("(?:console|sh|shell|bash)")
    for line in text.splitlines()
    for command in re.findall(
        r"(?:^\$ |; |&& |^)(?:\S+=\S+ )*(?:\S*/)?pidone ([a-z].*?)(?:$|; |&& | \| | > |  +#)", line
    )
]


@pytest.mark.parametrize(("place", "command"), COMMANDS)
def test_every_pidone_command_shown_is_one(place: str, command: str) -> None:
    arguments = shlex.split(command)
    try:
        parser().parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{place}: pidone {command} is no command")


def test_what_the_tutorial_expects_of_its_set_is_so(tmp_path: Path) -> None:
    tutorial = [text for place, text in blocks("yaml") if place.startswith("docs/language.md")]
    task_set, _, cases = tutorial[:3]
    (tmp_path / "web.yaml").write_text(task_set, "utf-8")
    (tmp_path / "web.test.yaml").write_text(cases, "utf-8")
    assert run_cases([str(tmp_path)]) == 0


def test_there_are_blocks_and_commands() -> None:
    assert len(blocks("yaml")) >= 5
    assert {command.split()[0] for _, command in COMMANDS} >= {
        "check",
        "explain",
        "render",
        "graph",
        "test",
        "run",
    }
