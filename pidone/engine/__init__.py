"""Runs a plan. ``core`` decides (values and time in, commands out), ``runner`` does (Trio)."""
