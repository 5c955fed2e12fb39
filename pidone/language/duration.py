"""Reads and writes durations as in Gateway API (GEP-2257): ``10s``, ``5m``, ``1h30m``, ``500ms``."""

import re
from typing import Any

_WHOLE = re.compile(r"([0-9]{1,5}(h|m|s|ms)){1,4}")
_PART = re.compile(r"([0-9]+)(ms|h|m|s)")
_MILLISECONDS = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}


def seconds(text: Any) -> int | float | None:
    """Return the seconds of a duration, an int if whole; None for anything else."""
    if not isinstance(text, str) or not _WHOLE.fullmatch(text):
        return None
    total = sum(int(number) * _MILLISECONDS[unit] for number, unit in _PART.findall(text))
    return total // 1000 if total % 1000 == 0 else total / 1000


def text(number: float) -> str:
    """Return seconds as a duration, in the greatest unit without a fraction."""
    milliseconds = round(number * 1000)
    if not milliseconds:
        return "0s"
    unit = next(unit for unit, size in _MILLISECONDS.items() if milliseconds % size == 0)
    return f"{milliseconds // _MILLISECONDS[unit]}{unit}"
