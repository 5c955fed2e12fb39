"""Work in lines of Python that are executed: the same on every machine, whatever else runs on it."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def lines_of(function: Callable[[], object]) -> int:
    """Return how many lines a call of ``function`` executes."""
    count = 0

    def trace(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count
