import pytest

from pidone.language import duration
from pidone.language.selector import Requirement, Selector, matches

LABELS = {"app": "web", "tier": "front"}


@pytest.mark.parametrize(
    ("selector", "holds"),
    [
        (Selector(), True),
        (Selector({"app": "web"}), True),
        (Selector({"app": "web", "tier": "back"}), False),
        (Selector({"zone": "a"}), False),
        (Selector({}, (Requirement("tier", "In", ("front", "back")),)), True),
        (Selector({}, (Requirement("zone", "In", ("a",)),)), False),
        (Selector({}, (Requirement("tier", "NotIn", ("front",)),)), False),
        (Selector({}, (Requirement("zone", "NotIn", ("a",)),)), True),
        (Selector({}, (Requirement("app", "Exists"),)), True),
        (Selector({}, (Requirement("app", "DoesNotExist"),)), False),
        (Selector({"app": "web"}, (Requirement("zone", "Exists"),)), False),
    ],
)
def test_selectors_mean_what_they_mean_in_kubernetes(selector: Selector, *, holds: bool) -> None:
    assert matches(selector, LABELS) is holds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("1m1s1ms", 61.001),
        ("0s", 0),
        ("10", None),
        ("1d", None),
        (10, None),
    ],
)
def test_durations_are_seconds_and_whole_where_they_are_whole(text: object, seconds: float | None) -> None:
    found = duration.seconds(text)
    assert found == seconds
    assert isinstance(found, type(seconds))


def test_a_duration_is_not_followed_by_a_line_end() -> None:
    assert duration.seconds("10s\n") is None


@pytest.mark.parametrize("text", ["10s", "2h", "90s", "500ms", "5m"])
def test_seconds_are_written_as_a_person_would(text: str) -> None:
    assert duration.text(duration.seconds(text) or 0) == text
