"""What a text may not tell of the values of Secrets, whichever form they take in it."""

from base64 import b64encode
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidone.plan.mask import PIECE_WIDTH, Mask, hide, masked_tasks, values_of
from pidone.text import printable

SECRET = 'p@ss "wörd"/42'


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"answered 401 to {SECRET}!", "answered 401 to ***!"),
        (f"GET http://eureka/{quote(SECRET, safe='')}", "GET http://eureka/***"),
        (f"Basic {b64encode(SECRET.encode()).decode()}", "Basic ***"),
        (repr(SECRET)[1:-1], "***"),
        (f"{SECRET}{SECRET}", "***"),
        ("nothing of it", "nothing of it"),
        ("", ""),
    ],
)
def test_a_value_is_hidden_in_each_of_its_forms(text: str, masked: str) -> None:
    assert Mask([SECRET])(text) == masked


def test_a_value_that_a_message_has_cut_is_hidden_too() -> None:
    secret = "correct-horse-battery-staple"
    assert Mask([secret])(f'not the string "http://u:{secret[:12]}"') == 'not the string "http://u:***"'
    assert Mask([secret])(f'not the string "http://u:{secret[:4]}"') == 'not the string "http://u:***"'
    assert Mask([secret])(printable(f"http://user:{secret}@host", 20)) == "http://user:***..."
    assert Mask([secret])(f"...{secret[-9:]}") == "...***"
    assert Mask([secret])("a horse and a correction") == "a horse and a correction"


def test_short_values_are_hidden_and_an_empty_one_hides_nothing() -> None:
    assert Mask(["x7"])("code x7, x8") == "code ***, x8"
    assert Mask([""])("as it is") == "as it is"
    assert not Mask([""])
    assert not Mask()


@given(st.text(min_size=1, max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_no_piece_of_a_value_is_left(secret: str, before: str, after: str) -> None:
    masked = Mask([secret])(f"{before}{secret}{after}")
    without = before + after
    for start in range(max(1, len(secret) - PIECE_WIDTH + 1)):
        piece = secret[start : start + PIECE_WIDTH]
        assert piece not in masked or piece in without or piece in "***"


def task(*values: str, **fields: Any) -> dict[str, Any]:
    return {"name": "a", **fields, "secrets": {"salt": "0123456789", "values": list(values)}}


def test_the_values_of_tasks_are_found_with_what_a_url_makes_of_them() -> None:
    url = "http://admin:s3cr%2Ft@eureka:8761/eureka"
    found = values_of([task("s3cr%2Ft", register={"eureka": {"url": url}}), {"name": "b", "exec": {}}])
    assert found == {"s3cr%2Ft", "admin:s3cr/t"}
    mask = Mask(found)
    assert mask(f"Basic {b64encode(b'admin:s3cr/t').decode()}") == "Basic ***"
    assert mask("the password s3cr/t is wrong") == "the password *** is wrong"


@pytest.mark.parametrize("tasks", [[None], [[]], [{"secrets": 1}], [{"secrets": {"values": 7}}], ["x"]])
def test_tasks_of_any_form_are_looked_at(tasks: list[object]) -> None:
    assert values_of(tasks) == frozenset()


def test_people_see_a_plan_without_its_values() -> None:
    plain = {"name": "b", "probe": {"tcpSocket": {"port": 8080}}}
    secret = task("s3cret", "8081", probe={"tcpSocket": {"port": 8081}, "path": ["/a?token=s3cret"]})
    assert masked_tasks([plain, secret]) == [
        plain,
        {
            "name": "a",
            "probe": {"tcpSocket": {"port": "***"}, "path": ["/a?token=***"]},
            "secrets": {"values": ["***", "***"]},
        },
    ]


def test_the_messages_of_errors_and_of_groups_are_hidden() -> None:
    inner = ValueError("bad s3cret", 7)
    hide(ExceptionGroup("two", [inner]), Mask(["s3cret"]))
    assert inner.args == ("bad ***", 7)
