"""Replaces the module of the standard library, which takes 60 kB of the image with ast, pathlib and tokenize.

For logging and Trio's threads. The image has no source whose lines could be shown, and runtimes discard the error
output of a sandbox. The interpreter prints other exceptions without this module.
"""

import sys
from collections.abc import Iterator
from typing import Any


def format_exception(error: Any, value: object = None, trace: object = None) -> list[str]:
    """Return lines: the exceptions that led to the error, then the error. It is the first or the second argument."""
    chain: list[BaseException] = []
    shown: BaseException | None = value if isinstance(value, BaseException) else error
    while shown is not None and not any(shown is earlier for earlier in chain):  # contexts may form a ring
        chain.append(shown)
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)
    return [line for link in reversed(chain) for line in _lines(link)]


def print_exception(error: Any, value: object = None, trace: object = None, *, file: Any = None) -> None:
    print("".join(format_exception(error, value)), end="", file=file or sys.stderr)


def print_exc(*, file: Any = None) -> None:
    """Print the exception that is being handled."""
    print_exception(sys.exception(), file=file)


def _lines(error: BaseException) -> Iterator[str]:
    yield "Traceback (most recent call last):\n"
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        yield f'  File "{code.co_filename}", line {trace.tb_lineno}, in {code.co_qualname}\n'
        trace = trace.tb_next
    yield f"{type(error).__name__}: {error}\n"
    for inner in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from (f"  {line}" for line in format_exception(inner))
