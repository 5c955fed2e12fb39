"""Checks literal values against the protocols that carry them. Each function returns the fault, or nothing.

A schema's pattern cannot say these things, or would be too long for a person. The field ``x-pidone-holds`` of the
schema names the function. A reference counts as a number where one is expected, and as a letter elsewhere.
"""

import re
import socket
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from urllib.parse import quote, urlsplit

from pidone.actions import _address
from pidone.actions._report_checks import header_name, header_value, otlp_url, pushgateway_url, webhook_url
from pidone.http.urls import has_dot_segments, segment
from pidone.language.findings import shown
from pidone.language.substitution import references
from pidone.registries import _consul_names, _nacos_names
from pidone.registries import _zookeeper_names as zookeeper
from pidone.registries._keys import part_problem
from pidone.registries._keys import problem as key_problem

_LABEL = re.compile(r"[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?")
_LABEL_WORD = re.compile(r"([A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?)")
_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")

__all__ = ["excess", "header_name", "label_key", "label_value", "problem"]


def problem(holds: str, text: str) -> str:
    """Return why a text is invalid for the schema's ``holds``; empty if it is valid or cannot be judged."""
    found = references(text)
    if found and found[0].start == 0:
        return ""  # the value may bring the beginning, as a whole URL
    for reference in found:
        before, _, after = text.partition(reference.text)
        stand_in = "::1" if before.endswith("[") else "1" if before[-1:] in ":0123456789" else "x"
        text = f"{before}{stand_in}{after}"
    return _CHECKS[holds](text.replace("$$(", "$(")) if holds in _CHECKS else ""


def excess(without: str, text: str) -> str:
    """Return a message if a URL ends in what pidone adds itself, by the pattern ``without``; empty if it does not."""
    for part in text.split(",") if without else ():
        if found := re.search(without, part.strip()):
            return f'pidone adds "{found.group()}" itself; write {part.strip()[: found.start()]}'
    return ""


def label_key(text: str) -> str:
    """Return the fault of the key of a label or an annotation (Kubernetes' IsQualifiedName)."""
    prefix, slash, name = text.rpartition("/")
    if "/" in prefix:
        return f"{shown(text)} has two slashes; a key of a label is <prefix>/<name> or <name>"
    if slash and not (len(prefix) <= 253 and _PREFIX.fullmatch(prefix)):
        return f"{shown(prefix)} is no prefix of a label; write a domain in lower case, as in pidone.dev/registry"
    if not _LABEL_WORD.fullmatch(name):
        return f'{shown(name)} is no name of a label; use letters, digits, "-", "." and "_", at most 63'
    return ""


def label_value(text: str) -> str:
    """Return the fault of the value of a label (Kubernetes' IsValidLabelValue)."""
    if text and not _LABEL_WORD.fullmatch(text):
        return f'{shown(text)} is no value of a label; use letters, digits, "-", "." and "_", at most 63'
    return ""


def _ignored(text: str) -> str:
    if text == "probes":
        return ""
    try:
        ip_network(text, strict=False)
    except ValueError:
        return f"{shown(text)} is no network; write an address and the length of its prefix, as 10.0.0.0/8"
    return ""


def _path(text: str) -> str:
    if not text.isascii():
        written = quote(text, safe="/%?=&;:@!$'()*+,~-._")
        return f"{shown(text)} has characters that a request cannot carry; write {written}"
    if "#" in text:
        return f'{shown(text)} has a "#", and what follows it is never sent; remove it, or write %23'
    if has_dot_segments(text.partition("?")[0]):
        return f'{shown(text)} has a segment "." or "..", which servers resolve or refuse; write the path without it'
    return ""


def _host(text: str) -> str:
    if ":" in text:
        host, _, port = text.rpartition(":")
        if _is_address(socket.AF_INET6, text):
            return ""
        remedy = (
            f"the port has a field of its own; write {host}"
            if port.isdecimal()
            else "write no scheme and no port"
        )
        return f"{shown(text)} is neither a name nor an address; {remedy}"
    if text.replace(".", "").isdecimal():
        return (
            ""
            if _is_address(socket.AF_INET, text)
            else f"{shown(text)} is no address; write it like 10.0.0.1"
        )
    labels = text.removesuffix(".").split(".")
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return f'{shown(text)} is no name of a host; write letters, digits and "-" between the dots'
    return ""


def _url(text: str) -> str:
    for mark in ",;":
        if mark in text.partition("://")[2].partition("/")[0] or f"{mark}http" in text:
            return f'one URL can stand here; "{mark}" does not separate several'
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        number = re.search(r":([0-9]+)(?:/|$)", text.partition("://")[2])
        what = f"{number[1]} is no port; give 1-65535" if number else f"{shown(text)} is not a URL"
        return what if number else f"{what}; write it like http://eureka.infra.svc:8761/eureka"
    if port == 0:
        return "0 is no port; give 1-65535"
    host = parts.hostname or ""
    if not host.isascii():
        return f"{shown(host)} is no name of a host that DNS has; write it in ASCII (xn--)"
    return (_host(host) if host else "a URL needs a host") or _path(parts.path)


def _urls(text: str) -> str:
    """Check several URLs, separated by commas."""
    if re.search(r"[;|] ?https?://", text):
        return "several URLs are separated by commas, as in http://a:8761/eureka,http://b:8761/eureka"
    for part in map(str.strip, text.split(",")):
        if not part.startswith(("http://", "https://")):
            return f"{shown(part)} is no URL; each of several begins with http:// or https://"
        if wrong := _url(part):
            return wrong
    return ""


def _segment(text: str) -> str:
    try:
        segment(text)
    except ValueError as error:
        return f"{error}, and it becomes one"
    return ""


def _domain(text: str) -> str:
    """Check a DNS name."""
    labels = text.removesuffix(".").split(".")
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return f'{shown(text)} is no name in DNS; write letters, digits and "-" between the dots'
    return ""


def _attribute(text: str) -> str:
    """Check the key of an attribute of OpenTelemetry."""
    if text and text.isprintable() and text == text.strip():
        return ""
    return f"{shown(text)} is no name of an attribute; write it like service.name"


def _is_address(family: int, text: str) -> bool:
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):
        return False
    return True


_CHECKS: Mapping[str, Callable[[str], str]] = {
    "consulId": _consul_names.consul_id,
    "consulKey": _consul_names.consul_key,
    "consulMeta": _consul_names.consul_meta,
    "dnsLabel": _consul_names.dns_label,
    "address": _address.problem,
    "domain": _domain,
    "attribute": _attribute,
    "header": header_value,
    "host": _host,
    "ignored": _ignored,
    "key": key_problem,
    "keyPart": part_problem,
    "nacosCluster": _nacos_names.cluster,
    "nacosGroup": _nacos_names.group,
    "nacosNamespace": _nacos_names.namespace,
    "nacosService": _nacos_names.service,
    "otlpUrl": lambda text: _url(text) or otlp_url(text),
    "path": _path,
    "pushgatewayUrl": lambda text: _url(text) or pushgateway_url(text),
    "segment": _segment,
    "trimmed": _consul_names.trimmed,
    "url": _url,
    "urls": _urls,
    "webhookUrl": lambda text: _url(text) or webhook_url(text),
    "zookeeperKey": zookeeper.metadata_key,
    "zookeeperNode": zookeeper.node,
    "zookeeperPath": zookeeper.path,
    "zookeeperServers": zookeeper.servers,
    "zookeeperUriSpec": zookeeper.uri_spec,
}
