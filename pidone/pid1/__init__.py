"""The duties of process 1: reaping, signals, waiting when there is nothing else to do. Knows no tasks."""
