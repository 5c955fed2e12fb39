"""Writes Events, which people see in ``kubectl describe``, and limits their number.

As client-go's record package (tools/record/events_cache.go): a repeated message increases the count of the Event that
exists; more than ten different messages of one reason about one object in ten minutes become one Event; and after 25
about one object one more is written each five minutes. An Event that cannot be written is dropped, since
nothing depends on it.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import time_ns
from typing import Any, Generic, TypeVar

import trio

from pidone.pacing import RateLimit
from pidone_controller.kubernetes.client import MANAGER, Client
from pidone_controller.kubernetes.errors import ApiError, NotFound
from pidone_controller.kubernetes.resources import EVENTS

Log = Callable[..., None]

BURST = 25  # Events about one object at once
REFILL_SECONDS = 300.0  # until one more
MAX_SIMILAR = 10  # different messages of one reason about one object
SIMILAR_SECONDS = 600.0  # between two of them
MAX_REMEMBERED = 4096  # objects, and messages; the oldest are forgotten
MAX_MESSAGE = 1024  # characters; the API server refuses more

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Recent(Generic[K, V]):
    """The ``MAX_REMEMBERED`` values that were used last, by key."""

    def __init__(self) -> None:
        self._values = OrderedDict[K, V]()

    def get(self, key: K, make: Callable[[], V]) -> V:
        value = self._values.pop(key, None)
        self._values[key] = value = make() if value is None else value
        if len(self._values) > MAX_REMEMBERED:
            self._values.popitem(last=False)
        return value


@dataclass(slots=True)
class _Written:
    """One Event in the cluster. ``name`` is "" until it is created."""

    name: str = ""
    count: int = 0
    first: str = ""


@dataclass(slots=True)
class _Similar:
    """Different messages of one reason about one object."""

    at: float
    messages: set[str] = field(default_factory=set)


class Recorder:
    """Writes the Events of this controller. ``instance`` is the name of this replica."""

    def __init__(self, client: Client, *, instance: str, log: Log) -> None:
        self._client, self._instance, self._log = client, instance, log
        self._rates = _Recent[str, RateLimit]()
        self._similar = _Recent[tuple[str, str, str], _Similar]()
        self._written = _Recent[tuple[str, str, str, str], _Written]()

    async def record(self, about: Mapping[str, Any], kind: str, reason: str, message: str) -> None:
        """Write an Event about an object, whose apiVersion, kind and metadata are read. ``kind``: Normal or Warning.

        Raises no ``ApiError``: an Event that cannot be written is logged and dropped.
        """
        involved = _involved(about)
        identity, now = json.dumps(involved), trio.current_time()
        similar = self._similar.get((identity, kind, reason), lambda: _Similar(now))
        if now - similar.at > SIMILAR_SECONDS:
            similar.messages.clear()
        similar.at = now
        if message not in similar.messages and len(similar.messages) >= MAX_SIMILAR:
            same, message = "", f"(combined from similar events): {message}"
        else:
            similar.messages.add(message)
            same = message
        written = self._written.get((identity, kind, reason, same), _Written)
        written.count += 1
        if self._rates.get(identity, lambda: RateLimit(BURST, REFILL_SECONDS)).take(now) > 0:
            return
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        fields = {"count": written.count, "lastTimestamp": stamp, "message": message[:MAX_MESSAGE]}
        namespace = involved.get("namespace") or "default"
        try:
            if written.name and await self._count(written.name, namespace, fields):
                return
            written.first = written.first or stamp
            name = f"{involved['name']}.{time_ns():x}"
            meta = {"name": name, "namespace": namespace}
            source = {"source": {"component": MANAGER}, "reportingComponent": MANAGER}
            event = {
                "metadata": meta,
                "involvedObject": involved,
                "type": kind,
                "reason": reason,
                **fields,
                **source,
            }
            event |= {"firstTimestamp": written.first, "reportingInstance": self._instance}
            await self._client.create(EVENTS, {"apiVersion": "v1", "kind": "Event", **event})
            written.name = name
        except ApiError as error:
            self._log("event-not-written", object=involved["name"], reason=reason, error=error)

    async def _count(self, name: str, namespace: str, fields: Mapping[str, Any]) -> bool:
        """Update the Event. False if it no longer exists: Events are deleted after an hour."""
        try:
            await self._client.merge(EVENTS, name, fields, namespace=namespace)
        except NotFound:
            return False
        return True


def _involved(about: Mapping[str, Any]) -> dict[str, str]:
    """Return a reference to the object, in the form for which ``kubectl describe`` searches."""
    meta = about["metadata"]
    reference = {key: about.get(key) for key in ("apiVersion", "kind")} | {
        key: meta.get(key) for key in ("namespace", "name", "uid")
    }
    return {key: value for key, value in reference.items() if value}
