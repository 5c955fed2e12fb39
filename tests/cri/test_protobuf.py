import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cri.protobuf import MAP, NUMBER, TEXT, Shape, decode, encode

INNER: Shape = {"text": (1, TEXT), "number": (200, NUMBER)}
OUTER: Shape = {
    "inner": (1, INNER),
    "many": (2, [INNER]),
    "texts": (3, [TEXT]),
    "map": (15, MAP),
    "last": (16, NUMBER),
}

inner = st.fixed_dictionaries({"text": st.text(), "number": st.integers(0, 2**64 - 1)})
pairs = st.fixed_dictionaries({"key": st.text(), "value": st.text()})
outer = st.fixed_dictionaries(
    {
        "inner": inner,
        "many": st.lists(inner),
        "texts": st.lists(st.text()),
        "map": st.lists(pairs),
        "last": st.integers(0, 300),
    }
)


@given(outer)
def test_what_was_encoded_is_decoded(message: dict[str, object]) -> None:
    assert decode(OUTER, encode(OUTER, message)) == message


@pytest.mark.parametrize(
    ("data", "message"),
    [  # the examples of the encoding's own documentation
        (b"", {"text": "", "number": 0}),
        (b"\x0a\x07testing", {"text": "testing", "number": 0}),
        (b"\xc0\x0c\x96\x01", {"text": "", "number": 150}),
        (b"\x28\x01\x11" + bytes(8) + b"\x1d" + bytes(4) + b"\x22\x01x\x0a\x01y", {"text": "y", "number": 0}),
    ],
    ids=["defaults", "text", "varint", "unknown fields"],
)
def test_bytes_of_others_are_read(data: bytes, message: dict[str, object]) -> None:

    assert decode(INNER, data) == message
