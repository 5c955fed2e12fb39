"""``pidone graph``: golden drawings beside the sets, and what holds of every drawing."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from pidone.cli.drawing import KINDS, Edge, Graph, draw
from pidone.cli.graph import print_graph
from tests.patience import ENDURANCE

HERE = Path(__file__).parent / "graphs"
TASKS = Path(__file__).parents[2] / "tasks"


def graph(*lines: str) -> Graph:
    """Each line is ``source target kind state``, or the name of a task alone."""
    words = [line.split() for line in lines]
    nodes = dict.fromkeys(word for line in words for word in line[:2])
    return Graph(
        "g", {name: f"{name}: exec" for name in nodes}, tuple(Edge(*w) for w in words if len(w) == 4)
    )


EVERY_KIND = graph(
    "ready registration needs healthy",
    "registration beat needs registered",
    "registration beat while registered",
    "ready beat while healthy",
    "ready snapshot runOn unhealthy",
    "metrics warm needs listening",
    "warm goodbye needs succeeded",
    "pod goodbye runOn terminating",
)
CIRCLE = graph("a b runOn failed", "b a runOn failed", "a a runOn failed", "alone")
BRANCHES = graph(
    "s a needs healthy",
    "s b needs healthy",
    "s c while healthy",
    "a d needs succeeded",
    "b d needs succeeded",
    "c d needs succeeded",
    "s d needs healthy",
)


@pytest.mark.parametrize(
    ("name", "drawn"), [("every-kind", EVERY_KIND), ("circle", CIRCLE), ("branches", BRANCHES)]
)
@pytest.mark.parametrize("unicode", [True, False])
def test_drawings_are_those_that_were_looked_at(name: str, drawn: Graph, unicode: bool) -> None:
    golden = HERE / f"{name}.{'txt' if unicode else 'ascii.txt'}"
    assert draw(drawn, unicode=unicode) == golden.read_text("utf-8")


@pytest.mark.parametrize("form", ["text", "dot", "mermaid"])
def test_the_formats_of_a_ready_made_set(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_graph([str(TASKS / "eureka.yaml")], form) == 0
    assert capsys.readouterr().out == (HERE / f"eureka.{form}").read_text("utf-8")


def test_nothing_is_drawn_over_anything() -> None:
    """Every name and every state can be read, whatever the graph; and the same graph is the same drawing."""
    choose = random.Random(7)
    for _ in range(100 * ENDURANCE):
        names = [f"task-{index}" for index in range(choose.randint(1, 15))]
        lines = {
            f"{choose.choice(names)} {choose.choice(names)} {choose.choice(list(KINDS))} s{choose.randint(100, 999)}"
            for _ in range(choose.randint(0, 24))
        }
        drawn = graph(*names, *sorted(lines))
        text = draw(drawn, unicode=True)
        assert text == draw(drawn, unicode=True)
        for shown in drawn.nodes.values():
            assert text.count(f" {shown} ") == 1, text
        for edge in drawn.edges:
            assert edge.state in text, text


def test_a_chain_is_straight() -> None:
    text = draw(graph("a b needs x", "b c needs x", "c d needs x"), unicode=True)
    arrows = {line.index("▼") for line in text.splitlines() if "▼" in line}
    assert len(arrows) == 1


def test_an_output_without_unicode_gets_ascii() -> None:
    command = [sys.executable, "-m", "pidone", "graph", str(TASKS / "eureka.yaml")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    drawn = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert drawn.stdout.decode("ascii").startswith(" " * 5 + "+--------------+")


def test_several_sets_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_graph([str(TASKS)], "text") == 0
    output = capsys.readouterr().out
    assert output.index("eureka\n\n") < output.index("metrics\n\n")


def test_mistakes_are_1_and_no_file_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("{apiVersion: pidone.dev/v1alpha1, kind: TaskSet, metadata: {name: a}, spec: {}}", "utf-8")
    assert print_graph([str(bad)], "text") == 1
    assert '"tasks" is missing' in capsys.readouterr().err
    assert print_graph(["nowhere.yaml"], "text") == 2
    assert capsys.readouterr().err == "pidone graph: nowhere.yaml: No such file or directory\n"
