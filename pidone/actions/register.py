"""``register``: keeps one instance registered in one registry, with the status of probes."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pidone import registries
from pidone.actions import Action, Context, Setting, Shown
from pidone.actions._target import Target
from pidone.counters import TaskView
from pidone.metrics.exposition import Family, gauge
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Registry

STATES = ("registered", "lost")
REGISTERED, LOST = STATES
HOLDS_OUTSIDE = True
# A field for the controller. With this value it does not deregister the instance of a pod that is gone.
ON_POD_GONE, NONE = "onPodGone", "none"


class Register:
    """Keeps the instance registered, and reports how it is."""

    def __init__(self, target: Target) -> None:
        self.target = target

    async def run(self, context: Context) -> None:
        await self.target.run(context, lambda: self._report(context))

    @property
    def retry_seconds(self) -> float:
        """The longest wait after a failed run: the interval of heartbeats. A run fails only before the registration."""
        return self.target.registry.interval

    async def heartbeat(self) -> None:
        """Renew the lease, or register again if the registry has lost the instance. Raises ``TaskFailed``."""
        await self.target.heartbeat()

    async def undo(self, context: Context) -> None:
        if await self.target.deregister(context):
            context.report("")

    def shown(self) -> Mapping[str, Shown]:
        """Return what the registry shows, by its servers; empty if it has no instance of ours."""
        shown = self.target.shown()
        return {} if shown is None else {self.target.registry.where: shown}

    def succeeds(self, previous: Action) -> bool:
        return isinstance(previous, Register) and self.target.registry.succeeds(previous.target.registry)

    def take_over(self, previous: Action) -> None:
        assert isinstance(previous, Register)
        self.target.take_over(previous.target)

    def _report(self, context: Context) -> None:
        state = LOST if self.target.lost else REGISTERED if self.target.registered else ""
        context.report(state, self.target.error)
        context.explain(self.target.error)


def families(views: Iterable[TaskView]) -> Iterator[Family]:
    registered = gauge("pidone_registration_up", "Whether the instance is registered.")
    for view in views:
        registry = registries.name_of(view.task.config)
        registered.add(view.state == REGISTERED, task=view.task.name, registry=registry)
    yield registered


def build(fields: Fields, setting: Setting) -> Register:
    follow = fields.names("follow")
    registry = build_registry(fields, setting.pod, setting.source)
    return Register(Target(registry, follow, setting.tasks, setting.maintenance))


def instance_of(config: Mapping[str, Any], pod: Pod) -> Registry:
    """Return the registry with the instance of a pod, for the controller. Raises ``Refused``."""
    fields = Fields(config, "register")
    fields.names("follow")
    return build_registry(fields, pod, None)


def is_left(config: Mapping[str, Any]) -> bool:
    """True if the controller does not deregister the instance of a pod that is gone."""
    return config.get(ON_POD_GONE) == NONE


def build_registry(fields: Fields, pod: Pod, source: str | None) -> Registry:
    """Build the registry from the remaining ``fields``. Raises ``Refused``."""
    fields.text(ON_POD_GONE, None)
    registry = registries.build(fields, pod, source)
    fields.done()
    return registry
