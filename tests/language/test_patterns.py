"""Patterns of params: the verdicts of Go's regexp, in linear time."""

import json
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random

import pytest

from pidone.language.safe_patterns import MAX_SIZE, matches, size, wrong_pattern
from tests import golang
from tests.language.work import lines_of
from tests.patience import PATIENCE_SECONDS

HERE = Path(__file__).parent

WRITTEN = (
    *(
        r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
        r"^v[0-9]+(\.[0-9]+){0,2}$",
    ),
    *(
        r"^https?://[^/\s]+(:[0-9]{1,5})?(/.*)?$",
        r"^(a|ab)(c|bcd)(d*)$",
        "[a-z0-9]*[a-z0-9]*[a-z0-9]$",
        "^(a+)+$",
    ),
    *(
        ".*.*.*=",
        "(x+x+)+y",
        "(a|a)*b",
        "(.*)*$",
        "(?i)abc",
        "(?i)[k-s]",
        "(?i)[^k]",
        "a(?i)b|c",
        "(?i:a)b",
        "(?-i)a",
    ),
    *(
        "(?s).",
        ".",
        "(?m)^b$",
        "^b$",
        r"\Ab\z",
        r"\bb\b",
        r"\Bb",
        "a$b",
        "^*a",
        "(?:^a)*b",
        "$^",
        "(^|,)b(,|$)",
        "a|",
        "|",
    ),
    *(
        "()",
        "(|a)+b",
        "a{2}",
        "a{2,}",
        "a{,2}",
        "a{2,3}?b",
        "a{",
        "a{x}",
        "a{1,2",
        "{",
        "}",
        "]",
        "[]a]",
        "[^]a]",
        "[a-]",
    ),
    *(
        "[-a]",
        r"[\d-z]",
        r"[a\-z]",
        r"[\w.]",
        r"[^\w]",
        r"[\W]",
        "[[:alpha:]]",
        "[[:^alpha:]0]",
        "[[:word:]-]",
        "[a-c-e]",
    ),
    *(
        r"\x41",
        r"\x{20ac}",
        r"\101",
        r"\07",
        r"\.\*\[\]",
        "\\-",
        r"\/",
        r"\t\n\r\f\v\a",
        "(?P<n>a)",
        "(?<n>a)",
        "\u00e9+",
    ),
    *(
        "[\u00e0-\u00ff]",
        "(?U)a+",
        "(?U)a+?",
        "(?ims-U:a.b)",
        r"\D\S\W",
        "(a?){3}a{3}",
        "(?s:.)(?m:$)",
        "a|b|",
        "((a))",
    ),
    # and what is refused
    *(
        "(",
        ")",
        "a)",
        "*",
        "+a",
        "?",
        "a**",
        "a*+",
        "a++",
        "a{2}{3}",
        "a{1001}",
        "a{3,2}",
        "[",
        "[a",
        "[z-a]",
        "[]",
        "[^]",
    ),
    *(
        "\\",
        r"\1",
        r"\8",
        r"\Z",
        r"\y",
        r"\x4",
        r"\x{}",
        r"\x{110000}",
        "(?=a)",
        "(?!a)",
        "(?<=a)",
        "(?<!a)",
        "(?>a)",
    ),
    *(
        "(?P=n)",
        "(?P<>a)",
        "(?P<n-m>a)",
        "(?i",
        "(?",
        "(?x)a",
        "(?-)a",
        "(?i-:a)",
        "[[:foo:]]",
        "(?#a)",
    ),
    *("(?(1)a|b)", "(a{1000}){1000}", r"[a-\d]", "{1}", "|*", "(*)", "(?:", "(?i)*", "\u00e9{2"),
)
TEXTS = (
    *(
        "",
        "a",
        "b",
        "ab",
        "abc",
        "aab",
        "aaa",
        "abcd",
        "a b",
        "b\n",
        "a\nb",
        "x,b,y",
        "ABC",
        "K",
        "\u212a",
        "\u017f",
        "S",
    ),
    *(
        "web",
        "web-1",
        "-web",
        "v1.2",
        "v1.2.3.4",
        "http://e:1/e",
        "xxxx=",
        "xxxxxxxxxxxx",
        "a{",
        "a{x}",
        "{",
        "}",
        "]",
        "-",
    ),
    *(
        "\u20ac",
        "\u00e9",
        "\u00e9\u00e9",
        "A",
        "\x07",
        "\t\n\r\f\v\a",
        ".*[]",
        "/",
        "_",
        "0",
        "9",
        "a.b",
        "\U0001f600",
        "\\",
    ),
)


