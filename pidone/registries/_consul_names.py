"""Names and values that Consul takes. Each function returns why a text is none, with the remedy; empty if it is one.

The checker uses them for literal values, and the drivers for values that come from params.
"""

import re

from pidone.text import printable

_DNS_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?")  # RFC 1123, 2.1
_CONSUL_ID = re.compile(r"[A-Za-z0-9]([-_.:A-Za-z0-9]{0,510}[A-Za-z0-9])?")
_CONSUL_KEY = re.compile(r"[-_A-Za-z0-9]{1,128}")  # of Consul's ValidateServiceMetadata
_MAX_CONSUL_VALUE = 512  # bytes; of the same
_MAX_SHOWN = 60  # characters of a text in a message


def dns_label(text: str) -> str:
    """Of a service that DNS can find."""
    if _DNS_LABEL.fullmatch(text):
        return ""
    return (
        f'{_shown(text)} is no name that DNS can find; use letters, digits and "-", at most 63, as in ratings'
    )


def consul_id(text: str) -> str:
    """Of an instance in Consul, which decodes the identifier in a path twice."""
    if _CONSUL_ID.fullmatch(text):
        return ""
    return (
        f"{_shown(text)} is no identifier that Consul's paths can carry; use letters, digits and "
        f'"-", "_", "." and ":", as in ratings-web-0-8080'
    )


def consul_key(text: str) -> str:
    """Of a pair in the meta of a service in Consul."""
    if text.startswith("consul-"):
        return f'{_shown(text)} begins with "consul-", which Consul keeps for itself; rename it'
    if _CONSUL_KEY.fullmatch(text):
        return ""
    return f'{_shown(text)} is no key that Consul takes; use letters, digits, "-" and "_", at most 128'


def consul_meta(text: str) -> str:
    """Of a value in the meta of a service in Consul."""
    size = len(text.encode(errors="replace"))
    return (
        f"{_shown(text)} has {size} bytes, and Consul takes {_MAX_CONSUL_VALUE}; shorten it"
        if size > _MAX_CONSUL_VALUE
        else ""
    )


def trimmed(text: str) -> str:
    """Of a word that others compare."""
    if not text.strip():
        return "an empty word, which nobody can look for; remove it"
    if text != text.strip():
        return f"{_shown(text)} begins or ends with a blank, with which nobody finds it; remove the blank"
    return "" if text.isprintable() else f"{_shown(text)} has a control character; remove it"


def _shown(text: str) -> str:
    return f'"{printable(text, _MAX_SHOWN)}"'
