"""Lines and pages out of bytes that end anywhere."""

import gc
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidone_controller.kubernetes.errors import Unreachable
from pidone_controller.kubernetes.resources import PODS
from pidone_controller.kubernetes.wire import Lines, Page

VALUES: st.SearchStrategy[Any] = (
    st.none()
    | st.integers()
    | st.text(max_size=9)
    | st.just({"a": [{}, []]})
    | st.lists(st.text(max_size=3), max_size=3)
)


@given(
    st.lists(st.binary().filter(lambda line: b"\n" not in line and line.strip())),
    st.lists(st.integers(0, 200)),
)
def test_lines_are_whole_wherever_the_pieces_end(lines: list[bytes], cuts: list[int]) -> None:
    text = b"".join(line + b"\n" for line in lines)
    reader, found = Lines(), list[bytes]()
    for begin, end in pairwise([0, *sorted(cuts), len(text)]):
        found += reader.feed(text[begin:end])
    assert found == lines
    assert not reader.cut


def test_what_has_not_ended_is_no_line() -> None:
    reader = Lines()
    assert reader.feed(b"one\ntw") == [b"one"]
    assert reader.cut
    assert reader.feed(b"o\n\n \n") == [b"two"]
    assert not reader.cut


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    reader = Lines(limit=1 << 20)
    for _ in range(16):
        reader.feed(b"x" * (1 << 16))
    with pytest.raises(Unreachable, match="more than 1 MiB"):
        reader.feed(b"x")


@given(
    st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), max_size=5),
    st.dictionaries(st.sampled_from(["resourceVersion", "continue", "remainingItemCount"]), st.text()),
    st.permutations(["kind", "apiVersion", "metadata", "items", "other"]),
    st.sampled_from([None, 2]),
)
def test_a_page_is_what_json_makes_of_it(
    items: list[dict[str, Any]], meta: dict[str, str], order: list[str], indent: int | None
) -> None:
    whole = {"kind": "PodList", "apiVersion": "v1", "metadata": meta, "items": items, "other": {"items": [1]}}
    page = Page(PODS, json.dumps({key: whole[key] for key in order}, indent=indent).encode())
    found = list(page)
    assert found == [{"apiVersion": "v1", "kind": "Pod", **item} for item in items]
    assert page.version == meta.get("resourceVersion", "")
    assert page.more == meta.get("continue", "")


def test_a_list_of_nothing_may_be_null() -> None:
    page = Page(PODS, b'{"metadata":{"resourceVersion":"7"},"items":null}')
    assert list(page) == []
    assert page.version == "7"
    assert list(Page(PODS, b"{}")) == []


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"items":', '{"items":[', '{"items":[{}', '{"items":[{}}', '{"items":[{},]}', "[]", "7"],
)
def test_half_a_page_is_none(text: str) -> None:
    with pytest.raises(Unreachable, match="not a list"):
        list(Page(PODS, text.encode()))


def test_one_parsed_object_of_a_page_is_alive_at_a_time() -> None:
    items = [
        {"metadata": {"name": f"p{number}"}, "spec": {"containers": [{"x": "y" * 100}] * 3}}
        for number in range(50)
    ]
    page = Page(PODS, json.dumps({"items": items}).encode())
    gc.collect()
    most, before = 0, sum(isinstance(value, dict) and "spec" in value for value in gc.get_objects())
    del items
    for number, _ in enumerate(page):
        if number % 10 == 9:
            alive = sum(isinstance(value, dict) and "spec" in value for value in gc.get_objects())
            most = max(most, alive)
    assert most <= before + 2
    assert before >= 50, "the fifty we made are seen by this way of counting"
