"""``pidone schema [KIND]``: prints the JSON Schema of a kind, for editors on machines without a clone."""

import json
import sys

from pidone.cli.fields import NAMES
from pidone.language.findings import suggestion
from pidone.language.schemas import schema


def print_schema(kind: str) -> int:
    """Print the schema. Exit code 0, or 2 for an unknown kind."""
    name = next((name for name in NAMES if name.lower() == kind.lower()), None)
    if name is None:
        print(f'pidone schema: "{kind}" is not a kind{suggestion(kind, NAMES)}', file=sys.stderr)
        return 2
    print(json.dumps(schema(name), indent=2, ensure_ascii=False))
    return 0
