"""Damaged files, as many as wanted: ``python -m tests.language.fuzz --inputs 100000 --seed 1``.

Each input is made of the corpus: bytes and lines are changed, files spliced, values exchanged for others and written
anew in another style. Of each input it must hold that checking ends soon and without a traceback, that findings lie
inside the file, in order and none twice, that every format can write them, and that a pod takes what the checker takes.
Input N of a seed is always the same: ``--only N`` shows it again.
"""

import argparse
import json
import re
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from pidone.cli.formats import FORMATS, coloured
from pidone.errors import LanguageError
from pidone.language.checking import Checked, check_bytes
from pidone.language.model import TaskSet
from pidone.language.reading import read
from pidone.language.rendering import render
from pidone.language.resolution import heirs
from pidone.language.schemas import actions
from pidone.plan.format import decode_plan
from pidone.text import printable

HERE = Path(__file__).parent
PROGRESS = 50_000
SECONDS = 5.0  # of processor time that one input may take; a usual one takes a hundredth
POD = {
    "metadata": {"name": "web-0", "namespace": "shop", "uid": "u", "labels": {"app": "web"}},
    "spec": {"nodeName": "node-1"},
    "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]},
}
SPECIAL = (
    "",
    "5 seconds",
    "\u00e9",
    "\U0001f600",
    "\u200b",
    "\u202e",
    "\u2028",
    "\u0085",
    "\ufeff",
    "\x00",
    "\x1b[2J",
    "\ud800",
)
PLAIN = """
    0 1 -1 8080 70000 1.5 1e3 1e999 0123 0o17 0x1F 1_000 1:30 12:30:45 2026-11-23 .inf -.inf .nan ~ null
    true on y No = << * & ! % @ ` '' 10s 1h30m 99999h 0s ready ready.healthy a.b.c registration beat
    metrics name tasks spec params kind TaskSet TaskBinding pidone.dev/v1alpha1 /bin/true ../x HTTP
    $(params.a) $(params.port) $(pod.name) $(pod.x) $$(x) $( $() {} [] [[]] {a:b} http://e:1/e (a+)+$ ^[a-z]+$ [ (
"""
WORDS = (*PLAIN.split(), *SPECIAL)
PIECES = (
    *(
        "\n",
        "\n  ",
        "\n    ",
        "\n- ",
        "- ",
        ": ",
        ", ",
        "#",
        " #",
        "\t",
        "\r",
        "\r\n",
        "---\n",
        "...\n",
        "\n---",
    ),
    *("? ", "| ", "|\n", ">-\n", "|2\n", "'", '"', "\\", "&a ", "*a", "!!str ", "!<x> ", "{", "}", "[", "]"),
    *("%YAML 1.1\n", "%TAG ! x\n"),
)


def seeds() -> list[bytes]:
    """The corpus: the good and the bad files, and the ready-made sets."""
    folders = (HERE / "good", HERE / "bad", HERE.parent.parent / "tasks")
    return [file.read_bytes() for folder in folders for file in sorted(folder.glob("*.yaml"))]


