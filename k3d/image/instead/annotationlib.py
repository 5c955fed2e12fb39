"""Replaces the module of the standard library, which takes 110 KiB with ast. For attrs, dataclasses and typing.

It evaluates annotations as Python did before 3.14, for which everything in the image is written as well. So no
annotation contains a name that is undefined, except in quotes.
"""

from collections.abc import Callable
from typing import Any


class Format:
    """The numbers that an ``__annotate__`` function is called with (PEP 649)."""

    VALUE, VALUE_WITH_FAKE_GLOBALS, FORWARDREF, STRING = range(1, 5)


class ForwardRef:
    """A type in quotes inside of another one, as in ``Optional["Fields"]``."""

    __forward_code__ = None  # typing reads it to compile the text, and does not use the result

    def __init__(self, name: str, **options: object) -> None:
        self.__forward_arg__ = name

    def __repr__(self) -> str:
        return f"ForwardRef({self.__forward_arg__!r})"


def get_annotations(of: Any, **options: object) -> dict[str, Any]:
    return dict(of.__annotations__)


def call_annotate_function(annotate: Callable[[int], dict[str, Any]], *_: object, **options: object) -> Any:
    return annotate(Format.VALUE)


def get_annotate_from_class_namespace(namespace: Any) -> Any:
    return namespace.get("__annotate__") or namespace.get("__annotate_func__")


def type_repr(value: object) -> str:
    return value.__qualname__ if isinstance(value, type) else repr(value)


def annotations_to_string(annotations: dict[str, Any]) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else type_repr(value) for name, value in annotations.items()
    }
