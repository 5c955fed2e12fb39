"""How long tests wait for what must happen: enough for a machine that is busy with other things."""

PATIENCE_SECONDS = 120.0
