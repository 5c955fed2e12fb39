"""Computes content addresses: SHA-256 over canonical JSON (sorted keys, no white space, UTF-8)."""

import hashlib
import json
from typing import Any


def canonical(value: Any) -> bytes:
    """Return canonical JSON: equal values have equal bytes in every process and in every replica of the controller."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest(value: Any) -> str:
    """Return ``sha256-`` and the hexadecimal SHA-256 of the value's canonical JSON."""
    return "sha256-" + hashlib.sha256(canonical(value)).hexdigest()


def is_digest(text: str) -> bool:
    """True if the text has the form of a ``digest``."""
    number = text.removeprefix("sha256-")
    return len(text) == 71 and len(number) == 64 and all(sign in "0123456789abcdef" for sign in number)
