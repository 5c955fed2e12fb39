"""Header blocks are decoded as hpack, the library of h2, has encoded them."""

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidone.http.hpack import Decoder, HpackError

NAMES = ["content-type", ":status", "grpc-status", "grpc-message", "x-a", "server"]
characters = st.characters(
    min_codepoint=32, max_codepoint=126, exclude_characters="\\"
)  # the short Huffman codes
values = st.one_of(st.text(characters, max_size=40), st.sampled_from(["200", "404", "0", "application/grpc"]))
pairs = st.tuples(st.sampled_from(NAMES), values)
blocks = st.lists(st.tuples(st.lists(pairs, max_size=12), st.booleans()), max_size=5)
NEEDED = {
    b"content-type",
    b":status",
    b"grpc-status",
    b"grpc-message",
    b"x-a",
}  # "server" is in the static table


@given(blocks, st.sampled_from([4096, 200, 64, 0]))
def test_blocks_of_one_connection(blocks: list[tuple[list[tuple[str, str]], bool]], size: int) -> None:
    encoder, decoder = hpack.Encoder(), Decoder()
    encoder.header_table_size = size
    for headers, huffman in blocks:
        decoded = decoder.decode(encoder.encode(headers, huffman=huffman))
        expected = [(name.encode(), value.encode()) for name, value in headers]
        assert [pair for pair in decoded if pair[0] in NEEDED] == [
            pair for pair in expected if pair[0] in NEEDED
        ]


@given(st.binary(max_size=60))
def test_any_bytes_are_decoded_or_refused(block: bytes) -> None:
    try:
        Decoder().decode(block)
    except HpackError:
        pass


@pytest.mark.parametrize(
    "block", [b"\xff\xff\xff\xff\xff\xff\xff", b"\xc0", b"\x80", b"\x40\x05abc", b"\x40\x01a", b"\x40"]
)
def test_what_is_no_block_is_refused(block: bytes) -> None:
    with pytest.raises(HpackError):
        Decoder().decode(block)
