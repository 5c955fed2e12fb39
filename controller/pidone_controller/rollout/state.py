"""``status.rollout`` of a binding as a value, and the version references in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pidone.language.binding import Key
from pidone.plan.digest import digest
from pidone_controller.objects.written import CLUSTER_KINDS


@dataclass(frozen=True, slots=True)
class VersionRef:
    """One version of a binding by names and digests: enough to build it again from the versions that are kept."""

    task_sets: tuple[str, ...]
    params: Mapping[str, Any]
    sets: tuple[tuple[str, str, str], ...]  # kind, name and digest of every set that it reaches, sorted

    @property
    def digest(self) -> str:
        return digest({"taskSets": self.task_sets, "params": self.params, "sets": self.sets})

    def keys(self, namespace: str) -> list[tuple[Key, str]]:
        """Return the keys and digests of its sets, for a binding of a namespace."""
        return [
            (
                (kind in CLUSTER_KINDS, "" if kind in CLUSTER_KINDS else namespace, name),
                set_digest,
            )
            for kind, name, set_digest in self.sets
        ]

    def value(self) -> dict[str, Any]:
        """Return it as in a status."""
        return {
            "digest": self.digest,
            "taskSets": list(self.task_sets),
            "params": dict(self.params),
            "sets": [
                {"kind": kind, "name": name, "digest": set_digest} for kind, name, set_digest in self.sets
            ],
        }

    @classmethod
    def of(cls, value: object) -> "VersionRef | None":
        """Read it from a status; None if it is not valid."""
        if not isinstance(value, dict):
            return None
        names, params, items = (value.get(key, {}) for key in ("taskSets", "params", "sets"))
        if not isinstance(names, list) or not isinstance(items, list) or not isinstance(params, dict):
            return None

        sets = [
            tuple(item.get(key) for key in ("kind", "name", "digest"))
            for item in items
            if isinstance(item, dict)
        ]
        if len(sets) < len(items):
            return None
        if not all(isinstance(text, str) for texts in (names, *sets) for text in texts):
            return None
        return cls(
            tuple(names), params, tuple((str(kind), str(name), str(text)) for kind, name, text in sets)
        )


class Phase(StrEnum):
    """The phase of a rollout."""

    COMPLETE = "Complete"
    PROGRESSING = "Progressing"
    HALTED = "Halted"


@dataclass(frozen=True, slots=True)
class RolloutState:
    """``status.rollout`` of a binding. Without a target all pods have ``current``; None: no version yet."""

    phase: Phase
    current: VersionRef | None
    target: VersionRef | None = None
    percent: int = 0
    share: int = 0  # of PLACES: pods whose place is below it have the target
    since: float = 0.0  # seconds since 1970: when the phase or the percentage changed last
    message: str = ""  # why it is halted

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "RolloutState | None":
        """Read it from a status; None if it is missing or not valid."""
        try:
            phase = Phase(value["phase"])
            since = datetime.fromisoformat(value.get("since", "1970-01-01T00:00:00Z")).timestamp()
        except (KeyError, ValueError, TypeError):
            return None

        current, target = (VersionRef.of(value.get(name)) for name in ("current", "target"))
        percent, share = value.get("percent", 0), value.get("share", 0)
        if not isinstance(percent, int) or not isinstance(share, int):
            return None
        if phase is Phase.PROGRESSING and target is None:
            return None
        if phase is Phase.COMPLETE and current is None:
            return None
        return cls(phase, current, target, percent, share, since, str(value.get("message", "")))

    def value(self) -> dict[str, Any]:
        """Return it as in a status, without empty fields."""
        value: dict[str, Any] = {"phase": self.phase.value, "since": micro_time(self.since)}
        if self.current is not None:
            value["current"] = self.current.value()
        if self.target is not None:
            value |= {"target": self.target.value(), "percent": self.percent, "share": self.share}
        if self.message:
            value["message"] = self.message
        return value

    @property
    def progress(self) -> str:
        """The progress, for people; empty if no rollout is under way."""
        if self.phase is not Phase.PROGRESSING or self.target is None:
            return ""
        return f"{self.percent}% of the pods have version {short_version(self.target.digest)}"

    @property
    def halt_reason(self) -> str:
        """The reason why it is halted; empty if it is not."""
        return self.message if self.phase is Phase.HALTED else ""


def micro_time(seconds: float) -> str:
    """Return seconds since 1970 in the format of a MicroTime of Kubernetes, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def short_version(digest: str) -> str:
    """Return the first 12 hexadecimal digits of a digest, for people. They are valid in a pin."""
    return digest.removeprefix("sha256-")[:12]
