"""Assembles process 1 of a pod: signals, reaper, engine, repo client and status port."""
