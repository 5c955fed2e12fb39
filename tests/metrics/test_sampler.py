from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import trio

from pidone.metrics import sampler
from pidone.metrics.exposition import Family, gauge
from pidone.metrics.sampler import FRESH_SECONDS, MAX_SERIES, Sampler


class Counted:
    """A collector that counts its samples, and closes what it has opened."""

    def __init__(self, steps: int = 0) -> None:
        self.samples = 0
        self.closed = 0
        self._steps = steps

    def __call__(self) -> Iterator[Family | None]:
        self.samples += 1
        try:
            for _ in range(self._steps):
                yield None
            yield gauge("counted", "Samples.", self.samples)
        finally:
            self.closed += 1


def values(families: Iterable[Family]) -> dict[str, float]:
    return {
        " ".join([family.name, *labels.values()]): value
        for family in families
        for labels, value in family.samples
    }


async def test_a_collector_that_fails_is_missing_and_the_others_are_there() -> None:
    def broken() -> Iterator[Family]:
        yield gauge("half", "Begun and not ended.", 1)
        raise PermissionError("/proc is masked")

    collectors: Any = {"broken": broken, "fine": lambda: [gauge("fine", "F.", 1)]}
    read = values(await Sampler(collectors).families(["broken", "fine"]))
    assert read["pidone_collector_success broken"] == 0
    assert read["pidone_collector_success fine"] == 1
    assert read["fine"] == 1
    assert "half" not in read


async def test_any_number_of_scrapers_get_one_sample_a_second(autojump_clock: object) -> None:
    counted = Counted(steps=20)
    shared = Sampler({"counted": counted})
    pages: list[dict[str, float]] = []

    async def scrape() -> None:
        pages.append(values(await shared.families(["counted"])))

    for expected in (1, 2):
        pages.clear()
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(scrape)
        assert [page["counted"] for page in pages] == [expected] * 50
        await trio.sleep(FRESH_SECONDS)


async def test_other_tasks_run_between_the_pieces_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "STEP_SECONDS", 0.0)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await Sampler({"counted": Counted(steps=100)}).families(["counted"])
        nursery.cancel_scope.cancel()
    assert turns > 90


async def test_a_scraper_that_leaves_closes_its_sample_and_the_next_one_gets_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampler, "STEP_SECONDS", 0.0)
    counted = Counted(steps=100)
    shared = Sampler({"counted": counted})
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shared.families, ["counted"])
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            scope.cancel()
    assert (counted.samples, counted.closed) == (1, 1)
    assert values(await shared.families(["counted"]))["counted"] == 2


async def test_too_many_series_are_left_out_and_counted() -> None:
    many = gauge("many", "M.")
    for number in range(MAX_SERIES + 5):
        many.add(1, number=str(number))
    families = await Sampler(
        {"many": lambda: [gauge("first", "F.", 1), many, gauge("last", "L.", 1)]}
    ).families(["many"])
    read = values(families)
    assert read["pidone_series_omitted"] == 7
    assert read["pidone_collector_success many"] == 1
    assert "first" in read
    assert "last" not in read
    assert len(many.samples) == MAX_SERIES + 5


async def test_an_old_sample_is_given_back(autojump_clock: object) -> None:
    shared = Sampler({"counted": Counted()})
    await shared.families(["counted"])
    shared.forget()
    assert shared._samples
    await trio.sleep(FRESH_SECONDS)
    shared.forget()
    assert not shared._samples
