"""pidone: process 1 of a pod, and the task language it speaks."""

__version__ = "0.1.0"
