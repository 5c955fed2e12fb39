"""Reads JSON as RFC 8259 has it.

Python's reader also takes NaN, numbers beyond the largest float, half characters, UTF-16 and UTF-32.
"""

import json
import re
from codecs import BOM_UTF8
from itertools import islice
from math import isfinite
from operator import ne
from typing import Any, NoReturn

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # one half of a character; most often the other half follows

# A string, and ":" behind the name of a member. Also a string without an end is one match: a search that begins again
# at each quotation mark takes a minute for 200 kB.
_STRING = re.compile(rb'"((?:[^"\\]|\\.)*+)(?:"(\s*+:)?|\\?\Z)', re.DOTALL)

# Different names in one text of a stranger's. The seed of hashes in a pod may be that of the image (docs/footprint.md),
# so the sender can choose names whose places in a dictionary collide: n of them take n * n / 2 steps, 1,000 2 ms.
MAX_NAMES = 1000


def check_names(data: bytes) -> None:
    """Raise ``ValueError`` if a JSON text has more than ``MAX_NAMES`` different names of members.

    Python's reader has one dictionary for all names of a text, so the bound is not one for each object.
    """
    if data.count(b":") > MAX_NAMES:
        names = sorted(string[1] for string in _STRING.finditer(data) if string[2])  # without hashes
        if sum(map(ne, names, islice(names, 1, None))) >= MAX_NAMES:
            raise ValueError(f"it has more than {MAX_NAMES} different names")


def loads(data: bytes) -> Any:
    """Return the value of a JSON text. Raises ``ValueError`` whose text is for the sender."""
    try:
        value = json.loads(
            data.removeprefix(BOM_UTF8).decode(), parse_constant=_no_constant, parse_float=_number
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if _SURROGATE.search(data):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"a text has {error.object[error.start]!r}, which is half a character"
            ) from error
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _number(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text[:20]} is too large a number")
    return number
