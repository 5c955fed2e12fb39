"""Reads JSON as RFC 8259 has it.

Python's reader also takes NaN, numbers beyond the largest float, half characters, UTF-16 and UTF-32.
"""

import json
import re
from codecs import BOM_UTF8
from math import isfinite
from typing import Any, NoReturn

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # one half of a character; most often the other half follows


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
