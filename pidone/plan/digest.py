"""Content addresses: SHA-256 over canonical JSON (sorted keys, no white space, UTF-8)."""

import hashlib
import json
from typing import Any


def canonical(value: Any) -> bytes:
    """The same bytes for equal values in any process: what all replicas of a controller must agree on."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest(value: Any) -> str:
    return "sha256-" + hashlib.sha256(canonical(value)).hexdigest()
