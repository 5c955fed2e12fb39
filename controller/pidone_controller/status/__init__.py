"""Statuses of bindings and sets, and Events on pods and bindings."""
