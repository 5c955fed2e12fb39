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
    """Calls ``changed`` with the object at each change.

    It is called with None if the object does not exist, and with ``Forbidden`` without the right to get and to watch
    it. Other failures are retried, and the last call stays true.
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
                await self._watch(await self._read())
                denied = False
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

    async def _read(self) -> Object | None:
        """Return the object; None if it does not exist."""
        try:
            return await self._client.get(self._resource, self._name, self._namespace)
        except NotFound:
            return None

    async def _watch(self, value: Object | None) -> None:
        """Read one watch to its end, from this object on. Without an object it begins with the first one."""
        seconds = WATCH_SECONDS * (1 + self._random.random())
        query = {"timeoutSeconds": f"{seconds:.0f}"}
        if value is not None:
            query["resourceVersion"] = value["metadata"]["resourceVersion"]
        selector = f"metadata.name={self._name}"
        begun, events = trio.current_time(), 0
        async with self._client.watch(
            self._resource, query, namespace=self._namespace, field_selector=selector
        ) as watch:
            self._changed(value)  # only now, since a copy that cannot be watched would become old
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
