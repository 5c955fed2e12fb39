"""The reference in docs/language.md is the one that the schema makes."""

from pidone.generate.assembly import TOP
from pidone.generate.reference import with_reference


def test_the_reference_is_the_schema_s() -> None:
    text = (TOP / "docs" / "language.md").read_text("utf-8")
    assert text == with_reference(text), "make schema"
