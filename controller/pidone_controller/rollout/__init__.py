"""Rollouts: which version of a set each pod gets, and when that changes."""
