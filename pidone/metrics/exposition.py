"""Writes the Prometheus text format 0.0.4 and OpenMetrics 1.0: families in the order given, without interleaving.

https://prometheus.io/docs/instrumenting/exposition_formats/ and https://prometheus.io/docs/specs/om/open_metrics_spec/.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf, isnan

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(slots=True)
class Family:
    """One metric with all its samples. ``kind`` is counter or gauge; a counter's name ends in ``_total``."""

    name: str
    kind: str
    help: str
    samples: list[tuple[Mapping[str, str], float]] = field(default_factory=list)

    def add(self, value: float, **labels: str) -> "Family":
        self.samples.append((labels, value))
        return self


def counter(name: str, text: str, value: float | None = None) -> Family:
    return _family(name, "counter", text, value)


def gauge(name: str, text: str, value: float | None = None) -> Family:
    return _family(name, "gauge", text, value)


def counter_by(label: str, name: str, text: str, values: Mapping[str, float]) -> Family:
    """Return a counter with one sample for each value of ``label``, sorted by the value."""
    family = counter(name, text)
    for value, number in sorted(values.items()):
        family.add(number, **{label: value})
    return family


def render(families: Iterable[Family], *, openmetrics: bool = False) -> bytes:
    """Return the page. A family without samples is left out: an unknown value is missing, not zero.

    In OpenMetrics the name of a counter's family does not have the ``_total`` of its samples, quotes in a help are
    escaped, and the last line tells a complete page from one that was cut off.
    """
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        name = family.name.removesuffix("_total") if openmetrics and family.kind == "counter" else family.name
        lines.append(f"# HELP {name} {_escaped(family.help, quote=openmetrics)}")
        lines.append(f"# TYPE {name} {family.kind}")
        for labels, value in family.samples:
            pairs = ",".join(f'{label}="{_escaped(text, quote=True)}"' for label, text in labels.items())
            series = f"{family.name}{{{pairs}}}" if pairs else family.name
            lines.append(f"{series} {_number(value)}")
    if openmetrics:
        lines.append("# EOF")
    return ("\n".join(lines) + "\n").encode()


def _family(name: str, kind: str, text: str, value: float | None) -> Family:
    family = Family(name, kind, text)
    return family if value is None else family.add(value)


def _escaped(text: str, *, quote: bool = False) -> str:
    if not text.isascii():  # half characters, as in names of a plan, would make the page no UTF-8
        text = text.encode(errors="backslashreplace").decode()
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


def _number(value: float) -> str:
    if isnan(value):
        return "NaN"
    if value in {inf, -inf}:
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(value)
