"""Draws a graph with characters: boxes in layers from top to bottom, and lines in the channels between layers.

The four steps of Sugiyama's method:

1. Layers: each node stands one layer below its lowest predecessor (longest path).
2. Order: the nodes of a layer are sorted by the barycenter of their neighbours.
3. Positions: least squares, with minimum distances.
4. Lines at right angles: horizontal pieces that overlap get different rows of the channel.

All lines of one kind from one task are one trunk that branches.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

KINDS = {
    "needs": "",
    "while": "while ",
    "runOn": "on ",
}  # the task's field, and the prefix of the edge's label
GAP = 3  # columns between two boxes
SWEEPS = 8  # rounds through all layers, for order and for positions
UP, DOWN, LEFT, RIGHT = 1, 2, 4, 8
_JOINTS = dict(zip(range(1, 16), "│││─┘┐┤─└┌├─┴┬┼", strict=True))
_STRAIGHT = {  # a vertical and a horizontal piece by kind; True: in Unicode, False: in ASCII
    True: {"needs": "│─", "while": "┆┄", "runOn": "║═"},
    False: {"needs": "|-", "while": ":.", "runOn": "#="},
}


@dataclass(frozen=True, slots=True)
class Edge:
    """The task ``target`` lists ``source.state`` in its field ``kind``: needs, while or runOn."""

    source: str
    target: str
    kind: str
    state: str

    @property
    def label(self) -> str:
        return KINDS[self.kind] + self.state


@dataclass(frozen=True, slots=True)
class Graph:
    """The tasks of a set and their edges. Sources of events of the pod are nodes too."""

    name: str
    nodes: dict[str, str]  # the text of each box, by the task's name
    edges: tuple[Edge, ...]


@dataclass(slots=True, eq=False)
class Item:
    """A box, or a trunk that passes through a layer."""

    text: str = ""  # of the box; empty: a trunk
    inputs: list["Wire"] = field(default_factory=list)
    outputs: list["Trunk"] = field(default_factory=list)
    centre: float = 0.0

    @property
    def width(self) -> int:
        if not self.text:
            return 1
        labels = sum(len(wire.label) + 3 for wire in self.inputs)
        return max(len(self.text) + 4, labels + 1, 2 * len(self.outputs) + 3)

    @property
    def left(self) -> int:
        return round(self.centre - self.width / 2)


@dataclass(slots=True, eq=False)
class Trunk:
    """The lines of one kind from an item to the next layer."""

    source: Item
    kind: str
    wires: list["Wire"] = field(default_factory=list)
    x: int = 0
    row: int = 0  # of its horizontal piece in the channel


@dataclass(slots=True, eq=False)
class Wire:
    """One branch of a trunk, which ends in the next layer."""

    trunk: Trunk
    target: Item
    label: str = ""
    x: int = 0


def draw(graph: Graph, *, unicode: bool) -> str:
    """Return the drawing as lines of text. Edges that would point upwards are listed below it."""
    downward, upward = _acyclic(graph)
    layers = _items(graph, downward)
    _order(layers)
    _place(layers)

    canvas = _Canvas(unicode=unicode)
    row = 0
    for index, layer in enumerate(layers):
        for item in layer:
            canvas.box(row, item)
        row += 3
        if index + 1 < len(layers):
            row = _channel(canvas, row, layer, layers[index + 1])

    text = canvas.text()
    kinds = dict.fromkeys(edge.kind for edge in graph.edges)
    if len(kinds) > 1:
        text += "\n" + "   ".join(f"{canvas.line(kind) * 3} {kind}" for kind in kinds) + "\n"
    if upward:
        text += "\n" + "".join(f"{edge.target}: {edge.kind} {edge.source}.{edge.state}\n" for edge in upward)
    return text


def _acyclic(graph: Graph) -> tuple[list[Edge], list[Edge]]:
    """Return the edges that can all point downwards, and those that close a cycle (events may)."""
    below: dict[str, set[str]] = {name: set() for name in graph.nodes}

    def reaches(start: str, goal: str) -> bool:
        visited, queue = {start}, [start]
        while queue:
            name = queue.pop()
            if name == goal:
                return True
            new = below[name] - visited
            visited |= new
            queue += new
        return False

    downward, upward = [], []
    for edge in sorted(graph.edges, key=lambda edge: list(KINDS).index(edge.kind)):
        if edge.source not in below or edge.target not in below or reaches(edge.target, edge.source):
            upward.append(edge)
        else:
            below[edge.source].add(edge.target)
            downward.append(edge)
    return downward, upward


def _items(graph: Graph, edges: Sequence[Edge]) -> list[list[Item]]:
    """Return the layers: boxes, and an item for each trunk that passes through a layer."""
    depth = dict.fromkeys(graph.nodes, 0)
    for _ in graph.nodes:
        changed = False
        for edge in edges:
            if depth[edge.target] <= depth[edge.source]:
                depth[edge.target], changed = depth[edge.source] + 1, True
        if not changed:
            break

    boxes = {name: Item(text) for name, text in graph.nodes.items()}
    layers: list[list[Item]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    for name, box in boxes.items():
        layers[depth[name]].append(box)

    trunks: dict[tuple[str, str], dict[str, list[str]]] = {}
    for edge in edges:
        labels = trunks.setdefault((edge.source, edge.kind), {}).setdefault(edge.target, [])
        labels.append(edge.label)
    for (source, kind), targets in trunks.items():
        item = boxes[source]
        for level in range(depth[source] + 1, max(depth[target] for target in targets) + 1):
            trunk = Trunk(item, kind)
            item.outputs.append(trunk)
            ends = [
                (boxes[target], ", ".join(labels))
                for target, labels in targets.items()
                if depth[target] == level
            ]
            if any(depth[target] > level for target in targets):
                item = Item()
                layers[level].append(item)
                ends.append((item, ""))
            for end, label in ends:
                wire = Wire(trunk, end, label)
                trunk.wires.append(wire)
                end.inputs.append(wire)
    return layers


def _above(item: Item) -> list[Item]:
    return [wire.trunk.source for wire in item.inputs]


def _below(item: Item) -> list[Item]:
    return [wire.target for trunk in item.outputs for wire in trunk.wires]


def _order(layers: list[list[Item]]) -> None:
    """Sort each layer by the mean position of the neighbours above, then below, in turns."""
    place = {item: float(index) for layer in layers for index, item in enumerate(layer)}
    for sweep in range(SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            neighbours = _above if sweep % 2 == 0 else _below
            layer.sort(key=lambda item: _mean([place[other] for other in neighbours(item)], place[item]))
            place |= {item: float(index) for index, item in enumerate(layer)}


def _place(layers: list[list[Item]]) -> None:
    """Set the centre of each item, near to the mean of its neighbours' centres. The leftmost column is 0."""
    for layer in layers:
        _settle(layer, [0.0] * len(layer))
    for sweep in range(SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            neighbours = _above if sweep % 2 == 0 else _below
            wishes = [_mean([other.centre for other in neighbours(item)], item.centre) for item in layer]
            _settle(layer, wishes)
    start = min((item.left for layer in layers for item in layer), default=0)
    for layer in layers:
        for item in layer:
            item.centre -= start


def _settle(layer: list[Item], wishes: list[float]) -> None:
    """Set the centres as near to the wishes as order and distances allow.

    Least squares under an order is isotonic regression, solved by pooling adjacent violators.
    """
    offsets, offset = [], 0.0
    for index, item in enumerate(layer):
        if index:
            offset += (layer[index - 1].width + item.width) / 2 + GAP
        offsets.append(offset)
    blocks: list[tuple[float, int]] = []  # mean, and number of items
    for wish, off in zip(wishes, offsets, strict=True):
        mean, number = wish - off, 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, number = (before * count + mean * number) / (count + number), count + number
        blocks.append((mean, number))
    means = [mean for mean, number in blocks for _ in range(number)]
    for item, mean, off in zip(layer, means, offsets, strict=True):
        item.centre = round(mean + off)


def _channel(canvas: "_Canvas", top: int, upper: list[Item], lower: list[Item]) -> int:
    """Draw the lines between two layers, and return the first row of the lower one."""
    trunks = [trunk for item in upper for trunk in item.outputs]
    for item in upper:
        item.outputs.sort(key=lambda trunk: _mean([wire.target.centre for wire in trunk.wires], 0.0))
        first = item.left + item.width // 2 - (len(item.outputs) - 1)
        for index, trunk in enumerate(item.outputs):
            trunk.x = first + 2 * index
    for item in lower:
        _ports(item, trunks)
    rows = _rows(trunks)
    bottom = top + rows
    for trunk in trunks:
        canvas.trunk(trunk, top, bottom)
    return bottom + 1


def _ports(item: Item, trunks: Sequence[Trunk]) -> None:
    """Set the column of each wire that enters the item: under its own trunk if possible, never under another."""
    item.inputs.sort(key=lambda wire: wire.trunk.x)
    room = item.left + item.width - 1 - sum(len(wire.label) + 3 for wire in item.inputs)
    least = item.left + 1 if item.text else item.left
    for wire in item.inputs:
        used = {trunk.x for trunk in trunks if trunk is not wire.trunk}
        if item.text:
            room += len(wire.label) + 3
            most = max(room - len(wire.label) - 1, least)
        else:
            most = least + 4
        wish = min(max(wire.trunk.x, least), most) if item.text else least
        free = [x for x in range(least, most + 1) if x not in used] or [wish]
        wire.x = min(free, key=lambda x: (abs(x - wish), x))
        least = wire.x + len(wire.label) + 3
    if not item.text:
        item.centre = item.inputs[0].x + 0.5


def _rows(trunks: Iterable[Trunk]) -> int:
    """Give each horizontal piece a row; pieces that do not overlap may share one. Return the number, at least 1."""
    ends: list[int] = []
    for trunk in sorted(trunks, key=lambda trunk: min(trunk.x, *(wire.x for wire in trunk.wires))):
        columns = [trunk.x, *(wire.x for wire in trunk.wires)]
        if min(columns) == max(columns):
            trunk.row = 0
            continue
        trunk.row = next((row for row, end in enumerate(ends) if end < min(columns)), len(ends))
        ends[trunk.row : trunk.row + 1] = [max(columns)]
    return max(len(ends), 1)


class _Canvas:
    """Cells by row and column: the directions in which lines leave each cell, and text that covers them."""

    def __init__(self, *, unicode: bool) -> None:
        self._unicode = unicode
        self._lines: dict[tuple[int, int], tuple[int, str]] = {}
        self._text: dict[tuple[int, int], str] = {}

    def line(self, kind: str) -> str:
        """Return a horizontal piece of a line of this kind."""
        return _STRAIGHT[self._unicode][kind][1]

    def box(self, row: int, item: Item) -> None:
        left, right = item.left, item.left + item.width - 1
        if not item.text:
            kind = item.inputs[0].trunk.kind
            for inner in range(row, row + 3):
                self._add(inner, left, UP | DOWN, kind)
            return
        for line, ends in ((row, DOWN), (row + 2, UP)):
            for column in range(left, right + 1):
                self._add(line, column, LEFT * (column > left) | RIGHT * (column < right), "needs")
            self._add(line, left, ends, "needs")
            self._add(line, right, ends, "needs")
        self._add(row + 1, left, UP | DOWN, "needs")
        self._add(row + 1, right, UP | DOWN, "needs")
        self._write(row + 1, left + 1, item.text.center(item.width - 2))

    def trunk(self, trunk: Trunk, top: int, bottom: int) -> None:
        """Draw a trunk: down from its item, along its row of the channel, down to each arrow with its label."""
        row, kind = top + trunk.row, trunk.kind
        if trunk.source.text:
            self._add(top - 1, trunk.x, DOWN, "needs")
        for above in range(top, row):
            self._add(above, trunk.x, UP | DOWN, kind)
        self._add(row, trunk.x, UP, kind)
        for wire in trunk.wires:
            first, last = sorted((trunk.x, wire.x))
            for column in range(first, last + 1):
                self._add(row, column, LEFT * (column > first) | RIGHT * (column < last), kind)
            self._add(row, wire.x, DOWN, kind)
            for below in range(row + 1, bottom):
                self._add(below, wire.x, UP | DOWN, kind)
            if wire.target.text:
                self._write(bottom, wire.x, f"{'▼' if self._unicode else 'v'} {wire.label}")
            else:
                self._add(bottom, wire.x, UP | DOWN, kind)

    def text(self) -> str:
        height = max((row for row, _ in self._lines), default=-1) + 1
        rows: list[list[str]] = [[] for _ in range(height)]
        for row, column in sorted(self._lines.keys() | self._text.keys()):
            rows[row] += [" "] * (column - len(rows[row]))
            rows[row].append(self._text.get((row, column)) or self._glyph(*self._lines[row, column]))
        return "".join("".join(row).rstrip() + "\n" for row in rows)

    def _glyph(self, mask: int, kind: str) -> str:
        straight = _STRAIGHT[self._unicode][kind]
        if mask & (LEFT | RIGHT) == 0:
            return straight[0]
        if mask & (UP | DOWN) == 0:
            return straight[1]
        return _JOINTS[mask] if self._unicode else "+"

    def _add(self, row: int, column: int, mask: int, kind: str) -> None:
        before, first_kind = self._lines.get((row, column), (0, kind))
        self._lines[row, column] = (before | mask, first_kind)

    def _write(self, row: int, column: int, text: str) -> None:
        for index, character in enumerate(text):
            self._text[row, column + index] = character


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
