"""Maintenance: people take the instances of a pod out of service, whatever the health of its application is."""

from collections.abc import Callable

import trio

# The two sources. The pod is in maintenance while at least one of them is on.
LOCAL = "POST /maintenance"  # of the status port; it survives a restart of the program
ANNOTATION = "annotation"  # of the pod, which the controller sends with each bundle


class Maintenance:
    """The sources that are on. ``changed`` is called after each change of them.

    The action ``register`` shows the maintenance in its registry, and calls ``notify`` after each answer of it.
    """

    def __init__(self, *, local: bool = False, changed: Callable[[], None] = lambda: None) -> None:
        self._sources = frozenset({LOCAL} if local else ())
        self._changed = changed
        self._news = trio.Event()

    @property
    def on(self) -> bool:
        return bool(self._sources)

    @property
    def by(self) -> list[str]:
        """The sources that are on."""
        return sorted(self._sources)

    def set(self, source: str, *, on: bool) -> None:
        """Switch a source on or off. Nothing happens if it is so already."""
        sources = self._sources | {source} if on else self._sources - {source}
        if sources != self._sources:
            self._sources = sources
            self._changed()
            self.notify()

    def notify(self) -> None:
        """Wake all callers of ``news``: a source, or an instance in a registry, has changed."""
        self._news.set()
        self._news = trio.Event()

    async def news(self) -> None:
        """Wait for the next ``notify``."""
        await self._news.wait()
