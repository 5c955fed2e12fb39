"""How long tests go on: the bound of waits, which suits a busy machine, and the size of tests of endurance."""

import os

PATIENCE_SECONDS = 120.0  # for a condition that must come to hold
# How many times as many faults and random examples as in `make test`; `make nightly` sets it.
ENDURANCE = int(os.environ.get("PIDONE_TEST_ENDURANCE", "1"))