class Fuzzer:
    """The inputs of one seed."""

    def __init__(self, seed: int, corpus: Sequence[bytes]) -> None:
        self._seed = seed
        self._corpus = corpus
        self._texts = [one.decode("utf-8", "replace") for one in corpus]
        self._values = [
            document.root.value
            for text in self._texts
            for document in read(text, "x.yaml")[0]
            if isinstance(document.root.value, dict)
        ]
        self._subtrees = [inner for value in self._values for inner in _inside(value)]

    def input(self, number: int) -> bytes:
        random = Random(f"{self._seed} {number}")
        kinds: Sequence[Callable[[Random], bytes]] = (
            self._bytes,
            self._lines,
            self._structure,
            self._structure,
        )
        return random.choice(kinds)(random)

    def _bytes(self, random: Random) -> bytes:
        data = bytearray(random.choice(self._corpus))
        for _ in range(random.choice((1, 1, 2, 4, 16))):
            at = random.randrange(len(data) + 1)
            match random.randrange(6):
                case 0:
                    data[at : at + random.randrange(1, 20)] = b""
                case 1:
                    data[at:at] = bytes(random.randrange(256) for _ in range(random.randrange(1, 5)))
                case 2:
                    data[at : at + random.randrange(3)] = _piece(random).encode("utf-8", "surrogatepass")
                case 3:
                    data[at : at + 1] = bytes([random.randrange(256)])
                case 4:
                    piece = data[at : at + random.randrange(1, 40)]
                    data[at:at] = piece * random.choice((1, 2, 2, 50, 500))
                case 5:
                    other = random.choice(self._corpus)
                    start = random.randrange(len(other) + 1)
                    data[at:] = other[start:]
        encoding = random.choice(("",) * 40 + ("utf-16", "utf-16-be", "utf-8-sig", "latin-1"))
        return bytes(data).decode("utf-8", "replace").encode(encoding, "replace") if encoding else bytes(data)

    def _lines(self, random: Random) -> bytes:
        lines = random.choice(self._texts).split("\n")
        for _ in range(random.choice((1, 1, 2, 5))):
            at = random.randrange(len(lines))
            match random.randrange(7):
                case 0:
                    del lines[at : at + random.randrange(1, 4)]
                case 1:
                    lines[at:at] = lines[at : at + random.randrange(1, 4)] * random.choice((1, 1, 1, 30))
                case 2:
                    other = random.randrange(len(lines))
                    lines[at], lines[other] = lines[other], lines[at]
                case 3:
                    lines[at] = " " * random.randrange(12) + lines[at].lstrip()
                case 4:
                    key, colon, _ = lines[at].partition(": ")
                    lines[at] = f"{key}{colon}{random.choice(WORDS)}"
                case 5:
                    lines[at] += _piece(random)
                case 6:
                    lines[at] = lines[at].replace(" ", random.choice(("\t", "\u00a0", "  ", "")))
            lines = lines or [""]
        end = random.choice(("\n",) * 10 + ("\r\n", "\r", "\u2028", "\x85"))
        return end.join(lines).encode("utf-8", "surrogatepass")

    def _structure(self, random: Random) -> bytes:
        documents = []
        for _ in range(random.choice((1, 1, 1, 1, 2, 3))):
            value = deepcopy(random.choice(self._values))
            for _ in range(random.choice((1, 1, 2, 3, 8))):
                value = self._changed(random, value)
            documents.append(_written(random, value, 0))
        return "\n---\n".join(documents).encode("utf-8", "surrogatepass")

    def _changed(self, random: Random, value: Any) -> Any:
        """``value`` with one change somewhere in it, as likely here as there."""
        places = list(_places(value))
        if not places or random.random() < 0.02:
            return self._other(random, value)
        around, key = random.choice(places)
        match random.randrange(10):
            case 0:
                del around[key]
            case 1 if isinstance(around, dict):
                around[_misspelt(random, str(key))] = around.pop(key)
            case 2 if isinstance(around, dict):
                around[random.choice(WORDS)] = deepcopy(random.choice(self._subtrees))
            case 3 if isinstance(around, list):
                around.extend(around[:3] * random.choice((1, 1, 40)))
            case _:
                around[key] = self._other(random, around[key])
        return value

    def _other(self, random: Random, value: Any) -> Any:
        match random.randrange(6):
            case 0:
                return deepcopy(random.choice(self._subtrees))
            case 1:
                return [value]
            case 2:
                return {random.choice(WORDS): value}
            case 3:
                return random.choice((None, True, 0, -1, 10**30, 1.5, "", [], {}))
            case 4 if isinstance(value, str):
                return _misspelt(random, value)
            case _:
                return random.choice(WORDS)


def _piece(random: Random) -> str:
    return random.choice((*PIECES, *WORDS))


def _misspelt(random: Random, word: str) -> str:
    at = random.randrange(len(word) + 1)
    return (
        word[:at]
        + random.choice(("", "", "a", "A", "-", ".", "$(params.a)", "\n"))
        + word[at + random.randrange(2) :]
    )


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in ``value`` with every key of it."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _inside(value: Any) -> Iterator[Any]:
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _inside(inner)


