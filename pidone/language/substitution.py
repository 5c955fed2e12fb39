"""Replaces the references ``$(params.x)`` and ``$(pod.name)`` after parsing, from a closed table, in one pass.

A scalar that is exactly one reference becomes the value with its type. Inside of a text the value is inserted as text
and is not searched for references again. An IPv6 address that is the host of a URL gets brackets. ``$$(x)`` is the text
``$(x)``. There is no expression language.
"""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pidone.errors import LanguageError
from pidone.http.urls import bracketed

POD = {  # the facts of a pod for references of every task, each with its field of the Pod; lists are joined by commas
    "pod.name": "metadata.name",
    "pod.namespace": "metadata.namespace",
    "pod.uid": "metadata.uid",
    "pod.ip": "status.podIP",
    "pod.ips": "status.podIPs",
    "pod.nodeName": "spec.nodeName",
    "pod.ports": "spec.containers[*].ports",
}

# The text before a reference that is the host of a URL. An IPv6 address gets its brackets there.
_IS_HOST = re.compile(r"//(?:[^/?#@\s]*@)?\Z")
_MAX_USER = 256  # characters before the host of a URL that are searched
_TOKEN = re.compile(r"\$\$\(|\$\(([^()]*)\)|\$\(")


@dataclass(frozen=True, slots=True)
class Reference:
    """One ``$(name)`` in a text; ``name`` is empty if the bracket is not closed."""

    name: str
    text: str
    start: int


def references(text: str) -> list[Reference]:
    return [
        Reference(match.group(1) or "", match.group(), match.start())
        for match in _TOKEN.finditer(text)
        if match.group() != "$$("
    ]


def substitute(text: str, table: Mapping[str, Any], longest: int = 1 << 20) -> Any:
    """Return ``text`` with its references replaced by the values of ``table``.

    Raises ``LanguageError`` for a name without a value, and for values of more than ``longest`` characters together.
    """
    whole = _TOKEN.fullmatch(text)
    if whole and whole.group(1) is not None:
        return _look_up(whole.group(1), table)

    room = longest

    def replacement(match: re.Match[str]) -> str:
        nonlocal room
        if match.group() == "$$(":
            return "$("
        value = written(_look_up(match.group(1) or "", table))
        room -= len(value)
        if room < 0:
            raise LanguageError(f"the values of this text have more than {longest} characters")
        before = max(0, match.start() - _MAX_USER)
        return bracketed(value) if _IS_HOST.search(text, before, match.start()) and _is_ipv6(value) else value

    return _TOKEN.sub(replacement, text)


def escaped(text: str) -> str:
    """Return the text from which ``substitute`` makes ``text``."""
    return text.replace("$(", "$$(")


def written(value: Any) -> str:
    """Return the value as text; booleans as in JSON and YAML."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_ipv6(value: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, value)
    except (OSError, ValueError):
        return False
    return True


def _look_up(name: str, table: Mapping[str, Any]) -> Any:
    if name in table:
        return table[name]
    if name in POD:
        raise LanguageError(f"$({name}) has no value: the pod has no {POD[name]} yet")
    raise LanguageError(f"$({name}) is not known")
