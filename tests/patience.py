"""How long tests go on: waits, which are long enough for a busy machine, and tests of endurance."""

import os

PATIENCE_SECONDS = 120.0  # for a condition that must come to hold
ENDURANCE = int(
    os.environ.get("PIDONE_TEST_ENDURANCE", "1")
)  # how many times as much happens in tests of endurance