def _written(random: Random, value: Any, indent: int) -> str:
    """``value`` as YAML: flow or block, quoted or not, now and then with an anchor or a comment."""
    anchor = random.choice(("",) * 60 + ("&a ", "*a # ", "!!str "))
    if not isinstance(value, dict | list) or not value or random.random() < 0.15:
        if isinstance(value, str) and random.random() < 0.6:
            return anchor + value
        return anchor + json.dumps(value, ensure_ascii=random.random() < 0.5)
    space = "\n" + "  " * indent
    if isinstance(value, list):
        return anchor + "".join(f"{space}- {_written(random, inner, indent + 1)}" for inner in value)
    pairs = (f"{space}{key}: {_written(random, inner, indent + 1)}" for key, inner in value.items())
    return anchor + "".join(pairs)


class TooLongError(Exception):
    """One input took more than its time."""


def examine(data: bytes) -> Checked:
    """Check ``data``, and what must hold of every file. Raises ``AssertionError``, or what the checker raises."""
    checked = check_bytes(data, "x.yaml")
    text = data.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = re.split("\r\n|[\n\r]", text)
    for finding in checked.all:
        assert finding.file == "x.yaml"
        assert 1 <= finding.line <= len(lines), f"outside of the file: {finding}"
        assert 1 <= finding.column <= len(lines[finding.line - 1]) + 1, f"outside of its line: {finding}"
        assert finding.column < finding.end, f"of no width: {finding}"
        assert len(finding.message) < 400, f"long: {finding}"
        assert printable(str(finding).replace("\n", "")) == str(finding).replace("\n", "")
        assert finding.rule != "schema", f"a keyword without words: {finding}"
    places = [(finding.line, finding.column) for finding in checked.all]
    assert places == sorted(places)
    assert len(set(checked.all)) == len(checked.all)
    assert not (checked.findings and checked.objects)
    for write in (*FORMATS.values(), coloured):
        write(checked.all).encode("utf-8")
    _run(checked)
    return checked


def _run(checked: Checked) -> None:
    """What was taken renders, or a pod's values do not fit; and the pod takes what is rendered."""
    try:
        sets = heirs([one for one in checked.objects if isinstance(one, TaskSet)])
    except LanguageError:
        return  # what they extend is elsewhere
    for one in sets:
        try:
            tasks = render([one], {}, POD)
        except LanguageError:
            continue
        decode_plan(tasks, actions())


def on_alarm(_signal: int, _frame: FrameType | None) -> None:
    raise TooLongError(f"more than {SECONDS:g} s")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="the number of the first input")
    parser.add_argument("--only", type=int, help="write this input to stdout, and what is found to stderr")
    arguments = parser.parse_args()
    fuzzer = Fuzzer(arguments.seed, seeds())
    if arguments.only is not None:
        data = fuzzer.input(arguments.only)
        sys.stdout.buffer.write(data)
        print("\n".join(map(str, examine(data).all)), file=sys.stderr)
        return 0
    signal.signal(signal.SIGVTALRM, on_alarm)
    failed, rules, slowest = 0, Counter[str](), (0.0, 0)
    began = time.monotonic()
    for number in range(arguments.start, arguments.start + arguments.inputs):
        data = fuzzer.input(number)
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        started = time.process_time()
        try:
            checked = examine(data)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            failed += 1
            print(f"input {number}: {type(error).__name__}: {error!s:.300}", flush=True)
            for place in traceback.extract_tb(error.__traceback__)[-3:]:
                print(f"    {place.filename}:{place.lineno} {place.line}", flush=True)
        else:
            rules.update(finding.rule for finding in checked.all)
            rules["(none)"] += not checked.all
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        done = number - arguments.start + 1
        if done % PROGRESS == 0:
            print(f"{done} inputs, {failed} failed", flush=True)
        slowest = max(slowest, (time.process_time() - started, number))
    print(f"{arguments.inputs} inputs in {time.monotonic() - began:.0f} s, {failed} failed")
    print(f"slowest: input {slowest[1]} with {slowest[0] * 1000:.0f} ms")
    print(", ".join(f"{rule} {count}" for rule, count in rules.most_common()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
