"""``python -m tests.bench.pid1 [--quick] [--json FILE] [--root DIR]``: compares pidone as process 1 with others.

Prints one table with ratios to pause in the same run. Needs root, a C compiler, and Debian's tini, dumb-init and
catatonit. Nothing is asserted; docs/footprint.md has the figures.
"""

import argparse
import json
import os
import platform
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from tests.bench import candidates, measure
from tests.bench.candidates import Candidate
from tests.bench.world import PROBE_PERIOD, RENEWAL, World


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    instances: int
    idle: float  # seconds
    starts: int
    orphans: int
    orphan_repeats: int
    terms: int
    early: int  # SIGTERMs within the first 0.3 ms
    wakes: int


FULL = Extent(20, 5.0, 20, 10_000, 3, 1000, 100, 10)
QUICK = Extent(3, 5.0, 6, 1_000, 1, 40, 40, 2)
EARLY_SECONDS = 0.0003
LATEST_SECONDS = 0.3

Figures = dict[str, dict[str, float]]  # by figure and candidate


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:5.0f} s  {text}", file=sys.stderr, flush=True)


BEGAN = time.monotonic()


def run(found: list[Candidate], extent: Extent, world: World, save: Callable[[Figures], None]) -> Figures:
    figures: Figures = defaultdict(dict)
    for candidate in found:  # once, so that byte code is written and files are in the page cache
        if candidate.active:
            with measure.running(candidate, world) as instance:
                if not measure.wait_active(instance, world, "register"):
                    say(f"{candidate.name} does not start")

    say(f"idle: {extent.instances} of each at once")
    for name, idle in measure.idle(found, world, extent.instances, extent.idle).items():
        figures["private"][name] = idle.private
        figures["wakeups"][name] = idle.wakeups
        figures["requests"][name] = idle.requests
        figures["instances"][name] = idle.instances
    save(figures)

    figures["yardstick"]["this Python"] = median(measure.yardstick() for _ in range(extent.starts))
    _starts(found, extent, world, figures)

    say(f"orphans: {extent.orphans}, {extent.orphan_repeats} times")
    results: dict[str, list[measure.Orphans]] = defaultdict(list)
    for candidate in _turns(found, extent.orphan_repeats):
        result = measure.orphans(candidate, world, extent.orphans)
        if result:
            results[candidate.name].append(result)
    for name, several in results.items():
        figures["orphan"][name] = median(each.cpu for each in several)
        figures["most"][name] = max(each.most for each in several)
        figures["left"][name] = max(each.left for each in several)
    save(figures)

    for candidate in found:
        if candidate.active:
            say(f"wakes: {candidate.name}")
            wakes = measure.wakes(candidate, world, extent.wakes)
            if wakes:
                figures["wake cpu"][candidate.name] = median(wakes.cpu)
                figures["wake ask"][candidate.name] = wakes.ask
                figures["wake wall"][candidate.name] = median(wakes.wall)
    save(figures)
    _terms(found, extent, world, figures, save)
    return figures


def _turns(found: list[Candidate], repeats: int) -> list[Candidate]:
    """Return each candidate ``repeats`` times, in random order, so that the load of the machine affects all alike."""
    turns: list[Candidate] = []
    for _ in range(repeats):
        turns += random.sample(found, len(found))
    return turns


def _starts(found: list[Candidate], extent: Extent, world: World, figures: Figures) -> None:
    say(f"starts: {extent.starts} of each")
    times: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for candidate in _turns(found, extent.starts):
        times[candidate.name] += measure.starts(candidate, world, 1)
    for name, several in times.items():
        figures["start wall"][name] = median(wall for wall, _ in several)
        figures["start cpu"][name] = median(cpu for _, cpu in several)