@pytest.fixture(scope="module")
def go() -> Path:
    try:
        return golang.build_cached(HERE / "go_patterns", "go_patterns")
    except golang.NoGo as error:
        pytest.skip(str(error))


def verdicts(program: Path, patterns: Sequence[str], texts: Sequence[str]) -> list[list[bool] | None]:
    """What Go says of the texts; None for a pattern that it refuses."""
    questions = "".join(json.dumps({"pattern": pattern, "texts": list(texts)}) + "\n" for pattern in patterns)
    done = subprocess.run(
        [program], input=questions, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return [None if answer["error"] else answer["matches"] for answer in answers]


def test_written_patterns_have_the_verdicts_of_go(go: Path) -> None:
    for pattern, expected in zip(WRITTEN, verdicts(go, WRITTEN, TEXTS), strict=True):
        assert bool(wrong_pattern(pattern)) == (expected is None), pattern
        if expected is not None:
            assert [matches(pattern, text) for text in TEXTS] == expected, pattern


ATOMS = (
    *"aabbc.^$_ ",
    *("[ab]", "[^a]", r"\b", r"\w", r"\d", r"\B", "[[:upper:]]", "(?i)", r"\A", r"\z", "[a-c]", "\n"),
)
REPEATS = (*("",) * 6, "*", "+", "?", "*?", "{2}", "{1,2}", "{0,3}", "{2,}")


def generated(random: Random, depth: int) -> str:
    parts = []
    for _ in range(random.randrange(4)):
        group = depth and random.random() < 0.4
        atom = f"({random.choice(('', '?:', '?i:', '?m:'))}{generated(random, depth - 1)})" if group else ""
        atom = atom or random.choice(ATOMS)
        parts.append(atom if atom == "(?i)" else atom + random.choice(REPEATS))
    return random.choice(("", "", "|")).join(parts)


def test_generated_patterns_have_the_verdicts_of_go(go: Path) -> None:
    random = Random(3)
    patterns = [generated(random, 3) for _ in range(4000)]
    patterns += [
        "".join(random.choices(r"ab()[]{}*+?|\^$.,-12:=<!P", k=random.randrange(1, 9))) for _ in range(4000)
    ]
    texts = ["", "\n", *("".join(random.choices("aabbcA_ \n", k=random.randrange(1, 8))) for _ in range(40))]
    taken = 0
    for pattern, expected in zip(patterns, verdicts(go, patterns, texts), strict=True):
        assert bool(wrong_pattern(pattern)) == (expected is None), pattern
        if expected is not None:
            taken += 1
            assert [matches(pattern, text) for text in texts] == expected, pattern
    assert taken > 3000


@pytest.mark.parametrize(
    ("pattern", "unit"),
    [
        (".*.*.*=", "x"),
        ("[a-z0-9]*[a-z0-9]*[a-z0-9]$", "a."),
        ("^(a+)+$", "a"),
        ("(a|a|a)*b", "a"),
        ("(a*)*(a*)*b", "a"),
        ("(x?){200}y", "x"),
        ("(a|b)*a[ab]{200}c", "aabab"),
        (r"(\b\w*)*$", "a "),
        ("((a?b?)*c?)*d", "abc"),
    ],
)
def test_twice_the_text_is_twice_the_work(pattern: str, unit: str) -> None:
    assert not wrong_pattern(pattern)
    first, second = (lines_of(partial(matches, pattern, unit * n + ".")) for n in (400, 800))
    assert second < 2.5 * first


def test_twice_the_pattern_is_at_most_twice_the_work_for_a_text() -> None:
    text = "ab" * 500

    def work(n: int) -> int:
        pattern = f"(a|b)*a[ab]{{{n}}}c"
        matches(pattern, text)  # which also fills its tables
        return lines_of(lambda: matches(pattern, text))

    assert work(240) < 2.5 * work(120)


@pytest.mark.parametrize(
    "pattern", ["(((a{100}){100}){100}){100}", "a{1000}b{1000}", "(" * 100 + ")" * 100, "(a|" * 60]
)
def test_a_pattern_has_an_end(pattern: str) -> None:
    assert lines_of(lambda: wrong_pattern(pattern)) < 50_000
    assert wrong_pattern(pattern)
    assert size(pattern) == 0


def test_the_size_of_a_pattern_counts_what_is_repeated() -> None:
    assert size("a{900}") == 900 < MAX_SIZE
