"""Replaces the module of the standard library, which loads five modules of other algorithms. For pidone's digests."""

from _sha2 import sha256

__all__ = ["sha256"]
