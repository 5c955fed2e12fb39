"""The repo server of pidone: which pod gets which plan."""

__version__ = "0.1.0"
