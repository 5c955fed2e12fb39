"""One kind, as the API server has it, kept up to date: list, then watch, for ever.

The rules are those of client-go's reflector (tools/cache/reflector.go), each for a reason that somebody had an
outage for: a list comes as a stream or in pages; a watch ends by itself in 5 to 10 minutes; bookmarks come each
minute, so 75 s of silence is a dead peer; a version that is gone means a new list, which *replaces* all that is
there, since deletions were missed; failures wait longer each time, at random, and as long as the server says.

What the reflector tells its sink between two awaits is seen whole, and nothing here needs a lock: only one task
runs until it awaits.
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

Key = tuple[str, str]  # the namespace ("" for cluster kinds) and the name
Log = Callable[..., None]  # log(event, key=value, ...)
T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

WATCH_MIN = 300.0  # seconds; a watch lasts between this and twice this, so that replicas' watches end apart
BREATH = 100  # objects between two chances for other tasks: some 15 ms
STALL = (
    30.0  # seconds between two objects of a streamed list; kine and proxies have held back the last bookmark
)
SILENT_SECONDS = 300.0  # without a sign of life, after which this process should be restarted
HASTY = 1.0  # a watch that ended sooner, with nothing, has failed

INITIAL_END = (
    "k8s.io/initial-events-end"  # the annotation of the bookmark after the last object of a streamed list
)


class Sink(Protocol[T_contra]):
    """Where the objects go. Called without an await between: what it changes is seen whole."""

    def replaced(self, items: Mapping[Key, T_contra]) -> None:
        """A list, the first or again: what is not in it is gone."""

    def changed(self, key: Key, item: T_contra) -> None:
        """One is new, or another than it was."""

    def removed(self, key: Key) -> None:
        """One is gone, or no longer ours to see; also said of one that was never there."""


class Reflector(Generic[T]):
    """Tells ``sink`` what ``project`` makes of each object of a kind.

    ``project`` runs on each object before the next one is parsed. None leaves the object out, and so does an
    error, which is logged with the object's name: one object that is not understood costs the others nothing.
    ``synced`` is set once the sink has a whole list; ``heard`` is Trio's time of the last sign of life.
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
        # Trio's time of the last failure: an API server that is away is not our silence.
        self.tried = -math.inf
        self.lists = 0  # whole lists taken; all but the first are relists
        self.watches = 0  # watches begun
        self._client, self._project, self._sink, self._log = client, project, sink, log
        self._selection = {
            "namespace": namespace,
            "field_selector": field_selector,
            "label_selector": label_selector,
        }
        self._random = random or Random()
        self._stream = stream  # until the server says that it cannot
        self._version = ""  # to watch from. Opaque: it is handed back, never compared
        self._initial: dict[Key, T] | None = None  # a streamed list that is not whole yet
        self._unbroken = 0  # objects since other tasks had their turn

    async def run(self) -> NoReturn:
        """Reflect for ever. Failures are logged and waited out; nothing but cancelling ends it."""
        retries, silent = Retries(self._random), False
        while True:
            try:
                if not self._version and not self._stream:
                    await self._list()
                await self._watch()
                silent = False
            except Silent as error:
                # Long enough for a pause. An API server also has no bookmarks for a kind of which nothing was heard
                # since it started, and whoever backs off further each time is late for the first object.
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
        """In pages of 500, which are all of one version; one of them is in memory at a time."""
        items, more = dict[Key, T](), ""
        while True:
            page = await self._client.page(self.resource, **self._selection, more=more)
            self.heard = trio.current_time()
            try:
                for value in page:
                    key = _key(value)
                    if (item := self._projected(key, value)) is not None:
                        items[key] = item
                    await self._breathe()
            except (KeyError, TypeError) as error:
                raise Unreachable(f"LIST {self.resource}: not a list: {error!r}") from error
            if not page.version:
                raise Unreachable(f"LIST {self.resource}: not a list: it has no version")
            more = page.more
            if not more:
                self._swap(items, page.version)
                return

    async def _watch(self) -> None:
        """One watch, to its end. Without a version to begin at, the list comes first in the same stream."""
        seconds = str(int(WATCH_MIN + WATCH_MIN * self._random.random()))
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
                    await self._breathe()
        if self._initial is not None:
            raise Unreachable(f"WATCH {self.resource}: ended before its list was whole")
        if not events and trio.current_time() - begun < HASTY:
            raise Unreachable(f"WATCH {self.resource}: ended at once, with nothing")

    async def _read(self, watch: Watch) -> list[bytes] | None:
        """The next lines; None at the end. A streamed list that stands still is given up for one in pages."""
        lines: list[bytes] | None = None
        with trio.move_on_after(math.inf if self._initial is None else STALL) as waited:
            lines = await watch.read()
        if waited.cancelled_caught:
            self._in_pages(f"nothing came for {STALL:g} s")
            raise Unreachable(f"WATCH {self.resource}: its list stood still")
        self.heard = trio.current_time()
        return lines

    def _event(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind, value = event["type"], event["object"]
            if kind == "ERROR":
                self._version = ""  # whatever it is, what comes next is not what we have
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

    def _swap(self, items: dict[Key, T], version: str) -> None:
        self._version = version
        self.lists += 1
        self._sink.replaced(items)
        self.synced.set()

    def _projected(self, key: Key, value: Mapping[str, Any]) -> T | None:
        try:
            return self._project(value)
        except PidoneError as error:
            self._log(
                "object-left-out", resource=self.resource, object="/".join(filter(None, key)), error=error
            )
        except Exception as error:  # noqa: BLE001 - whoever may write one object could end the controller with it
            self._log(
                "object-left-out", resource=self.resource, object="/".join(filter(None, key)), bug=repr(error)
            )
        return None

    def _in_pages(self, why: object) -> None:
        self._stream = False
        self._log("reflector-in-pages", resource=self.resource, reason=why)

    async def _breathe(self) -> None:
        self._unbroken += 1
        if self._unbroken >= BREATH:
            self._unbroken = 0
            await trio.lowlevel.checkpoint()


def families(reflectors: Sequence[Reflector[Any]]) -> Iterator[Family]:
    """Metrics of lists and watches by resource."""
    lists = counter(
        "pidone_controller_lists_total", "Whole lists that were read; all but the first are relists."
    )
    watches = counter("pidone_controller_watches_total", "Watches that were begun.")
    for reflector in reflectors:
        lists.add(reflector.lists, resource=str(reflector.resource))
        watches.add(reflector.watches, resource=str(reflector.resource))
    yield from (lists, watches)


def silence(reflectors: Sequence[Reflector[Any]], began: float) -> str:
    """Which reflector is stuck, for ``/livez``; empty if none is. An API server that is away is no such case.

    ``began`` is the clock time at which this process began.
    """
    now = trio.current_time()
    for reflector in reflectors:
        if max(reflector.heard, reflector.tried, began) < now - SILENT_SECONDS:
            return f"{reflector.resource}: neither heard of nor asked about for {SILENT_SECONDS:.0f} s"
    return ""


def _key(value: Mapping[str, Any]) -> Key:
    meta = value["metadata"]
    return meta.get("namespace", ""), meta["name"]


def _relists(error: ApiError) -> bool:
    """Whether what we watch from is of no use: compacted, unknown, or of a future that a restored etcd never saw."""
    return isinstance(error, Gone | NotFound | BadRequest) or "ResourceVersionTooLarge" in error.causes
