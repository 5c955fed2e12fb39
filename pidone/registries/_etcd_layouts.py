"""The layouts of keys and values in etcd, each as the library reads it that defines it.

    grpc         go.etcd.io/etcd/client/v3/naming: SERVICE/ADDRESS:PORT; resolver "etcd:///SERVICE"
    go-kit       github.com/go-kit/kit/sd/etcdv3: PREFIX/SERVICE/ADDRESS:PORT; prefix of the instancer "PREFIX/SERVICE/"
    go-micro     the registry plugin "etcd" of go-micro: /micro/registry/SERVICE/ID
    skydns       SkyDNS, and the plugin "etcd" of CoreDNS: PREFIX/<labels of the domain, reversed>/ID
    registrator  github.com/gliderlabs/registrator: PREFIX/SERVICE/ID. It writes by the API of etcd 2, which etcd 3.6
                 does not have any more, and reads nothing; programs such as confd read these keys by either API

In the layouts of paths a "/" ends the prefix that readers ask for, so that "rating" does not find "ratings".
"""

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pidone.http.urls import authority
from pidone.plan.strict_json import check_names

MAX_SHOWN = 120  # characters of a value that is in no known layout
GO_MICRO_PREFIX = "/micro/registry"  # a constant of the plugin
SKYDNS_NUMBERS, SKYDNS_TEXTS = ("priority", "weight"), ("group", "text")  # of message Service


class Instance(NamedTuple):
    """What is registered. Fields that a layout does not have are empty."""

    address: str
    port: int  # 0: none
    pod: str  # its name
    ttl: int  # seconds
    service: str = ""
    domain: str = ""
    id: str = ""  # empty: the layout's own
    prefix: str = ""  # empty: the layout's own
    scheme: str = "http"
    version: str = "latest"
    metadata: Mapping[str, str] = MappingProxyType({})
    key: str = ""
    value: str = ""

    @property
    def authority(self) -> str:
        return authority(self.address, self.port)


class Layout(NamedTuple):
    """One layout: the fields that it needs, the others that it takes, and its key and value."""

    needs: tuple[str, ...]
    takes: tuple[str, ...]
    key: Callable[[Instance], str]
    value: Callable[[Instance], str]
    # Returns the address in a value, which is text or what is in it as JSON. May raise for a value of something else.
    address: Callable[[Any], object]
    is_json: bool = True


def problem(layout: str, instance: Instance) -> str:
    """Return why nobody could find the instance in this layout, with the remedy; empty if it can be found."""
    if layout != "skydns":
        return ""
    if "." in instance.id:
        return f'instanceId: "{instance.id}" becomes one label of a name in DNS; write it without "."'
    for name, value in instance.metadata.items():
        if name not in {*SKYDNS_NUMBERS, *SKYDNS_TEXTS}:
            known = ", ".join(sorted({*SKYDNS_NUMBERS, *SKYDNS_TEXTS}))
            return f'metadata: SkyDNS has no field "{name}"; it has {known}'
        if name in SKYDNS_NUMBERS and not (value.isascii() and value.isdecimal() and len(value) <= 5):
            return f'metadata.{name}: "{value[:40]}" is no number; give a whole number, as 10'
    return ""


def address_in(layout: str, value: str, instance: Instance) -> str:
    """Return the address of an instance in a value of this layout; the beginning of a value that is in no layout."""
    if value == LAYOUTS[layout].value(instance):
        return instance.address
    try:
        check_names(value.encode())
        found = LAYOUTS[layout].address(json.loads(value) if LAYOUTS[layout].is_json else value)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        found = None
    return found[:253] if isinstance(found, str) and found else value[:MAX_SHOWN]


def host_of(text: str) -> str:
    """Return the host of ``host:port`` or of a URL; an IPv6 address without brackets."""
    return urlsplit(text if "://" in text else f"//{text}").hostname or ""


def _grpc_key(instance: Instance) -> str:
    return f"{instance.service}/{instance.id or instance.authority}"


def _grpc_value(instance: Instance) -> str:
    return _json({"Op": 0, "Addr": instance.authority, "Metadata": dict(instance.metadata) or None})


def _go_kit_key(instance: Instance) -> str:
    return f"{instance.prefix or '/services'}/{instance.service}/{instance.id or instance.authority}"


def _go_micro_names(instance: Instance) -> tuple[str, str]:
    """The names of service and node in the key, in which the plugin replaces each "/"."""
    node = instance.id or f"{instance.service}-{instance.pod}-{instance.port}"
    return instance.service.replace("/", "-"), node.replace("/", "-")


def _go_micro_value(instance: Instance) -> str:
    node = {
        "id": instance.id or f"{instance.service}-{instance.pod}-{instance.port}",
        "address": instance.authority,
        "metadata": dict(instance.metadata),
    }
    service = {"name": instance.service, "version": instance.version, "metadata": {}, "endpoints": []}
    return _json({**service, "nodes": [node]})


def _skydns_key(instance: Instance) -> str:
    labels = reversed(instance.domain.strip(".").lower().split("."))
    own = f"{instance.pod.replace('.', '-')}-{instance.port}"
    return "/".join((instance.prefix or "/skydns", *labels, instance.id or own))


def _skydns_value(instance: Instance) -> str:
    # Without a ttl CoreDNS takes the number of the lease for one.
    more = {name: int(instance.metadata[name]) for name in SKYDNS_NUMBERS if name in instance.metadata}
    texts = {name: instance.metadata[name] for name in SKYDNS_TEXTS if name in instance.metadata}
    return _json({"host": instance.address, "port": instance.port, "ttl": instance.ttl, **more, **texts})


def _registrator_key(instance: Instance) -> str:
    own = f"{instance.pod}:{instance.service}:{instance.port}"
    return f"{instance.prefix or '/services'}/{instance.service}/{instance.id or own}"


def _filled(text: str, instance: Instance) -> str:
    """Return a text with its placeholders replaced."""
    for name, value in (
        ("{address}", instance.address),
        ("{port}", str(instance.port)),
        ("{authority}", instance.authority),
    ):
        text = text.replace(name, value)
    return text


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


FREE = ""  # the layout of those who write key and value themselves
LAYOUTS: Mapping[str, Layout] = {
    "grpc": Layout(
        ("service", "port"),
        ("instanceId", "metadata"),
        _grpc_key,
        _grpc_value,
        lambda value: host_of(value["Addr"]),
    ),
    "go-kit": Layout(
        ("service", "port"),
        ("instanceId", "prefix", "scheme"),
        _go_kit_key,
        lambda instance: f"{instance.scheme}://{instance.authority}",
        host_of,
        is_json=False,
    ),
    "go-micro": Layout(
        ("service", "port"),
        ("instanceId", "metadata", "version"),
        lambda instance: "/".join((GO_MICRO_PREFIX, *_go_micro_names(instance))),
        _go_micro_value,
        lambda value: host_of(value["nodes"][0]["address"]),
    ),
    "skydns": Layout(
        ("domain", "port"),
        ("instanceId", "metadata", "prefix"),
        _skydns_key,
        _skydns_value,
        lambda value: value["host"],
    ),
    "registrator": Layout(
        ("service", "port"),
        ("instanceId", "prefix"),
        _registrator_key,
        lambda instance: instance.authority,
        host_of,
        is_json=False,
    ),
    FREE: Layout(
        ("key", "value"),
        ("port",),
        lambda instance: _filled(instance.key, instance),
        lambda instance: _filled(instance.value, instance),
        lambda _: "",
        is_json=False,
    ),
}
