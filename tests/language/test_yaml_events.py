"""Our shorter ways through ruamel.yaml's parser lead where its own lead, except where kubectl takes a tab."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pidone.language.yaml_events import events
from tests.language.fuzz import Fuzzer, seeds
from tests.patience import ENDURANCE

PARTS = 3
INPUTS = 120 * ENDURANCE  # in each part, besides its share of the corpus


def stock(text: str) -> Iterator[Any]:
    yield from YAML(typ="safe", pure=True).parse(text)


def reading(read: Callable[[str], Iterator[Any]], text: str) -> list[str]:
    """Events with their places, and the error where there is one."""
    found = []
    try:
        for event in read(text):
            found.append(f"{event} {event.start_mark.index} {event.end_mark.index} {event.end_mark.column}")  # noqa: PERF401 - what comes before an error counts
    except YAMLError as error:
        marks = [getattr(error, name, None) for name in ("context_mark", "problem_mark")]
        found.append(
            f"{type(error)} {getattr(error, 'problem', '')} {[mark and mark.index for mark in marks]}"
        )
    except (ValueError, IndexError, AttributeError, TypeError, AssertionError) as error:
        found.append(f"{type(error)} {error}")
    return found


@pytest.mark.parametrize("part", range(PARTS))
def test_events_and_errors_are_those_of_ruamel(part: int) -> None:
    corpus = seeds()
    fuzzer = Fuzzer(part, corpus)
    for data in (*corpus[part::PARTS], *map(fuzzer.input, range(INPUTS))):
        text = data.decode("utf-8", "replace").replace("\t", " ")
        assert reading(events, text) == reading(stock, text)
