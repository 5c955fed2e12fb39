"""URLs and headers of reports. Each function returns why a text cannot be right, with the remedy; empty if it can.

The checker uses them for literal values, and ``report`` for values that come from params.
"""

import re
from urllib.parse import urlsplit

from pidone.http.client import redacted
from pidone.text import printable

METRICS_PATH = "/v1/metrics"  # opentelemetry-proto: docs/specification.md, "OTLP/HTTP Request"
GRPC_PORT, HTTP_PORT = 4317, 4318  # the same, "OTLP/gRPC Default Port" and "OTLP/HTTP Default Port"

_MAX_SHOWN = 80  # characters of a text in a message
_TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_FRAMING = {"host", "connection", "content-length", "transfer-encoding"}
_GROUP = re.compile(r"/metrics/job(@base64)?/")
_OTHER_SIGNAL = re.compile(r"/v1\w*/(traces|logs|profiles)/*")


def webhook_url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        return f"{_shown(text)} is no URL; begin it with http:// or https://"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        # not shown: what stands in the place of the port may be the end of a password
        return "this is no URL; are / ? # @ in its password written as %2F %3F %23 %40?"
    if not parts.hostname:
        return "a URL needs a host"
    return "0 is no port; give 1-65535" if port == 0 else ""


def pushgateway_url(text: str) -> str:
    if wrong := webhook_url(text) or _has_query(text):
        return wrong
    if group := _GROUP.search(text):
        base = redacted(text[: group.start()])
        return (
            f"{_shown(text[group.start() :])} is a group, which pidone adds itself; write {base}, "
            "and set the fields job and instance"
        )
    return ""


def otlp_url(text: str) -> str:
    if wrong := webhook_url(text) or _has_query(text):
        return wrong
    if signal := _OTHER_SIGNAL.search(text):
        return (
            f'"{signal.group()}" is the path of {signal[1]}, and metrics have {METRICS_PATH}, which pidone adds; '
            f"write {redacted(text[: signal.start()])}"
        )
    if urlsplit(text).port == GRPC_PORT:
        return f"{GRPC_PORT} is the port of OTLP over gRPC, and pidone uses HTTP; its port is {HTTP_PORT}"
    if text.rstrip("/").endswith("/api/v1/write"):
        base = redacted(text.rstrip("/").removesuffix("/write"))
        return f'"/api/v1/write" is Prometheus\' remote write; its receiver of OTLP is {base}/otlp'
    return ""


def header_name(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        return f'{_shown(text)} is no name of a header; use letters, digits and "-"'
    if text.lower() in _FRAMING:
        return f"{_shown(text)} is set by pidone itself; remove it"
    return ""


def header_value(text: str) -> str:
    """The value is not shown, since it may be a token."""
    if text != text.strip():
        return "the value begins or ends with a blank or a line end, which no header keeps; remove it"
    if not text.isascii() or not text.isprintable():
        return "the value has characters that a header cannot carry; write it in printable ASCII"
    return ""


def _has_query(text: str) -> str:
    """The path of the protocol follows the URL, and a query would hide it."""
    return next(
        (
            f'a URL to which pidone adds a path has no "{mark}"; remove what follows it'
            for mark in "?#"
            if mark in text
        ),
        "",
    )


def _shown(text: str) -> str:
    return f'"{printable(redacted(text), _MAX_SHOWN)}"'
