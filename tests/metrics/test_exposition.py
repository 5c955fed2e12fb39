from math import inf, nan
from typing import Any

import pytest
from prometheus_client.openmetrics import parser
from prometheus_client.parser import text_string_to_metric_families

from pidone.metrics.exposition import counter, gauge, render

parse_openmetrics: Any = parser.text_string_to_metric_families  # it has no types


def test_a_page_is_help_type_and_samples_in_the_order_given() -> None:
    page = render(
        [
            counter("b_total", "Counted.").add(1, reason="orphan").add(2.5, reason="task"),
            gauge("a", "Measured.", 0.25),
        ]
    )
    assert page.decode() == (
        "# HELP b_total Counted.\n"
        "# TYPE b_total counter\n"
        'b_total{reason="orphan"} 1\n'
        'b_total{reason="task"} 2.5\n'
        "# HELP a Measured.\n"
        "# TYPE a gauge\n"
        "a 0.25\n"
    )


def test_numbers_are_as_prometheus_reads_them() -> None:
    values = [0, 3.0, True, -1.5, 1e21, inf, -inf, nan, 1732300000.123]
    family = gauge("x", "X.")
    for value in values:
        family.add(value)
    written = [line.rpartition(" ")[2] for line in render([family]).decode().splitlines()[2:]]
    assert written == [
        "0", "3", "1", "-1.5", "1000000000000000000000", "+Inf", "-Inf", "NaN", "1732300000.123",
    ]  # fmt: skip


def test_whatever_stands_in_a_label_or_a_help_comes_back_as_it_was() -> None:
    text = 'a "quoted" \\ back\\nslash\nline, {brace} = \N{SNOWMAN}'
    page = render([gauge("x", "Help with \\ and\nline.").add(1, task=text)]).decode()
    assert len(page.splitlines()) == 3
    (family,) = text_string_to_metric_families(page)
    assert family.samples[0].labels == {"task": text}
    assert family.documentation == "Help with \\ and\nline."


def test_a_family_without_samples_is_left_out() -> None:
    assert render([gauge("empty", "Could not be read."), gauge("full", "F.", 0)]) == (
        b"# HELP full F.\n# TYPE full gauge\nfull 0\n"
    )


def test_openmetrics_names_families_without_total_and_ends_with_eof() -> None:
    families = [
        counter("b_total", 'Counted "things".').add(1, reason="orphan"),
        gauge("empty", "Could not be read."),
        gauge("a_info", "Measured.", 1),
    ]
    page = render(families, openmetrics=True).decode()
    assert page == (
        '# HELP b Counted \\"things\\".\n'
        "# TYPE b counter\n"
        'b_total{reason="orphan"} 1\n'
        "# HELP a_info Measured.\n"
        "# TYPE a_info gauge\n"
        "a_info 1\n"
        "# EOF\n"
    )
    assert [family.documentation for family in parse_openmetrics(page)] == [
        'Counted "things".',
        "Measured.",
    ]
    assert render([], openmetrics=True) == b"# EOF\n"


@pytest.mark.parametrize("parse", [text_string_to_metric_families, parse_openmetrics])
@pytest.mark.parametrize(
    "text", ['"', "\\", "\\n\n", "{a=\N{SNOWMAN}}", "\N{LINE SEPARATOR}\x85\r", "\ud800", ""]
)
def test_any_text_in_a_label_is_read_back_in_both_formats(parse: Any, text: str) -> None:
    page = render([counter("x_total", text).add(0.5, task=text)], openmetrics=parse is parse_openmetrics)
    (family,) = parse(page.decode())
    (sample,) = family.samples
    assert (sample.name, sample.labels, sample.value) == (
        "x_total",
        {"task": text.encode(errors="backslashreplace").decode()},  # a half character would be no UTF-8
        0.5,
    )
