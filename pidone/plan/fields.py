"""Reads a JSON object field by field, and refuses unknown fields.

This is the whole validation in the pod. The controller has checked the plan with schema and positions before it
served it. A mistake that is found here is a version skew or corruption, and is reported with its place.
"""

from typing import Any, TypeVar, overload

from pidone import __version__
from pidone.errors import Refused

T = TypeVar("T")


class _Required:
    """The type of ``_REQUIRED``, the default of a field that must be present."""


_REQUIRED = _Required()


class Fields:
    """A JSON object, and its place in the plan.

    Each method reads a field and removes it; ``done`` refuses the fields that are left. All raise ``Refused`` if a
    required field is missing, or has another type or value than expected.
    """

    __slots__ = ("_left", "path")

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise Refused(f"{path}: expected an object, not {kind(value)}")
        self.path = path
        self._left: dict[str, Any] = dict(value)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def only_name(self) -> str:
        """Return the name of the only field that is left, and do not read it: the name of a variant."""
        if len(self._left) != 1:
            raise Refused(f"{self.path}: expected exactly one variant, not {', '.join(self._left) or 'none'}")
        return next(iter(self._left))

    @property
    def left(self) -> dict[str, Any]:
        """The fields that were not read yet."""
        return dict(self._left)

    def with_defaults(self, common: "Fields") -> "Fields":
        """Return these fields, and those of ``common`` that are not here."""
        return Fields({**common._left, **self._left}, self.path)

    def done(self) -> None:
        """Refuse the fields that were not read. Unknown fields whose name starts with ``x-`` are ignored."""
        unknown = sorted(name for name in self._left if not name.startswith("x-"))
        if unknown:
            names = ", ".join(f'"{name}"' for name in unknown)
            raise Refused(f"{self.path}: pidone {__version__} does not know {names}")

    @overload
    def text(self, name: str) -> str: ...
    @overload
    def text(self, name: str, default: T) -> str | T: ...
    def text(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._take(name, default, str, "a string")

    @overload
    def flag(self, name: str) -> bool: ...
    @overload
    def flag(self, name: str, default: T) -> bool | T: ...
    def flag(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._take(name, default, bool, "true or false")

    @overload
    def integer(self, name: str, *, least: int, most: int) -> int: ...
    @overload
    def integer(self, name: str, default: T, *, least: int, most: int) -> int | T: ...
    def integer(self, name: str, default: Any = _REQUIRED, *, least: int, most: int) -> Any:
        value = self._take(name, default, int, "an integer")
        return self._within(name, value, default, least, most)

    @overload
    def seconds(self, name: str, *, least: float = 0.0, most: float = 31_536_000.0) -> float: ...
    @overload
    def seconds(
        self, name: str, default: T, *, least: float = 0.0, most: float = 31_536_000.0
    ) -> float | T: ...
    def seconds(
        self, name: str, default: Any = _REQUIRED, *, least: float = 0.0, most: float = 31_536_000.0
    ) -> Any:
        value = self._take(name, default, (int, float), "a number of seconds")
        checked = self._within(name, value, default, least, most)
        return float(checked) if isinstance(checked, (int, float)) else checked

    @overload
    def number(self, name: str, *, least: float, most: float) -> float: ...
    @overload
    def number(self, name: str, default: T, *, least: float, most: float) -> float | T: ...
    def number(self, name: str, default: Any = _REQUIRED, *, least: float, most: float) -> Any:
        value = self._take(name, default, (int, float), "a number")
        checked = self._within(name, value, default, least, most)
        return float(checked) if isinstance(checked, (int, float)) else checked

    def texts(self, name: str) -> tuple[str, ...]:
        """Read a list of strings; empty if the field is missing."""
        items = self._take(name, [], list, "a list")
        for index, item in enumerate(items):
            if not isinstance(item, str):
                raise Refused(f"{self.path}.{name}[{index}]: expected a string, not {kind(item)}")
        return tuple(items)

    def names(self, name: str) -> tuple[str, ...]:
        """Read a string or a list of strings; empty if the field is missing."""
        if isinstance(self._left.get(name, []), list):
            return self.texts(name)
        return (self._take(name, _REQUIRED, str, "a string or a list of strings"),)

    def table(self, name: str) -> dict[str, str]:
        """Read an object whose values are strings; empty if the field is missing."""
        table = self._take(name, {}, dict, "an object")
        for key, value in table.items():
            if not isinstance(value, str):
                raise Refused(f"{self.path}.{name}.{key}: expected a string, not {kind(value)}")
        return dict(table)

    def objects(self, name: str) -> "list[Fields]":
        """Read a list of objects; empty if the field is missing."""
        items = self._take(name, [], list, "a list")
        return [Fields(item, f"{self.path}.{name}[{index}]") for index, item in enumerate(items)]

    def members(self, name: str) -> "dict[str, Fields]":
        """Read an object whose values are objects; empty if the field is missing."""
        members = self._take(name, {}, dict, "an object")
        return {key: Fields(value, f"{self.path}.{name}.{key}") for key, value in members.items()}

    def object(self, name: str) -> "Fields":
        """Read a required object."""
        return Fields(self._take(name, _REQUIRED, dict, "an object"), f"{self.path}.{name}")

    def _take(self, name: str, default: Any, types: type | tuple[type, ...], expected: str) -> Any:
        value = self._left.pop(name, default)
        if value is _REQUIRED:
            raise Refused(f'{self.path}: "{name}" is missing; expected {expected}')
        if value is default:
            return value
        # bool is an int in Python, and not in JSON
        if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
            raise Refused(f"{self.path}.{name}: expected {expected}, not {kind(value)}")
        return value

    def _within(self, name: str, value: Any, default: Any, least: float, most: float) -> Any:
        if value is not default and not least <= value <= most:
            raise Refused(f"{self.path}.{name}: expected {least:g} to {most:g}, not {value}")
        return value


def kind(value: object) -> str:
    """Return the JSON type of the value for messages, with scalar values (strings: the first 40 characters)."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f'the string "{value[:40]}"'
        case int() | float():
            return f"the number {value}"
        case list():
            return "a list"
        case _:
            return "an object"
