"""``pidone schema [KIND]``: the JSON Schema of a kind, for an editor that has no clone to read it from."""

import json
import sys

from pidone.cli.fields import NAMES
from pidone.language.findings import suggestion
from pidone.language.schemas import schema


def print_schema(kind: str) -> int:
    """0, or 2 for a kind that is not ours."""
    found = next((known for known in NAMES if known.lower() == kind.lower()), None)
    if found is None:
        print(f'pidone schema: "{kind}" is not a kind{suggestion(kind, NAMES)}', file=sys.stderr)
        return 2
    print(json.dumps(schema(found), indent=2, ensure_ascii=False))
    return 0
