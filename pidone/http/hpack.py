"""Decodes HPACK (RFC 7541), as far as an answer's status and content type need it."""

from collections.abc import Iterator

_STATUS_INDEXES = {8: b"200", 9: b"204", 10: b"206", 11: b"304", 12: b"400", 13: b"404", 14: b"500"}
_CONTENT_TYPE_INDEX = 31
_STATIC_SIZE = 61
_TABLE_MAX = 4096  # bytes of the dynamic table
# The characters of the Huffman code by the length of their codes, in the order of the codes (appendix B). Longer codes
# are those of "\" and of bytes that are not ASCII.
_BY_LENGTH = (
    (5, "012aceiost"),
    (6, " %-./3456789=A_bdfghlmnpru"),
    (7, ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, "&*,;XZ"),
    (10, '!"()?'),
    (11, "'+|"),
    (12, "#>"),
    (13, "\0$@[]~"),
    (14, "^}"),
    (15, "<`{"),
)


class HpackError(Exception):
    """The header block cannot be decoded."""


class Decoder:
    """Decodes the header blocks of one connection, in their order."""

    def __init__(self) -> None:
        self._table: list[tuple[bytes, bytes]] = []  # the newest first
        self._limit = _TABLE_MAX
        self._codes = _huffman_codes()

    def decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """Return names and values. A name of the static table that is not needed here is empty."""
        try:
            return list(self._fields(block))
        except IndexError:
            raise HpackError("a header block that ends early") from None

    def _fields(self, block: bytes) -> Iterator[tuple[bytes, bytes]]:
        at = 0
        while at < len(block):
            first = block[at]
            if first & 0x80:
                index, at = _integer(block, at, 7)
                yield self._entry(index)
            elif first & 0xE0 == 0x20:
                self._limit, at = _integer(block, at, 5)
                self._evict()
            else:
                index, at = _integer(block, at, 6 if first & 0x40 else 4)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = self._text(block, at)
                value, at = self._text(block, at)
                if first & 0x40:
                    self._table.insert(0, (name, value))
                    self._evict()
                yield name, value

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        if index > _STATIC_SIZE:
            return self._table[index - _STATIC_SIZE - 1]
        if not index:
            raise HpackError("an index that is 0")
        if index in _STATUS_INDEXES:
            return b":status", _STATUS_INDEXES[index]
        return b"content-type" if index == _CONTENT_TYPE_INDEX else b"", b""

    def _evict(self) -> None:
        while sum(len(name) + len(value) + 32 for name, value in self._table) > min(self._limit, _TABLE_MAX):
            self._table.pop()

    def _text(self, block: bytes, at: int) -> tuple[bytes, int]:
        compressed = block[at] & 0x80
        length, at = _integer(block, at, 7)
        data = block[at : at + length]
        if len(data) < length:
            raise IndexError
        return (self._expanded(data) if compressed else data), at + length

    def _expanded(self, data: bytes) -> bytes:
        """Return the decoded text; a character of ``_BY_LENGTH`` does not occur after a longer code."""
        text = bytearray()
        code, length = 0, 0
        for byte in data:
            for shift in range(7, -1, -1):
                code, length = code << 1 | byte >> shift & 1, length + 1
                character = self._codes.get((length, code))
                if character is not None:
                    text.append(character)
                    code, length = 0, 0
        return bytes(text)


def _huffman_codes() -> dict[tuple[int, int], int]:
    codes: dict[tuple[int, int], int] = {}
    code, before = 0, 5
    for length, characters in _BY_LENGTH:
        code <<= length - before
        before = length
        for character in characters:
            codes[length, code] = ord(character)
            code += 1
    return codes


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """Return the number whose prefix has this many bits (section 5.1), and the place after it."""
    mask = (1 << bits) - 1
    number = block[at] & mask
    at += 1
    if number < mask:
        return number, at
    for shift in range(0, 35, 7):
        byte = block[at]
        at += 1
        number += (byte & 127) << shift
        if byte < 128:
            return number, at
    raise HpackError("a number that is too large")
