"""Names that collide in dictionaries: the seed of hashes in a pod may be known to everyone, so they can be chosen."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from pidone.plan.strict_json import MAX_NAMES, check_names
from tests.patience import PATIENCE_SECONDS

# With a known seed: names that take the same place, and many of the next ones, in a dictionary of MAX_NAMES entries.
ATTACK = """
import json, sys, time
from itertools import count
from pidone.plan.strict_json import MAX_NAMES, check_names, loads
names = []
for number in count():
    name = f"{number:x}"
    if hash(name) & 0xFFF == 0:
        names.append(name)
        if len(names) == MAX_NAMES:
            break
body = json.dumps(dict.fromkeys(names, 0)).encode()
times = []
for _ in range(20):
    began = time.process_time()
    check_names(body)
    loads(body)
    times.append(time.process_time() - began)
print(min(times))
"""


def test_the_worst_names_that_are_accepted_cost_less_than_5_ms_of_processor_time() -> None:
    env = {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", ATTACK], env=env, capture_output=True, text=True, check=True,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert float(done.stdout) < 0.005


def names(number: int) -> bytes:
    return json.dumps({f"n{each}": 0 for each in range(number)}).encode()


@pytest.mark.parametrize(
    "value",
    [
        {f"n{each}": 0 for each in range(MAX_NAMES + 1)},
        [{f"n{each}": 0} for each in range(MAX_NAMES + 1)],
        {f"\x01{each}": {"a": "b:c"} for each in range(MAX_NAMES + 1)},
    ],
    ids=["one object", "many objects", "escapes"],
)
def test_more_names_are_refused_before_they_are_read(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, indent=1), json.dumps(value, separators=(",", ":"))):
        with pytest.raises(ValueError, match="more than 1000 different names"):
            check_names(text.encode())


@pytest.mark.parametrize(
    "body",
    [
        names(MAX_NAMES),
        json.dumps(
            [{"name": f"task {each}", "every": each, "url": "http://a:1"} for each in range(5000)]
        ).encode(),
        b'"' + b":" * 100_000,
        b'"\\' * 100_000 + b":" * 5000,
        b'"\\\n' * 100_000 + b":" * 5000,
        b'"" ' * 100_000 + b":" * 5000,
        b"\xff" * 5000 + b":" * 5000,
    ],
    ids=[
        "at the bound",
        "many members with few names",
        "no end",
        "no end of an escape",
        "an escaped line end",
        "empty texts",
        "bytes",
    ],
)
def test_other_texts_pass(body: bytes) -> None:
    check_names(body)
