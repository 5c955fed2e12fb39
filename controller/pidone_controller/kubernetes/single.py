"""Keeps a copy of one object up to date by its name: get, then watch, forever.

It needs the verbs get and watch on that name alone (RBAC's ``resourceNames``): the API server takes a watch with the
field selector ``metadata.name=NAME`` as one of that object. A reflector would also list.
"""

import json
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, NoReturn

import trio

from pidone_controller.kubernetes.client import Client
from pidone_controller.kubernetes.errors import (
    ApiError,
    Forbidden,
    NotFound,
    Unreachable,
    from_status,
)
from pidone_controller.kubernetes.pacing import Retries
from pidone_controller.kubernetes.resources import Resource

# A watch lasts between this and twice this. A right that was taken away counts when the watch ends, because the API
# server checks rights when it begins.
WATCH_SECONDS = 20.0
HASTY_SECONDS = 1.0  # a watch that ended sooner, without an event, has failed

Log = Callable[..., None]  # log(event, key=value, ...)
Object = Mapping[str, Any]


class Single:
    """Calls ``changed`` with the object at each change; with None if it does not exist; with ``Forbidden`` if it may
    not be read. Other failures are retried, and the last call stays true.
    """

    def __init__(
        self,
        client: Client,
        resource: Resource,
        namespace: str,
        name: str,
        changed: Callable[[Object | Forbidden | None], None],
        *,
        log: Log,
        random: Random | None = None,
    ) -> None:
        self._client, self._resource = client, resource
        self._namespace, self._name = namespace, name
        self._changed, self._log, self._random = changed, log, random or Random()

    async def run(self) -> NoReturn:
        """Watch until cancelled."""
        retries, denied = Retries(self._random), False
        while True:
            try:
                version = await self._read()
                denied = False
                await self._watch(version)
            except ApiError as error:
                if isinstance(error, Forbidden):
                    self._changed(error)
                wait = retries.failed(trio.current_time(), error.retry_after)
                if not (isinstance(error, Forbidden) and denied):
                    self._log(
                        "object-unread",
                        resource=self._resource,
                        object=f"{self._namespace}/{self._name}",
                        error=error,
                        again=f"{wait:.1f}s",
                    )
                denied = isinstance(error, Forbidden)
                await trio.sleep(wait)

    async def _read(self) -> str:
        """Pass the object on, and return the version from which to watch; empty if it does not exist."""
        try:
            value = await self._client.get(self._resource, self._name, self._namespace)
        except NotFound:
            self._changed(None)
            return ""
        self._changed(value)
        return str(value["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> None:
        """Read one watch to its end. Without a version it begins with the object, if it exists by then."""
        seconds = WATCH_SECONDS * (1 + self._random.random())
        query = {"timeoutSeconds": f"{seconds:.0f}"} | ({"resourceVersion": version} if version else {})
        selector = f"metadata.name={self._name}"
        begun, events = trio.current_time(), 0
        async with self._client.watch(
            self._resource, query, namespace=self._namespace, field_selector=selector
        ) as watch:
            while (lines := await watch.read()) is not None:
                for line in lines:
                    self._event(line)
                    events += 1
        if not events and trio.current_time() - begun < HASTY_SECONDS:
            raise Unreachable(f"WATCH {self._resource} {self._name}: ended at once, with nothing")

    def _event(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind, value = event["type"], event["object"]
            if kind == "ERROR":
                raise from_status(f"WATCH {self._resource} {self._name}", value["code"], value)
            name = value["metadata"].get("name")
        except (ValueError, KeyError, TypeError) as error:
            # without the line, which may have the object's values
            raise Unreachable(f"WATCH {self._resource} {self._name}: not an event") from error
        if kind == "DELETED":
            self._changed(None)
        elif kind != "BOOKMARK" and name == self._name:
            self._changed(value)
