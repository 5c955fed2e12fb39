"""kubectl (its own Go packages), pidone and ruamel read the same values from each file without findings."""

import json
import re
import subprocess
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from ruamel.yaml import YAML

from pidone.errors import LanguageError
from pidone.language import foreign
from pidone.language.checking import check_text
from pidone.language.reading import read
from pidone.language.schemas import API_VERSION
from tests import golang
from tests.language.fuzz import Fuzzer, seeds
from tests.language.test_checking import GOOD
from tests.patience import ENDURANCE, PATIENCE_SECONDS

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def kubectl() -> Path:
    """The program. Its first build takes ten seconds and fetches four small modules."""
    try:
        return golang.build_cached(HERE / "kubectl_yaml", "kubectl_yaml")
    except golang.NoGo as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def kubectl_documents(kubectl: Path) -> dict[Path, Any]:
    """The documents of all good files."""
    return readings(kubectl, GOOD)


def readings(kubectl: Path, files: Iterable[Path]) -> dict[Path, Any]:
    """The documents of each file, or None for a file that kubectl does not accept as YAML."""
    names = "".join(f"{file}\n" for file in files)
    done = subprocess.run(
        [kubectl], input=names.encode(), capture_output=True, check=True, timeout=PATIENCE_SECONDS
    )
    # not splitlines: a string may hold other ends of lines, as U+2028
    found = [json.loads(line) for line in done.stdout.decode("utf-8", "replace").split("\n") if line]
    return {Path(one["file"]): None if one.get("error") else one["documents"] for one in found}


