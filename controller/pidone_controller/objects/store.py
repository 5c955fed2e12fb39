"""Stores the objects of one kind as last read from the API server; the sink of a reflector."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

NamespacedName = tuple[str, str]  # namespace ("" of cluster kinds) and name
T = TypeVar("T")


class Store(Generic[T]):
    """The objects by namespace and name.

    ``read`` builds an object from its JSON value and the previous object; None leaves it out. ``changed`` is called
    with the object before and after a change (None: it does not exist), but not if the two are equal.
    """

    def __init__(
        self,
        read: Callable[[Mapping[str, Any], T | None], T | None],
        changed: Callable[[T | None, T | None], None],
    ) -> None:
        self._read, self._on_change = read, changed
        self._items: dict[NamespacedName, T] = {}
        self._order: list[NamespacedName] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        """Iterate in the order of namespace and name."""
        if self._order is None:
            self._order = sorted(self._items)
        return (self._items[name] for name in self._order)

    def get(self, namespace: str, name: str) -> T | None:
        return self._items.get((namespace, name))

    # Called by a reflector

    def project(self, value: Mapping[str, Any]) -> T | None:
        metadata = value.get("metadata") or {}
        return self._read(value, self.get(metadata.get("namespace", ""), metadata.get("name", "")))

    def replaced(self, items: Mapping[NamespacedName, T]) -> None:
        for name in [name for name in self._items if name not in items]:
            self.removed(name)
        for name, item in items.items():
            self.changed(name, item)

    def changed(self, name: NamespacedName, item: T) -> None:
        before = self._items.get(name)
        if before is None:
            self._order = None
        self._items[name] = item
        if before != item:
            self._on_change(before, item)

    def removed(self, name: NamespacedName) -> None:
        before = self._items.pop(name, None)
        if before is not None:
            self._order = None
            self._on_change(before, None)
