"""Answers a request for metrics, in the format and the encoding that the client prefers."""

import zlib
from collections.abc import Iterable

from pidone.http.message import Request, Response
from pidone.http.negotiation import quality
from pidone.metrics.exposition import CONTENT_TYPE, OPENMETRICS_TYPE, Family, render

# A page of 1,000 series, 100 KiB, becomes 6 KiB in a millisecond. The defaults of zlib would take 268 KiB of memory for
# 4 KiB, these take 48 (https://zlib.net/manual.html: 2^(wbits+2) + 2^(memLevel+9) bytes). +16 is the header of gzip.
_GZIP_LEVEL, _GZIP_WINDOW_BITS, _GZIP_MEMORY_LEVEL = 1, 12 + 16, 6
_MIN_GZIP_BYTES = 1400  # a shorter page is one packet anyway


def answer(request: Request, families: Iterable[Family]) -> Response:
    """Return the page with these families.

    A client that accepts neither format gets the text format, as from other exporters.
    """
    openmetrics = _prefers_openmetrics(request.headers.get("accept", ""))
    body = render(families, openmetrics=openmetrics)
    headers = {
        "content-type": OPENMETRICS_TYPE if openmetrics else CONTENT_TYPE,
        "vary": "Accept, Accept-Encoding",
    }
    if len(body) >= _MIN_GZIP_BYTES and quality(request.headers.get("accept-encoding", ""), "gzip")[0]:
        headers["content-encoding"] = "gzip"
        body = _gzip(body)
    return Response(200, headers, body)


def _prefers_openmetrics(accept: str) -> bool:
    """True if OpenMetrics is named, and not the text format with a higher weight. ``*/*`` is for the text format."""
    weight, named = quality(accept, "application/openmetrics-text;version=1.0.0")
    return named and weight > 0 and weight >= quality(accept, "text/plain;version=0.0.4")[0]


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW_BITS, _GZIP_MEMORY_LEVEL)
    return packer.compress(body) + packer.flush()
