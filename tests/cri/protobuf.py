"""As much of Protocol Buffers as CRI needs: messages of numbers, texts, messages, lists and maps of these.

A message is a dict. Its shape gives each field a number and a kind: ``NUMBER`` (varints: integers, booleans,
enums), ``TEXT``, a shape, or a list of one of them. What is absent reads as the default, as in proto3; fields
that the shape does not know are skipped.
"""

from collections.abc import Iterator, Mapping
from typing import Any

NUMBER, TEXT = "number", "text"
VARINT, BYTES = 0, 2  # wire types

Shape = Mapping[str, tuple[int, Any]]
Message = dict[str, Any]

MAP: list[Shape] = [{"key": (1, TEXT), "value": (2, TEXT)}]  # how a map<string, string> is sent


def encode(shape: Shape, message: Mapping[str, Any]) -> bytes:
    encoded = b""
    for name, value in message.items():
        number, kind = shape[name]
        for one in value if isinstance(kind, list) else [value]:
            encoded += _field(number, kind[0] if isinstance(kind, list) else kind, one)
    return encoded


def decode(shape: Shape, data: bytes) -> Message:
    message: Message = {}
    for name, (_, kind) in shape.items():
        message[name] = [] if isinstance(kind, list) else 0 if kind is NUMBER else "" if kind is TEXT else {}
    names = {number: name for name, (number, _) in shape.items()}
    for number, raw in _fields(data):
        name = names.get(number, "")
        if not name:
            continue
        kind = shape[name][1]
        if isinstance(kind, list):
            message[name].append(_value(kind[0], raw))
        else:
            message[name] = _value(kind, raw)
    return message


def _field(number: int, kind: Any, value: Any) -> bytes:
    if kind is NUMBER:
        return _varint(number << 3 | VARINT) + _varint(int(value))
    data = value.encode() if kind is TEXT else encode(kind, value)
    return _varint(number << 3 | BYTES) + _varint(len(data)) + data


def _value(kind: Any, raw: int | bytes) -> Any:
    if isinstance(raw, int):
        return raw
    return raw.decode() if kind is TEXT else decode(kind, raw)


def _varint(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    return bytes(group | 0x80 for group in groups[:-1]) + bytes(groups[-1:])


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        match key & 7:
            case 0:  # VARINT
                value, at = _read_varint(data, at)
                yield key >> 3, value
            case 2:  # BYTES
                length, at = _read_varint(data, at)
                yield key >> 3, data[at : at + length]
                at += length
            case 1:  # FIXED64: a double, which CRI's answers have in statistics alone
                at += 8
            case 5:  # FIXED32
                at += 4
            case other:
                raise ValueError(f"wire type {other} at byte {at}")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
