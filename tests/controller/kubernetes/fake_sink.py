"""A sink that tests look into."""

from collections.abc import Callable, Mapping

import trio

from pidone_controller.kubernetes.reflector import NamespacedName
from tests.patience import PATIENCE_SECONDS


class FakeSink:
    """A sink that keeps what it is told, and how."""

    def __init__(self) -> None:
        self.items: dict[NamespacedName, str] = {}
        self.told: list[tuple[str, str]] = []
        self._news = trio.Event()

    def replaced(self, items: Mapping[NamespacedName, str]) -> None:
        self.items = dict(items)
        self._tell("replaced", names(items))

    def changed(self, key: NamespacedName, item: str) -> None:
        self.items[key] = item
        self._tell("changed", key[1])

    def removed(self, key: NamespacedName) -> None:
        self.items.pop(key, None)
        self._tell("removed", key[1])

    def _tell(self, how: str, what: str) -> None:
        self.told.append((how, what))
        news, self._news = self._news, trio.Event()
        news.set()

    @property
    def has(self) -> str:
        return names(self.items)

    async def until(self, holds: Callable[["FakeSink"], bool], seconds: float = PATIENCE_SECONDS) -> None:
        with trio.fail_after(seconds):
            while not holds(self):
                await self._news.wait()


def names(items: Mapping[NamespacedName, object]) -> str:
    return " ".join(sorted(name for _, name in items))