def _terms(
    found: list[Candidate],
    extent: Extent,
    world: World,
    figures: Figures,
    save: Callable[[Figures], None],
) -> None:
    early_ms = EARLY_SECONDS * 1000
    say(f"SIGTERM: {extent.terms} to each within {LATEST_SECONDS:g} s, {extent.early} within {early_ms:g} ms")
    sent: dict[tuple[str, str], list[tuple[int, list[int]]]] = defaultdict(list)
    parts = 5
    for candidate in _turns(found, parts):
        # A few at a time, because an active one needs processor time to start in 0.3 s. One that has not ended after
        # 10 s, which is longer than the limit of the teardown, has lost its SIGTERM.
        slots = 3 if candidate.active else 6
        sent["lost", candidate.name].append(
            measure.terms(candidate, world, extent.terms // parts, LATEST_SECONDS, slots, 10.0)
        )
        sent["lost early", candidate.name].append(
            measure.terms(candidate, world, extent.early // parts, EARLY_SECONDS, 5, 1.0)
        )
        for (figure, name), several in sent.items():
            figures[figure][name] = sum(len(lost) for _, lost in several)
            figures[f"{figure} last"][name] = max((when for _, lost in several for when in lost), default=0)
            figures[f"{figure} of"][name] = sum(number for number, _ in several)
        save(figures)


def table(found: list[Candidate], figures: Figures, image: int | None) -> str:
    names = [candidate.name for candidate in found]

    def row(title: str, figure: str, show: Callable[[float], str], *, ratio: bool = True) -> str:
        cells = []
        base = figures.get(figure, {}).get("pause", 0)
        for name in names:
            value = figures.get(figure, {}).get(name)
            cell = "-" if value is None else show(value)
            if ratio and value is not None and base:
                factor = value / base
                cell += f" ({factor:.2f}x)" if factor < 9.95 else f" ({factor:.0f}x)"
            cells.append(cell)
        return f"| {title} | {' | '.join(cells)} |"

    def share(figure: str) -> Figures:
        lost = figures.get(figure, {})
        return {figure: {name: lost[name] for name in lost}}

    def of(figure: str) -> str:
        return "/".join(sorted({f"{number:.0f}" for number in figures.get(f"{figure} of", {}).values()}))

    def count(value: float) -> str:
        return f"{value:.0f}"

    lines = [
        f"| | {' | '.join(names)} |",
        f"| --- |{' --- |' * len(names)}",
        row("private memory, KiB", "private", count),
        row("from exec until signals are handled, us", "start wall", count),
        row("the same, CPU us", "start cpu", count),
        row("wakeups of the idle process in 5 s", "wakeups", count, ratio=False),
        row("requests in these 5 s", "requests", count, ratio=False),
        row("CPU per orphan, us", "orphan", lambda value: f"{value:.1f}"),
        row("zombies left", "left", count, ratio=False),
        row("most zombies at one time, sampled", "most", count, ratio=False),
        row(f"SIGTERM lost, of {of('lost')} sent 0-300 ms after the start", "lost", count, ratio=False),
        row("the latest of them, us after exec", "lost last", count, ratio=False),
        row(
            f"SIGTERM lost, of {of('lost early')} sent 0-0.3 ms after the start",
            "lost early",
            count,
            ratio=False,
        ),
        row("from the plan to the first probe, CPU ms of process 1", "wake cpu", count, ratio=False),
        row("the child that asks for the plan, CPU ms", "wake ask", count, ratio=False),
        row("from the plan to the first probe, wall ms", "wake wall", count, ratio=False),
    ]
    lines.append(
        f"\nSpeed of this machine: Python {platform.python_version()} -OO imports Trio and h11 and runs a loop in "
        f"{figures['yardstick']['this Python']:.0f} ms of CPU."
    )
    if image is not None:
        lines.append(f"Compressed image: {image / 1000:,.0f} kB")
    return "\n".join(lines)


def machine() -> str:
    load = " ".join(f"{number:.1f}" for number in os.getloadavg())
    return (
        f"Linux {platform.release()}, {platform.machine()}, {os.cpu_count()} processors, "
        f"Python {platform.python_version()}, load {load}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pid1", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure for a minute; the figures are rough")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--root", type=Path, metavar="DIR", help="an unpacked image (default: build/image)")
    parser.add_argument(
        "--only", metavar="WORDS", help="measure pause, and candidates whose names contain one of these words"
    )
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("needs root, for PID namespaces and the memory of other processes", file=sys.stderr)
        return 1
    candidates.build()
    extent = QUICK if options.quick else FULL
    found, image = candidates.find(options.root, say)
    if options.only:
        words = options.only.split(",")
        found = [each for each in found if each.name == "pause" or any(word in each.name for word in words)]
    before = machine()

    def save(figures: Figures) -> None:  # after each part, so that an interrupted run has its figures
        if options.json:
            document = {"machine": before, "extent": asdict(extent), "image": image, "figures": figures}
            options.json.write_text(json.dumps(document, indent=2))

    with World() as world:
        figures = run(found, extent, world, save)
    print(
        f"{extent.instances} of each at once, medians, ratios to pause; active: probe every {PROBE_PERIOD} s, "
        f"registration, heartbeat every {RENEWAL} s, metrics.\n{before}; after {time.monotonic() - BEGAN:.0f} s: "
        f"load {os.getloadavg()[0]:.1f}\n"
    )
    print(table(found, figures, image))
    return 0


if __name__ == "__main__":
    sys.exit(main())
