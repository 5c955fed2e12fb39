"""TaskSets and TaskBindings as values, after they were checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pidone.language.schemas import MISSING
from pidone.language.selector import Requirement, Selector


@dataclass(frozen=True, slots=True)
class Param:
    """One value that may differ from pod to pod, and what it must be like."""

    name: str
    type: str = "string"  # string | integer | boolean | duration
    default: Any = MISSING
    field_path: str = ""  # where in a Pod object it is found, in the words of the Downward API
    pattern: str = ""
    enum: tuple[Any, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    max_length: int | None = None

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "Param":
        return cls(
            name=value["name"],
            type=value.get("type", "string"),
            default=value.get("default", MISSING),
            field_path=value.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", ""),
            pattern=value.get("pattern", ""),
            enum=tuple(value.get("enum", ())),
            minimum=value.get("minimum"),
            maximum=value.get("maximum"),
            max_length=value.get("maxLength"),
        )


@dataclass(frozen=True, slots=True)
class TaskSet:
    """What runs. Tasks are as they were written: plain values, with references in them."""

    name: str
    namespace: str = ""  # empty where the file names none
    params: tuple[Param, ...] = ()
    tasks: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "TaskSet":
        """From a document without findings."""
        metadata, spec = value["metadata"], value["spec"]
        return cls(
            name=metadata["name"],
            namespace=metadata.get("namespace", ""),
            params=tuple(Param.of(param) for param in spec.get("params", ())),
            tasks=tuple(spec["tasks"]),
        )


@dataclass(frozen=True, slots=True)
class TaskBinding:
    """In which pods of its namespace which TaskSets run, with which values."""

    name: str
    namespace: str = ""  # empty where the file names none
    pod_selector: Selector = field(default_factory=Selector)
    task_sets: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "TaskBinding":
        """From a document without findings."""
        metadata, spec = value["metadata"], value["spec"]
        selector = spec["podSelector"]
        return cls(
            name=metadata["name"],
            namespace=metadata.get("namespace", ""),
            pod_selector=Selector(
                labels=selector.get("matchLabels", {}),
                requirements=tuple(
                    Requirement(one["key"], one["operator"], tuple(one.get("values", ())))
                    for one in selector.get("matchExpressions", ())
                ),
            ),
            task_sets=tuple(spec["taskSets"]),
            params=spec.get("params", {}),
        )
