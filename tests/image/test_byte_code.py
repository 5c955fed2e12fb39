"""How the image's build changes the code that it compiles."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.image.podman import ROOT
from tests.image.test_instead import load
from tests.patience import PATIENCE_SECONDS

SOURCE = """
from dataclasses import dataclass, field
from typing import NamedTuple

LIMIT: int = 3
unset: Missing


@dataclass
class Point:
    x: int
    more: list[int] = field(default_factory=list)

    def moved(self, by: int, /, to: int = 0, *all: Missing, at: int = 0, **named: Missing) -> "Missing":
        inner: Missing = lambda: [by, to, all, at, named]
        return inner()


class Pair(NamedTuple):
    left: int
    right: int = 2


async def wait(seconds: Missing) -> Missing:
    def inner(seconds: Missing) -> Missing:
        return seconds
    return inner
"""


def test_functions_and_modules_lose_their_annotations_and_classes_keep_theirs() -> None:
    names: dict[str, Any] = {"__name__": __name__}
    build = load("build")
    exec(build.WITHOUT_ANNOTATIONS, names)
    tree = names["WithoutAnnotations"]().visit(ast.parse(SOURCE))
    exec(compile(tree, "sample", "exec", dont_inherit=True), names)
    point, pair = names["Point"], names["Pair"]

    assert point.moved.__annotations__ == names["wait"].__annotations__ == {}
    assert names.get("__annotations__", {}) == {}
    assert names["LIMIT"] == 3
    assert "unset" not in names

    assert point(1) == point(1, [])
    assert pair(1) == (1, 2)
    assert point(1).moved(1, 2, 3, at=4, named=5) == [1, 2, (3,), 4, {"named": 5}]
    assert point.moved.__code__.co_firstlineno == SOURCE[: SOURCE.index("def moved")].count("\n") + 1

    with pytest.raises(StopIteration) as ended:
        names["wait"](1).send(None)
    assert ended.value.value.__annotations__ == {}


# Prints how many texts with a __hash__ the process compiled.
HASHED = """
import builtins, sys
compiled, compile_ = [], compile
builtins.compile = lambda source, *rest, **named: compiled.append(str(source)) or compile_(source, *rest, **named)
sys.path.insert(0, sys.argv[1])
import generated
generated.TABLE = sys.argv[2]
getattr(generated, sys.argv[3])()
import attr
from attr import frozen, field

@frozen
class Point:
    x = field()

@frozen
class Place:
    x = field()
    y = field()

assert {Point(1), Point(1), Point(2), Place(1, 2)} == {Point(1), Point(2), Place(1, 2)}
if sys.argv[3] == "record":
    generated.save(lambda code: code)
print(sum("def __hash__" in source for source in compiled))
"""


def test_generated_code_is_found_whatever_the_seed_of_hashes_is(tmp_path: Path) -> None:
    def hashed(seed: str, how: str) -> int:
        words = [sys.executable, "-c", HASHED, str(ROOT / "k3d/image"), str(tmp_path / "table"), how]
        done = subprocess.run(
            words,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_SECONDS,
        )
        return int(done.stdout)

    assert hashed("1", "record") > 10
    assert hashed("1", "use") == hashed("2", "use") <= 2
