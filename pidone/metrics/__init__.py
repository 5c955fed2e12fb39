"""Prometheus metrics: the text format, and collectors for this process, the pod's network and the tasks."""
