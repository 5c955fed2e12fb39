"""Label and field selectors as the API server reads them, as far as the controller writes them."""

from collections.abc import Mapping
from typing import Any

# Fields that are left out where they are false or empty.
DEFAULTS = {"spec.hostNetwork": "false"}


def selects(query: Mapping[str, str], value: Mapping[str, Any]) -> bool:
    """Whether an object is in ``labelSelector`` and ``fieldSelector``: ``=``, ``==``, ``!=``, ``key`` and ``!key``."""
    labels = value["metadata"].get("labels") or {}
    return all(_holds(term, labels.get) for term in _terms(query.get("labelSelector", ""))) and all(
        _holds(term, lambda path: _field(value, path)) for term in _terms(query.get("fieldSelector", ""))
    )


def _terms(selector: str) -> list[str]:
    return [term.strip() for term in selector.split(",") if term.strip()]


def _holds(term: str, get: Any) -> bool:
    if "!=" in term:
        key, _, wanted = term.partition("!=")
        return bool(get(key) != wanted)
    if "=" in term:
        key, _, wanted = term.partition("=")
        return bool(get(key) == wanted.removeprefix("="))
    return get(term.removeprefix("!")) is None if term.startswith("!") else get(term) is not None


def _field(value: Any, path: str) -> str:
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return (
        DEFAULTS.get(path, "")
        if value is None
        else str(value).lower()
        if value in (True, False)
        else str(value)
    )
