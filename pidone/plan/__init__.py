"""What a pod gets: decoding, digest, difference. Values only; no clock, no I/O."""
