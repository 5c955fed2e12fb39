"""The format and the encoding of a page, by the headers of Prometheus and other clients."""

import gzip

import pytest

from pidone.http.message import Request, Response
from pidone.metrics.exposition import Family, gauge
from pidone.metrics.page import answer

# scrape/scrape.go of Prometheus 2.42, and 3.5 by default and with ``scrape_protocols: [PrometheusText0.0.4]``
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
PROMETHEUS_3_TEXT = "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def page(families: list[Family], **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return answer(Request("GET", "/metrics", named, b"", "127.0.0.1"), families)


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        (BROWSER, False),
        (PROMETHEUS_2, True),
        (PROMETHEUS_3, True),
        (PROMETHEUS_3_TEXT, False),
        ("application/openmetrics-text", True),
        ('Application/OpenMetrics-Text; Version="1.0.0"; charset=utf-8', True),
        ("application/openmetrics-text, text/plain", True),
        ("application/openmetrics-text;q=0.4, text/plain;q=0.5", False),
        ("application/openmetrics-text;q=0.4, text/plain;version=0.0.4;q=0.3, text/plain;q=0.5", True),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0, */*", False),
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-text;q=many", False),
        ("application/openmetrics-text;q=nan", False),
        ("application/vnd.google.protobuf;encoding=delimited", False),
        (";;q=,=;,/" * 2000, False),
    ],
)
def test_the_format_is_what_the_client_prefers(accept: str | None, *, openmetrics: bool) -> None:
    response = page([gauge("a", "A.", 1)], **({} if accept is None else {"accept": accept}))
    kind = "application/openmetrics-text; version=1.0.0" if openmetrics else "text/plain; version=0.0.4"
    assert response.headers["content-type"] == f"{kind}; charset=utf-8"
    assert response.body.endswith(b"\n# EOF\n") is openmetrics
    assert response.headers["vary"] == "Accept, Accept-Encoding"


@pytest.mark.parametrize(
    ("accept", "packed"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("*", True),
        ("br", False),
        ("", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("*;q=0", False),
    ],
)
def test_a_page_is_packed_for_clients_that_unpack(accept: str, *, packed: bool) -> None:
    many = gauge("a", "A.")
    for number in range(200):
        many.add(number, task=f"task-{number}")
    response = page([many], accept_encoding=accept)
    assert ("content-encoding" in response.headers) is packed
    plain = page([many]).body
    if packed:
        assert len(response.body) < len(plain) / 4
    assert (gzip.decompress(response.body) if packed else response.body) == plain


def test_a_page_of_one_packet_is_not_packed() -> None:
    assert "content-encoding" not in page([gauge("a", "A.", 1)], accept_encoding="gzip").headers
