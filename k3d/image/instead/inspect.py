"""Replaces the module of the standard library, which takes 480 KiB with ast and dis.

For attrs, contextlib, dataclasses, traceback, Trio and typing.
"""

import types
from collections.abc import Callable
from typing import Any

_NOTHING = object()
_FLAGS = {
    "generator": 0x20,
    "coroutine": 0x80,
    "asynchronous generator": 0x200,
}  # of co_flags (Include/cpython/code.h)

CORO_CREATED, CORO_RUNNING = "CORO_CREATED", "CORO_RUNNING"
CORO_SUSPENDED, CORO_CLOSED = "CORO_SUSPENDED", "CORO_CLOSED"


def signature(of: Callable[..., Any], **options: object) -> Any:
    """Raise ``ValueError``, as for a function without a signature: attrs and dataclasses then leave it out."""
    raise ValueError("no signature found: the image has none")


def unwrap(function: Any) -> Any:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def getattr_static(value: Any, name: str, default: object = _NOTHING) -> Any:
    """Return the attribute as it is stored in the value or its classes, without calling a descriptor."""
    mro = type.__dict__["__mro__"].__get__  # not of the metaclass, which may compute it
    if isinstance(value, type):
        spaces = [vars(base) for base in (*mro(value), *mro(type(value)))]
    else:
        spaces = [getattr(value, "__dict__", {}), *(vars(base) for base in mro(type(value)))]
    for space in spaces:
        if name in space:
            return space[name]
    if default is _NOTHING:
        raise AttributeError(name)
    return default


def _descriptor_get(descriptor: Any, instance: object) -> Any:
    if isinstance(descriptor, type) or not hasattr(type(descriptor), "__get__"):
        return descriptor
    return type(descriptor).__get__(descriptor, instance, type(instance))


def isgeneratorfunction(function: object) -> bool:
    return _has_flag(function, "generator")


def iscoroutinefunction(function: object) -> bool:
    return _has_flag(function, "coroutine")


def isasyncgenfunction(function: object) -> bool:
    return _has_flag(function, "asynchronous generator")


def _has_flag(function: Any, flag: str) -> bool:
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return isinstance(code, types.CodeType) and bool(code.co_flags & _FLAGS[flag])


def iscoroutine(value: object) -> bool:
    return isinstance(value, types.CoroutineType)


def isasyncgen(value: object) -> bool:
    return isinstance(value, types.AsyncGeneratorType)


def getcoroutinestate(coroutine: Any) -> str:
    if coroutine.cr_running:
        return CORO_RUNNING
    if coroutine.cr_frame is None:
        return CORO_CLOSED
    return CORO_SUSPENDED if coroutine.cr_suspended else CORO_CREATED
