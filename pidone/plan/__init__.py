"""The plan of a pod as values: model, decoding, digest, difference. No clock and no I/O."""
