from math import inf, nan

from prometheus_client.parser import text_string_to_metric_families

from pidone.metrics.exposition import counter, gauge, render


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
