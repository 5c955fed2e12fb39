"""Paths and servers of ZooKeeper. Each function returns why a text is none, with the remedy; empty if it is one.

The checker uses them for literal values, and the driver for values that come from params.
"""

import re

from pidone.text import printable

PORT = 2181
STATUS_KEY = "instance_status"  # org.springframework.cloud.zookeeper.support.StatusConstants
# org.apache.zookeeper.common.PathUtils.validatePath
_REFUSED = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\uf8ff\ufff0-\uffff]")
_URI_SPEC = re.compile(r"([^{}\s]|\{[-a-z]+\})+")
_MAX_NAME = 253
_MAX_SHOWN = 60
_HOST = re.compile(r"[A-Za-z0-9_]([-.A-Za-z0-9_]*[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]+\]")


def node(text: str) -> str:
    """Of the name of one node."""
    if "/" in text:
        return f'{_shown(text)} has a "/", which begins another node; write the name of one node'
    if not text:
        return "an empty name, which no node can have; give at least one character"
    return _name(text)


def path(text: str) -> str:
    """Of the path of a node."""
    if not text.startswith("/"):
        return f'{_shown(text)} does not begin with "/"; write a path as /services'
    if text == "/":
        return ""
    if text.endswith("/"):
        return f'{_shown(text)} ends in "/", which ZooKeeper refuses; write {_shown(text.rstrip("/") or "/")}'
    names = text[1:].split("/")
    if not all(names):
        return f'{_shown(text)} has an empty segment, which ZooKeeper refuses; write each "/" once'
    if names[0] == "zookeeper":
        return f"{_shown(text)} is in /zookeeper, which ZooKeeper keeps for itself; use another path"
    return next(filter(None, map(_name, names)), "")


def servers(text: str) -> str:
    """Of servers that are separated by commas."""
    parts = [part.strip() for part in text.split(",")]
    return next(filter(None, map(_server, parts)), "")


def metadata_key(text: str) -> str:
    """Of a pair in the metadata."""
    return f'"{STATUS_KEY}" is set by pidone itself; remove it' if text == STATUS_KEY else ""


def uri_spec(text: str) -> str:
    """Of the template of a URI, with variables in braces."""
    if not _URI_SPEC.fullmatch(text):
        return f"{_shown(text)} is no template of a URI; write variables in braces, as {{scheme}}://{{address}}:{{port}}"
    return ""


def server(text: str) -> tuple[str, int]:
    """Return host and port of one server that ``servers`` has nothing to say against."""
    host, _, port = text.rpartition(":") if _has_port(text) else (text, "", "")
    return host.strip("[]"), int(port or PORT)


def _server(text: str) -> str:
    if not text:
        return "an empty server; write one, or several with one comma between two, as zk-0:2181,zk-1:2181"
    if "://" in text:
        return f"{_shown(text)} is a URL; write host:port, as zookeeper.infra.svc:2181"
    if "@" in text:
        return "a server has no user in it; write user and password in their own fields"
    if "/" in text:
        return f"{_shown(text)} has a path; write it in basePath, and here {_shown(text.partition('/')[0])}"
    host, port = text, ""
    if _has_port(text):
        host, _, port = text.rpartition(":")
        if not (port.isascii() and port.isdecimal() and 1 <= int(port[:6]) <= 65535):
            return f"{_shown(text)}: {_shown(port)} is no port; give 1-65535"
    if not _HOST.fullmatch(host) or len(host) > _MAX_NAME:
        return f"{_shown(text)} is no server; write host:port, as zookeeper.infra.svc:2181, or [::1]:2181"
    return ""


def _has_port(text: str) -> bool:
    return ":" in text.rpartition("]")[2]


def _name(text: str) -> str:
    if text in {".", ".."}:
        return f"{_shown(text)} is no node: paths of ZooKeeper have no relative segments; use another name"
    if text != text.strip():
        return f"{_shown(text)} begins or ends with a blank, with which nobody finds it; remove the blank"
    if _REFUSED.search(text):
        return f"{_shown(text)} has a character that ZooKeeper refuses in paths; remove it"
    if len(text) > _MAX_NAME:
        return f"{_shown(text)} has {len(text)} characters; use at most {_MAX_NAME}"
    return ""


def _shown(text: str) -> str:
    return f'"{printable(text, _MAX_SHOWN)}"'
