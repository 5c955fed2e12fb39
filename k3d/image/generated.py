"""In the image as ``pidone.generated``: what attrs, dataclasses and named tuples generate at import, ready compiled.

They write source text and compile it, at each start the same: 14 ms of CPU of about 100. The image's build runs
the program once and keeps what was compiled, beside this file; text that is not in it is compiled as always.
"""

import builtins
import marshal
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

Table = dict[tuple[str, str], CodeType]  # by mode and source text
TABLE = __file__.rpartition(".")[0] + ".table"

_compile, _exec, _eval = builtins.compile, builtins.exec, builtins.eval


def use() -> None:
    """Take what is in the table from there, once each, from now on. Without a table nothing changes."""
    try:
        with open(TABLE, "rb") as file:
            table: Table = marshal.loads(file.read())  # noqa: S302 - as safe as any byte code beside it
    except (OSError, EOFError, ValueError, TypeError):  # none, or damaged: it is a courtesy
        return
    _install(table, keep=False)


def record() -> None:
    """Keep what is compiled from now on; ``save`` writes it."""
    _install(_recorded, keep=True)


def save(change: Callable[[CodeType], CodeType]) -> None:
    with open(TABLE, "wb") as file:
        marshal.dump({text: change(code) for text, code in _recorded.items()}, file)


_recorded: Table = {}


def _install(table: Table, *, keep: bool) -> None:
    def compiled(source: Any, mode: str, filename: str, *rest: Any, **named: Any) -> Any:
        if not isinstance(source, str):
            return _compile(source, filename, mode, *rest, **named)
        code = table.get((mode, source)) if keep else table.pop((mode, source), None)
        if code is None:
            code = _compile(source, filename, mode, *rest, **named)
            if keep:
                table[mode, source] = code
        return code

    def compile_(source: Any, filename: Any, mode: str, *rest: Any, **named: Any) -> Any:
        return compiled(source, mode, filename, *rest, **named)

    def exec_(source: Any, /, globals: Any = None, locals: Any = None, **named: Any) -> None:  # noqa: A002 - its names
        if isinstance(source, str):
            source = compiled(source, "exec", "<string>")
        _exec(source, *_scope(globals, locals), **named)

    def eval_(source: Any, /, globals: Any = None, locals: Any = None) -> Any:  # noqa: A002 - its names
        if isinstance(source, str):
            source = compiled(source.lstrip(" \t"), "eval", "<string>")
        return _eval(source, *_scope(globals, locals))

    builtins.compile, builtins.exec, builtins.eval = compile_, exec_, eval_


def _scope(outer: Any, inner: Any) -> tuple[Any, Any]:
    """What the built-in functions take where nothing is given: the caller's."""
    if outer is not None:
        return outer, outer if inner is None else inner
    frame = sys._getframe(2)  # the only way; the built-in functions do the same
    return frame.f_globals, frame.f_locals if inner is None else inner
