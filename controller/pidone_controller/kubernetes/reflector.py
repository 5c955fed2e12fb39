"""Keeps a copy of all objects of one kind up to date: list, then watch, forever.

The rules are those of client-go's reflector (tools/cache/reflector.go), each of which was learned in an outage: a
list comes as a stream or in pages; a watch ends by itself after 5 to 10 minutes; bookmarks come once a minute, so 75 s
without a byte mean a dead peer; after a compacted version a new list *replaces* all objects, since deletions were
missed; the waits after failures grow, are random, and are at least the server's Retry-After.

A reflector calls its sink without an ``await`` between two objects of one change, so nothing here needs a lock.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import trio

from pidone.errors import PidoneError
from pidone.metrics.exposition import Family, counter
from pidone_controller.kubernetes.client import Client, Watch
from pidone_controller.kubernetes.errors import (
    ApiError,
    BadRequest,
    Gone,
    NotFound,
    Silent,
    Unreachable,
    from_status,
)
from pidone_controller.kubernetes.pacing import Retries
from pidone_controller.kubernetes.resources import Resource

NamespacedName = tuple[str, str]  # namespace ("" for cluster kinds) and name
Log = Callable[..., None]  # log(event, key=value, ...)
T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

MIN_WATCH_SECONDS = 300.0  # a watch lasts between this and twice this, so that replicas' watches end apart
OBJECTS_PER_TURN = 100  # then other tasks have a turn: some 15 ms
# Between two objects of a streamed list: kine and proxies have held back the last bookmark.
STALL_SECONDS = 30.0
SILENT_SECONDS = 300.0  # without a byte or an attempt, after which this process should be restarted
HASTY_SECONDS = 1.0  # a watch that ended sooner, without an event, has failed

INITIAL_END = (
    "k8s.io/initial-events-end"  # the annotation of the bookmark after the last object of a streamed list
)


class Sink(Protocol[T_contra]):
    """Receives the objects of one kind."""

    def replaced(self, items: Mapping[NamespacedName, T_contra]) -> None:
        """Replace all objects by those of a list: all others were deleted."""

    def changed(self, key: NamespacedName, item: T_contra) -> None:
        """Add or change an object."""

    def removed(self, key: NamespacedName) -> None:
        """Remove an object that was deleted, or is left out now. It may never have been present."""


class Reflector(Generic[T]):
    """Passes the projections of all objects of a kind to ``sink``.

    ``project`` is called with each object before the next one is parsed. The object is left out if
    it returns None, or if it raises, which is logged with the object's name: a bad object must not affect the others.
    ``synced`` is set when the sink has a whole list; ``heard`` is the clock time of the last byte from the API server.
    """

    def __init__(
        self,
        client: Client,
        resource: Resource,
        project: Callable[[Mapping[str, Any]], T | None],
        sink: Sink[T],
        *,
        namespace: str = "",
        field_selector: str = "",
        label_selector: str = "",
        stream: bool = True,
        log: Log,
        random: Random | None = None,
    ) -> None:
        self.resource = resource
        self.synced = trio.Event()
        self.heard = -math.inf
        # Clock time of the last failure: with an unreachable API server this reflector is not stuck.
        self.tried = -math.inf
        self.lists = 0  # whole lists; all but the first are relists
        self.watches = 0  # watches that were begun
        self._client, self._project, self._sink, self._log = client, project, sink, log
        self._selection = {
            "namespace": namespace,
            "field_selector": field_selector,
            "label_selector": label_selector,
        }
        self._random = random or Random()
        self._stream = stream  # lists; False once the server has refused it
        self._version = ""  # from which to watch. Opaque: it is sent back, never compared
        self._initial: dict[NamespacedName, T] | None = None  # a streamed list that is not whole yet
        self._since_turn = 0  # objects since other tasks had a turn

    async def run(self) -> NoReturn:
        """Reflect until cancelled. Failures are logged and retried."""
        retries, silent = Retries(self._random), False
        while True:
            try:
                if not self._version and not self._stream:
                    await self._list()
                await self._watch()
                silent = False
            except Silent as error:
                # No further pause: an API server sends no bookmarks for a kind without any object since it started, and
                # growing pauses would miss the first one.
                self.tried = trio.current_time()
                if not silent:
                    self._log("reflector-silent", resource=self.resource, error=error)
                silent = True
            except ApiError as error:
                if self._stream and not self._version and isinstance(error, BadRequest):
                    self._in_pages(error)
                    continue
                if _relists(error):
                    self._version = ""
                self.tried = trio.current_time()
                wait = retries.failed(self.tried, error.retry_after)
                self._log("reflector-failed", resource=self.resource, error=error, again=f"{wait:.1f}s")
                await trio.sleep(wait)

    async def _list(self) -> None:
        """List in pages of 500, which all have one version; one page is in memory at a time."""
        items, more = dict[NamespacedName, T](), ""
        while True:
            page = await self._client.page(self.resource, **self._selection, more=more)
            self.heard = trio.current_time()
            try:
                for value in page:
                    key = _key(value)
                    if (item := self._projected(key, value)) is not None:
                        items[key] = item
                    await self._yield_turn()
            except (KeyError, TypeError) as error:
                raise Unreachable(f"LIST {self.resource}: not a list: {error!r}") from error
            if not page.version:
                raise Unreachable(f"LIST {self.resource}: not a list: it has no version")
            more = page.more
            if not more:
                self._swap(items, page.version)
                return

    async def _watch(self) -> None:
        """Read one watch to its end. Without a version to begin at, the same stream begins with the list."""
        seconds = str(int(MIN_WATCH_SECONDS + MIN_WATCH_SECONDS * self._random.random()))
        query = {"allowWatchBookmarks": "true", "timeoutSeconds": seconds}
        if self._version:
            query["resourceVersion"] = self._version
            self._initial = None
        else:
            query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
            self._initial = {}
        self.watches += 1
        begun, events = trio.current_time(), 0
        async with self._client.watch(self.resource, query, **self._selection) as watch:
            self.heard = trio.current_time()
            while (lines := await self._read(watch)) is not None:
                for line in lines:
                    self._event(line)
                    events += 1
                    await self._yield_turn()
        if self._initial is not None:
            raise Unreachable(f"WATCH {self.resource}: ended before its list was whole")
        if not events and trio.current_time() - begun < HASTY_SECONDS:
            raise Unreachable(f"WATCH {self.resource}: ended at once, with nothing")

    async def _read(self, watch: Watch) -> list[bytes] | None:
        """Return the next lines; None at the end. A streamed list that stalls is replaced by one in pages."""
        lines: list[bytes] | None = None
        with trio.move_on_after(math.inf if self._initial is None else STALL_SECONDS) as waited:
            lines = await watch.read()
        if waited.cancelled_caught:
            self._in_pages(f"nothing came for {STALL_SECONDS:g} s")
            raise Unreachable(f"WATCH {self.resource}: its list stood still")
        self.heard = trio.current_time()
        return lines

    def _event(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind, value = event["type"], event["object"]
            if kind == "ERROR":
                self._version = ""  # after any error the copy may be out of date
                raise from_status(f"WATCH {self.resource}", value["code"], value)
            version = value["metadata"]["resourceVersion"]
            key = _key(value) if kind != "BOOKMARK" else ("", "")
        except (ValueError, KeyError, TypeError) as error:
            raise Unreachable(f"WATCH {self.resource}: not an event: {line[:80]!r}") from error
        if kind == "BOOKMARK":
            if self._initial is None:
                self._version = version
            elif INITIAL_END in (value["metadata"].get("annotations") or ()):
                initial, self._initial = self._initial, None
                self._swap(initial, version)
            return
        item = None if kind == "DELETED" else self._projected(key, value)
        if self._initial is not None:
            if item is None:
                self._initial.pop(key, None)
            else:
                self._initial[key] = item
            return
        self._version = version
        if item is None:
            self._sink.removed(key)
        else:
            self._sink.changed(key, item)

    def _swap(self, items: dict[NamespacedName, T], version: str) -> None:
        self._version = version
        self.lists += 1
        self._sink.replaced(items)
        self.synced.set()

    def _projected(self, key: NamespacedName, value: Mapping[str, Any]) -> T | None:
        try:
            return self._project(value)
        except PidoneError as error:
            self._log(
                "object-left-out", resource=self.resource, object="/".join(filter(None, key)), error=error
            )
        except Exception as error:  # noqa: BLE001 - one bad object must not end the controller
            self._log(
                "object-left-out", resource=self.resource, object="/".join(filter(None, key)), bug=repr(error)
            )
        return None

    def _in_pages(self, reason: object) -> None:
        self._stream = False
        self._log("reflector-in-pages", resource=self.resource, reason=reason)

    async def _yield_turn(self) -> None:
        self._since_turn += 1
        if self._since_turn >= OBJECTS_PER_TURN:
            self._since_turn = 0
            await trio.lowlevel.checkpoint()


def families(reflectors: Sequence[Reflector[Any]]) -> Iterator[Family]:
    """Yield metrics of lists and watches by resource."""
    lists = counter(
        "pidone_controller_lists_total", "Whole lists that were read; all but the first are relists."
    )
    watches = counter("pidone_controller_watches_total", "Watches that were begun.")
    for reflector in reflectors:
        lists.add(reflector.lists, resource=str(reflector.resource))
        watches.add(reflector.watches, resource=str(reflector.resource))
    yield from (lists, watches)


def silence(reflectors: Sequence[Reflector[Any]], began: float) -> str:
    """Return which reflector is stuck, for ``/livez``; empty if none is. An unreachable API server does not count.

    ``began`` is the clock time at which this process began.
    """
    now = trio.current_time()
    for reflector in reflectors:
        if max(reflector.heard, reflector.tried, began) < now - SILENT_SECONDS:
            return f"{reflector.resource}: neither heard of nor asked about for {SILENT_SECONDS:.0f} s"
    return ""


def _key(value: Mapping[str, Any]) -> NamespacedName:
    meta = value["metadata"]
    return meta.get("namespace", ""), meta["name"]


def _relists(error: ApiError) -> bool:
    """True if the version cannot be watched: compacted, unknown, or newer than a restored etcd."""
    return isinstance(error, Gone | NotFound | BadRequest) or "ResourceVersionTooLarge" in error.causes