def plain(value: Any) -> Any:
    """The value as JSON compares it: numbers have no type, and true is not a number."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return (type(value).__name__, value)
    return float(value)


def ours(documents: Iterable[Any]) -> list[Any]:
    """The objects of pidone, and lists with one of them."""
    found = [one for one in documents if isinstance(one, dict)]
    return [plain(one) for one in found if is_ours(one) or any(map(is_ours, items(one)))]


def items(value: dict[str, Any]) -> list[Any]:
    """The items of a list; none of another object, nor of a damaged one."""
    inner = value.get("items")
    return inner if isinstance(inner, list) else []


def is_ours(value: Any) -> bool:
    return isinstance(value, dict) and value.get("apiVersion") == API_VERSION


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_good_files_are_read_the_same_by_all_three(kubectl_documents: dict[Path, Any], file: Path) -> None:
    text = file.read_text("utf-8")
    expected = ours(document.root.value for document in read(text, file.name)[0])
    assert expected
    assert ours(kubectl_documents[file]) == expected
    assert ours(YAML(typ="safe", pure=True).load_all(text)) == expected


SCALAR = "0123456789" * 2 + "-+._:eExXobBaAfFnNyYtT~=<>|!*&'\"#%@` ,[]{}?\\/"
FORMS = (
    *(
        "0x1f",
        "-0x1F",
        "+0x1f",
        "0x_1",
        "0b11",
        "-0b11",
        "0o17",
        "-0o17",
        "0O17",
        "017",
        "-017",
        "08",
        "+1",
        "1_0",
    ),
    *(
        "_1",
        "-_1",
        "+_1",
        "._1",
        "1._0",
        ".5",
        "-.5",
        "+.5",
        "5.",
        "1e3",
        "1.e3",
        "1E-3",
        "1e+3",
        ".e3",
        "1e",
        "0.1_0",
    ),
    *(
        "1:30",
        "1:30:00",
        "190:20:30.15",
        "-1:30",
        "2026-11-23",
        "2026-1-2 3:4:5",
        "2026-11-23T00:00:00Z",
        "12e03",
    ),
    *(
        ".inf",
        "-.INF",
        "+.inf",
        ".NaN",
        ".nan",
        "inf",
        "nan",
        "null",
        "NULL",
        "nULL",
        "~",
        "yes",
        "Yes",
        "yEs",
        "y",
    ),
    *(
        "n",
        "N",
        "on",
        "ON",
        "Off",
        "oFF",
        "true",
        "tRUE",
        "TRUE",
        "False",
        "=",
        "<<",
        "0",
        "-0",
        "00",
        "0.0",
        "-0.0",
    ),
    *(
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551616",
        "1e22",
        "123456789012345678",
        "0x7fffffff",
    ),
)


def test_scalars_are_read_the_same_or_something_is_said(kubectl: Path, tmp_path: Path) -> None:
    """A scalar that passes our reader means the same in kubectl: as a value, as a key, in a list."""
    random = Random(1)
    made = ["".join(random.choices(SCALAR, k=random.randrange(1, 6))) for _ in range(1500 * ENDURANCE)]
    expected = {}
    for number, scalar in enumerate((*FORMS, *made)):
        text = f"apiVersion: {API_VERSION}\nvalue: {scalar}\nlist: [{scalar}]\n{scalar}: key\n"
        documents, findings = read(text, "x.yaml")
        if not findings and not documents[0].findings:
            file = tmp_path / f"{number}.yaml"
            file.write_text(text, "utf-8")
            expected[file] = ours(document.root.value for document in documents)
    assert len(expected) > 500
    for file, documents in readings(kubectl, expected).items():
        assert documents is not None, file.read_text("utf-8")
        assert ours(documents) == expected[file], file.read_text("utf-8")


def test_damaged_files_are_read_the_same_or_something_is_said(kubectl: Path, tmp_path: Path) -> None:
    fuzzer, expected = Fuzzer(2, seeds()), {}
    for number in range(500 * ENDURANCE):
        text = fuzzer.input(number).decode("utf-8", "replace")
        if not check_text(text, "x.yaml").findings:
            file = tmp_path / f"{number}.yaml"
            file.write_text(text, "utf-8", newline="")
            expected[file] = ours(document.root.value for document in read(text, "x.yaml")[0])
    assert any(expected.values())
    for file, documents in readings(kubectl, expected).items():
        if expected[file]:
            assert documents is not None, file.read_text("utf-8")
        assert ours(documents or []) == expected[file], file.read_text("utf-8")


# What is not ours: pods, kubeconfigs

ODD = (
    *(
        "a: &a {x: 1}\nb: {<<: *a, y: 2}\n",
        "a: 1\n<<: {a: 2}\n",
        "<<: [{a: 1}, {a: 2, b: 3}]\n",
        "a: 1\na: 2\n",
    ),
    *("1: a\ntrue: b\n1.5: c\n", "", "# c\n", "--- \n---\na: b\n", "a: b\n--- # c\nc: d\n", "a: b\n...\n"),
    *(
        "a: !!binary aGk=\n",
        "a: !x 1\n",
        'a: !!int "1"\n',
        "\ufeffa: b\n",
        "- {name: X, value: =}\n",
        "a: <<\n",
    ),
    *(
        "'<<': {a: b}\n",
        "a: 1e999\n",
        "{a: 1}\n",
        '{"a": "\\ud83d\\ude00"}',
        "on: off\n",
        "a: 1.10\nb: 010\n",
    ),
)
TABS = (
    *(
        "a:\tb\n",
        "a: b\t\n",
        "a: b\t# c\n",
        "a: b\tc\n",
        "a: |\t\n  x\n",
        "a: >-\t# c\n  x\n",
        "a:\t|2\n  x\n",
    ),
    *(
        "a: [\tb,\tc\t]\t\n",
        "a:\t\n  b: c\n",
        "a:\n  - x\t\n",
        "'a'\t: b\n",
        "a: 'x'\t# c\n",
    ),
    *(
        "a: &x\tb\nc: *x\t\n",
        "---\t\na: b\n",
        "{a:\tb}\n",
        "a: b # c\td\n",
        'a: "x\ty"\n',
        "a: x\t\n  y\n",
        "a: b\tc\td \n",
    ),
)


def foreign_values(data: bytes) -> list[Any]:
    text = foreign.decoded(data)
    values = (foreign.value(part, lines=lines) for lines, part in foreign.parts(text))
    return [plain(value) for value in values if value is not None]


def compare(kubectl: Path, folder: Path, inputs: Iterable[bytes]) -> list[str]:
    """What kubectl reads and we do not, or otherwise."""
    files = []
    for number, data in enumerate(inputs):
        files.append(folder / f"{number}.yaml")
        files[-1].write_bytes(data)
    wrong = []
    for file, documents in readings(kubectl, files).items():
        try:
            found = foreign_values(file.read_bytes())
        except LanguageError as error:
            wrong += [] if documents is None else [f"{file.read_bytes()!r}: {error}"]
            continue
        if documents is not None and found != [plain(document) for document in documents]:
            wrong.append(f"{file.read_bytes()!r}: {found}, kubectl {documents}")
    return wrong


def test_pods_and_kubeconfigs_are_read_as_kubectl_reads_them(kubectl: Path, tmp_path: Path) -> None:
    random = Random(3)
    scalars = [*FORMS, *("".join(random.choices(SCALAR, k=random.randrange(1, 6))) for _ in range(3000))]
    texts = [*ODD, *TABS, *(f"v: {scalar}\nl: [{scalar}]\n" for scalar in scalars)]
    utf16 = [
        codec + "a: caf\u00e9\n".encode(name)
        for codec, name in ((BOM_UTF16_LE, "utf-16-le"), (BOM_UTF16_BE, "utf-16-be"))
    ]
    assert compare(kubectl, tmp_path, [*(text.encode() for text in texts), *utf16]) == []


@pytest.mark.parametrize("text", TABS)
def test_a_tab_between_tokens_is_no_mistake(text: str) -> None:
    documents, findings = read(text, "x.yaml")
    assert not findings
    assert not documents[0].findings


def test_damaged_files_of_others_are_read_as_kubectl_reads_them(kubectl: Path, tmp_path: Path) -> None:
    """Other ends of lines than that of YAML 1.2 are left to TaskSets, where they are findings."""
    fuzzer = Fuzzer(4, seeds())
    inputs = [fuzzer.input(number) for number in range(1500)]
    ends = ("\x85", "\u2028", "\u2029")
    utf16 = (BOM_UTF16_LE, BOM_UTF16_BE)  # of which kubectl reads the first document alone
    inputs = [data for data in inputs if not data.startswith(utf16)]
    inputs = [data for data in inputs if not any(end in foreign.decoded(data) for end in ends)]
    # Go's reader takes a list that is the first key of a document for the whole document.
    inputs = [data for data in inputs if not re.search(rb"^\[\] *:", data, re.MULTILINE)]
    assert compare(kubectl, tmp_path, inputs) == []
