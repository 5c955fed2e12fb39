"""The small modules of the image that replace large ones of the standard library."""

import asyncio
import functools
import importlib.util
import inspect
import ipaddress
import sys
import traceback
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.image.podman import ROOT


def load(name: str) -> ModuleType:
    """Load a module of ``k3d/image``, by its path there."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), ROOT / f"k3d/image/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Base:
    inherited = 1

    def method(self) -> None: ...
    async def coroutine(self) -> None: ...
    def generator(self) -> Iterator[int]:
        yield 1

    async def asynchronous_generator(self) -> AsyncIterator[int]:
        yield 1


class Slotted(Base):
    __slots__ = ("slot",)

    @property
    def computed(self) -> int:
        raise AssertionError

    def __getattr__(self, name: str) -> object:
        raise AssertionError(name)


def values() -> list[Any]:
    instance = Base()
    instance.own = 2  # type: ignore[attr-defined]
    return [instance, Base, Slotted(), Slotted, int, 3, len, Base.method, sys]


@pytest.mark.parametrize(
    "name", ["own", "inherited", "method", "slot", "computed", "__init__", "mro", "absent"]
)
def test_attributes_are_read_without_calling_descriptors(name: str) -> None:
    ours = load("instead/inspect")
    for value in values():
        expected = inspect.getattr_static(value, name, "none")
        assert ours.getattr_static(value, name, "none") == expected, value
        if expected == "none":
            with pytest.raises(AttributeError):
                ours.getattr_static(value, name)


def test_functions_and_coroutines_are_told_apart_as_in_the_standard_library() -> None:
    ours = load("instead/inspect")
    functions = [Base.method, Base.coroutine, Base.generator, Base.asynchronous_generator, len, Base, 3]
    functions += [functools.partial(function) for function in functions if callable(function)]
    functions += [Base().coroutine, functools.partial(functools.partial(Base().coroutine))]
    for question in ("isgeneratorfunction", "iscoroutinefunction", "isasyncgenfunction"):
        for function in functions:
            expected = getattr(inspect, question)(function)
            assert getattr(ours, question)(function) is expected, (question, function)

    coroutine = Base().coroutine()
    assert (ours.iscoroutine(coroutine), ours.isasyncgen(Base().asynchronous_generator())) == (True, True)
    assert ours.getcoroutinestate(coroutine) == inspect.getcoroutinestate(coroutine) == ours.CORO_CREATED
    coroutine.close()
    assert ours.getcoroutinestate(coroutine) == inspect.getcoroutinestate(coroutine) == ours.CORO_CLOSED

    async def states() -> None:
        async def wait() -> None:
            assert ours.getcoroutinestate(waiting) == ours.CORO_RUNNING
            await asyncio.sleep(0)

        waiting = wait()
        waiting.send(None)
        assert ours.getcoroutinestate(waiting) == inspect.getcoroutinestate(waiting) == ours.CORO_SUSPENDED
        waiting.close()

    asyncio.run(states())


def test_a_function_has_no_signature() -> None:
    # attrs and dataclasses catch it
    with pytest.raises(ValueError, match="no signature"):
        load("instead/inspect").signature(load)


def test_annotations_are_evaluated() -> None:
    ours = load("instead/annotationlib")

    class Annotated:
        x: int
        y: "Annotated"

    assert ours.get_annotations(Annotated, format=ours.Format.FORWARDREF) == {"x": int, "y": "Annotated"}
    assert ours.get_annotations(Base) == {}
    strings = ours.annotations_to_string({"x": int, "y": "Annotated", "z": list[int]})
    assert strings == {"x": "int", "y": "Annotated", "z": "list[int]"}


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1", "127.0.0.256", "127.1", "01.2.3.4", "1.2.3.4%1", "::1", "::", "fe80::1%eth0", "fe80::1%",
        "::1%a%b", "::ffff:1.2.3.4", "1::2::3", "", "localhost", "12345::", "1.2.3.4.5",
    ],
)  # fmt: skip
def test_addresses_are_told_apart_as_in_the_standard_library(text: str) -> None:
    ours = load("instead/ipaddress")

    def kind(module: ModuleType) -> str:
        try:
            return type(module.ip_address(text)).__name__
        except ValueError as error:
            return str(error)

    assert kind(ours) == kind(ipaddress)


def failure() -> Exception:
    try:
        try:
            raise ExceptionGroup("two", [ValueError("a"), OSError(2, "b")])
        except ExceptionGroup as group:
            raise KeyError("key") from group
    except KeyError as error:
        return error


def test_a_printed_exception_has_all_types_texts_and_functions(capsys: pytest.CaptureFixture[str]) -> None:
    ours, error = load("instead/traceback"), failure()
    lines = "".join(ours.format_exception(error))
    expected = "".join(traceback.format_exception(error))
    words = [
        "KeyError: 'key'",
        "ExceptionGroup: two (2 sub-exceptions)",
        "ValueError: a",
        f'"{__file__}"',
        "in failure",
    ]
    for word in words:
        assert word in lines
        assert word in expected
    assert lines.index("ValueError: a") < lines.index("KeyError: 'key'")
    ours.print_exception(type(error), error, error.__traceback__)
    assert capsys.readouterr().err == lines


def test_exceptions_that_are_each_other_s_context_are_printed_once() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__context__ = second, first
    assert "".join(load("instead/traceback").format_exception(first)).count("ValueError") == 2
