"""Caches compiled code that attrs, dataclasses and named tuples generate; ``pidone.generated`` in the image.

At each start they generate the same source text and compile it, which takes 14 of about 100 ms of CPU. The image's
build runs the program once and stores the compiled code in a table beside this file. Other text is compiled as usual.
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
    """Use the code in the table from now on, each entry once. Without a table nothing changes."""
    try:
        with open(TABLE, "rb") as file:
            table: Table = marshal.loads(file.read())  # noqa: S302 - as safe as any byte code beside it
    except (OSError, EOFError, ValueError, TypeError):  # missing or damaged: the start is slower
        return
    _install(table, keep=False)


def record() -> None:
    """Record the code that is compiled from now on, for ``save``."""
    _install(_recorded, keep=True)


def save(change: Callable[[CodeType], CodeType]) -> None:
    """Write the recorded code, changed by ``change``, to the table."""
    with open(TABLE, "wb") as file:
        marshal.dump({text: change(code) for text, code in _recorded.items()}, file)


_recorded: Table = {}


def _install(table: Table, *, keep: bool) -> None:
    """Replace compile, exec and eval by functions that look into the table first. ``keep``: they also fill it."""

    def compiled(source: Any, mode: str, filename: str, *rest: Any, **named: Any) -> Any:
        if not isinstance(source, str):
            return _compile(source, filename, mode, *rest, **named)
        key = mode, _without_salt(source)
        code = table.get(key) if keep else table.pop(key, None)
        if code is None:
            code = _compile(source, filename, mode, *rest, **named)
            if keep:
                table[key] = code
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


def _without_salt(source: str) -> str:
    """Return the text without the number in a ``__hash__`` by attrs, which is another one at each start.

    attrs takes the hash of a name for it. With a constant, classes still differ.
    """
    head, call, tail = source.partition("return hash((\n")
    number, comma, rest = tail.partition(",")
    return head + call + comma + rest if number.strip().removeprefix("-").isdigit() else source


def _scope(outer: Any, inner: Any) -> tuple[Any, Any]:
    """Return the namespaces, by default those of the caller, as the built-in functions do."""
    if outer is not None:
        return outer, outer if inner is None else inner
    frame = sys._getframe(2)  # the caller of exec or eval; Python offers no other way
    return frame.f_globals, frame.f_locals if inner is None else inner
