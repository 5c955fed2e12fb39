from pathlib import Path

import pytest

from pidone.generate import metrics
from pidone.generate.metrics import GROUPS, Metric
from tests.actions.test_metrics import families, make

CLONE = Path(__file__).parents[2]


def test_the_list_is_that_of_the_code() -> None:
    text = (CLONE / "docs" / "metrics.md").read_text()
    assert metrics.with_reference(text) == text, "make schema"


def test_a_metric_without_a_description_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {**GROUPS["network"], "pidone_gone": GROUPS["network"]["pidone_tcp_connections"]}
    undescribed = {**GROUPS, "process": {}, "network": gone}
    monkeypatch.setattr(metrics, "GROUPS", undescribed)
    with pytest.raises(ValueError, match="pidone_gone, process_cpu_seconds_total"):
        metrics.reference(CLONE / "pidone")


async def test_a_page_has_the_metrics_and_labels_of_the_list() -> None:
    code = metrics.metrics(CLONE / "pidone")
    for group, descriptions in GROUPS.items():
        collectors = [group] if group != "every page" else ["process"]
        page = {family.name: family for family in await families(make({"collectors": collectors}))}
        if group != "every page":
            assert page.keys() - GROUPS["every page"].keys() <= descriptions.keys()
        for name, family in page.items():
            metric = code[name]
            assert (metric.kind, metric.help) == (family.kind, family.help)
            described = next(group[name] for group in GROUPS.values() if name in group)
            assert all(set(labels) == set(described.labels) for labels, _ in family.samples), name


def test_units_are_those_of_the_names() -> None:
    assert Metric("a_cpu_seconds_total", "counter", "").unit == "seconds"
    assert Metric("a_start_time_seconds", "gauge", "").unit == "seconds since 1970"
    assert Metric("a_open_fds", "gauge", "").unit == "number"
