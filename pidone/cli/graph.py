"""``pidone graph``: draws the dependencies of tasks in the terminal, or writes them for Graphviz and Mermaid."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pidone.cli.drawing import KINDS, Edge, Graph, draw
from pidone.cli.output import complain, unreadable
from pidone.cli.render import read_objects, task_sets
from pidone.errors import PidoneError
from pidone.language.model import TaskSet
from pidone.language.schemas import actions

DOT = {"needs": "solid", "while": "dashed", "runOn": "bold"}
MERMAID = {"needs": "-->", "while": "-.->", "runOn": "==>"}


def print_graph(paths: Sequence[str], form: str) -> int:
    """Print the graph of each TaskSet as ``text``, ``dot`` or ``mermaid``.

    Exit code 0, 1 for mistakes in a file, 2 for a file that cannot be read.
    """
    try:
        graphs = [graph_of(task_set) for task_set in task_sets(read_objects(paths))]
    except OSError as error:
        return unreadable("graph", error)
    except PidoneError as error:
        complain(error)
        return 1
    match form:
        case "dot":
            print(_dot(graphs), end="")
        case "mermaid":
            print(_mermaid(graphs), end="")
        case _:
            unicode = _takes_unicode(sys.stdout.encoding)
            drawings = [draw(graph, unicode=unicode) for graph in graphs]
            if len(graphs) > 1:
                drawings = [f"{graph.name}\n\n{text}" for graph, text in zip(graphs, drawings, strict=True)]
            print("\n".join(drawings), end="")
    return 0


def graph_of(task_set: TaskSet) -> Graph:
    """Return the graph of a set. Events of the pod come first."""
    tasks = {task["name"]: task for task in task_set.tasks}
    edges = tuple(dict.fromkeys(edge for task in tasks.values() for edge in _edges(task, tasks)))
    events = dict.fromkeys(edge.source for edge in edges if edge.source not in tasks)
    return Graph(
        task_set.name,
        {name: name for name in events} | {name: _box_text(task) for name, task in tasks.items()},
        edges,
    )


def _edges(task: Mapping[str, Any], tasks: Mapping[str, Any]) -> Iterator[Edge]:
    for kind in KINDS:
        for text in task.get(kind, ()):
            source, _, state = text.partition(".")
            yield Edge(source, task["name"], kind, state or _ready(tasks.get(source, {})))


def _ready(task: Mapping[str, Any]) -> str:
    return next((action.ready for name, action in actions().items() if name in task), "")


def _box_text(task: Mapping[str, Any]) -> str:
    action = next((name for name in actions() if name in task), "")
    every = f" every {task['every']}" if "every" in task else ""
    return f"{task['name']}: {action}{every}"


def _takes_unicode(encoding: str | None) -> bool:
    try:
        "─▼".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _dot(graphs: Sequence[Graph]) -> str:
    lines = ["digraph pidone {", '  node [shape=box, fontname="sans-serif"];']
    for graph in graphs:
        lines += [
            f"  subgraph {json.dumps(f'cluster {graph.name}')} {{",
            f"    label={json.dumps(graph.name)};",
        ]
        lines += [f"    {_id(graph, name)} [label={json.dumps(text)}];" for name, text in graph.nodes.items()]
        lines += [
            f"    {_id(graph, edge.source)} -> {_id(graph, edge.target)} "
            f"[label={json.dumps(edge.label)}, style={DOT[edge.kind]}];"
            for edge in graph.edges
        ]
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def _mermaid(graphs: Sequence[Graph]) -> str:
    lines = ["flowchart TD"]
    for graph in graphs:
        lines.append(f"  subgraph {graph.name}")
        lines += [f'    {_word(graph, name)}["{text}"]' for name, text in graph.nodes.items()]
        lines += [
            f'    {_word(graph, edge.source)} {MERMAID[edge.kind]}|"{edge.label}"| {_word(graph, edge.target)}'
            for edge in graph.edges
        ]
        lines.append("  end")
    return "\n".join([*lines, ""])


def _id(graph: Graph, name: str) -> str:
    return json.dumps(f"{graph.name}/{name}")


def _word(graph: Graph, name: str) -> str:
    """Return one word that is not a keyword of Mermaid, such as ``end``."""
    return f"{graph.name}_{name}".replace("-", "_")
