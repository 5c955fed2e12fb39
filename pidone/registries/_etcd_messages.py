"""Answers of etcd's JSON gateway as values, typed and bounded, whatever a server answers."""

from base64 import b64decode
from collections.abc import Mapping
from typing import Any

from pidone.http.message import Response
from pidone.registries._servers import json_object, printable

# The texts of etcd's errors (go.etcd.io/etcd/api/v3/v3rpc/rpctypes), which the gateway hands on
LEASE_NOT_FOUND = "etcdserver: requested lease not found"
LEASE_EXISTS = "etcdserver: lease already exists"
NO_TOKEN = "etcdserver: user name is empty"  # noqa: S105 - no password
STALE_TOKEN = frozenset({"etcdserver: invalid auth token", "etcdserver: revision of auth store is old"})
WRONG_PASSWORD = "etcdserver: authentication failed, invalid user ID or password"  # noqa: S105 - no password
AUTH_OFF = "etcdserver: authentication is not enabled"
OWN_WORDS = ("etcdserver: ", "auth: ", "mvcc: ")
# Codes of gRPC
INVALID_ARGUMENT, PERMISSION_DENIED, RESOURCE_EXHAUSTED, OUT_OF_RANGE = 3, 7, 8, 11


class Reply:
    """An answer of etcd: its fields, and its error's text, if it is one."""

    __slots__ = ("error", "fields")

    def __init__(self, fields: Mapping[str, Any], error: str = "") -> None:
        self.fields, self.error = fields, error


class Held:
    """The key as etcd has it."""

    __slots__ = ("lease", "revision", "value")

    def __init__(self, value: str, lease: str, revision: str) -> None:
        self.value = value
        self.lease = lease  # "0": none
        self.revision = revision  # of the last change


def reply_of(answer: Response) -> Reply | None:
    """Return the answer of etcd; None if somebody else answered. Fields of a wrong type are left as they are."""
    fields = json_object(answer)
    if answer.status == 200:
        inner = fields.get("result", fields)  # of a stream
        header = inner.get("header") if isinstance(inner, dict) else None
        if isinstance(header, dict) and number(header.get("cluster_id"), bits=64):
            return Reply(inner)
    # 3.4 says "error" and "message", 3.6 "message", and both put the error of a stream into an object "error".
    nested = fields.get("error")
    inner = nested if isinstance(nested, dict) else fields
    text = inner.get("message") or inner.get("error")
    code = inner.get("code", inner.get("grpc_code"))
    if isinstance(text, str) and text and type(code) is int and answer.status != 200:
        return Reply({"code": code}, printable(text))
    return None


def held_in(reply: Reply) -> Held | None:
    """Return the one key of an answer. A key whose value is no text is there too."""
    found = reply.fields.get("kvs")
    kv = found[0] if isinstance(found, list) and found and isinstance(found[0], dict) else None
    if kv is None:
        return None
    try:
        value = b64decode(str(kv.get("value", ""))).decode(errors="replace")
    except ValueError:
        value = ""
    return Held(value, str(number(kv.get("lease"))), str(number(kv.get("mod_revision"))))


def range_in(reply: Reply) -> Reply:
    """Return the answer to the one question of a transaction."""
    responses = reply.fields.get("responses")
    first = responses[0] if isinstance(responses, list) and responses else None
    found = first.get("response_range") if isinstance(first, dict) else None
    return Reply(found if isinstance(found, dict) else {})


def number(value: object, bits: int = 63) -> int:
    """Return a positive number of 63 or 64 bits, which is a string or a number in JSON; 0 if it is none."""
    if type(value) is int:
        return value if 0 < value < 1 << bits else 0
    if isinstance(value, str) and len(value) <= 20 and value.isascii() and value.isdecimal():
        return int(value) if int(value) < 1 << bits else 0
    return 0
