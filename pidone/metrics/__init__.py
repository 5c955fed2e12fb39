"""Prometheus metrics: the text format, and what can be read of this process, the pod's network and the tasks."""
