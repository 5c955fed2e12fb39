"""Conditions as kstatus reads them, and short texts for people. Values only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pidone.text import printable

MAX_TEXT = 1024  # characters of one text: a condition's message may have 32 KiB, a terminal shows less
OTHERS_FIELDS = frozenset({"rollout"})  # of a status, written by the field manager pidone-controller-rollout

Status = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The condition that is True, and why. ``reason`` is one word, for machines too."""

    kind: str  # Ready | Reconciling | Stalled
    reason: str
    message: str


def conditions(
    verdict: Verdict, generation: int, previous: Mapping[str, Any], now: str
) -> list[dict[str, Any]]:
    """Ready, Reconciling and Stalled, always all three.

    ``previous`` is the status before; ``lastTransitionTime`` changes with ``status`` only.
    """
    before = {condition.get("type"): condition for condition in previous.get("conditions", ())}
    result = []
    for kind in ("Ready", "Reconciling", "Stalled"):
        status = "True" if kind == verdict.kind else "False"
        # Ready says why it is True or False; the other two have a message only if they are True.
        explained = kind in {"Ready", verdict.kind}
        old = before.get(kind, {})
        since = old.get("lastTransitionTime", now) if old.get("status") == status else now
        result.append(
            {
                "type": kind,
                "status": status,
                "observedGeneration": generation,
                "reason": verdict.reason if explained else f"Not{kind}",
                "message": verdict.message if explained else "",
                "lastTransitionTime": since,
            }
        )
    return result


def without_empty(status: Status) -> Status:
    """Without empty lists: the API server removes a field that is no longer applied."""
    return {key: value for key, value in status.items() if value != []}


def owned(status: Mapping[str, Any]) -> Status:
    """The fields of a status that this controller writes by apply."""
    return {key: value for key, value in status.items() if key not in OTHERS_FIELDS}


def one_line(text: str) -> str:
    """A text, also one from a pod, as one printable line of at most ``MAX_TEXT`` characters."""
    return printable(" ".join(text[: 2 * MAX_TEXT].split()), MAX_TEXT)


def first_finding(findings: Sequence[str]) -> str:
    """The first finding, and how many more there are."""
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return one_line(f"{findings[0]}{more}")


def and_others(number: int) -> str:
    """`` and 2 others``; empty for none."""
    return f" and {counted(number, 'other')}" if number > 0 else ""


def counted(number: int, noun: str) -> str:
    """``1 pod``, ``2 pods``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
