"""TaskSets and TaskBindings as values, after the check. The cluster's kinds are values of the same classes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pidone.language import duration
from pidone.language.schemas import MISSING
from pidone.language.selector import Selector


@dataclass(frozen=True, slots=True)
class Param:
    """A param of a TaskSet: a value that may differ from pod to pod, with its type and its bounds."""

    name: str
    type: str = "string"  # string | integer | boolean | duration
    default: Any = MISSING
    field_path: str = ""  # of the Pod object, as in the Downward API; empty: not from a field
    variable: str = ""  # of a container's env; empty: not from a variable
    container: str = ""  # that container; empty for any
    secret: str = ""  # the name of a Secret of the pod's namespace; empty: not from a Secret
    key: str = ""  # in that Secret
    optional: bool = False  # Secret and key may be missing
    file: str = ""  # empty: not from a file
    pattern: str = ""
    enum: tuple[Any, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    max_length: int | None = None

    @property
    def confidential(self) -> bool:
        """True if nobody may read the value in a text, wherever it comes from."""
        return bool(self.secret or self.file)

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "Param":
        source = value.get("valueFrom", {})
        return cls(
            name=value["name"],
            type=value.get("type", "string"),
            default=value.get("default", MISSING),
            field_path=source.get("fieldRef", {}).get("fieldPath", ""),
            variable=source.get("containerEnv", {}).get("name", ""),
            container=source.get("containerEnv", {}).get("container", ""),
            secret=source.get("secretKeyRef", {}).get("name", ""),
            key=source.get("secretKeyRef", {}).get("key", ""),
            optional=source.get("secretKeyRef", {}).get("optional", False),
            file=source.get("file", ""),
            pattern=value.get("pattern", ""),
            enum=tuple(value.get("enum", ())),
            minimum=value.get("minimum"),
            maximum=value.get("maximum"),
            max_length=value.get("maxLength"),
        )


@dataclass(frozen=True, slots=True)
class TaskSet:
    """A TaskSet or ClusterTaskSet. Its tasks are plain values as in the file, with unresolved references."""

    name: str
    namespace: str = ""  # empty where the file names none
    params: tuple[Param, ...] = ()
    tasks: tuple[Mapping[str, Any], ...] = ()
    extends: tuple[str, ...] = ()  # names of sets, earlier first
    disable: tuple[str, ...] = ()  # names of tasks of those sets
    cluster: bool = False  # a ClusterTaskSet

    @property
    def kind(self) -> str:
        return "ClusterTaskSet" if self.cluster else "TaskSet"

    @property
    def key(self) -> tuple[bool, str, str]:
        """The identity among all sets: True for a ClusterTaskSet, the namespace, the name."""
        return self.cluster, self.namespace, self.name

    @property
    def title(self) -> str:
        """The kind and name for messages: ``TaskSet "web"``."""
        return f'{self.kind} "{self.name}"'

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "TaskSet":
        """Build it from a document without findings."""
        metadata, spec = value["metadata"], value["spec"]
        return cls(
            name=metadata["name"],
            namespace=metadata.get("namespace", ""),
            params=tuple(Param.of(param) for param in spec.get("params", ())),
            tasks=tuple(spec.get("tasks", ())),
            extends=tuple(spec.get("extends", ())),
            disable=tuple(spec.get("disable", ())),
            cluster=value["kind"] == "ClusterTaskSet",
        )


@dataclass(frozen=True, slots=True)
class Strategy:
    """The steps of a rollout to the pods of a binding; the defaults are the schema's."""

    canary: int = 10  # percent of the pods that get it first
    step: int = 100  # percent that are added after each pause
    pause: float = 60.0  # seconds
    max_rejected: int | None = None  # pods that may refuse it; None: one, if more than one has it

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "Strategy":
        """Build it from the ``spec.rollout`` of a document without findings."""
        default = cls()
        return cls(
            canary=_percent(value.get("canary"), default.canary),
            step=_percent(value.get("step"), default.step),
            pause=duration.seconds(value["pause"]) or 0.0 if "pause" in value else default.pause,
            max_rejected=value.get("maxRejected", default.max_rejected),
        )


def _percent(value: str | None, default: int) -> int:
    return default if value is None else int(value.removesuffix("%"))


@dataclass(frozen=True, slots=True)
class TaskBinding:
    """A TaskBinding or ClusterTaskBinding: the sets to run, the pods that run them, and values for the params."""

    name: str
    namespace: str = ""  # empty where the file names none
    pod_selector: Selector = field(default_factory=Selector)
    task_sets: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    cluster: bool = False  # a ClusterTaskBinding
    rollout: Strategy | None = None  # without one a change reaches all pods at once

    @property
    def kind(self) -> str:
        return "ClusterTaskBinding" if self.cluster else "TaskBinding"

    @property
    def key(self) -> tuple[bool, str, str]:
        """The identity among all bindings: True for a ClusterTaskBinding, the namespace, the name."""
        return self.cluster, self.namespace, self.name

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "TaskBinding":
        """Build it from a document without findings."""
        metadata, spec = value["metadata"], value["spec"]
        return cls(
            name=metadata["name"],
            namespace=metadata.get("namespace", ""),
            pod_selector=Selector.of(spec["podSelector"]),
            task_sets=tuple(spec["taskSets"]),
            params=spec.get("params", {}),
            cluster=value["kind"] == "ClusterTaskBinding",
            rollout=Strategy.of(spec["rollout"]) if "rollout" in spec else None,
        )


def object_of(value: Mapping[str, Any]) -> TaskSet | TaskBinding:
    """Return the set or binding of a document without findings."""
    return (TaskSet if value["kind"].endswith("TaskSet") else TaskBinding).of(value)
