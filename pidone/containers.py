"""The containers of the pod, as the repo knows them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from pidone.plan.model import Container

NONE: Mapping[str, Container] = MappingProxyType({})


class Containers:
    """The containers of the pod's spec by name; empty while they are unknown. ``changed`` is called after a change."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self.by_name = NONE
        self._changed = changed

    @property
    def unstarted(self) -> list[str]:
        """The names of the containers that have not been started yet."""
        return [name for name, container in self.by_name.items() if not container.started]

    def set(self, by_name: Mapping[str, Container]) -> None:
        """Note the containers of the last bundle."""
        if by_name != self.by_name:
            self.by_name = by_name
            self._changed()
