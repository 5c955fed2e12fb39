"""Samples the collectors of a pod at most once a second, in pieces, so that the loop of process 1 goes on meanwhile."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter

import trio

from pidone.metrics.exposition import Family, gauge

FRESH_SECONDS = 1.0  # for which all requests get the same sample
STEP_SECONDS = (
    0.004  # of collecting without a checkpoint; one piece of a collector takes at most as long again
)
MAX_SERIES = 1000  # of a page, without those about the page itself

# Yields families. It yields None too, between two pieces of work, where other tasks may run.
Collector = Callable[[], Iterable[Family | None]]


@dataclass(slots=True)
class _Sample:
    families: list[Family]
    success: bool
    at: float  # Trio's clock
    seconds: float


class Sampler:
    """Shares samples between all tasks of a pod that serve or send metrics."""

    def __init__(self, collectors: Mapping[str, Collector]) -> None:
        self._collectors = collectors
        self._samples: dict[str, _Sample] = {}
        self._lock = trio.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all collectors."""
        return tuple(self._collectors)

    async def families(self, names: Collection[str]) -> list[Family]:
        """Return the families of these collectors, sampled anew if they are older than ``FRESH_SECONDS``.

        A collector that fails has no families, and is 0 in ``pidone_collector_success``.
        """
        async with self._lock:
            for name in names:
                sample = self._samples.get(name)
                if sample is None or trio.current_time() - sample.at >= FRESH_SECONDS:
                    self._samples[name] = await _sample(self._collectors[name])
            samples = {name: self._samples[name] for name in names}

        families, omitted = _limited(family for sample in samples.values() for family in sample.families)
        success = gauge("pidone_collector_success", "Whether the collector succeeded.")
        for name, sample in samples.items():
            success.add(sample.success, collector=name)
        seconds = sum(sample.seconds for sample in samples.values())
        return [
            *families,
            success,
            gauge("pidone_series_omitted", "Series that this page leaves out because of its limit.", omitted),
            gauge("pidone_scrape_duration_seconds", "Time to collect the samples of this page.", seconds),
        ]

    def forget(self) -> None:
        """Give back the memory of samples that are not fresh any more."""
        now = trio.current_time()
        for name, sample in list(self._samples.items()):
            if now - sample.at >= FRESH_SECONDS:
                del self._samples[name]


async def _sample(collector: Collector) -> _Sample:
    began = stepped = perf_counter()
    families: list[Family] = []
    success = True
    try:
        for family in collector():
            if family is not None:
                families.append(family)
            if perf_counter() - stepped >= STEP_SECONDS:
                await trio.lowlevel.checkpoint()
                stepped = perf_counter()
    except Exception:  # noqa: BLE001 - /proc may be masked in many ways; the other collectors go on
        families, success = [], False
    return _Sample(families, success, trio.current_time(), perf_counter() - began)


def _limited(families: Iterable[Family]) -> tuple[list[Family], int]:
    """Return the families with the first ``MAX_SERIES`` series, and the number of the others."""
    limited, room, omitted = list[Family](), MAX_SERIES, 0
    for family in families:
        count = len(family.samples)
        if count > room:
            omitted += count - room
            family = Family(family.name, family.kind, family.help, family.samples[:room])  # noqa: PLW2901
        room -= min(room, count)
        limited.append(family)
    return limited, omitted
