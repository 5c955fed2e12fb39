"""Prefer, If-None-Match and Accept, as RFCs have them and as clients write them."""

import pytest

from pidone.http import negotiation


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("", None),
        ("wait=55", 55),
        ("respond-async, wait=10", 10),
        ('Wait="7"; x=y', 7),
        ("wait=0", 0),
        ("wait=600", 60),
        ("wait=99999999999999999999", 60),
        ("wait=-1", None),
        ("wait=soon", None),
        ("wait=²", None),
        ("waiting=5", None),
    ],
)
def test_wait(prefer: str, seconds: float | None) -> None:
    assert negotiation.wait(prefer, 60) == seconds


def test_etags() -> None:
    assert negotiation.etags('"a", W/"b","c,d"') == ('"a"', '"b"', '"c,d"')
    assert negotiation.etags("") == negotiation.etags("sha256-a, *") == ()


V1, V2 = "application/vnd.x.v1+json", "application/vnd.x.v2+json"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, V2),
        ("", V2),
        ("*/*", V2),
        ("text/html, */*;q=0.1", V2),
        ("application/*", V2),
        (V1, V1),
        (V1.upper(), V1),
        (f"{V1};q=0.5, {V2}", V2),
        (f"{V2}; q=0.0, */*", V1),
        (f"*/*, application/*;q=0, {V1}", V1),
        ("application/json", None),
        ("text/*", None),
        ("*/*;q=0", None),
    ],
)
def test_accept(accept: str | None, chosen: str | None) -> None:
    assert negotiation.choose(accept, (V2, V1)) == chosen
