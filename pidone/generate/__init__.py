"""Makes files of the clone from the parts in ``schema/``: schemas, CRDs, the reference. In no wheel."""
