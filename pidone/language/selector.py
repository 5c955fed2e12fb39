"""Kubernetes label selectors, and whether they match labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Requirement:
    """One entry of a selector's ``matchExpressions``."""

    key: str
    operator: str  # In | NotIn | Exists | DoesNotExist
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":  # true without the label, as in Kubernetes
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case _:
                return self.key not in labels


@dataclass(frozen=True, slots=True)
class Selector:
    """A label selector. It matches if all its requirements hold; an empty one matches every pod."""

    labels: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[Requirement, ...] = ()

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "Selector":
        """Build it from the ``matchLabels`` and ``matchExpressions`` of a document without findings."""
        return cls(
            labels=value.get("matchLabels", {}),
            requirements=tuple(
                Requirement(expression["key"], expression["operator"], tuple(expression.get("values", ())))
                for expression in value.get("matchExpressions", ())
            ),
        )


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.labels.items()) and all(
        requirement.holds(labels) for requirement in selector.requirements
    )
